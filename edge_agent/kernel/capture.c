/* Frames from capture files, pcap and pcapng of any time resolution, in nanoseconds; and functions shared with live.c.
 *
 * libpcap reads the file through a window of ours. In a plain pcap file of this machine's byte order, without a filter, an
 * ordinary record is taken from the window directly (next_plain), without libpcap's two reads and its copy: that saves a
 * fifth of the time of a packet. Everything else is left to libpcap, which goes on where the window stopped: the file header,
 * every other format, filters, and any record that is cut, oversized or strange, hence all errors. */
#define _GNU_SOURCE /* fopencookie; u_char, which pcap.h wants and -std=c11 hides */
#define _FILE_OFFSET_BITS 64
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW = 1 << 16 };
enum { LINK_TYPES = 512 }; /* libpcap's numbers are below */

struct capture {
    pcap_t *pcap;
    int linktype;
    enum capture_result state; /* CAPTURE_FRAME while there may be more */
    char reason[CAPTURE_ERROR];
    int file;
    uint32_t at, end;        /* the window holds the file's next bytes in window[at .. end) */
    int64_t plain_fraction;  /* ns in the smaller unit of a plain pcap file's times; 0: libpcap reads everything */
    uint32_t plain_captured; /* libpcap cuts longer frames */
    uint8_t window[WINDOW];
    char stdio_buffer[WINDOW]; /* where libpcap reads everything */
};

static const int64_t LATEST_SECOND = 4611686018; /* 2^62 ns, in 2116: differences of two times stay inside int64 */

static struct capture *fail(struct capture *c, char *error, const char *reason)
{
    snprintf(error, CAPTURE_ERROR, "%s", reason);
    capture_close(c);
    return NULL;
}

static ssize_t read_file(int file, void *to, size_t size)
{
    ssize_t got;
    do
        got = read(file, to, size);
    while (got < 0 && errno == EINTR);
    return got;
}

/* Read on until the window has `size` bytes, if the file has them; size <= WINDOW. */
static bool fill_window(struct capture *c, uint32_t size)
{
    if (c->end - c->at >= size)
        return true;
    memmove(c->window, c->window + c->at, c->end - c->at);
    c->end -= c->at;
    c->at = 0;
    while (c->end < size) {
        ssize_t got = read_file(c->file, c->window + c->end, WINDOW - c->end);
        if (got <= 0)
            return false; /* libpcap will meet the end or the error again and report it */
        c->end += (uint32_t)got;
    }
    return true;
}

/* libpcap's reads take the rest of the window first, then the file. */
static ssize_t window_read(void *cookie, char *to, size_t size)
{
    struct capture *c = cookie;
    size_t held = c->end - c->at;
    if (held == 0)
        return read_file(c->file, to, size);
    if (size > held)
        size = held;
    memcpy(to, c->window + c->at, size);
    c->at += (uint32_t)size;
    return (ssize_t)size;
}

static int window_close(void *cookie)
{
    return close(((struct capture *)cookie)->file);
}

/* Return the nanoseconds in a unit of a plain pcap file's fractions, 0 for any other file. */
static int64_t plain_fraction(struct capture *c)
{
    uint32_t magic = 0;
    if (fill_window(c, sizeof magic))
        memcpy(&magic, c->window, sizeof magic);
    return magic == 0xa1b2c3d4 ? 1000 : magic == 0xa1b23c4d ? 1 : 0;
}

bool capture_filter(struct pcap *pcap, const char *bpf, char *error)
{
    struct bpf_program program;
    bool good = pcap_compile(pcap, &program, bpf, 1, PCAP_NETMASK_UNKNOWN) == 0;
    if (good) {
        good = pcap_setfilter(pcap, &program) == 0;
        pcap_freecode(&program);
    }
    if (!good)
        snprintf(error, CAPTURE_ERROR, "filter '%.200s': %s", bpf, pcap_geterr(pcap));
    return good;
}

bool capture_filter_possible(const char *bpf, char *error)
{
    bool possible = false, named = false, unresolved = false;
    for (int linktype = 0; linktype < LINK_TYPES && !possible && !unresolved; linktype++) {
        pcap_t *nothing = link_supported(linktype) ? pcap_open_dead(linktype, 65535) : NULL;
        struct bpf_program program;
        if (nothing == NULL)
            continue;
        possible = pcap_compile(nothing, &program, bpf, 1, PCAP_NETMASK_UNKNOWN) == 0;
        if (possible)
            pcap_freecode(&program);
        else if (!named) /* what it says of Ethernet, or of the first link type in number */
            snprintf(error, CAPTURE_ERROR, "filter '%.200s': %s", bpf, pcap_geterr(nothing));
        named = true;
        unresolved = !possible && strncmp(pcap_geterr(nothing), "unknown host", 12) == 0; /* each look-up may take long */
        pcap_close(nothing);
    }
    return possible;
}

void capture_say_unsupported(int linktype, char *error)
{
    const char *name = pcap_datalink_val_to_name(linktype);
    snprintf(error, CAPTURE_ERROR, "link type %d (%s) is not one of " LINK_NAMES, linktype,
             name != NULL ? name : "unknown");
}

void capture_fill(struct frame *frame, const struct pcap_pkthdr *header, const uint8_t *bytes, int linktype)
{
    int64_t seconds = header->ts.tv_sec, nanoseconds = header->ts.tv_usec; /* as asked: tv_usec holds nanoseconds */
    frame->bad_time = seconds < 0 || seconds > LATEST_SECOND || nanoseconds < 0 || nanoseconds > 999999999;
    if (frame->bad_time) {
        seconds = seconds < 0 ? 0 : seconds > LATEST_SECOND ? LATEST_SECOND : seconds;
        nanoseconds = nanoseconds < 0 ? 0 : nanoseconds > 999999999 ? 999999999 : nanoseconds;
    }
    frame->t_ns = seconds * 1000000000 + nanoseconds;
    frame->captured = header->caplen;
    frame->wire_length = header->len;
    frame->bytes = bytes;
    frame->interface = 0;
    frame->linktype = linktype;
}

struct capture *capture_open_file(const char *path, const char *bpf, char *error)
{
    char pcap_error[PCAP_ERRBUF_SIZE];
    struct capture *c = calloc(1, sizeof *c);
    if (c == NULL)
        return fail(c, error, "out of memory");
    c->file = open(path, O_RDONLY | O_CLOEXEC);
    if (c->file < 0)
        return fail(c, error, strerror(errno));
    FILE *file = fopencookie(c, "rb", (cookie_io_functions_t){.read = window_read, .close = window_close});
    if (file == NULL) {
        close(c->file);
        return fail(c, error, "out of memory");
    }
    if (bpf == NULL)
        c->plain_fraction = plain_fraction(c);
    if (c->plain_fraction != 0)
        setvbuf(file, NULL, _IONBF, 0); /* libpcap must take no more from the window than it uses */
    else
        setvbuf(file, c->stdio_buffer, _IOFBF, WINDOW);
    __fsetlocking(file, FSETLOCKING_BYCALLER); /* one thread reads it; two locks a packet would cost 10 ns */
    c->pcap = pcap_fopen_offline_with_tstamp_precision(file, PCAP_TSTAMP_PRECISION_NANO, pcap_error);
    if (c->pcap == NULL) {
        fclose(file);
        return fail(c, error, pcap_error);
    }
    c->linktype = pcap_datalink(c->pcap);
    if (pcap_major_version(c->pcap) != 2 || pcap_minor_version(c->pcap) != 4)
        c->plain_fraction = 0; /* older ones may have the lengths the other way round */
    c->plain_captured = pcap_snapshot(c->pcap) > 0 ? (uint32_t)pcap_snapshot(c->pcap) : 0;
    char reason[CAPTURE_ERROR];
    bool good = link_supported(c->linktype);
    if (!good)
        capture_say_unsupported(c->linktype, reason);
    else
        good = bpf == NULL || capture_filter(c->pcap, bpf, reason);
    return good ? c : fail(c, error, reason);
}

int capture_linktype(const struct capture *c)
{
    return c->linktype;
}

/* Take the next record if it is whole, fits the window and has no value that versions of libpcap read differently. */
static bool next_plain(struct capture *c, struct frame *frame)
{
    struct plain_record record;
    if (!fill_window(c, sizeof record))
        return false;
    memcpy(&record, c->window + c->at, sizeof record);
    if (record.captured > c->plain_captured || record.captured > WINDOW - sizeof record ||
        record.seconds > INT32_MAX || record.fraction * (uint64_t)c->plain_fraction > 999999999 ||
        !fill_window(c, (uint32_t)sizeof record + record.captured))
        return false;
    frame->t_ns = (int64_t)record.seconds * 1000000000 + (int64_t)record.fraction * c->plain_fraction;
    frame->captured = record.captured;
    frame->wire_length = record.wire_length;
    frame->bytes = c->window + c->at + sizeof record;
    frame->bad_time = false;
    frame->interface = 0;
    frame->linktype = c->linktype;
    c->at += (uint32_t)sizeof record + record.captured;
    return true;
}

enum capture_result capture_next(struct capture *c, struct frame *frame)
{
    struct pcap_pkthdr *header;
    const u_char *bytes;

    if (c->state != CAPTURE_FRAME)
        return c->state;
    if (c->plain_fraction != 0 && next_plain(c, frame))
        return CAPTURE_FRAME;
    int got = pcap_next_ex(c->pcap, &header, &bytes);
    if (got != 1) {
        c->state = got == PCAP_ERROR_BREAK ? CAPTURE_END : CAPTURE_FAILED;
        if (c->state == CAPTURE_FAILED)
            snprintf(c->reason, sizeof c->reason, "%s", pcap_geterr(c->pcap));
        return c->state;
    }
    capture_fill(frame, header, bytes, c->linktype);
    return CAPTURE_FRAME;
}

const char *capture_reason(const struct capture *c)
{
    return c->reason;
}

void capture_close(struct capture *c)
{
    if (c == NULL)
        return;
    if (c->pcap != NULL)
        pcap_close(c->pcap);
    free(c);
}
