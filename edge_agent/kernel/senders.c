/* Assigns rows to subjects and decides which of them are scored, row after row, so that neither depends on where batches are
 * cut. edge_agent/detection/detector.py explains what a subject is.
 *
 * A packet with a remote source address either came in through a router, and then its subject is its target, or its sender
 * has forged the address, and then its subject is the sender. What a MAC has sent so far decides. Here a router ("relays")
 * is a MAC to which a monitored address has sent packets for a remote one; checkins.py and capture/attach.py, which can wait
 * for more of its traffic, have definitions of their own.
 *
 * The budget is a bucket of rows that fills with capture time. While it is more than half full, every row is scored. Below
 * that, each subject has a bucket of its own, which fills with its share of the rate. Rows that opened nothing leave half of
 * their subject's bucket and a quarter of the whole to rows that opened a stream. The bucket of a quiet device is full, so
 * the rows that are shed are those of loud ones. No row waits: it is scored when it comes or never, so that scores are always
 * of the newest state. */
#include "kernel.h"

#include <stdlib.h>
#include <string.h>

enum { NONE = 0 };           /* records are numbered from 1 */
#define BURST_S 0.25         /* a bucket holds the rows of so many seconds of its rate */
#define LEAST 32.0           /* rows that a subject's bucket holds at least: a vote and a half */
#define CALM_SECONDS 10      /* a better step must hold for so long before it is reported */
#define OUTSIDE 16           /* rows from outside after which answers from there count as seen: one may have strayed in */
#define SPARSE 10            /* the step is `sparse` when fewer than one row in so many is scored */

enum kind { SENDER, DEVICE_SUBJECT, ADDRESS_SUBJECT };

struct entry {
    uint64_t key[3]; /* MAC or address, and enum kind */
    uint32_t newer, older;
};

struct sender {
    struct entry entry;
    bool local, by_arp, relays, client, answers;
    uint8_t version, address[16]; /* its own; version 0: none yet */
};

struct bucket_of {
    struct entry entry;
    int64_t t, second;
    double level;
};

/* Records in the order of their use; a full table evicts the one used longest ago. */
struct lru {
    uint8_t *records;
    uint32_t *index; /* open addressing, twice as large as the records at least */
    size_t record;
    uint32_t mask, capacity, used, newest, oldest;
    uint64_t seed, evicted;
};

struct senders {
    struct lru senders, subjects;
    struct network4 *v4;
    struct network6 *v6;
    size_t v4_count, v6_count;
    double rate, level;
    int64_t level_t, second;
    uint32_t active, active_before; /* subjects of this second and of the one before */
    uint64_t scored, shed, second_scored, second_shed;
    uint32_t step;
    int64_t worse; /* the second that last was as bad as the step */
    uint32_t from_outside; /* rows, up to OUTSIDE */
};

static bool lru_new(struct lru *l, size_t record, uint32_t capacity, uint64_t seed)
{
    uint32_t size = 4;
    while (size < 2 * capacity + 2)
        size *= 2;
    l->record = record;
    l->capacity = capacity;
    l->mask = size - 1;
    l->seed = seed;
    l->records = calloc((size_t)capacity + 1, record);
    l->index = calloc(size, sizeof *l->index);
    return l->records != NULL && l->index != NULL;
}

static struct entry *at(const struct lru *l, uint32_t number)
{
    return (struct entry *)(void *)(l->records + number * l->record);
}

static uint32_t place(const struct lru *l, const uint64_t key[3])
{
    uint64_t h = l->seed;
    for (int i = 0; i < 3; i++) {
        h = (h ^ key[i]) * 0x9e3779b97f4a7c15;
        h ^= h >> 29;
    }
    h *= 0xbf58476d1ce4e5b9;
    return (uint32_t)(h >> 32) & l->mask;
}

static bool same(const uint64_t a[3], const uint64_t b[3])
{
    return a[0] == b[0] && a[1] == b[1] && a[2] == b[2];
}

static void unlink_entry(struct lru *l, struct entry *e)
{
    *(e->newer != NONE ? &at(l, e->newer)->older : &l->newest) = e->older;
    *(e->older != NONE ? &at(l, e->older)->newer : &l->oldest) = e->newer;
}

static void link_newest(struct lru *l, struct entry *e, uint32_t number)
{
    e->newer = NONE;
    e->older = l->newest;
    *(l->newest != NONE ? &at(l, l->newest)->newer : &l->oldest) = number;
    l->newest = number;
}

/* Remove the oldest record from the index; entries behind it move up, so that no look-up stops at a gap. */
static uint32_t evict(struct lru *l)
{
    uint32_t number = l->oldest, hole = place(l, at(l, number)->key);
    unlink_entry(l, at(l, number));
    while (l->index[hole] != number)
        hole = (hole + 1) & l->mask;
    for (uint32_t next = (hole + 1) & l->mask; l->index[next] != NONE; next = (next + 1) & l->mask) {
        uint32_t home = place(l, at(l, l->index[next])->key);
        if (((next - home) & l->mask) >= ((next - hole) & l->mask)) {
            l->index[hole] = l->index[next];
            hole = next;
        }
    }
    l->index[hole] = NONE;
    l->evicted++;
    return number;
}

/* Return the record of `key`, which is the newest from now on; a new record is zero but for its key. */
static struct entry *look_up(struct lru *l, const uint64_t key[3])
{
    uint32_t slot, number;
    if (l->newest != NONE && same(at(l, l->newest)->key, key)) /* packets come in runs */
        return at(l, l->newest);
    slot = place(l, key);
    for (; (number = l->index[slot]) != NONE; slot = (slot + 1) & l->mask) {
        struct entry *e = at(l, number);
        if (same(e->key, key)) {
            unlink_entry(l, e);
            link_newest(l, e, number);
            return e;
        }
    }
    if (l->used < l->capacity) {
        number = ++l->used;
    } else {
        number = evict(l);
        for (slot = place(l, key); l->index[slot] != NONE; slot = (slot + 1) & l->mask)
            ;
    }
    struct entry *e = at(l, number);
    memset(e, 0, l->record);
    memcpy(e->key, key, sizeof e->key);
    l->index[slot] = number;
    link_newest(l, e, number);
    return e;
}

struct senders *senders_new(uint32_t capacity, double rate, uint64_t seed, const struct network4 *v4, size_t v4_count,
                            const struct network6 *v6, size_t v6_count)
{
    struct senders *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->v4 = calloc(v4_count + 1, sizeof *v4);
    s->v6 = calloc(v6_count + 1, sizeof *v6);
    if (s->v4 == NULL || s->v6 == NULL || !lru_new(&s->senders, sizeof(struct sender), capacity, seed) ||
        !lru_new(&s->subjects, sizeof(struct bucket_of), capacity, ~seed)) {
        senders_free(s);
        return NULL;
    }
    memcpy(s->v4, v4, v4_count * sizeof *v4);
    memcpy(s->v6, v6, v6_count * sizeof *v6);
    s->v4_count = v4_count;
    s->v6_count = v6_count;
    s->rate = rate;
    s->level = rate * BURST_S;
    s->second = INT64_MIN;
    return s;
}

void senders_free(struct senders *s)
{
    if (s == NULL)
        return;
    free(s->senders.records);
    free(s->senders.index);
    free(s->subjects.records);
    free(s->subjects.index);
    free(s->v4);
    free(s->v6);
    free(s);
}

/* Return whether an address is monitored; link layer addresses are. */
static bool holds(const struct senders *s, const uint8_t *address, uint8_t version)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++)
        word = word << 8 | address[i];
    if (version == 4) {
        for (size_t i = 0; i < s->v4_count; i++)
            if (((uint32_t)(word >> 32) & s->v4[i].mask) == s->v4[i].first)
                return true;
        return false;
    }
    for (size_t i = 0; version == 6 && i < s->v6_count; i++)
        if ((word & s->v6[i].mask) == s->v6[i].first)
            return true;
    return version == 0;
}

static double refilled(double level, double rate, double most, int64_t since)
{
    double filled = level + (since > 0 ? rate * ((double)since * 1e-9) : 0);
    return filled < most ? filled : most;
}

/* Set the step from the share of a second's rows that was scored; a better step must hold for CALM_SECONDS. */
static void end_second(struct senders *s, int64_t second)
{
    uint64_t rows = s->second_scored + s->second_shed;
    uint32_t step = s->second_shed == 0 ? 0 : s->second_scored * SPARSE >= rows ? 1 : 2;
    if (step >= s->step) {
        s->step = step;
        s->worse = s->second;
    } else if (second - s->worse > CALM_SECONDS) {
        s->step = step;
        s->worse = s->second;
    }
    s->active_before = second == s->second + 1 ? s->active : 0;
    s->active = 0;
    s->second_scored = s->second_shed = 0;
    s->second = second;
}

static bool afford(struct senders *s, struct bucket_of *u, int64_t t, bool opens)
{
    int64_t second = t / 1000000000;
    if (s->second == INT64_MIN)
        s->second = s->worse = second;
    if (second > s->second)
        end_second(s, second);
    if (u->second != s->second) {
        u->second = s->second;
        s->active++;
    }
    double most = s->rate * BURST_S, share = s->rate / (s->active > s->active_before ? s->active : s->active_before);
    double own = share * BURST_S > LEAST ? share * BURST_S : LEAST;
    s->level = refilled(s->level, s->rate, most, t - s->level_t);
    u->level = refilled(u->level, share, own, u->t != 0 ? t - u->t : 0);
    if (t > s->level_t)
        s->level_t = t;
    if (t > u->t)
        u->t = t;
    bool spare = s->level >= most / 2;
    bool good = spare || (opens ? s->level >= 1 && u->level >= 1 : s->level >= most / 4 && u->level >= own / 2);
    if (good)
        s->level -= 1;
    if (good && !spare)
        u->level -= 1;
    return good;
}

/* Put a row's counts where they belong: enum host_count. */
static void count_row(const struct senders *s, const struct row_meta *row, bool to_inside, float out[HOST_COUNTS])
{
    if (row->unanswered[0] + row->unanswered[1] + row->opened <= 0) /* most rows */
        return;
    int missing = to_inside ? UNANSWERED_INSIDE : UNANSWERED;
    int opened = row->proto != IP_TCP ? PINGED : login_port(row->dport) ? LOGINS_TRIED : PORTS_TRIED;
    for (int i = 0; i < 2; i++)
        out[missing + i] = to_inside || s->from_outside >= OUTSIDE ? row->unanswered[i] : 0;
    out[opened] = row->opened;
}

static void take_row(struct senders *s, const struct row_meta *row, int64_t t, uint64_t key[3], struct routes *out, size_t i)
{
    uint64_t mac[3] = {row->src_mac, 0, SENDER};
    struct sender *from = (struct sender *)(void *)look_up(&s->senders, mac);
    bool inside = holds(s, row->src, row->ip_version), to_inside = holds(s, row->dst, row->ip_version);
    bool ports = row->flags & PORTS, relays = from->relays;
    bool outward = inside && !to_inside && ports && !(row->dst_mac >> 40 & 1) && row->src_mac != row->dst_mac;
    from->client |= outward;
    from->answers |= !inside && to_inside && ports && !(row->flags & NEW_SOCKET);
    from->local |= inside;
    bool incoming = !inside && (relays || (!from->client && (from->answers || (!from->local && to_inside))));

    static const uint8_t nowhere[16];
    bool named = inside && row->ip_version != 0 && memcmp(row->src, nowhere, sizeof nowhere) != 0;
    bool arp = named && (row->flags & ARP);
    from->by_arp |= arp;
    if ((from->version == 0 && named) || (from->by_arp ? arp : named && !(row->flags & NEW_PEER))) {
        from->version = row->ip_version;
        memcpy(from->address, row->src, sizeof from->address);
    }
    out->versions[i] = from->version;
    memcpy(out->addresses + 16 * i, from->address, 16);
    out->carries[i] = relays && !incoming;
    s->from_outside += !inside && to_inside && s->from_outside < OUTSIDE;
    memset(out->host_counts[i], 0, sizeof out->host_counts[i]);
    if (!incoming && !relays)
        count_row(s, row, to_inside, out->host_counts[i]);

    memset(key, 0, 3 * sizeof *key);
    if (incoming)
        memcpy(key, row->dst, sizeof row->dst);
    else
        key[0] = row->src_mac;
    key[2] = incoming ? ADDRESS_SUBJECT : DEVICE_SUBJECT;
    out->incoming[i] = incoming;

    bool good = true;
    if (s->rate > 0)
        good = afford(s, (struct bucket_of *)(void *)look_up(&s->subjects, key), t, row->flags & (NEW_PEER | NEW_SOCKET));
    out->chosen[i] = good;
    *(good ? &s->scored : &s->shed) += 1;
    *(good ? &s->second_scored : &s->second_shed) += 1;
    if (outward) {
        uint64_t through[3] = {row->dst_mac, 0, SENDER};
        ((struct sender *)(void *)look_up(&s->senders, through))->relays = true;
    }
}

size_t senders_route(struct senders *s, const struct row_meta *rows, const int64_t *t_ns, size_t count, struct routes *out)
{
    uint64_t(*keys)[3] = out->keys;
    uint32_t mask = out->slots - 1, groups = 0;
    memset(out->slot, 0xff, out->slots * sizeof *out->slot);
    for (size_t i = 0; i < count; i++) {
        uint64_t key[3];
        take_row(s, &rows[i], t_ns[i], key, out, i);
        uint32_t slot = place(&s->subjects, key) & mask;
        while (out->slot[slot] != UINT32_MAX && !same(keys[out->slot[slot]], key))
            slot = (slot + 1) & mask;
        if (out->slot[slot] == UINT32_MAX) {
            memcpy(keys[groups], key, sizeof key);
            out->starts[groups + 1] = 0;
            out->slot[slot] = groups++;
        }
        out->group[i] = out->slot[slot];
        out->starts[out->group[i] + 1]++;
    }
    out->starts[0] = 0;
    for (uint32_t g = 0; g < groups; g++)
        out->starts[g + 1] += out->starts[g];
    uint32_t *next = out->slot; /* no longer needed; at least as many as groups */
    for (uint32_t g = 0; g < groups; g++)
        next[g] = (uint32_t)out->starts[g];
    for (size_t i = 0; i < count; i++)
        out->order[next[out->group[i]]++] = (int64_t)i;
    return groups;
}

void senders_counts(const struct senders *s, struct senders_counts *out)
{
    *out = (struct senders_counts){s->scored, s->shed, s->senders.evicted, s->step};
}
