/* The inside of struct kernel: records, one packet on its way, the tables. For stats.c, lanes.c and saved.c only. */
#ifndef BOTWATCH_STATE_H
#define BOTWATCH_STATE_H

#include "kernel.h"
#include "seen.h"
#include "table.h"

/* ---- records ---- */

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

/* The part that HH and HpHp have in common. */
struct channel {
    uint64_t key[5]; /* two addresses, kind (sockets: | class << 8 | port << 16 | port << 32) */
    int64_t t, c;
    int64_t last[2];
    uint16_t port[2]; /* of a pair: the last one that each direction opened */
    uint32_t told;    /* of a pair: enum told */
    double cf3[LANES];
    struct way way[2];
};

enum { SLOW = 2 }; /* the decays λ = 0.1 and 0.01 */
enum told { TOLD_OPENED = 1, TOLD_ERROR = 2 }; /* which of a pair's numbers may be other than 0 */

struct pair {
    struct channel channel;
    struct moments jitter[2];
    float opened[2][2], errors[SLOW][2]; /* of each way: ports and logins; ICMP errors */
};

struct device {
    uint64_t key[3];
    int64_t t;
    struct moments m;
    double peers[LANES], sockets[LANES];
    uint64_t number; /* of this record, hence of its seen sets */
    int64_t ping_t; /* when it last pinged */
    float pinged;
    uint32_t heard; /* 1 once a packet of it was answered */
    uint64_t unused[3];
};

_Static_assert(sizeof(struct host) == 192 && sizeof(struct channel) == 512 && sizeof(struct pair) == 832 &&
               sizeof(struct device) == 320, "the records as kernel.h draws them");
_Static_assert(sizeof(struct row_meta) == 88, "features.ROW_META");

/* ---- one packet ---- */

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
    struct row_meta *row;
    struct pair *numbers;   /* of its pair and device, beside the columns */
    double answers;         /* packets that one answer accounts for; INFINITY where none is expected */
    double ping_gap;        /* seconds since the device last pinged */
    float opens, pings, fails; /* 1 or 0: what this packet adds to the ports or logins, the hosts pinged, the errors */
    uint8_t at, back;       /* its way, and that of its answers */
    bool login, tries, ping; /* the row's `opened` is of logins among what is tried; of hosts pinged; else 0 */
};

/* Writes the row of a packet, COLUMNS of float or double, and moves its streams on. */
typedef void row_writer(const struct step *step, void *out);

/* The row writers, of floats and of doubles, for this processor and their name; false if SIMD_AVX2 cannot be used. */
bool lanes_choose(enum simd simd, row_writer *writers[2], const char **name);

/* ---- the kernel ---- */

enum { HOSTS, MACS, PAIRS, SOCKETS, DEVICES, TABLES };
static const int64_t OFFSET_MAX = INT64_C(1) << 60; /* 36 years of steps back; contract/clock.py has the same */

/* Counters, saved as they are. */
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

struct kernel {
    struct settings settings;
    struct counters counters;
    uint64_t secret[4];
    struct table table[TABLES];
    uint32_t *seen; /* max_devices x SEEN */
    row_writer *write_row[2]; /* of floats, of doubles */
    const char *simd;
    void *memory;
    size_t bytes;
    struct ring *ring; /* or NULL */
    struct pending pending[BATCH];
};

/* The secret operands of the hashes, from settings.seed. */
void kernel_derive_secret(struct kernel *k);

#endif
