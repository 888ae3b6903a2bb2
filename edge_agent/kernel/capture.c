/* Frames from libpcap: pcap and pcapng files of any time resolution, asked for in nanoseconds. */
#define _DEFAULT_SOURCE /* u_char, which pcap.h wants and -std=c11 hides */
#include "kernel.h"

#include <errno.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>

struct capture {
    pcap_t *pcap;
    int linktype;
    enum capture_result state; /* CAPTURE_FRAME while there may be more */
    char reason[CAPTURE_ERROR];
};

enum { FILE_BUFFER = 1 << 16 };
static const int64_t LATEST_SECOND = 4611686018; /* 2^62 ns, in 2116: differences of two times stay inside int64 */

static struct capture *fail(struct capture *c, char *error, const char *reason)
{
    snprintf(error, CAPTURE_ERROR, "%s", reason);
    capture_close(c);
    return NULL;
}

struct capture *capture_open_file(const char *path, const char *bpf, char *error)
{
    char pcap_error[PCAP_ERRBUF_SIZE];
    struct capture *c = calloc(1, sizeof *c);
    if (c == NULL)
        return fail(c, error, "out of memory");
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return fail(c, error, strerror(errno));
    setvbuf(file, NULL, _IOFBF, FILE_BUFFER);
    __fsetlocking(file, FSETLOCKING_BYCALLER); /* one thread reads it; two locks a packet would cost 10 ns */
    c->pcap = pcap_fopen_offline_with_tstamp_precision(file, PCAP_TSTAMP_PRECISION_NANO, pcap_error);
    if (c->pcap == NULL) {
        fclose(file);
        return fail(c, error, pcap_error);
    }
    c->linktype = pcap_datalink(c->pcap);
    if (!decode_supports(c->linktype)) {
        const char *name = pcap_datalink_val_to_name(c->linktype);
        snprintf(error, CAPTURE_ERROR, "link type %d (%s) is not one of Ethernet, Linux cooked v1 and v2, raw IP",
                 c->linktype, name != NULL ? name : "unknown");
        capture_close(c);
        return NULL;
    }
    if (bpf != NULL) {
        struct bpf_program program;
        if (pcap_compile(c->pcap, &program, bpf, 1, PCAP_NETMASK_UNKNOWN) != 0) {
            snprintf(error, CAPTURE_ERROR, "filter '%.200s': %s", bpf, pcap_geterr(c->pcap));
            capture_close(c);
            return NULL;
        }
        int refused = pcap_setfilter(c->pcap, &program);
        pcap_freecode(&program);
        if (refused != 0) {
            snprintf(error, CAPTURE_ERROR, "filter '%.200s': %s", bpf, pcap_geterr(c->pcap));
            capture_close(c);
            return NULL;
        }
    }
    return c;
}

int capture_linktype(const struct capture *c)
{
    return c->linktype;
}

enum capture_result capture_next(struct capture *c, struct frame *frame)
{
    struct pcap_pkthdr *header;
    const u_char *bytes;

    if (c->state != CAPTURE_FRAME)
        return c->state;
    int got = pcap_next_ex(c->pcap, &header, &bytes);
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
