/* The last seconds of traffic, for the pcap that goes with an alert. kernel.h says which frames are stored or left out. */
#include "kernel.h"

#include <stdlib.h>
#include <string.h>

/* A stored frame; its bytes follow, filled up to a multiple of 8. */
struct kept {
    int64_t t_ns;
    uint32_t wire_length;
    uint16_t captured, linktype;
};

/* An allowance of bytes, stored as the time at which it will be whole again (the virtual scheduling form of a token bucket,
 * ITU-T I.371). Spending moves that time on; no division is needed. */
struct share {
    int64_t whole_at;
};

struct sender {
    uint64_t mac;
    struct share share;
};

enum { SENDERS = 256, MOST_CAPTURED = UINT16_MAX };

struct ring {
    uint32_t size, payload;
    uint32_t oldest, next; /* of bytes[]; oldest >= next when the newer part lies before the older */
    uint32_t wrap;         /* then the older part ends here */
    uint32_t count;
    int64_t burst_ns, byte_ns, sender_byte_ns;
    struct share all;
    uint64_t kept, left_out;
    struct sender senders[SENDERS];
    _Alignas(8) uint8_t bytes[];
};

/* A record of a pcap file. */
struct record {
    uint32_t seconds, nanoseconds, captured, wire_length;
};

struct ring *ring_new(uint32_t size, int64_t span_ns, uint32_t payload)
{
    size &= ~7u;
    struct ring *r = calloc(1, sizeof *r + size);
    if (r == NULL)
        return NULL;
    r->size = r->wrap = size;
    r->payload = payload;
    /* At most a burst and the bytes that come back in span_ns are spent within span_ns: two times 3/8 of the ring. */
    uint32_t share = size / 8 * 3;
    r->burst_ns = span_ns;
    r->byte_ns = span_ns / share;
    r->sender_byte_ns = 4 * r->byte_ns;
    return r;
}

void ring_free(struct ring *r)
{
    free(r);
}

static uint32_t length_of(const struct kept *k)
{
    return ((uint32_t)sizeof *k + k->captured + 7) & ~7u;
}

/* Return when `share` would be whole again after spending `cost`. */
static int64_t after(const struct ring *r, struct share share, int64_t now, int64_t cost)
{
    bool set_back = share.whole_at - now > 2 * r->burst_ns; /* impossible by spending: the clock was set back */
    return (share.whole_at < now || set_back ? now : share.whole_at) + cost;
}

static void drop_oldest(struct ring *r)
{
    const struct kept *k = (const struct kept *)(const void *)(r->bytes + r->oldest);
    bool newer_first = r->oldest >= r->next;
    r->oldest += length_of(k);
    if (--r->count == 0)
        r->oldest = r->next;
    else if (newer_first && r->oldest == r->wrap)
        r->oldest = 0;
}

void ring_put(struct ring *r, const struct frame *frame, const struct row_meta *row)
{
    uint32_t captured = row->headers + r->payload;
    captured = captured < frame->captured ? captured : frame->captured;
    captured = captured < MOST_CAPTURED ? captured : MOST_CAPTURED;
    struct kept kept = {frame->t_ns, frame->wire_length, (uint16_t)captured, (uint16_t)frame->linktype};
    uint32_t length = length_of(&kept);

    struct sender *sender = &r->senders[(row->src_mac * 0x9e3779b97f4a7c15u) >> 56];
    if (sender->mac != row->src_mac) {
        sender->mac = row->src_mac;
        sender->share.whole_at = frame->t_ns;
    }
    int64_t own = after(r, sender->share, frame->t_ns, length * r->sender_byte_ns);
    int64_t all = after(r, r->all, frame->t_ns, length * r->byte_ns);
    if (own - frame->t_ns > r->burst_ns || all - frame->t_ns > r->burst_ns || length > r->size / 4) {
        r->left_out++;
        return;
    }
    sender->share.whole_at = own;
    r->all.whole_at = all;

    if (r->next + length > r->size) {
        while (r->count > 0 && r->oldest >= r->next)
            drop_oldest(r);
        r->wrap = r->next;
        r->next = 0;
        if (r->count == 0)
            r->oldest = 0;
    }
    while (r->count > 0 && r->oldest >= r->next && r->oldest < r->next + length)
        drop_oldest(r);
    if (r->count == 0)
        r->oldest = r->next;
    memcpy(r->bytes + r->next, &kept, sizeof kept);
    memcpy(r->bytes + r->next + sizeof kept, frame->bytes, captured);
    r->next += length;
    r->count++;
    r->kept++;
}

static bool concerns(const struct subject *subject, const struct kept *k)
{
    struct row_meta row;
    enum port_class ports;
    if (decode_frame(k->linktype, (const uint8_t *)(k + 1), k->captured, k->wire_length, &row, &ports) == SHORT_LINK)
        return false;
    if (subject->mac != 0 && (row.src_mac == subject->mac || row.dst_mac == subject->mac))
        return true;
    return subject->ip_version != 0 && row.ip_version == subject->ip_version &&
           (memcmp(row.src, subject->address, sizeof row.src) == 0 || memcmp(row.dst, subject->address, sizeof row.dst) == 0);
}

/* Return the next frame within the time of `cut` and of its link type, NULL at the end. *at and *i begin as oldest and 0. */
static const struct kept *next_kept(const struct ring *r, const struct cut *cut, uint32_t *at, uint32_t *i)
{
    while (*i < r->count) {
        if (*at == r->wrap && r->oldest >= r->next)
            *at = 0;
        const struct kept *k = (const struct kept *)(const void *)(r->bytes + *at);
        *at += length_of(k);
        ++*i;
        if (k->t_ns >= cut->from_ns && k->t_ns < cut->to_ns && k->linktype == cut->linktype)
            return k;
    }
    return NULL;
}

/* Return whether a record fits into `room`; all records of its kind have `total` bytes, those before it `passed`. */
static bool fits(const struct cut *cut, size_t total, size_t passed, size_t length, size_t room)
{
    return cut->newest ? total - passed <= room : passed + length <= room;
}

size_t ring_cut(const struct ring *r, const struct cut *cut, uint8_t *out, size_t room)
{
    size_t total[2] = {0, 0}, passed[2] = {0, 0}, share[2], made = 0;
    const struct kept *k;
    uint32_t at = r->oldest, i = 0;
    while ((k = next_kept(r, cut, &at, &i)) != NULL)
        total[concerns(&cut->subject, k)] += sizeof(struct record) + k->captured;
    share[true] = room;
    share[false] = total[true] < room ? room - total[true] : 0;
    at = r->oldest, i = 0;
    while ((k = next_kept(r, cut, &at, &i)) != NULL) {
        bool own = concerns(&cut->subject, k);
        size_t length = sizeof(struct record) + k->captured;
        if (fits(cut, total[own], passed[own], length, share[own]) && length <= room - made) {
            struct record record = {(uint32_t)(k->t_ns / 1000000000), (uint32_t)(k->t_ns % 1000000000), k->captured,
                                    k->wire_length};
            memcpy(out + made, &record, sizeof record);
            memcpy(out + made + sizeof record, k + 1, k->captured);
            made += length;
        }
        passed[own] += length;
    }
    return made;
}

int ring_linktype(const struct ring *r, const struct cut *cut)
{
    int last = -1, own = -1;
    uint32_t at = r->oldest;
    for (uint32_t i = 0; i < r->count; i++) {
        if (at == r->wrap && r->oldest >= r->next)
            at = 0;
        const struct kept *k = (const struct kept *)(const void *)(r->bytes + at);
        at += length_of(k);
        if (k->t_ns < cut->from_ns || k->t_ns >= cut->to_ns)
            continue;
        last = k->linktype;
        own = k->linktype != own && concerns(&cut->subject, k) ? k->linktype : own;
    }
    return own >= 0 ? own : last;
}

size_t ring_bytes(const struct ring *r)
{
    return sizeof *r + r->size;
}

uint64_t ring_kept(const struct ring *r)
{
    return r->kept;
}

uint64_t ring_left_out(const struct ring *r)
{
    return r->left_out;
}
