/* Frames of live interfaces: several are read as one, in the order of their times, each frame once.
 *
 * Nothing here waits for an interface: libpcap's own waiting was seen to go on for 46 s when no frame came. The caller polls.
 * Frames that are taken can be written to a file, in the order in which they are taken.
 *
 * The system hands frames over in blocks, so a frame of one interface may come GATHER_MS later than younger ones of another.
 * The head of an interface is therefore held until each other interface has a younger head or can no longer have an older
 * one. Thus the copy that a router sends comes after the original. */
#define _GNU_SOURCE /* u_char, which pcap.h wants and -std=c11 hides */
#include "kernel.h"

#include <errno.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { RECORD_BYTES = 1 << 16 };
enum { GATHER_MS = 50 };   /* a block is handed over when it is full, or after this and at most twice this */
enum { AGAIN_MOST = 4096 }; /* frames left out in one call */
static const int64_t HOLD_NS = 2 * GATHER_MS * 1000000 + 20000000;

struct port {
    char *name;
    pcap_t *pcap; /* NULL: not open, or lost */
    int linktype;
    bool waiting; /* head holds its next frame */
    struct frame head;
    uint8_t *copy; /* of its bytes, where it may have to wait: libpcap gives a block back with its last frame */
    int64_t empty_ns; /* it has no more frames older than this */
    struct pcap_stat counted;
    bool lost; /* and live_lost() has not returned it yet */
    char reason[CAPTURE_ERROR];
};

struct live {
    struct live_settings settings;
    char *bpf;
    struct once *once; /* NULL: every frame counts */
    size_t count;
    bool held;
    struct live_stats stats;
    int record, record_error; /* file descriptor or -1; why writing to it has stopped */
    uint32_t recorded;
    uint8_t records[RECORD_BYTES]; /* on their way to the file */
    struct port ports[];
};

struct live *live_new(const char *const *names, size_t count, const struct live_settings *settings)
{
    struct live *l = calloc(1, sizeof *l + count * sizeof *l->ports);
    uint64_t seed = 0;
    if (l == NULL)
        return NULL;
    l->settings = *settings;
    l->count = count;
    l->record = -1;
    bool good = settings->bpf == NULL || (l->bpf = strdup(settings->bpf)) != NULL;
    for (size_t i = 0; i < count; i++) {
        good = (l->ports[i].name = strdup(names[i])) != NULL && good;
        good = (count == 1 || (l->ports[i].copy = malloc((size_t)settings->snaplen)) != NULL) && good;
    }
    if (settings->once) {
        if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) < 0)
            seed = (uintptr_t)l;
        l->once = once_new(seed, count > 1);
        good = good && l->once != NULL;
    }
    if (good)
        return l;
    live_free(l);
    return NULL;
}

static void take_statistics(struct live *l, struct port *p)
{
    struct pcap_stat now;
    if (p->pcap == NULL || pcap_stats(p->pcap, &now) != 0)
        return;
    l->stats.received += (uint32_t)(now.ps_recv - p->counted.ps_recv); /* libpcap's counters have 32 bits and wrap around */
    l->stats.dropped += (uint32_t)(now.ps_drop - p->counted.ps_drop);
    l->stats.interface_dropped += (uint32_t)(now.ps_ifdrop - p->counted.ps_ifdrop);
    p->counted = now;
}

void live_shut(struct live *l, size_t i)
{
    struct port *p = &l->ports[i];
    if (p->pcap == NULL)
        return;
    take_statistics(l, p);
    pcap_close(p->pcap);
    p->pcap = NULL;
    p->waiting = false;
}

void live_free(struct live *l)
{
    if (l == NULL)
        return;
    for (size_t i = 0; i < l->count; i++) {
        live_shut(l, i);
        free(l->ports[i].name);
        free(l->ports[i].copy);
    }
    once_free(l->once);
    free(l->bpf);
    free(l);
}

static enum open_result refuse(struct live *l, size_t i, char *error, const char *reason)
{
    char kept[CAPTURE_ERROR];
    snprintf(kept, sizeof kept, "%s", reason); /* live_shut() may free it with the handle */
    live_shut(l, i);
    snprintf(error, CAPTURE_ERROR, "%s", kept);
    return OPEN_REFUSED;
}

enum open_result live_open(struct live *l, size_t i, char *error)
{
    char pcap_error[PCAP_ERRBUF_SIZE], text[CAPTURE_ERROR];
    const struct live_settings *s = &l->settings;
    struct port *p = &l->ports[i];
    live_shut(l, i);
    p->pcap = pcap_create(p->name, pcap_error);
    if (p->pcap == NULL)
        return refuse(l, i, error, pcap_error);
    pcap_set_snaplen(p->pcap, s->snaplen);
    pcap_set_promisc(p->pcap, s->promiscuous);
    pcap_set_buffer_size(p->pcap, s->buffer);
    pcap_set_timeout(p->pcap, GATHER_MS);
    pcap_set_tstamp_precision(p->pcap, PCAP_TSTAMP_PRECISION_NANO);
    int status = pcap_activate(p->pcap);
    if (status < 0) {
        const char *more = pcap_geterr(p->pcap);
        bool says_more = *more != 0 && strcmp(more, pcap_statustostr(status)) != 0;
        snprintf(text, sizeof text, "%s%s%.200s", pcap_statustostr(status), says_more ? ": " : "", says_more ? more : "");
        refuse(l, i, error, text);
        return status == PCAP_ERROR_PERM_DENIED || status == PCAP_ERROR_PROMISC_PERM_DENIED ? OPEN_FORBIDDEN : OPEN_REFUSED;
    }
    p->linktype = pcap_datalink(p->pcap);
    if (!link_supported(p->linktype)) {
        capture_say_unsupported(p->linktype, text);
        return refuse(l, i, error, text);
    }
    if (pcap_get_tstamp_precision(p->pcap) != PCAP_TSTAMP_PRECISION_NANO)
        return refuse(l, i, error, "the interface gives no times in nanoseconds");
    if ((s->inbound && pcap_setdirection(p->pcap, PCAP_D_IN) != 0) || pcap_setnonblock(p->pcap, 1, pcap_error) != 0)
        return refuse(l, i, error, pcap_geterr(p->pcap));
    if (l->bpf != NULL && !capture_filter(p->pcap, l->bpf, text))
        return refuse(l, i, error, text);
    p->lost = p->waiting = false;
    p->empty_ns = 0;
    memset(&p->counted, 0, sizeof p->counted);
    return OPEN_DONE;
}

int live_fd(const struct live *l, size_t i)
{
    return l->ports[i].pcap != NULL ? pcap_get_selectable_fd(l->ports[i].pcap) : -1;
}

int live_linktype(const struct live *l, size_t i)
{
    return l->ports[i].linktype;
}

size_t live_count(const struct live *l)
{
    return l->count;
}

bool live_held(const struct live *l)
{
    return l->held;
}

const char *live_lost(struct live *l, size_t i)
{
    struct port *p = &l->ports[i];
    bool lost = p->lost;
    p->lost = false;
    return lost ? p->reason : NULL;
}

void live_own(struct live *l, const uint64_t *macs, size_t count)
{
    if (l->once != NULL)
        once_own(l->once, macs, count);
}

struct live_stats live_statistics(struct live *l)
{
    for (size_t i = 0; i < l->count; i++)
        take_statistics(l, &l->ports[i]);
    l->stats.forgotten = l->once != NULL ? once_forgotten(l->once) : 0;
    return l->stats;
}

void live_record(struct live *l, int file)
{
    l->record = file;
    l->record_error = 0;
    l->recorded = 0;
}

int live_flush(struct live *l)
{
    uint32_t at = 0;
    while (l->record >= 0 && l->record_error == 0 && at < l->recorded) {
        ssize_t put = write(l->record, l->records + at, l->recorded - at);
        if (put >= 0)
            at += (uint32_t)put;
        else if (errno != EINTR)
            l->record_error = errno;
    }
    l->recorded = 0;
    return l->record_error;
}

/* Append a frame to the records that live_flush() will write. */
static void record_frame(struct live *l, const struct frame *frame)
{
    struct plain_record record = {(uint32_t)(frame->t_ns / 1000000000), (uint32_t)(frame->t_ns % 1000000000),
                                  frame->captured, frame->wire_length};
    if (frame->captured > RECORD_BYTES - sizeof record) /* larger than any snaplen: impossible */
        return;
    if (l->recorded + sizeof record + frame->captured > RECORD_BYTES)
        live_flush(l);
    memcpy(l->records + l->recorded, &record, sizeof record);
    memcpy(l->records + l->recorded + sizeof record, frame->bytes, frame->captured);
    l->recorded += (uint32_t)(sizeof record + frame->captured);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now); /* the clock of the frames */
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Fetch the next frame of an open port into its head, if there is one. */
static void fetch(struct live *l, size_t i)
{
    struct port *p = &l->ports[i];
    struct pcap_pkthdr *header;
    const u_char *bytes;
    int64_t empty_ns = l->count > 1 ? now_ns() - HOLD_NS : 0;
    int got = pcap_next_ex(p->pcap, &header, &bytes);
    if (got == 1) {
        capture_fill(&p->head, header, bytes, p->linktype);
        p->head.interface = (uint8_t)i;
        if (p->copy != NULL) {
            if (p->head.captured > (uint32_t)l->settings.snaplen)
                p->head.captured = (uint32_t)l->settings.snaplen;
            p->head.bytes = memcpy(p->copy, bytes, p->head.captured);
        }
        p->waiting = true;
    } else if (got == 0) {
        p->empty_ns = empty_ns;
    } else {
        snprintf(p->reason, sizeof p->reason, "%s", pcap_geterr(p->pcap));
        live_shut(l, i);
        p->lost = true;
    }
}

/* Return the port whose head comes next, or NULL if there is no head or an older frame may still come from another port. */
static struct port *next_port(struct live *l)
{
    uint64_t asked = 0;
    struct port *first;
    bool again;
    do {
        again = false;
        first = NULL;
        for (size_t i = 0; i < l->count; i++)
            if (l->ports[i].waiting && (first == NULL || l->ports[i].head.t_ns < first->head.t_ns))
                first = &l->ports[i];
        for (size_t i = 0; i < l->count && !again; i++) {
            struct port *p = &l->ports[i];
            if (p->pcap == NULL || p->waiting || asked >> i & 1 || (first != NULL && p->empty_ns >= first->head.t_ns))
                continue;
            asked |= (uint64_t)1 << i;
            fetch(l, i);
            again = p->waiting || p->pcap == NULL;
        }
    } while (again);
    l->held = false;
    for (size_t i = 0; first != NULL && l->count > 1 && i < l->count; i++) {
        const struct port *p = &l->ports[i];
        if (p->pcap != NULL && !p->waiting && p->empty_ns < first->head.t_ns)
            l->held = true;
    }
    if (l->held && first->head.t_ns - now_ns() > HOLD_NS)
        l->held = false; /* the clock was set back, so the order is unknown */
    return l->held ? NULL : first;
}

enum capture_result live_next(struct live *l, struct frame *frame)
{
    for (int left_out = 0; left_out < AGAIN_MOST; left_out++) {
        struct port *p = next_port(l);
        if (p == NULL)
            return CAPTURE_IDLE;
        p->waiting = false;
        if (l->once != NULL && once_again(l->once, &p->head)) {
            l->stats.again++;
            continue;
        }
        *frame = p->head;
        if (l->record >= 0)
            record_frame(l, frame);
        return CAPTURE_FRAME;
    }
    return CAPTURE_IDLE;
}
