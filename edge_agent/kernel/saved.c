/* Saving and loading the learnt state, as bytes of this machine's own layout:
 *
 *     struct saved | per table: buckets, used records | seen sets of the used devices
 *
 * The bytes that are loaded may have been written by anybody: no part of them may lead outside the tables. */
#include "state.h"

#include <string.h>

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
        bytes += table_index_bytes(&k->table[i]) + (size_t)used[i] * k->table[i].record;
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
        size_t index = table_index_bytes(t);
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
        const uint8_t *pool = at + table_index_bytes(&k->table[i]);
        for (uint32_t j = 0; i == DEVICES && j < head.used[i]; j++) {
            struct device device;
            memcpy(&device, pool + (size_t)j * sizeof device, sizeof device);
            if (device.number != j)
                return "a device with another's seen sets";
        }
        at += table_index_bytes(&k->table[i]) + (size_t)head.used[i] * k->table[i].record;
    }

    at = bytes + sizeof head;
    k->settings = head.settings;
    k->counters = head.counters;
    kernel_derive_secret(k);
    for (int i = 0; i < TABLES; i++) {
        struct table *t = &k->table[i];
        size_t index = table_index_bytes(t), records = (size_t)head.used[i] * t->record;
        t->used = head.used[i];
        t->evicted = head.evicted[i];
        memcpy(t->buckets, at, index);
        memcpy(t->pool, at + index, records);
        at += index + records;
    }
    memcpy(k->seen, at, (size_t)head.used[DEVICES] * SEEN * sizeof *k->seen);
    return NULL;
}
