/* The rare operations on a table: laying it out, and entering a new key. The look-up is inline in table.h. */
#include "table.h"

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

size_t table_bytes(uint32_t capacity, uint32_t record)
{
    return (size_t)bucket_count(capacity) * sizeof(struct bucket) + (size_t)capacity * record + 2 * LINE;
}

void table_place(struct table *t, uint32_t capacity, uint32_t record, uint8_t **memory)
{
    uint32_t buckets = bucket_count(capacity);
    *t = (struct table){.capacity = capacity, .record = record, .mask = buckets - 1};
    t->buckets = carve(memory, buckets * sizeof *t->buckets);
    t->pool = carve(memory, (size_t)capacity * record);
}

size_t table_index_bytes(const struct table *t)
{
    return ((size_t)t->mask + 1) * sizeof *t->buckets;
}

static uint32_t free_ways(const struct bucket *b)
{
    return match(b->tag, 0, 0);
}

static uint32_t ways_in(uint32_t mask)
{
    static const uint8_t bits[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
    return (uint32_t)bits[mask & 15] + bits[mask >> 4];
}

uint32_t table_insert(struct table *t, uint64_t hash, uint32_t now)
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
