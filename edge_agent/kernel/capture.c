/* Frames from libpcap: live interfaces, and pcap and pcapng files of any time resolution, asked for in nanoseconds.
 *
 * A live interface is never waited for here: libpcap's own waiting was seen to go on for 46 s when nothing came. The caller
 * polls, which also serves several interfaces. What is taken can be written to a file, in the order in which it is taken.
 *
 * libpcap reads through a window on the file that is ours. In a plain pcap file of this machine's byte order, without a
 * filter, a whole ordinary record is taken from the window at once (next_plain), without libpcap's two reads and its copy:
 * a fifth of what a packet cost. Everything else is left to libpcap, which finds the window where it stopped: the file
 * header, every other format, filters, and any record that is cut, oversized or strange, hence all errors. */
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
enum { GATHER_MS = 50 }; /* the kernel hands frames over in blocks: when one is full, or after this */

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
    bool live;                 /* then the window holds records on their way to a file, end bytes of them */
    int record, record_error;  /* file descriptor or -1; why writing to it has stopped */
};

/* The header of a record in a pcap file. */
struct plain_record {
    uint32_t seconds, fraction, captured, wire_length;
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

/* Have `size` bytes in the window, if the file has them; size <= WINDOW. */
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
            return false; /* libpcap will meet the end or the error again, and say so */
        c->end += (uint32_t)got;
    }
    return true;
}

/* What libpcap reads: the window, then the file. */
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

/* A plain pcap file's ns in a unit of its fractions, 0 for anything else. */
static int64_t plain_fraction(struct capture *c)
{
    uint32_t magic = 0;
    if (fill_window(c, sizeof magic))
        memcpy(&magic, c->window, sizeof magic);
    return magic == 0xa1b2c3d4 ? 1000 : magic == 0xa1b23c4d ? 1 : 0;
}

static bool set_filter(struct capture *c, const char *bpf, char *error)
{
    struct bpf_program program;
    bool good = pcap_compile(c->pcap, &program, bpf, 1, PCAP_NETMASK_UNKNOWN) == 0;
    if (good) {
        good = pcap_setfilter(c->pcap, &program) == 0;
        pcap_freecode(&program);
    }
    if (!good) {
        snprintf(error, CAPTURE_ERROR, "filter '%.200s': %s", bpf, pcap_geterr(c->pcap));
        capture_close(c);
    }
    return good;
}

static bool supported(struct capture *c, char *error)
{
    if (decode_supports(c->linktype))
        return true;
    const char *name = pcap_datalink_val_to_name(c->linktype);
    snprintf(error, CAPTURE_ERROR, "link type %d (%s) is not one of Ethernet, Linux cooked v1 and v2, raw IP",
             c->linktype, name != NULL ? name : "unknown");
    capture_close(c);
    return false;
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
        setvbuf(file, NULL, _IONBF, 0); /* libpcap must take from the window what it uses and no more */
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
    if (!supported(c, error))
        return NULL;
    return bpf == NULL || set_filter(c, bpf, error) ? c : NULL;
}

struct capture *capture_open_live(const char *interface, const struct live_settings *settings, char *error)
{
    char pcap_error[PCAP_ERRBUF_SIZE];
    struct capture *c = calloc(1, sizeof *c);
    if (c == NULL)
        return fail(c, error, "out of memory");
    c->live = true;
    c->record = -1;
    c->pcap = pcap_create(interface, pcap_error);
    if (c->pcap == NULL)
        return fail(c, error, pcap_error);
    pcap_set_snaplen(c->pcap, settings->snaplen);
    pcap_set_promisc(c->pcap, settings->promiscuous);
    pcap_set_buffer_size(c->pcap, settings->buffer);
    pcap_set_timeout(c->pcap, GATHER_MS);
    pcap_set_tstamp_precision(c->pcap, PCAP_TSTAMP_PRECISION_NANO);
    int status = pcap_activate(c->pcap);
    if (status < 0) {
        const char *more = pcap_geterr(c->pcap);
        snprintf(error, CAPTURE_ERROR, "%s%s%.200s", pcap_statustostr(status), *more != 0 ? ": " : "", more);
        capture_close(c);
        return NULL;
    }
    c->linktype = pcap_datalink(c->pcap);
    if (!supported(c, error))
        return NULL;
    if (pcap_get_tstamp_precision(c->pcap) != PCAP_TSTAMP_PRECISION_NANO)
        return fail(c, error, "the interface gives no times in nanoseconds");
    if ((settings->inbound && pcap_setdirection(c->pcap, PCAP_D_IN) != 0) || pcap_setnonblock(c->pcap, 1, pcap_error) != 0) {
        snprintf(error, CAPTURE_ERROR, "%.300s", pcap_geterr(c->pcap));
        capture_close(c);
        return NULL;
    }
    return settings->bpf == NULL || set_filter(c, settings->bpf, error) ? c : NULL;
}

int capture_fd(const struct capture *c)
{
    return c->live ? pcap_get_selectable_fd(c->pcap) : -1;
}

bool capture_statistics(struct capture *c, struct capture_stats *stats)
{
    struct pcap_stat counted;
    if (!c->live || pcap_stats(c->pcap, &counted) != 0)
        return false;
    *stats = (struct capture_stats){counted.ps_recv, counted.ps_drop, counted.ps_ifdrop};
    return true;
}

void capture_record(struct capture *c, int file)
{
    c->record = file;
    c->record_error = 0;
    c->end = 0;
}

int capture_flush(struct capture *c)
{
    uint32_t at = 0;
    while (c->live && c->record >= 0 && c->record_error == 0 && at < c->end) {
        ssize_t put = write(c->record, c->window + at, c->end - at);
        if (put >= 0)
            at += (uint32_t)put;
        else if (errno != EINTR)
            c->record_error = errno;
    }
    c->end = 0;
    return c->record_error;
}

/* Put a frame among those that are on their way to the file. */
static void record_frame(struct capture *c, const struct frame *frame)
{
    struct plain_record record = {(uint32_t)(frame->t_ns / 1000000000), (uint32_t)(frame->t_ns % 1000000000),
                                  frame->captured, frame->wire_length};
    if (frame->captured > WINDOW - sizeof record) /* more than SNAPLEN_MAX: cannot be */
        return;
    if (c->end + sizeof record + frame->captured > WINDOW)
        capture_flush(c);
    memcpy(c->window + c->end, &record, sizeof record);
    memcpy(c->window + c->end + sizeof record, frame->bytes, frame->captured);
    c->end += (uint32_t)(sizeof record + frame->captured);
}

int capture_linktype(const struct capture *c)
{
    return c->linktype;
}

/* The next record, if it is whole, fits the window and says nothing that libpcap versions read differently. */
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
    if (got == 0)
        return CAPTURE_IDLE;
    if (got != 1) {
        c->state = got == PCAP_ERROR_BREAK ? CAPTURE_END : CAPTURE_FAILED;
        if (c->state == CAPTURE_FAILED)
            snprintf(c->reason, sizeof c->reason, "%s", pcap_geterr(c->pcap));
        return c->state;
    }
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
    if (c->live && c->record >= 0)
        record_frame(c, frame);
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
