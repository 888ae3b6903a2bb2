/* From packets to rows: keys and hashes of a packet, the streams it belongs to, their times. kernel.h draws it all.
 *
 * Where records lie is table.h's knowledge, what a device has seen seen.h's, the arithmetic lanes.h's. */
#include "state.h"
#include "tried.h"

#include <stdlib.h>
#include <string.h>

static const int64_t NEVER = INT64_MIN;
static const uint64_t SEVERAL_MACS = UINT64_MAX;
static const int64_t BACKWARD_NS = 60000000000; /* a step back beyond packets out of order; contract/clock.py has the same */
enum { AHEAD = 2 }; /* packets between asking for records and using them */

static const char *const EVICTED_NAMES[TABLES] = {"evicted_hosts", "evicted_macs", "evicted_pairs", "evicted_sockets",
                                                  "evicted_devices"};
static const char *const LIVE_NAMES[TABLES] = {"hosts", "macs", "pairs", "sockets", "devices"};

/* ---- hashing ---- */

/* The 64 x 64 bit product folded; with secret operands a hash that cannot be steered from outside (wyhash, Wang Yi). */
static inline uint64_t mum(uint64_t a, uint64_t b)
{
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 u128;
    u128 product = (u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
    uint64_t ll = al * bl, lh = al * bh, hl = ah * bl, hh = ah * bh;
    uint64_t middle = (ll >> 32) + (uint32_t)lh + hl;
    uint64_t low = (uint32_t)ll | middle << 32, high = hh + (lh >> 32) + (middle >> 32);
    return low ^ high;
#endif
}

static uint64_t splitmix(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

void kernel_derive_secret(struct kernel *k)
{
    uint64_t state = k->settings.seed;
    for (int i = 0; i < 4; i++)
        k->secret[i] = splitmix(&state);
}

static uint64_t mac_hash(const struct kernel *k, uint64_t base, uint64_t mac)
{
    return mum(base ^ k->secret[2], mac ^ k->secret[1]);
}

enum kind { KIND_MAC = 1, KIND_IPV4 = 4, KIND_IPV6 = 6 };

/* Compute keys and hashes of a decoded frame and prefetch their buckets. */
static void prepare(struct kernel *k, struct pending *p)
{
    const struct row_meta *row = p->row;
    uint64_t src[2], dst[2], kind = row->ip_version != 0 ? row->ip_version : (uint64_t)KIND_MAC;
    const uint64_t *s = k->secret;
    for (int i = 0; i < 2; i++) { /* as decode_frame stored them: a wider load would have to wait for the cache */
        memcpy(&src[i], row->src + 8 * i, 8);
        memcpy(&dst[i], row->dst + 8 * i, 8);
    }

    uint64_t src_hash = mum(src[0] ^ s[0], src[1] ^ kind ^ s[1]), dst_hash = mum(dst[0] ^ s[0], dst[1] ^ kind ^ s[1]);
    bool same = src[0] == dst[0] && src[1] == dst[1];
    bool swap = src[0] != dst[0] ? src[0] > dst[0] : src[1] > dst[1];
    const uint64_t *low = swap ? dst : src, *high = swap ? src : dst;
    memcpy(p->host_key, (uint64_t[3]){src[0], src[1], kind}, sizeof p->host_key);
    p->host_hash = src_hash;
    memcpy(p->pair_key, (uint64_t[5]){low[0], low[1], high[0], high[1], kind}, sizeof p->pair_key);
    p->pair_hash = mum((swap ? dst_hash : src_hash) ^ s[2], (swap ? src_hash : dst_hash) ^ s[3]);
    p->pair_way = swap;
    p->self_pair = same;
    p->peer_hash = mum(src_hash ^ s[3], dst_hash ^ s[0]);

    memcpy(p->socket_key, p->pair_key, sizeof p->socket_key);
    p->socket_way = p->pair_way;
    p->self_socket = p->self_pair;
    uint64_t sport = row->sport, dport = row->dport;
    if (p->ports == ARP_PORTS) { /* MAC -> MAC in a namespace of their own */
        swap = row->src_mac > row->dst_mac;
        p->socket_key[0] = swap ? row->dst_mac : row->src_mac;
        p->socket_key[1] = 0;
        p->socket_key[2] = swap ? row->src_mac : row->dst_mac;
        p->socket_key[3] = 0;
        p->socket_key[4] = KIND_MAC;
        p->socket_way = swap;
        p->self_socket = row->src_mac == row->dst_mac;
    } else if (same) {
        swap = sport > dport;
        p->socket_way = swap;
        p->self_socket = sport == dport;
    }
    p->socket_key[4] |= (uint64_t)p->ports << 8 | (swap ? dport : sport) << 16 | (swap ? sport : dport) << 32;
    if (p->ports == ARP_PORTS)
        p->socket_hash = mum(p->socket_key[0] ^ s[1], p->socket_key[2] ^ s[3]);
    else
        p->socket_hash = mum(p->pair_hash ^ s[0], p->socket_key[4] ^ s[1]);
    p->socket_seen_hash = mum(p->peer_hash ^ s[1], (sport << 16 | dport) ^ s[2]);
    p->device_hash = mac_hash(k, 0, row->src_mac);

    table_prefetch(&k->table[HOSTS], p->host_hash);
    table_prefetch(&k->table[PAIRS], p->pair_hash);
    table_prefetch(&k->table[SOCKETS], p->socket_hash);
}

static inline void locate_records(const struct kernel *k, struct pending *p)
{
    uint32_t now = (uint32_t)(p->t >> STAMP_SHIFT);
    p->host_slot = table_locate(&k->table[HOSTS], sizeof(struct host), p->host_hash, now);
    p->pair_slot = table_locate(&k->table[PAIRS], sizeof(struct pair), p->pair_hash, now);
    p->socket_slot = table_locate(&k->table[SOCKETS], sizeof(struct channel), p->socket_hash, now);
}

/* ---- one packet ---- */

static double seconds(int64_t t)
{
    return (double)(t / 1000000000) + (double)(t % 1000000000) / 1e9;
}

static inline double gap(bool float_time, int64_t later, int64_t earlier)
{
    if (float_time)
        return seconds(later) - seconds(earlier);
    return (double)(int64_t)((uint64_t)later - (uint64_t)earlier) * 1e-9; /* unsigned: a forged state must not overflow */
}

/* Return a packet's time without the steps back of a clock that was set, so that streams go on decaying. Without this no
 * stream would forget anything until the clock is where it was. */
static int64_t steady(struct counters *c, int64_t t)
{
    if (t >= c->newest_t) {
        c->newest_t = t;
    } else if (c->newest_t - t > BACKWARD_NS) {
        c->offset += c->newest_t - t;
        if (c->offset > OFFSET_MAX)
            c->offset = OFFSET_MAX;
        c->newest_t = t;
    }
    return t + c->offset;
}

static inline double not_negative(double x)
{
    return x > 0 ? x : 0;
}

/* Fill a duo for a packet at t, and the gaps of its decay and of CF3's; move the channel's times on. */
static inline void advance(struct channel *c, int way, bool self, bool float_time, int64_t t, struct duo *d, double *decay_gap,
                           double *cf3_gap)
{
    double since = gap(float_time, t, c->t), lead = gap(float_time, c->t, c->c);
    int64_t reverse_last = c->last[way ^ !self];
    d->forward = &c->way[way];
    d->reverse = &c->way[way ^ !self];
    d->cf3 = c->cf3;
    d->self = self;
    d->reversed = self || reverse_last != NEVER;
    d->reverse_gap = self || reverse_last == NEVER ? 0 : gap(float_time, t, reverse_last);
    *decay_gap = not_negative(since);
    if (self || since <= 0)
        *cf3_gap = *decay_gap;
    else
        *cf3_gap = lead > 0 ? gap(float_time, t, c->c) : 2 * since; /* once for each direction */
    if (lead > 0 || (self && since > 0))
        c->c = t;
    if (since > 0)
        c->t = t;
}

static inline void never(struct channel *c)
{
    c->last[0] = c->last[1] = NEVER;
}

/* The record in `macs` that MI_dir uses, once an address has several MACs. */
static __attribute__((noinline)) struct host *mac_record(struct kernel *k, const struct pending *p, uint64_t mac, uint32_t now,
                                                         bool *fresh)
{
    uint64_t key[3] = {p->host_key[0], p->host_key[1], p->host_key[2] | mac << 16};
    return table_find(&k->table[MACS], sizeof(struct host), key, 3, mac_hash(k, p->host_hash, mac), NOWHERE, now, fresh);
}

static void take_state(struct host *to, const struct host *from)
{
    to->t = from->t;
    to->m = from->m;
}

static inline __attribute__((always_inline)) void compute_row(struct kernel *k, const struct pending *p, bool float_time,
                                                              bool doubles, void *out)
{
    struct row_meta *row = p->row;
    int64_t t = p->t;
    uint32_t now = (uint32_t)(t >> STAMP_SHIFT);
    struct step s;
    bool fresh;
    double since;

    s.length = row->length;

    struct table *devices = &k->table[DEVICES];
    uint64_t device_key[3] = {row->src_mac, 0, 0};
    s.device = table_find(devices, sizeof *s.device, device_key, 3, p->device_hash, NOWHERE, now, &fresh);
    if (fresh) {
        s.device->number = (size_t)((uint8_t *)s.device - devices->pool) / sizeof *s.device;
        memset(k->seen + s.device->number * SEEN, 0, SEEN * sizeof *k->seen);
    }
    uint32_t *seen = k->seen + s.device->number * SEEN, unit = (uint32_t)(row->t_ns / SEEN_UNIT_NS) & SEEN_TIME;
    uint32_t *peers = seen_peers(seen, p->peer_hash), *sockets = seen_sockets(seen, p->socket_seen_hash);
    __builtin_prefetch(peers, 1);
    __builtin_prefetch(sockets, 1);

    s.host = table_find(&k->table[HOSTS], sizeof *s.host, p->host_key, 3, p->host_hash, p->host_slot, now, &fresh);
    s.mac = NULL;
    s.gap[GAP_MAC] = 0;
    if (fresh) {
        s.host->mac = row->src_mac;
    } else if (s.host->mac != row->src_mac) {
        if (s.host->mac != SEVERAL_MACS) { /* its second MAC: until now MI_dir was H */
            static const struct host nothing;
            take_state(mac_record(k, p, s.host->mac, now, &fresh), s.host);
            s.host->mac = SEVERAL_MACS;
            take_state(mac_record(k, p, row->src_mac, now, &fresh), &nothing);
        }
        s.mac = mac_record(k, p, row->src_mac, now, &fresh);
        since = gap(float_time, t, s.mac->t);
        s.gap[GAP_MAC] = not_negative(since);
        if (since > 0)
            s.mac->t = t;
    }
    since = gap(float_time, t, s.host->t);
    s.gap[GAP_HOST] = not_negative(since);
    if (since > 0)
        s.host->t = t;

    struct pair *pair = table_find(&k->table[PAIRS], sizeof *pair, p->pair_key, 5, p->pair_hash, p->pair_slot, now, &fresh);
    if (fresh)
        never(&pair->channel);
    advance(&pair->channel, p->pair_way, p->self_pair, float_time, t, &s.pair, &s.gap[GAP_HH], &s.gap[GAP_HH_CF3]);
    int64_t *last = &pair->channel.last[p->pair_way];
    bool pair_reply = pair->channel.last[p->self_pair ? p->pair_way : !p->pair_way] != NEVER;
    s.jitter = &pair->jitter[p->pair_way];
    if (*last == NEVER) {
        s.gap[GAP_JITTER] = s.gap[GAP_HH]; /* its state is zero, so that any decay gives zero */
        s.jitter_value = k->settings.compat ? seconds(row->t_ns) : 0;
        *last = t;
    } else {
        since = gap(float_time, t, *last);
        s.gap[GAP_JITTER] = s.jitter_value = not_negative(since);
        if (since > 0)
            *last = t;
    }

    struct channel *socket = table_find(&k->table[SOCKETS], sizeof *socket, p->socket_key, 5, p->socket_hash, p->socket_slot,
                                        now, &fresh);
    if (fresh)
        never(socket);
    advance(socket, p->socket_way, p->self_socket, float_time, t, &s.socket, &s.gap[GAP_HPHP], &s.gap[GAP_HPHP_CF3]);
    bool socket_reply = socket->last[p->self_socket ? p->socket_way : !p->socket_way] != NEVER;
    if (socket->last[p->socket_way] < t)
        socket->last[p->socket_way] = t;

    since = gap(float_time, t, s.device->t);
    s.gap[GAP_DEVICE] = not_negative(since);
    if (since > 0)
        s.device->t = t;
    if (seen_visit(peers, p->peer_hash, unit, &k->counters.evicted_seen_peers) && !pair_reply)
        row->flags |= NEW_PEER;
    if ((row->flags & (PORTS | ICMP_QUOTED)) == PORTS &&
        seen_visit(sockets, p->socket_seen_hash, unit, &k->counters.evicted_seen_sockets) &&
        !socket_reply)
        row->flags |= NEW_SOCKET;
    s.new_peer = row->flags & NEW_PEER ? 1 : 0;
    s.new_socket = row->flags & NEW_SOCKET ? 1 : 0;
    choose_numbers(row, pair, p->pair_way, pair_reply, t, &s);
    s.back = p->self_pair ? p->pair_way : !p->pair_way;

    if (row->t_ns < k->counters.last_t)
        k->counters.clock_backward++;
    k->counters.last_t = row->t_ns;
    k->write_row[doubles](&s, out);
}

/* Two instances, so that `float_time` is not tested for each of the many gaps of a row. */
static __attribute__((noinline)) void compute_row_ns(struct kernel *k, const struct pending *p, bool doubles, void *out)
{
    compute_row(k, p, false, doubles, out);
}

static __attribute__((noinline)) void compute_row_float(struct kernel *k, const struct pending *p, bool doubles, void *out)
{
    compute_row(k, p, true, doubles, out);
}

size_t kernel_push(struct kernel *k, struct source source, const struct rows *rows, enum capture_result *result)
{
    size_t made = 0, taken = 0;
    *result = CAPTURE_FRAME;
    while (*result == CAPTURE_FRAME && made < rows->limit && (taken < rows->limit || made == 0)) {
        int waiting = 0;
        while (waiting < BATCH && made + (size_t)waiting < rows->limit &&
               (taken < rows->limit || made + (size_t)waiting == 0)) {
            struct frame frame;
            *result = source.next(source.context, &frame);
            if (*result != CAPTURE_FRAME)
                break;
            taken++;
            k->counters.frames++;
            struct pending *p = &k->pending[waiting];
            p->row = &rows->meta[made + (size_t)waiting];
            enum malformed fault = decode_frame(frame.linktype, frame.bytes, frame.captured, frame.wire_length, p->row,
                                                &p->ports);
            p->row->t_ns = frame.t_ns;
            p->row->interface = frame.interface;
            k->counters.malformed[fault]++;
            if (frame.bad_time)
                k->counters.malformed[BAD_TIME]++;
            if (fault == SHORT_LINK)
                continue;
            if (k->ring != NULL)
                ring_put(k->ring, &frame, p->row);
            p->t = steady(&k->counters, frame.t_ns);
            prepare(k, p);
            waiting++;
        }
        for (int i = 0; i < waiting && i < AHEAD; i++)
            locate_records(k, &k->pending[i]);
        for (int i = 0; i < waiting; i++) {
            if (i + AHEAD < waiting)
                locate_records(k, &k->pending[i + AHEAD]);
            void *out = (uint8_t *)rows->values + made * COLUMNS * (rows->doubles ? sizeof(double) : sizeof(float));
            if (k->settings.float_time)
                compute_row_float(k, &k->pending[i], rows->doubles, out);
            else
                compute_row_ns(k, &k->pending[i], rows->doubles, out);
            made++;
        }
        k->counters.rows += (uint64_t)waiting;
    }
    return made;
}

/* ---- life ---- */

static uint32_t at_least(uint32_t x, uint32_t least)
{
    return x > least ? x : least;
}

struct kernel *kernel_new(const struct settings *settings, enum simd simd)
{
    uint32_t n = settings->max_streams;
    const uint32_t capacity[TABLES] = {at_least(n / 2, 8), at_least(n / 4, 8), at_least(n / 2, 8), n, settings->max_devices};
    const uint32_t size[TABLES] = {sizeof(struct host), sizeof(struct host), sizeof(struct pair), sizeof(struct channel),
                                   sizeof(struct device)};
    row_writer *writers[2];
    const char *name;
    if (!lanes_choose(simd, writers, &name))
        return NULL;
    struct kernel *k = calloc(1, sizeof *k);
    if (k == NULL)
        return NULL;
    size_t bytes = LINE + (size_t)settings->max_devices * SEEN * sizeof *k->seen + LINE;
    for (int i = 0; i < TABLES; i++)
        bytes += table_bytes(capacity[i], size[i]);
    k->memory = calloc(1, bytes);
    if (k->memory == NULL) {
        free(k);
        return NULL;
    }
    k->bytes = bytes + sizeof *k;
    k->settings = *settings;
    uint8_t *at = (uint8_t *)k->memory + (LINE - (uintptr_t)k->memory % LINE) % LINE;
    for (int i = 0; i < TABLES; i++)
        table_place(&k->table[i], capacity[i], size[i], &at);
    k->seen = (uint32_t *)(void *)at;
    kernel_derive_secret(k);
    memcpy(k->write_row, writers, sizeof writers);
    k->simd = name;
    return k;
}

void kernel_free(struct kernel *k)
{
    if (k == NULL)
        return;
    ring_free(k->ring);
    free(k->memory);
    free(k);
}

bool kernel_keep(struct kernel *k, uint32_t size, int64_t span_ns, uint32_t payload)
{
    if (k->ring == NULL)
        k->ring = ring_new(size, span_ns, payload);
    return k->ring != NULL;
}

const struct ring *kernel_ring(const struct kernel *k)
{
    return k->ring;
}

const char *kernel_simd(const struct kernel *k)
{
    return k->simd;
}

/* ---- counts ---- */

static void add_count(struct count *counts, size_t *n, const char *name, uint64_t value)
{
    counts[*n].name = name;
    counts[*n].value = value;
    ++*n;
}

size_t kernel_counts(const struct kernel *k, struct count counts[MAX_COUNTS])
{
    static const char *const malformed[MALFORMED_KINDS] = {
        [SHORT_LINK] = "malformed_short_link", [SHORT_TAG] = "malformed_short_tag", [SHORT_ARP] = "malformed_short_arp",
        [BAD_ARP] = "malformed_bad_arp", [SHORT_IP] = "malformed_short_ip", [BAD_IP] = "malformed_bad_ip",
        [LONG_CHAIN] = "malformed_long_chain", [SHORT_TRANSPORT] = "malformed_short_transport",
        [SHORT_QUOTE] = "malformed_short_quote", [BAD_TIME] = "malformed_bad_time",
    };
    size_t n = 0;
    uint64_t all = 0;
    add_count(counts, &n, "frames", k->counters.frames);
    add_count(counts, &n, "rows", k->counters.rows);
    for (int i = WELL_FORMED + 1; i < MALFORMED_KINDS; i++)
        all += k->counters.malformed[i];
    add_count(counts, &n, "malformed", all);
    for (int i = WELL_FORMED + 1; i < MALFORMED_KINDS; i++)
        add_count(counts, &n, malformed[i], k->counters.malformed[i]);
    add_count(counts, &n, "clock_backward", k->counters.clock_backward);
    for (int i = 0; i < TABLES; i++)
        add_count(counts, &n, LIVE_NAMES[i], k->table[i].used);
    all = 0;
    for (int i = 0; i < DEVICES; i++)
        all += k->table[i].used;
    add_count(counts, &n, "streams", all);
    for (int i = 0; i < TABLES; i++)
        add_count(counts, &n, EVICTED_NAMES[i], k->table[i].evicted);
    add_count(counts, &n, "evicted_seen_peers", k->counters.evicted_seen_peers);
    add_count(counts, &n, "evicted_seen_sockets", k->counters.evicted_seen_sockets);
    if (k->ring != NULL) {
        add_count(counts, &n, "ring_kept", ring_kept(k->ring));
        add_count(counts, &n, "ring_left_out", ring_left_out(k->ring));
    }
    return n;
}

size_t kernel_memory(const struct kernel *k, struct count counts[MAX_COUNTS])
{
    size_t n = 0, index = 0;
    for (int i = 0; i < TABLES; i++) {
        add_count(counts, &n, LIVE_NAMES[i], (uint64_t)k->table[i].capacity * k->table[i].record);
        index += table_index_bytes(&k->table[i]);
    }
    add_count(counts, &n, "seen", (uint64_t)k->settings.max_devices * SEEN * sizeof *k->seen);
    add_count(counts, &n, "index", index);
    size_t ring = k->ring != NULL ? ring_bytes(k->ring) : 0;
    add_count(counts, &n, "ring", ring);
    add_count(counts, &n, "total", k->bytes + ring);
    uint64_t streams = k->bytes - counts[DEVICES].value - (uint64_t)k->settings.max_devices * SEEN * sizeof *k->seen;
    add_count(counts, &n, "per_stream", streams / k->settings.max_streams);
    return n;
}
