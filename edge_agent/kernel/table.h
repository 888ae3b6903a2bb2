/* A table of streams: a pool of records and an index of 64-byte buckets, drawn in kernel.h (THE TABLES).
 *
 * It knows where a key lies and which record a new key replaces; what a record means is the caller's. Every record begins
 * with its key. The look-up is here, to be inlined into the caller with the size of its record. */
#ifndef BOTWATCH_TABLE_H
#define BOTWATCH_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { WAYS = 8, NUMBER_BITS = 20, NUMBER = (1 << NUMBER_BITS) - 1, LINE = 64 };
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

/* Return the bytes that table_place() takes for `capacity` records of `record` bytes each. */
size_t table_bytes(uint32_t capacity, uint32_t record);
/* Lay out a table at *memory, which is zero and aligned to LINE, and move *memory behind it. */
void table_place(struct table *t, uint32_t capacity, uint32_t record, uint8_t **memory);
size_t table_index_bytes(const struct table *t);
/* Enter a new key into the index and return the number of its record, which may still hold an evicted stream. */
uint32_t table_insert(struct table *t, uint64_t hash, uint32_t now);

/* Return a bit mask of those of 8 entries that equal `want` above the lowest `shift` bits. */
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

static inline uint32_t same_tag(const struct bucket *b, uint32_t tag)
{
    return match(b->tag, tag, NUMBER_BITS);
}

static inline uint32_t tag_of(uint64_t hash)
{
    uint32_t tag = (uint32_t)(hash >> 52) << NUMBER_BITS;
    return tag != 0 ? tag : 1u << NUMBER_BITS; /* 0 is "free" */
}

static inline uint32_t first_bucket(const struct table *t, uint64_t hash)
{
    return (uint32_t)hash & t->mask;
}

static inline uint32_t second_bucket(const struct table *t, uint64_t hash)
{
    uint32_t first = first_bucket(t, hash), second = (uint32_t)(hash >> 20) & t->mask;
    return second != first ? second : first ^ 1; /* there are at least two buckets */
}

static inline void *record(const struct table *t, uint32_t number, size_t size)
{
    return t->pool + number * size; /* size is t->record, known to the caller's compiler */
}

static inline bool equal_keys(const uint64_t *a, const uint64_t *b, int words)
{
    uint64_t difference = 0;
    for (int i = 0; i < words; i++)
        difference |= a[i] ^ b[i];
    return difference == 0;
}

/* Rank the ways of a bucket for eviction, the highest first: streams met once or forgotten before others, then by age. A free
 * way has rank 0. There are no branches, so that it can be vectorised. */
static inline void rank_ways(const struct bucket *b, uint32_t now, int32_t rank[WAYS])
{
    for (int i = 0; i < WAYS; i++) {
        int32_t age = (int32_t)((now - b->stamp[i]) & STAMP_TIME);
        age = age > STAMP_TIME / 2 ? 0 : age; /* the clock stepped back */
        int32_t first = (b->stamp[i] & MET_AGAIN) == 0 || age > FORGOTTEN ? STAMP_TIME / 2 + 1 : 0;
        rank[i] = b->tag[i] != 0 ? (age + first) | 1 : 0; /* | 1: not 0 */
    }
}

/* Return the way of two buckets to evict: 0 .. 7 of a, 8 .. 15 of b; -1 if both are empty. */
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

/* Return the record of a key; a new record is zero but for its key. `slot` is table_locate()'s guess or NOWHERE. */
static inline __attribute__((always_inline)) void *table_find(struct table *t, size_t size, const uint64_t *key, int words,
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
    uint64_t *made = record(t, table_insert(t, hash, now), size);
    memset(made, 0, t->record); /* of unknown size, so that libc does it: rep stos is slower */
    memcpy(made, key, sizeof *key * (size_t)words);
    *fresh = true;
    return made;
}

static inline void table_prefetch(const struct table *t, uint64_t hash)
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

/* Return where table_find() will probably find a key, judged by the tag alone, or NOWHERE. Prefetch that record, or the one
 * that the new key will probably get. Packets in between may change either. */
static inline __attribute__((always_inline)) uint32_t table_locate(const struct table *t, size_t size, uint64_t hash,
                                                                 uint32_t now)
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

#endif
