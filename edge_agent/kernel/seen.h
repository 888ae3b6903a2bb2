/* What a device has seen: its sets of pairs and sockets, drawn in kernel.h (WHAT A DEVICE HAS SEEN). */
#ifndef BOTWATCH_SEEN_H
#define BOTWATCH_SEEN_H

#include "table.h" /* match(), and buckets of WAYS entries */

enum { SEEN_PEERS = 1024, SEEN_SOCKETS = 4096, SEEN = SEEN_PEERS + SEEN_SOCKETS };
enum { SEEN_BITS = 12, SEEN_KNOWN = 1 << 11, SEEN_TIME = SEEN_KNOWN - 1 };
enum { DAY = 24 * 6 /* units */, SEEN_FORGOTTEN = 7 * DAY };
static const int64_t SEEN_UNIT_NS = INT64_C(600000000000);

/* Return the position for a new entry: that of a free or forgotten one, else of the oldest unknown, else of the oldest. */
int seen_room(const uint32_t bucket[WAYS], uint32_t unit, uint64_t *evicted);

/* Move the entry at `place` to the front, with a new value. */
static inline void to_front(uint32_t bucket[WAYS], int place, uint32_t entry)
{
    for (int i = place; i > 0; i--)
        bucket[i] = bucket[i - 1];
    bucket[0] = entry;
}

/* Return the units since an entry's time; 0 if the clock has stepped back (by at most a day: more counts as age). */
static inline uint32_t idle(uint32_t entry, uint32_t unit)
{
    uint32_t age = (unit - entry) & SEEN_TIME;
    return age > SEEN_TIME - DAY ? 0 : age;
}

static inline bool seen_forgotten(uint32_t entry, uint32_t unit)
{
    return entry == 0 || idle(entry, unit) >= SEEN_FORGOTTEN;
}

/* Note a visit of a key. Return true if the bucket did not hold the key or had forgotten it. */
static inline bool seen_visit(uint32_t bucket[WAYS], uint64_t hash, uint32_t unit, uint64_t *evicted)
{
    uint32_t mark = (uint32_t)(hash >> 44) << SEEN_BITS;
    if (mark == 0)
        mark = 1u << SEEN_BITS;
    uint32_t found = match(bucket, mark, SEEN_BITS);
    if (found == 0) {
        to_front(bucket, seen_room(bucket, unit, evicted), mark | unit);
        return true;
    }
    int place = __builtin_ctz(found);
    uint32_t entry = bucket[place];
    if (seen_forgotten(entry, unit)) {
        to_front(bucket, place, mark | unit);
        return true;
    }
    if ((entry & SEEN_KNOWN) == 0 && idle(entry, unit) < 2)
        return false; /* the time of the first visit stays */
    to_front(bucket, place, mark | SEEN_KNOWN | unit);
    return false;
}

static inline uint32_t *seen_peers(uint32_t *seen, uint64_t hash)
{
    return seen + (hash & (SEEN_PEERS / WAYS - 1)) * WAYS;
}

static inline uint32_t *seen_sockets(uint32_t *seen, uint64_t hash)
{
    return seen + SEEN_PEERS + (hash & (SEEN_SOCKETS / WAYS - 1)) * WAYS;
}

#endif
