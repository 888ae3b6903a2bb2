/* From packets to rows: tables of streams, damped statistics, devices and what they have seen. kernel.h draws it all. */
#include "kernel.h"

#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#define X86 1
#endif

/* ---- records ---- */

static const int64_t NEVER = INT64_MIN;
static const uint64_t SEVERAL_MACS = UINT64_MAX;

struct moments {
    double w[LANES], mean[LANES], var[LANES];
};

struct host {
    uint64_t key[3]; /* address, kind (in `macs`: | MAC << 16) */
    uint64_t mac;    /* the only MAC so far, or SEVERAL_MACS */
    int64_t t;
    uint64_t unused;
    struct moments m;
};

struct way {
    struct moments m;
    double residual[LANES];
};

/* What HH and HpHp have in common. */
struct channel {
    uint64_t key[5]; /* two addresses, kind (sockets: | class << 8 | port << 16 | port << 32) */
    int64_t t, c;
    int64_t last[2];
    uint64_t unused;
    double cf3[LANES];
    struct way way[2];
};

struct pair {
    struct channel channel;
    struct moments jitter[2];
    uint64_t unused[4];
};

struct device {
    uint64_t key[3];
    int64_t t;
    struct moments m;
    double peers[LANES], sockets[LANES];
    uint64_t number; /* of this record, hence of its seen sets */
    uint64_t unused[5];
};

_Static_assert(sizeof(struct host) == 192 && sizeof(struct channel) == 512 && sizeof(struct pair) == 832 &&
               sizeof(struct device) == 320, "the records as kernel.h draws them");
_Static_assert(sizeof(struct row_meta) == 72, "features.ROW_META");

/* ---- tables ---- */

enum { WAYS = 8, NUMBER_BITS = 20, NUMBER = (1 << NUMBER_BITS) - 1, LINE = 64 };
static const int64_t BACKWARD_NS = 60000000000; /* a step back beyond packets out of order; detector.BACKWARD_S */
static const int64_t OFFSET_MAX = INT64_C(1) << 60; /* 36 years of such steps */
enum { STAMP_SHIFT = 20, STAMP_TIME = 0x7fffffff, FORGOTTEN = 5054474 /* 5,300 s in 2^20 ns */ };
static const uint32_t MET_AGAIN = 0x80000000u, NOWHERE = UINT32_MAX;

struct bucket {
    uint32_t tag[WAYS], stamp[WAYS];
};

struct table {
    struct bucket *buckets;
    uint8_t *pool;
    uint32_t mask, record, capacity, used;
    uint64_t evicted;
};

enum { SEEN_PEERS = 1024, SEEN_SOCKETS = 4096, SEEN = SEEN_PEERS + SEEN_SOCKETS };
enum { SEEN_BITS = 12, SEEN_KNOWN = 1 << 11, SEEN_TIME = SEEN_KNOWN - 1 };
enum { DAY = 24 * 6 /* units */, SEEN_FORGOTTEN = 7 * DAY };
static const int64_t SEEN_UNIT_NS = INT64_C(600000000000);

enum { HOSTS, MACS, PAIRS, SOCKETS, DEVICES, TABLES };
static const char *const EVICTED_NAMES[TABLES] = {"evicted_hosts", "evicted_macs", "evicted_pairs", "evicted_sockets",
                                                  "evicted_devices"};
static const char *const LIVE_NAMES[TABLES] = {"hosts", "macs", "pairs", "sockets", "devices"};

/* What only counts. Saved as it is. */
struct counters {
    uint64_t frames, rows, clock_backward, evicted_seen_peers, evicted_seen_sockets;
    uint64_t malformed[MALFORMED_KINDS];
    int64_t last_t, newest_t, offset; /* newest since the last step back; steady time = time + offset */
};

/* A decoded frame whose buckets are on their way. */
struct pending {
    struct row_meta *row;
    int64_t t; /* steady */
    enum port_class ports;
    uint8_t pair_way, socket_way;
    bool self_pair, self_socket;
    uint64_t host_key[3], pair_key[5], socket_key[5];
    uint64_t host_hash, pair_hash, socket_hash, device_hash, peer_hash, socket_seen_hash;
    uint32_t host_slot, pair_slot, socket_slot;
};

enum { AHEAD = 2 }; /* packets between asking for records and using them */

struct duo;
struct step;

struct kernel {
    struct settings settings;
    struct counters counters;
    uint64_t secret[4];
    struct table table[TABLES];
    uint32_t *seen; /* max_devices x SEEN */
    void (*compute[2])(const struct step *, void *out); /* a row of floats, of doubles */
    const char *simd;
    void *memory;
    size_t bytes;
    struct ring *ring; /* or NULL */
    struct pending pending[BATCH];
};

/* Which of 8 entries equal `want` above the lowest `shift` bits, as a bit mask. */
static inline uint32_t match(const uint32_t entries[WAYS], uint32_t want, int shift)
{
#if defined(__SSE2__)
    __m128i w = _mm_set1_epi32((int)want), zero = _mm_setzero_si128();
    __m128i a = _mm_loadu_si128((const __m128i *)entries), b = _mm_loadu_si128((const __m128i *)entries + 1);
    a = _mm_cmpeq_epi32(_mm_srli_epi32(_mm_xor_si128(a, w), shift), zero);
    b = _mm_cmpeq_epi32(_mm_srli_epi32(_mm_xor_si128(b, w), shift), zero);
    return (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(a, b), zero));
#else
    uint32_t found = 0;
    for (int i = 0; i < WAYS; i++)
        found |= (uint32_t)((entries[i] ^ want) >> shift == 0) << i;
    return found;
#endif
}

static uint32_t same_tag(const struct bucket *b, uint32_t tag)
{
    return match(b->tag, tag, NUMBER_BITS);
}

static uint32_t free_ways(const struct bucket *b)
{
    return match(b->tag, 0, 0);
}

static inline uint32_t ways_in(uint32_t mask)
{
    static const uint8_t bits[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    return (uint32_t)bits[mask & 15] + bits[mask >> 4];
}

static uint32_t tag_of(uint64_t hash)
{
    uint32_t tag = (uint32_t)(hash >> 52) << NUMBER_BITS;
    return tag != 0 ? tag : 1u << NUMBER_BITS; /* 0 is "free" */
}

static uint32_t first_bucket(const struct table *t, uint64_t hash)
{
    return (uint32_t)hash & t->mask;
}

static uint32_t second_bucket(const struct table *t, uint64_t hash)
{
    uint32_t first = first_bucket(t, hash), second = (uint32_t)(hash >> 20) & t->mask;
    return second != first ? second : first ^ 1; /* there are at least two buckets */
}

static inline void *record(const struct table *t, uint32_t number, size_t size)
{
    return t->pool + number * size; /* size is t->record, known to the caller's compiler */
}

static bool equal_keys(const uint64_t *a, const uint64_t *b, int words)
{
    uint64_t difference = 0;
    for (int i = 0; i < words; i++)
        difference |= a[i] ^ b[i];
    return difference == 0;
}

/* What makes a way the one to give up, higher first: met once or forgotten before the others, then age; 0 for a free way.
 * Without branches, for the vectoriser. */
static inline void rank_ways(const struct bucket *b, uint32_t now, int32_t rank[WAYS])
{
    for (int i = 0; i < WAYS; i++) {
        int32_t age = (int32_t)((now - b->stamp[i]) & STAMP_TIME);
        age = age > STAMP_TIME / 2 ? 0 : age; /* the clock stepped back */
        int32_t first = (b->stamp[i] & MET_AGAIN) == 0 || age > FORGOTTEN ? STAMP_TIME / 2 + 1 : 0;
        rank[i] = b->tag[i] != 0 ? (age + first) | 1 : 0; /* | 1: not 0 */
    }
}

/* The way to give up among two buckets: 0 .. 7 of a, 8 .. 15 of b; -1 when both are empty. */
static inline int victim(const struct bucket *a, const struct bucket *b, uint32_t now)
{
    int32_t rank[2 * WAYS], worst = 0;
    int way = -1;
    rank_ways(a, now, rank);
    rank_ways(b, now, rank + WAYS);
    for (int i = 0; i < 2 * WAYS; i++) {
        way = rank[i] > worst ? i : way;
        worst = rank[i] > worst ? rank[i] : worst;
    }
    return way;
}

/* A place for a new key: its record's number, with the key in the index. Not inlined: the common case is a hit. */
static __attribute__((noinline)) uint32_t insert(struct table *t, uint64_t hash, uint32_t now)
{
    struct bucket *a = &t->buckets[first_bucket(t, hash)], *b = &t->buckets[second_bucket(t, hash)];
    uint32_t free_a = free_ways(a), free_b = free_ways(b), number;

    if (t->used < t->capacity && (free_a | free_b) != 0) {
        number = t->used++;
        if (ways_in(free_a) <= WAYS / 2 && ways_in(free_b) > ways_in(free_a)) {
            a = b;
            free_a = free_b;
        }
        int way = __builtin_ctz(free_a);
        a->tag[way] = tag_of(hash) | number;
        a->stamp[way] = now & STAMP_TIME;
        return number;
    }
    int way = victim(a, b, now);
    struct bucket *holder = way < WAYS ? a : b;
    for (uint32_t i = 1; way < 0; i++) { /* both empty although the pool is full: take a record from elsewhere */
        holder = &t->buckets[(first_bucket(t, hash) + i) & t->mask];
        way = victim(holder, holder, now);
    }
    t->evicted++;
    way %= WAYS;
    number = holder->tag[way] & NUMBER;
    if (holder != a && holder != b) {
        holder->tag[way] = 0;
        holder = a;
        way = 0;
    }
    holder->tag[way] = tag_of(hash) | number;
    holder->stamp[way] = now & STAMP_TIME;
    return number;
}

/* The record of a key; a new one is zeroed and has its key. Every record begins with its key. `slot` is locate()'s guess. */
static inline __attribute__((always_inline)) void *find(struct table *t, size_t size, const uint64_t *key, int words,
                                                        uint64_t hash, uint32_t slot, uint32_t now, bool *fresh)
{
    uint32_t tag = tag_of(hash);
    *fresh = false;
    if (slot != NOWHERE) {
        struct bucket *b = &t->buckets[slot / WAYS];
        uint64_t *found = record(t, b->tag[slot % WAYS] & NUMBER, size);
        if (b->tag[slot % WAYS] != 0 && equal_keys(found, key, words)) {
            b->stamp[slot % WAYS] = (now & STAMP_TIME) | MET_AGAIN;
            return found;
        }
    }
    for (int second = 0; second < 2; second++) {
        struct bucket *b = &t->buckets[second ? second_bucket(t, hash) : first_bucket(t, hash)];
        for (uint32_t ways = same_tag(b, tag); ways != 0; ways &= ways - 1) {
            int way = __builtin_ctz(ways);
            uint64_t *found = record(t, b->tag[way] & NUMBER, size);
            if (equal_keys(found, key, words)) {
                b->stamp[way] = (now & STAMP_TIME) | MET_AGAIN;
                return found;
            }
        }
    }
    uint64_t *made = record(t, insert(t, hash, now), size);
    memset(made, 0, t->record); /* of unknown size, so that libc does it: rep stos is slower */
    memcpy(made, key, sizeof *key * (size_t)words);
    *fresh = true;
    return made;
}

static inline void prefetch_index(const struct table *t, uint64_t hash)
{
    __builtin_prefetch(&t->buckets[first_bucket(t, hash)], 1);
    __builtin_prefetch(&t->buckets[second_bucket(t, hash)], 1);
}

static inline __attribute__((always_inline)) void prefetch_record(const struct table *t, size_t size, uint32_t number)
{
    const uint8_t *start = record(t, number, size);
    for (size_t i = 0; i < size; i += LINE)
        __builtin_prefetch(start + i, 1);
}

/* Where find() will probably succeed, judged by the tag alone, with that record on its way, or the record that a new key
 * will probably get. Packets in between may change either. */
static inline __attribute__((always_inline)) uint32_t locate(const struct table *t, size_t size, uint64_t hash, uint32_t now)
{
    uint32_t tag = tag_of(hash), at = first_bucket(t, hash), other = second_bucket(t, hash);
    uint32_t ways = same_tag(&t->buckets[at], tag);
    if (ways == 0) {
        ways = same_tag(&t->buckets[other], tag);
        if (ways == 0) {
            if (t->used < t->capacity) {
                prefetch_record(t, size, t->used);
            } else {
                int way = victim(&t->buckets[at], &t->buckets[other], now);
                if (way >= 0)
                    prefetch_record(t, size, t->buckets[way < WAYS ? at : other].tag[way % WAYS] & NUMBER);
            }
            return NOWHERE;
        }
        at = other;
    }
    uint32_t way = (uint32_t)__builtin_ctz(ways);
    prefetch_record(t, size, t->buckets[at].tag[way] & NUMBER);
    return at * WAYS + way;
}

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

static uint64_t mac_hash(const struct kernel *k, uint64_t base, uint64_t mac)
{
    return mum(base ^ k->secret[2], mac ^ k->secret[1]);
}

enum kind { KIND_MAC = 1, KIND_IPV4 = 4, KIND_IPV6 = 6 };

/* Keys and hashes of a decoded frame; their buckets start to travel. */
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

    prefetch_index(&k->table[HOSTS], p->host_hash);
    prefetch_index(&k->table[PAIRS], p->pair_hash);
    prefetch_index(&k->table[SOCKETS], p->socket_hash);
}

static inline void locate_records(const struct kernel *k, struct pending *p)
{
    uint32_t now = (uint32_t)(p->t >> STAMP_SHIFT);
    p->host_slot = locate(&k->table[HOSTS], sizeof(struct host), p->host_hash, now);
    p->pair_slot = locate(&k->table[PAIRS], sizeof(struct pair), p->pair_hash, now);
    p->socket_slot = locate(&k->table[SOCKETS], sizeof(struct channel), p->socket_hash, now);
}

/* ---- what a device has seen ---- */

/* Put an entry in front and close the gap that `place` leaves. */
static void to_front(uint32_t bucket[WAYS], int place, uint32_t entry)
{
    for (int i = place; i > 0; i--)
        bucket[i] = bucket[i - 1];
    bucket[0] = entry;
}

/* Units since an entry's time; none when the clock has stepped back (by a day at most, which 14 days can tell from age). */
static inline uint32_t idle(uint32_t entry, uint32_t unit)
{
    uint32_t age = (unit - entry) & SEEN_TIME;
    return age > SEEN_TIME - DAY ? 0 : age;
}

static inline bool forgotten(uint32_t entry, uint32_t unit)
{
    return entry == 0 || idle(entry, unit) >= SEEN_FORGOTTEN;
}

/* A place for a new entry: a free or forgotten one, else the oldest unknown, else the oldest. */
static __attribute__((noinline)) int room(const uint32_t bucket[WAYS], uint32_t unit, uint64_t *evicted)
{
    int unknown = -1;
    for (int i = WAYS - 1; i >= 0; i--) {
        if (forgotten(bucket[i], unit))
            return i;
        if (unknown < 0 && (bucket[i] & SEEN_KNOWN) == 0)
            unknown = i;
    }
    ++*evicted;
    return unknown >= 0 ? unknown : WAYS - 1;
}

/* True when the bucket did not hold the key, or had forgotten it; it does afterwards. */
static inline bool visit(uint32_t bucket[WAYS], uint64_t hash, uint32_t unit, uint64_t *evicted)
{
    uint32_t mark = (uint32_t)(hash >> 44) << SEEN_BITS;
    if (mark == 0)
        mark = 1u << SEEN_BITS;
    uint32_t found = match(bucket, mark, SEEN_BITS);
    if (found == 0) {
        to_front(bucket, room(bucket, unit, evicted), mark | unit);
        return true;
    }
    int place = __builtin_ctz(found);
    uint32_t entry = bucket[place];
    if (forgotten(entry, unit)) {
        to_front(bucket, place, mark | unit);
        return true;
    }
    if ((entry & SEEN_KNOWN) == 0 && idle(entry, unit) < 2)
        return false; /* keep the time of the first visit */
    to_front(bucket, place, mark | SEEN_KNOWN | unit);
    return false;
}

static inline uint32_t *peer_bucket(uint32_t *seen, uint64_t hash)
{
    return seen + (hash & (SEEN_PEERS / WAYS - 1)) * WAYS;
}

static inline uint32_t *socket_bucket(uint32_t *seen, uint64_t hash)
{
    return seen + SEEN_PEERS + (hash & (SEEN_SOCKETS / WAYS - 1)) * WAYS;
}

/* ---- one packet ---- */

static const double minus_lambda[LANES] = {-5, -3, -1, -0.1, -0.01, -0.01};

/* The gaps over which one packet decays something, in seconds, not negative. CF3's are its own: kernel.h, THE RECORDS. */
enum { GAP_HOST, GAP_DEVICE, GAP_HH, GAP_HPHP, GAP_HH_CF3, GAP_HPHP_CF3, GAP_JITTER, GAP_MAC, GAPS };

/* A channel as one packet uses it. */
struct duo {
    struct way *forward, *reverse;
    double *cf3;
    double reverse_gap;
    bool reversed, self; /* the reverse has been seen; it is the direction itself */
};

struct step {
    double gap[GAPS];
    double length, jitter_value, new_peer, new_socket;
    struct host *host, *mac; /* mac: NULL where MI_dir equals H */
    struct duo pair, socket;
    struct moments *jitter;
    struct device *device;
};

typedef double v2d __attribute__((vector_size(16)));
typedef int64_t v2i __attribute__((vector_size(16)));
typedef uint64_t v2u __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) v2d sqrt_v2d(v2d x)
{
#ifdef X86
    return (v2d)_mm_sqrt_pd((__m128d)x);
#else
    return (v2d){__builtin_sqrt(x[0]), __builtin_sqrt(x[1])};
#endif
}

#define VEC v2d
#define MASK v2i
#define BITS v2u
#define N 2
#define FN(name) baseline_##name
#define TARGET
#define SQRT(x) sqrt_v2d(x)
#ifdef X86
#define FLOATS(x) _mm_cvtpd_ps((__m128d)(x))
#endif
#include "lanes.h"

_Static_assert(GAPS % 4 == 0 && GAP_DEVICE == GAP_HOST + 1 && GAP_HPHP == GAP_HH + 1 && GAP_HPHP_CF3 == GAP_HH_CF3 + 1 &&
               GAP_MAC == GAP_JITTER + 1 && GAP_HOST % 2 == 0 && GAP_HH % 2 == 0 && GAP_HH_CF3 % 2 == 0 && GAP_JITTER % 2 == 0,
               "fifth_row() takes the gaps in these pairs");

static inline __attribute__((always_inline)) void compute_baseline(const struct step *s, struct baseline_cells out)
{
    v2d fifth[GAPS / 2];
    for (int i = 0; i < GAPS / 2; i++)
        fifth[i] = baseline_power(baseline_load(s->gap, 2 * i) * minus_lambda[4]);
    baseline_main_row(s, out, 0);
    baseline_main_row(s, out, 2);
    baseline_fifth_row(s, out, fifth);
}

static void floats_baseline(const struct step *s, void *out)
{
    compute_baseline(s, (struct baseline_cells){out, false});
}

static void doubles_baseline(const struct step *s, void *out)
{
    compute_baseline(s, (struct baseline_cells){out, true});
}

#ifdef X86
typedef double v4d __attribute__((vector_size(32)));
typedef int64_t v4i __attribute__((vector_size(32)));
typedef uint64_t v4u __attribute__((vector_size(32)));

#define AVX2 __attribute__((target("avx2")))

#define VEC v4d
#define MASK v4i
#define BITS v4u
#define N 4
#define FN(name) avx2_##name
#define TARGET AVX2
#define SQRT(x) (v4d)_mm256_sqrt_pd((__m256d)(x))
#define FLOATS(x) _mm256_cvtpd_ps((__m256d)(x))
#include "lanes.h"

#define VEC v2d
#define MASK v2i
#define BITS v2u
#define N 2
#define FN(name) avx2_half_##name
#define TARGET AVX2
#define SQRT(x) (v2d)_mm_sqrt_pd((__m128d)(x))
#define FLOATS(x) _mm_cvtpd_ps((__m128d)(x))
#include "lanes.h"

static inline __attribute__((always_inline)) AVX2 void compute_avx2(const struct step *s, void *out, bool doubles)
{
    v2d fifth[GAPS / 2];
    for (int i = 0; i < GAPS / 4; i++) {
        v4d power = avx2_power(avx2_load(s->gap, 4 * i) * minus_lambda[4]);
        memcpy(&fifth[2 * i], &power, sizeof power);
    }
    avx2_main_row(s, (struct avx2_cells){out, doubles}, 0);
    avx2_half_fifth_row(s, (struct avx2_half_cells){out, doubles}, fifth);
}

static AVX2 void floats_avx2(const struct step *s, void *out)
{
    compute_avx2(s, out, false);
}

static AVX2 void doubles_avx2(const struct step *s, void *out)
{
    compute_avx2(s, out, true);
}
#endif

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

/* A packet's time without the steps back of a clock that was set: what was seen by then goes on decaying. Without that no
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
    return find(&k->table[MACS], sizeof(struct host), key, 3, mac_hash(k, p->host_hash, mac), NOWHERE, now, fresh);
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
    s.device = find(devices, sizeof *s.device, device_key, 3, p->device_hash, NOWHERE, now, &fresh);
    if (fresh) {
        s.device->number = (size_t)((uint8_t *)s.device - devices->pool) / sizeof *s.device;
        memset(k->seen + s.device->number * SEEN, 0, SEEN * sizeof *k->seen);
    }
    uint32_t *seen = k->seen + s.device->number * SEEN, unit = (uint32_t)(row->t_ns / SEEN_UNIT_NS) & SEEN_TIME;
    uint32_t *peers = peer_bucket(seen, p->peer_hash), *sockets = socket_bucket(seen, p->socket_seen_hash);
    __builtin_prefetch(peers, 1);
    __builtin_prefetch(sockets, 1);

    s.host = find(&k->table[HOSTS], sizeof *s.host, p->host_key, 3, p->host_hash, p->host_slot, now, &fresh);
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

    struct pair *pair = find(&k->table[PAIRS], sizeof *pair, p->pair_key, 5, p->pair_hash, p->pair_slot, now, &fresh);
    if (fresh)
        never(&pair->channel);
    advance(&pair->channel, p->pair_way, p->self_pair, float_time, t, &s.pair, &s.gap[GAP_HH], &s.gap[GAP_HH_CF3]);
    int64_t *last = &pair->channel.last[p->pair_way];
    bool pair_reply = pair->channel.last[p->self_pair ? p->pair_way : !p->pair_way] != NEVER;
    s.jitter = &pair->jitter[p->pair_way];
    if (*last == NEVER) {
        s.gap[GAP_JITTER] = s.gap[GAP_HH]; /* its state is zero: any decay does */
        s.jitter_value = k->settings.compat ? seconds(row->t_ns) : 0;
        *last = t;
    } else {
        since = gap(float_time, t, *last);
        s.gap[GAP_JITTER] = s.jitter_value = not_negative(since);
        if (since > 0)
            *last = t;
    }

    struct channel *socket = find(&k->table[SOCKETS], sizeof *socket, p->socket_key, 5, p->socket_hash, p->socket_slot, now,
                                  &fresh);
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
    if (visit(peers, p->peer_hash, unit, &k->counters.evicted_seen_peers) && !pair_reply)
        row->flags |= NEW_PEER;
    if ((row->flags & (PORTS | ICMP_QUOTED)) == PORTS &&
        visit(sockets, p->socket_seen_hash, unit, &k->counters.evicted_seen_sockets) &&
        !socket_reply)
        row->flags |= NEW_SOCKET;
    s.new_peer = row->flags & NEW_PEER ? 1 : 0;
    s.new_socket = row->flags & NEW_SOCKET ? 1 : 0;

    if (row->t_ns < k->counters.last_t)
        k->counters.clock_backward++;
    k->counters.last_t = row->t_ns;
    k->compute[doubles](&s, out);
}

/* Two instances, so that the many gaps of a row do not ask each time. */
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

static void *carve(uint8_t **at, size_t bytes)
{
    void *start = *at;
    *at += (bytes + LINE - 1) / LINE * LINE;
    return start;
}

static uint32_t bucket_count(uint32_t capacity)
{
    uint32_t count = 2;
    while (count * (WAYS / 2) < capacity)
        count *= 2;
    return count;
}

struct kernel *kernel_new(const struct settings *settings, enum simd simd)
{
    uint32_t n = settings->max_streams;
    const uint32_t capacity[TABLES] = {at_least(n / 2, 8), at_least(n / 4, 8), at_least(n / 2, 8), n, settings->max_devices};
    const uint32_t size[TABLES] = {sizeof(struct host), sizeof(struct host), sizeof(struct pair), sizeof(struct channel),
                                   sizeof(struct device)};
    bool avx2 = false;
#ifdef X86
    __builtin_cpu_init();
    avx2 = __builtin_cpu_supports("avx2") != 0;
#endif
    if (simd == SIMD_AVX2 && !avx2)
        return NULL;
    struct kernel *k = calloc(1, sizeof *k);
    if (k == NULL)
        return NULL;
    size_t bytes = LINE + (size_t)settings->max_devices * SEEN * sizeof *k->seen + LINE;
    for (int i = 0; i < TABLES; i++)
        bytes += (size_t)bucket_count(capacity[i]) * sizeof(struct bucket) + (size_t)capacity[i] * size[i] + 2 * LINE;
    k->memory = calloc(1, bytes);
    if (k->memory == NULL) {
        free(k);
        return NULL;
    }
    k->bytes = bytes + sizeof *k;
    k->settings = *settings;
    uint8_t *at = (uint8_t *)k->memory + (LINE - (uintptr_t)k->memory % LINE) % LINE;
    for (int i = 0; i < TABLES; i++) {
        struct table *t = &k->table[i];
        uint32_t buckets = bucket_count(capacity[i]);
        t->capacity = capacity[i];
        t->record = size[i];
        t->mask = buckets - 1;
        t->buckets = carve(&at, buckets * sizeof *t->buckets);
        t->pool = carve(&at, (size_t)capacity[i] * size[i]);
    }
    k->seen = carve(&at, (size_t)settings->max_devices * SEEN * sizeof *k->seen);
    uint64_t state = settings->seed;
    for (int i = 0; i < 4; i++)
        k->secret[i] = splitmix(&state);
    k->compute[false] = floats_baseline;
    k->compute[true] = doubles_baseline;
    k->simd = "baseline";
#ifdef X86
    if (avx2 && simd != SIMD_BASELINE) {
        k->compute[false] = floats_avx2;
        k->compute[true] = doubles_avx2;
        k->simd = "avx2";
    }
#endif
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
        index += ((size_t)k->table[i].mask + 1) * sizeof(struct bucket);
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

/* ---- saved state ----
 *
 *     struct saved | per table: buckets, used records | seen sets of the used devices
 */

enum { SAVED_VERSION = 2, SAVED_ENDIAN = 0x01020304 };

struct saved {
    uint32_t version, endian;
    uint32_t record[TABLES], capacity[TABLES], used[TABLES], unused;
    uint64_t evicted[TABLES];
    struct settings settings;
    struct counters counters;
};

static size_t saved_size(const struct kernel *k, const uint32_t used[TABLES])
{
    size_t bytes = sizeof(struct saved);
    for (int i = 0; i < TABLES; i++)
        bytes += ((size_t)k->table[i].mask + 1) * sizeof(struct bucket) + (size_t)used[i] * k->table[i].record;
    return bytes + (size_t)used[DEVICES] * SEEN * sizeof *k->seen;
}

static void write_bytes(uint8_t **out, const void *bytes, size_t size)
{
    memcpy(*out, bytes, size);
    *out += size;
}

/* Records of each table that are saved: with `streams` all, else those of devices. */
static void saved_records(const struct kernel *k, bool streams, uint32_t used[TABLES])
{
    for (int i = 0; i < TABLES; i++)
        used[i] = streams || i == DEVICES ? k->table[i].used : 0;
}

static void save(const struct kernel *k, bool streams, uint8_t *out)
{
    struct saved head;
    memset(&head, 0, sizeof head);
    head.version = SAVED_VERSION;
    head.endian = SAVED_ENDIAN;
    head.settings = k->settings;
    if (streams)
        head.counters = k->counters;
    saved_records(k, streams, head.used);
    for (int i = 0; i < TABLES; i++) {
        head.record[i] = k->table[i].record;
        head.capacity[i] = k->table[i].capacity;
        head.evicted[i] = streams ? k->table[i].evicted : 0;
    }
    write_bytes(&out, &head, sizeof head);
    for (int i = 0; i < TABLES; i++) {
        const struct table *t = &k->table[i];
        size_t index = ((size_t)t->mask + 1) * sizeof *t->buckets;
        if (streams || i == DEVICES) {
            write_bytes(&out, t->buckets, index);
        } else { /* an index of nothing */
            memset(out, 0, index);
            out += index;
        }
        if (streams) {
            write_bytes(&out, t->pool, (size_t)head.used[i] * t->record);
            continue;
        }
        for (uint32_t j = 0; j < head.used[i]; j++) { /* whose statistics begin anew: no clock need go on from here */
            struct device saved, known;
            memcpy(&known, t->pool + (size_t)j * sizeof known, sizeof known);
            memset(&saved, 0, sizeof saved);
            memcpy(&saved.key, &known.key, sizeof saved.key);
            saved.number = known.number;
            write_bytes(&out, &saved, sizeof saved);
        }
    }
    write_bytes(&out, k->seen, (size_t)head.used[DEVICES] * SEEN * sizeof *k->seen);
}

size_t kernel_saved_size(const struct kernel *k)
{
    uint32_t used[TABLES];
    saved_records(k, true, used);
    return saved_size(k, used);
}

void kernel_save(const struct kernel *k, uint8_t *out)
{
    save(k, true, out);
}

size_t kernel_saved_seen_size(const struct kernel *k)
{
    uint32_t used[TABLES];
    saved_records(k, false, used);
    return saved_size(k, used);
}

void kernel_save_seen(const struct kernel *k, uint8_t *out)
{
    save(k, false, out);
}

const char *kernel_load(struct kernel *k, const uint8_t *bytes, size_t size)
{
    struct saved head;
    if (size < sizeof head)
        return "too short";
    memcpy(&head, bytes, sizeof head);
    if (head.version != SAVED_VERSION || head.endian != SAVED_ENDIAN)
        return "written by another version or on another kind of machine";
    if (head.settings.max_streams != k->settings.max_streams || head.settings.max_devices != k->settings.max_devices)
        return "other max_streams or max_devices";
    if (head.settings.compat != k->settings.compat || head.settings.float_time != k->settings.float_time)
        return "other jitter or float_time";
    for (int i = 0; i < TABLES; i++)
        if (head.record[i] != k->table[i].record || head.capacity[i] != k->table[i].capacity || head.used[i] > head.capacity[i])
            return "other table sizes";
    if (size != saved_size(k, head.used))
        return "wrong length";
    if (head.counters.newest_t < 0 || head.counters.newest_t > INT64_C(1) << 62 || head.counters.offset < 0 ||
        head.counters.offset > OFFSET_MAX)
        return "times that cannot be";

    /* An index must not lead outside its pool, whoever wrote it. */
    const uint8_t *at = bytes + sizeof head;
    for (int i = 0; i < TABLES; i++) {
        for (uint32_t j = 0; j <= k->table[i].mask; j++) {
            struct bucket b;
            memcpy(&b, at + (size_t)j * sizeof b, sizeof b);
            for (int way = 0; way < WAYS; way++)
                if (b.tag[way] != 0 && (b.tag[way] & NUMBER) >= head.used[i])
                    return "an index entry without a record";
        }
        const uint8_t *pool = at + ((size_t)k->table[i].mask + 1) * sizeof(struct bucket);
        for (uint32_t j = 0; i == DEVICES && j < head.used[i]; j++) {
            struct device device;
            memcpy(&device, pool + (size_t)j * sizeof device, sizeof device);
            if (device.number != j)
                return "a device with another's seen sets";
        }
        at += ((size_t)k->table[i].mask + 1) * sizeof(struct bucket) + (size_t)head.used[i] * k->table[i].record;
    }

    at = bytes + sizeof head;
    k->settings = head.settings;
    k->counters = head.counters;
    uint64_t state = head.settings.seed;
    for (int i = 0; i < 4; i++)
        k->secret[i] = splitmix(&state);
    for (int i = 0; i < TABLES; i++) {
        struct table *t = &k->table[i];
        size_t index = ((size_t)t->mask + 1) * sizeof *t->buckets, records = (size_t)head.used[i] * t->record;
        t->used = head.used[i];
        t->evicted = head.evicted[i];
        memcpy(t->buckets, at, index);
        memcpy(t->pool, at + index, records);
        at += index + records;
    }
    memcpy(k->seen, at, (size_t)head.used[DEVICES] * SEEN * sizeof *k->seen);
    return NULL;
}
