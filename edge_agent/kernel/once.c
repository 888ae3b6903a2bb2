/* Recognises frames of a live capture that were seen before on their way through this machine. Keys are 64-bit hashes of the
 * parts of a frame that do not change on that way, in two tables of 16,384 entries:
 *
 *     frames    MACs, addresses, ports, content    a bridge, its ports, a VLAN and what it lies on show one frame each
 *     packets   content                            a router sends under its own MAC, with NAT under its own address
 *
 * Content is: version, protocol, length, IPv4 identification or IPv6 flow label, fragment; the sequence number,
 * acknowledgement, flags and window of TCP; UDP and ICMP without ports, identifier and checksum; and the payload up to
 * CONTENT_MAX. Checksums and TCP options change in a router. The TTL is one less behind it, so that a packet of this machine
 * is not taken for a device's packet with the same content. Where a firewall sets the TTL, both copies count. */
#include "kernel.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKET_BITS = 11, BUCKETS = 1 << BUCKET_BITS, WAYS = 8, OWN_MAX = 64 };
enum { CONTENT_MAX = 64 }; /* bytes from the IP header on; no snaplen cuts them, tags or not */
enum { FRESH = 954 };      /* 1 s in units of 2^20 ns: the longest delay of a packet in a full queue towards the internet */

struct sight {
    uint64_t key;
    uint32_t t;       /* 2^20 ns */
    uint16_t credit;  /* of a packet: how many more times it was received than sent on */
    uint8_t interface; /* of a frame: the only one where it counts */
    uint8_t used;
};

struct table {
    struct sight sights[BUCKETS][WAYS];
};

struct once {
    struct table *frames, *packets; /* frames: NULL where there is one interface */
    uint64_t seed, forgotten;
    uint64_t own[OWN_MAX];
    size_t own_count;
};

struct content {
    enum direction direction;
    bool ip;
    uint8_t ttl;
    uint64_t frame, packet;
};

struct once *once_new(uint64_t seed, bool several)
{
    struct once *o = calloc(1, sizeof *o);
    if (o == NULL)
        return NULL;
    o->seed = seed;
    o->packets = calloc(1, sizeof *o->packets);
    o->frames = several ? calloc(1, sizeof *o->frames) : NULL;
    if (o->packets != NULL && (o->frames != NULL || !several))
        return o;
    once_free(o);
    return NULL;
}

void once_free(struct once *o)
{
    if (o == NULL)
        return;
    free(o->frames);
    free(o->packets);
    free(o);
}

void once_own(struct once *o, const uint64_t *macs, size_t count)
{
    o->own_count = count < OWN_MAX ? count : OWN_MAX;
    memcpy(o->own, macs, o->own_count * sizeof *macs);
}

uint64_t once_forgotten(const struct once *o)
{
    return o->forgotten;
}

static uint64_t mixed(uint64_t hash, uint64_t word)
{
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    return hash ^ hash >> 29;
}

static uint64_t mixed_bytes(uint64_t hash, const uint8_t *p, const uint8_t *end)
{
    for (; p < end; p += 8) {
        uint64_t word = 0;
        memcpy(&word, p, end - p < 8 ? (size_t)(end - p) : 8);
        hash = mixed(hash, word);
    }
    return hash;
}

static uint16_t be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

/* Return where the network layer begins, and set its type. Tags and PPPoE are skipped: they differ between a VLAN and the
 * interface below it. */
static const uint8_t *network_layer(const uint8_t *p, const uint8_t *end, uint16_t *type)
{
    for (int i = 0; i < 3; i++) {
        if (*type == TYPE_VLAN || *type == TYPE_QINQ || *type == TYPE_QINQ_OLD) {
            if (end - p < 4)
                return end;
            *type = be16(p + 2);
            p += 4;
        } else if (*type == TYPE_PPPOE) {
            if (end - p < 8)
                return end;
            *type = be16(p + 6) == 0x0021 ? TYPE_IPV4 : be16(p + 6) == 0x0057 ? TYPE_IPV6 : 0;
            p += 8;
        } else {
            break;
        }
    }
    return p;
}

/* Hash an IP packet's content into `c`, up to the packet's own length: a short frame has padding when received, not when
 * sent. */
static void hash_packet(struct content *c, const uint8_t *p, const uint8_t *end)
{
    const uint8_t *start = p, *addresses;
    size_t header, length, address_bytes;
    uint8_t proto;
    bool later = false;
    if (end - p >= 20 && p[0] >> 4 == 4) {
        header = (size_t)(p[0] & 15) * 4;
        length = be16(p + 2);
        proto = p[9];
        c->ttl = p[8];
        later = (be16(p + 6) & 0x1fff) != 0;
        c->packet = mixed(c->packet, (uint64_t)be16(p + 4) << 16 | be16(p + 6));
        addresses = p + 12;
        address_bytes = 8;
    } else if (end - p >= 40 && p[0] >> 4 == 6) {
        header = 40;
        length = header + be16(p + 4);
        proto = p[6];
        c->ttl = p[7];
        c->packet = mixed(c->packet, (uint64_t)(p[1] & 15) << 16 | be16(p + 2));
        addresses = p + 8;
        address_bytes = 32;
    } else {
        return;
    }
    c->ip = true;
    c->packet = mixed(c->packet, (uint64_t)(p[0] >> 4) << 32 | (uint64_t)proto << 24 | length);
    c->frame = mixed_bytes(c->frame, addresses, addresses + address_bytes);
    if ((size_t)(end - start) > length)
        end = start + length;
    if (end - start > CONTENT_MAX)
        end = start + CONTENT_MAX;
    if ((size_t)(end - start) <= header)
        return;
    p += header;
    size_t there = (size_t)(end - p);
    if (!later && proto == 6 && there >= 16) {
        c->frame = mixed_bytes(c->frame, p, p + 4);
        c->packet = mixed_bytes(c->packet, p + 4, p + 12);
        c->packet = mixed(c->packet, (uint64_t)(p[13]) << 16 | be16(p + 14));
        p += (size_t)(p[12] >> 4) * 4;
    } else if (!later && (proto == 17 || proto == 1 || proto == 58) && there >= 8) {
        c->frame = mixed_bytes(c->frame, p, p + 4);
        if (proto != 17)
            c->packet = mixed(c->packet, be16(p));
        bool quotes = (proto == 1 && (p[0] == 3 || p[0] == 11 || p[0] == 12)) || (proto == 58 && p[0] < 128);
        p = quotes ? end : p + 8; /* NAT changes the quoted packet as well */
    }
    c->packet = mixed_bytes(c->packet, p < end ? p : end, end);
}

/* False for a frame that cannot be compared with others: one whose link header is cut or not known. */
static bool look(const struct once *o, const struct frame *frame, struct content *c)
{
    const uint8_t *p = frame->bytes, *end = p + frame->captured;
    struct link_header link;
    if (link_read(frame->linktype, p, frame->captured, &link) != LINK_WHOLE)
        return false;
    *c = (struct content){link.direction, false, 0, o->seed, o->seed};
    if (frame->linktype == LINK_ETHERNET) {
        c->direction = RECEIVED;
        for (size_t i = 0; i < o->own_count; i++)
            if (o->own[i] == link.src_mac)
                c->direction = SENT;
        c->frame = mixed_bytes(c->frame, p, p + 12);
    }
    uint16_t type = link.type;
    p = network_layer(p + link.length, end, &type);
    if (type == TYPE_IPV4 || type == TYPE_IPV6)
        hash_packet(c, p, end);
    if (!c->ip)
        c->packet = mixed_bytes(mixed(c->packet, type), p, end - p > CONTENT_MAX ? p + CONTENT_MAX : end);
    c->frame = mixed(c->frame, c->packet);
    return true;
}

static bool fresh(const struct sight *s, uint32_t t)
{
    int32_t age = (int32_t)(t - s->t);
    return s->used && age <= FRESH && age >= -FRESH;
}

static struct sight *find(struct table *table, uint64_t key, uint32_t t)
{
    struct sight *bucket = table->sights[key >> (64 - BUCKET_BITS)];
    for (int i = 0; i < WAYS; i++)
        if (bucket[i].key == key && fresh(&bucket[i], t))
            return &bucket[i];
    return NULL;
}

/* Return the entry of `key`, marked as seen now. A new entry has neither credit nor interface and replaces the oldest. */
static struct sight *keep(struct once *o, struct table *table, uint64_t key, uint32_t t)
{
    struct sight *found = find(table, key, t);
    if (found == NULL) {
        struct sight *bucket = table->sights[key >> (64 - BUCKET_BITS)];
        found = bucket;
        for (int i = 0; i < WAYS && fresh(found, t); i++)
            if (!fresh(&bucket[i], t) || (int32_t)(bucket[i].t - found->t) < 0)
                found = &bucket[i];
        o->forgotten += fresh(found, t);
        *found = (struct sight){.key = key, .used = true};
    }
    found->t = t;
    return found;
}

bool once_again(struct once *o, const struct frame *frame)
{
    struct content c;
    struct sight *s;
    uint32_t t = (uint32_t)(frame->t_ns >> 20);
    if (!look(o, frame, &c))
        return false;
    if (o->frames != NULL && frame->linktype == LINK_ETHERNET) {
        s = find(o->frames, c.frame, t);
        if (s != NULL && s->interface != frame->interface)
            return true;
        keep(o, o->frames, c.frame, t)->interface = frame->interface;
    }
    if (!c.ip)
        return false;
    if (c.direction != RECEIVED && (s = find(o->packets, mixed(c.packet, c.ttl), t)) != NULL && s->credit > 0) {
        s->credit--;
        return true;
    }
    if (c.direction != SENT) {
        s = keep(o, o->packets, mixed(c.packet, (uint64_t)c.ttl - 1), t);
        s->credit += s->credit < UINT16_MAX;
    }
    return false;
}
