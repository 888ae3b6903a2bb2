/* The native part of botwatch: from captured frames to rows of 140 columns. This header is its manual.
 *
 *     capture.c   where frames come from: libpcap files (pcap, pcapng), with a BPF filter
 *     live.c      and live interfaces, several read as one
 *     once.c      which of their frames were seen before, on the way through this machine
 *     decode.c    one frame -> struct packet: times, MACs, addresses, ports, and what could not be read
 *     stats.c     packets -> rows: which streams a packet belongs to, and their times
 *     table.c/.h  the tables of streams: look-up, insertion, eviction
 *     seen.c/.h   the sets of what a device has seen
 *     tried.h     what a packet tries, and what answers it
 *     lanes.c     the arithmetic of one row: instances of lanes.h for each vector width
 *     saved.c     the learnt state, saved and loaded
 *     state.h     the inside of struct kernel, for the four above
 *     ring.c      the headers of the last seconds, for the pcap that goes with an alert
 *     senders.c   rows -> subjects: devices and victims, and which rows a budget lets be scored
 *     scale.c     rows -> the inputs of a network, and its outputs -> scores
 *     memory.c    memory of the process that starting took and running does not need
 *     module*.c   the Python face; the only files that include Python.h
 *
 * There are no globals. Nothing is allocated after kernel_new(), kernel_keep(), capture_open_file(), live_open() and
 * senders_new(). Every read of a frame is checked against the captured end. One struct kernel belongs to one thread at a time.
 *
 *
 * THE STREAMS
 *
 * N-BaIoT's five (Meidan et al., IEEE Pervasive Computing 2018; statistics of Mirsky et al., Kitsune, NDSS 2018):
 *
 *     MI_dir   source MAC + source address                 frame length      weight mean variance           x 5 decays
 *     H        source address                              frame length      weight mean variance
 *     HH       source -> destination address + reverse     frame length      weight mean std magnitude radius covariance pcc
 *     HH_jit   source -> destination address               gap to the last   weight mean variance
 *     HpHp     source addr:port -> destination addr:port   frame length      as HH
 *
 * and botwatch's own, per device (source MAC):
 *
 *     device   source MAC                                  frame length      weight mean variance new_peers new_sockets
 *
 * Beside its columns a row has damped numbers of what its sender sent in vain and newly tried (MISSING AND OPENED).
 *
 * A stream is kept in the form that cannot cancel: with D(x) = 2^(-lambda x), f = D(gap since the last packet),
 *
 *     kept = f w      w' = kept + 1      a = 1/w'      b = kept a      d = v - mean
 *     mean' = a > 1/2 ? v - b d : mean + a d           var' = b (var + a d d)          residual = b d
 *
 * so decay touches w (and a direction's last residual) only, var >= 0, and a zeroed state needs no first-packet branch.
 * A packet that is not later than its stream's last one decays nothing and leaves the stream's time alone.
 *
 *
 * THE RECORDS (bytes; every array has LANES doubles, one per decay 5, 3, 1, 0.1, 0.01 and one of padding)
 *
 *     host     0 key 24 | 24 mac 8 | 32 t 8 | 40 - 8 | 48 w 48 | 96 mean 48 | 144 var 48                           = 192
 *     socket   0 key 40 | 40 t 8 | 48 C 8 | 56 last[2] 16 | 72 - 8 | 80 CF3 48 | 128 way[0] 192 | 320 way[1] 192  = 512
 *     pair     as socket, then 512 jitter[0] 144 | 656 jitter[1] 144 | 800 opened[way][login] 16 | 816 errors[slow][way] 16 = 832
 *              and 72 port[way] 4 | 76 told 4
 *     device   0 key 24 | 24 t 8 | 32 w mean var peers sockets 240 | 272 number 8 | 280 ping_t 8 | 288 pinged heard 8 | 296 - 24
 *                                                                                                                = 320
 *
 * H and MI_dir differ only for an address that was seen with more than one MAC, so an address has one host record until
 * then and MI_dir is copied out of H; from its second MAC on (host.mac == SEVERAL_MACS) every (MAC, address) has a record
 * of its own in `macs`. Equal histories are equal states, so this changes no result.
 *
 * A pair or socket record belongs to an unordered pair: way[0] is the direction whose source is the smaller key. Both
 * directions are decayed on every packet of either, hence one time t. CF3 is the sum of residual products, with a time C
 * of its own. Because both directions share t, the rule of the published extractor reduces to
 *
 *     gap > 0, t_rec == C   CF3 *= f; CF3 *= f   (decayed for each direction)
 *     gap > 0, t_rec >  C   CF3 *= D(now - C); C = now
 *     gap <= 0              CF3 stays; if t_rec > C: C = now
 *     source == destination CF3 *= f; C = now     (the direction is its own reverse)
 *
 * The published rows decay CF3 twice on alternate packets; that quirk is data, so it is kept.
 * last[] is each direction's last packet: jitter's clock, and the test for "the reverse exists": it was seen and
 * lambda (now - last) <= 1075, beyond which the published float64 weight has underflowed to zero.
 *
 *
 * THE TABLES
 *
 * `hosts`, `macs`, `pairs`, `sockets` and `devices` are each a pool of records and an index of 64-byte buckets:
 *
 *     bucket   0 tag[8] 32 | 32 stamp[8] 32          tag = 12 bits of the hash | 20 bits record number; 0 = free
 *                                                    stamp = 1 bit "met again" | 31 bits time of last packet, 2^20 ns
 *
 * A key may lie in either of two buckets: it goes into its first while that is less than half full, else into the
 * emptier. There are at least two ways per record, so buckets do not overflow before the pool is full (in 17,000 simulated
 * fillings the fullest held 7): up to the capacity nothing is evicted and results do not depend on the hash seed. At
 * capacity a new stream takes the place of one from its own two buckets: of those seen once or idle for 5,300 s (lambda
 * 0.01 has forgotten them to the last bit) the oldest; else the oldest. A scan therefore turns over its own records and
 * the streams that answer survive. Evictions are counted per table.
 *
 * Capacities for max_streams = n: sockets n, pairs n/2, hosts n/2, macs n/4. At n = 16,384 and 256 devices: 23.5 MB,
 * mapped when touched.
 *
 *
 * WHAT A DEVICE HAS SEEN
 *
 * Per device two sets, of 1,024 source -> destination pairs and 4,096 source:port -> destination:port sockets, four bytes
 * an entry:
 *
 *     entry    20 bits of the hash (never 0) | 1 bit known | 11 bits time, in units of 10 minutes, modulo 14 days
 *     bucket   8 entries, the latest inserted or refreshed first
 *
 * An unknown entry keeps the time of its first visit; met again two units later (10 to 20 minutes) it becomes known, and a
 * known one keeps the time of its last visit. A full bucket evicts its oldest unknown entry, else its oldest known one: a
 * flood replaces its own entries. An entry idle for 7 to 13 days is forgotten (idle for longer it looks younger by 14
 * days). Two keys are confused with probability 8 in 2^20 per look-up, which can hide one new socket and nothing else.
 *
 * A packet opens a peer (socket) when the device's set does not hold it and it is not a reply, i.e. its pair (socket) record
 * has no packet yet in the reverse direction. Replies are remembered too. Later fragments, ARP, frames without ports and ICMP
 * errors never open a socket, nor enter the socket set.
 *
 *
 * MISSING AND OPENED
 *
 * Of each row's packet, as floats:
 *
 *     answers      weight of dst -> src of HH, for λ = 0.1 and 0.01 (`slow`), less that of ICMP errors among it. A row has that
 *                  for 0.01.
 *     unanswered   for both: the weight of src -> dst less 200 `answers`, at least 0: packets that nothing answers. Even of
 *                  live video by RTP one packet in 150 is answered. 0 for a group address, without IP, for an ICMP error, and
 *                  for a device of which no answer was ever seen, as where only one direction is captured.
 *     opened       for 0.01: of a row of TCP, how many ports of dst the sender newly tried. That are the sockets which it
 *                  opened by a SYN to another port than the one before; or, where dport is a login's, all those that it
 *                  opened to such ports. Of a row of ICMP for IPv4, how many hosts the device newly reached by ICMP. Of
 *                  others 0.
 *
 * What is opened and the ICMP errors are kept with the pair, for each direction, and decay with its time t; `pinged` is the
 * device's, with a time of its own. Evicted streams begin anew, which hides nothing that goes on.
 *
 *
 * THE RING
 *
 * Frames of the last seconds, each cut to its headers and as much payload as was asked for (none, by default): the link
 * header, tags, IP with its extensions, ARP, and TCP with options, 8 bytes of UDP and ICMP, what an ICMP error quotes.
 *
 *     record   0 t 8 | 8 wire length 4 | 12 captured 2 | 14 link type 2 | bytes, filled up to a multiple of 8
 *
 * What is kept within the span never fills more than three quarters of the ring, so that it always reaches back for the
 * span and a batch of frames that are ahead of their alerts. For that all senders together have an allowance of bytes, of
 * which half may be spent at once and the whole comes back within the span; each sender (MAC; 256 at a time) has a
 * quarter of it. A flood thus keeps its first packets and then an even sample, and leaves room for the others. What is left
 * out is counted. The ring is not part of the saved state.
 */
#ifndef BOTWATCH_KERNEL_H
#define BOTWATCH_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- columns: edge_agent/contract/columns.py is the authority ---- */

enum { DECAYS = 5, LANES = 6 };
enum { MI_DIR = 0, H = 15, HH = 30, HH_JIT = 65, HPHP = 80, DEVICE = 115, COLUMNS = 140 };

/* ---- packets ---- */

enum packet_flag {
    NEW_PEER = 1,      /* opened a source -> destination pair its device had not used */
    NEW_SOCKET = 2,    /* the same, addresses and ports */
    FRAGMENT = 4,      /* any fragment of an IP packet; all but the first are without ports */
    TRUNCATED = 8,     /* a header was cut short or is not valid; what it would have said is absent */
    ICMP_QUOTED = 16,  /* an ICMP or ICMPv6 error: the ports are those of the packet it quotes */
    ARP = 32,
    PORTS = 64,        /* sport and dport were read */
};

/* The facts of a packet that Python sees: features.ROW_META is this struct. */
struct row_meta {
    int64_t t_ns;        /* capture time since the epoch */
    uint64_t src_mac;    /* 48-bit value, first byte highest; 0 where the link layer has none */
    uint64_t dst_mac;
    uint8_t src[16];     /* IPv6; IPv4 in the first 4; without IP the MAC in the first 6 */
    uint8_t dst[16];
    uint16_t sport, dport;
    uint32_t length;     /* on the wire */
    uint16_t ethertype;  /* after VLAN tags and PPPoE; below 0x600 an 802.3 length */
    uint8_t flags;       /* enum packet_flag */
    uint8_t interface;   /* number of the live interface by which it came; 0 for a file */
    uint8_t ip_version;  /* 4, 6, or 0 for none; an ARP row has 4 */
    uint8_t proto;       /* IP protocol after extension headers */
    uint8_t tcp_flags;
    uint8_t headers;     /* captured bytes before the payload, link header included; 255 means 255 or more */
    float unanswered[2]; /* MISSING AND OPENED */
    float answers, opened;
};

/* The ports where somebody who logs in is asked who he is: FTP, SSH, telnet, remote desktops. */
static inline bool login_port(uint16_t port)
{
    return (port == 21) | (port == 22) | (port == 23) | (port == 2222) | (port == 2323) | (port == 3389) | (port == 5900);
}

enum ip_protocol { IP_ICMP = 1, IP_TCP = 6, IP_UDP = 17 };

/* The meaning of a row's ports. TCP, UDP and quoted ports are one namespace, as published. */
enum port_class { NO_PORTS, WITH_PORTS, ICMP_PORTS, ARP_PORTS };

/* The reason why a frame, or a part of it, could not be read. Each is counted; only SHORT_LINK means that there is no row. */
enum malformed {
    WELL_FORMED,
    SHORT_LINK,       /* shorter than its link header: no row */
    SHORT_TAG,        /* VLAN, SNAP or PPPoE header cut */
    SHORT_ARP,
    BAD_ARP,          /* not IPv4 over 48-bit MACs */
    SHORT_IP,
    BAD_IP,           /* version or header length impossible */
    LONG_CHAIN,       /* more extension headers or tags than anybody sends */
    SHORT_TRANSPORT,  /* no ports, or no TCP flags, or no ICMP type */
    SHORT_QUOTE,      /* an ICMP error without a readable quoted packet */
    BAD_TIME,         /* before 1970 or after 2116: clamped */
    MALFORMED_KINDS
};

/* Link types that are read: numbers of https://www.tcpdump.org/linktypes.html, and libpcap's own DLT_RAW, which differs by
 * platform. Only link_read() knows what their headers look like: to read another one, add it there and here. */
enum {
    LINK_ETHERNET = 1,
    LINK_DLT_RAW = 12,
    LINK_DLT_RAW_BSD = 14,
    LINK_RAW = 101,
    LINK_SLL = 113,
    LINK_IPV4 = 228,
    LINK_IPV6 = 229,
    LINK_SLL2 = 276,
};
#define LINK_NAMES "Ethernet, Linux cooked v1 and v2, raw IP" /* the same for people */

enum ethertype {
    TYPE_802_3 = 0x0600, /* below: a length */
    TYPE_IPV4 = 0x0800,
    TYPE_ARP = 0x0806,
    TYPE_VLAN = 0x8100,
    TYPE_IPV6 = 0x86dd,
    TYPE_PPPOE = 0x8864,
    TYPE_QINQ = 0x88a8,
    TYPE_QINQ_OLD = 0x9100,
};

enum direction { DIRECTION_UNKNOWN, RECEIVED, SENT };

/* The content of a frame's link header. */
struct link_header {
    uint64_t src_mac, dst_mac; /* 48-bit values, first byte highest; 0 where the link layer has none */
    uint16_t type;             /* enum ethertype of what follows */
    uint8_t length;            /* bytes before that */
    enum direction direction;  /* seen from this machine, where the header has it */
};

enum link_result { LINK_WHOLE, LINK_SHORT, LINK_UNSUPPORTED };

/* Read a link header; *header is defined for LINK_WHOLE only. An unsupported link type is never read as another one. */
enum link_result link_read(int linktype, const uint8_t *frame, uint32_t captured, struct link_header *header);
bool link_supported(int linktype);

/* Read one frame into *row and *ports; `captured` bytes are at `frame`. On SHORT_LINK there is no row and both are
 * undefined; the same for an unsupported linktype, which whoever opens a source has refused. row->flags has no NEW_* yet. */
enum malformed decode_frame(int linktype, const uint8_t *frame, uint32_t captured, uint32_t wire_length,
                            struct row_meta *row, enum port_class *ports);

/* ---- captures ---- */

enum { CAPTURE_ERROR = 512 };

struct frame {
    int64_t t_ns;
    uint32_t captured, wire_length;
    const uint8_t *bytes;  /* valid until the next frame */
    bool bad_time;
    uint8_t interface; /* of a live source: its number; else 0 */
    int linktype;
};

enum capture_result { CAPTURE_FRAME, CAPTURE_IDLE, CAPTURE_END, CAPTURE_FAILED }; /* IDLE: nothing now; live only */

struct capture;

/* NULL on failure, with the reason (without the path) in error[CAPTURE_ERROR]. bpf may be NULL. */
struct capture *capture_open_file(const char *path, const char *bpf, char *error);

int capture_linktype(const struct capture *c);
/* After CAPTURE_FAILED every further call fails with the same capture_reason(). */
enum capture_result capture_next(struct capture *c, struct frame *frame);
const char *capture_reason(const struct capture *c);
void capture_close(struct capture *c);

/* Shared by files and interfaces. The header of a record in a pcap file: */
struct plain_record {
    uint32_t seconds, fraction, captured, wire_length;
};
struct pcap;
struct pcap_pkthdr;
bool capture_filter(struct pcap *pcap, const char *bpf, char *error);
/* False, with the reason, for a filter that compiles for no link layer: no interface could ever use it. */
bool capture_filter_possible(const char *bpf, char *error);
void capture_say_unsupported(int linktype, char *error);
void capture_fill(struct frame *frame, const struct pcap_pkthdr *header, const uint8_t *bytes, int linktype);

/* ---- interfaces ---- */

enum { INTERFACES_MAX = 16 };

struct live_settings {
    const char *bpf;  /* may be NULL */
    int snaplen;      /* bytes of a frame that are captured */
    int buffer;       /* bytes in which the system keeps frames until they are taken, of each interface */
    bool promiscuous, inbound;  /* inbound: only what the interface receives, not what this machine sends */
    bool once;        /* leave out frames that were seen before on their way through this machine */
};

struct live_stats {
    uint64_t received, dropped, interface_dropped;  /* of all interfaces; received includes those dropped: a full buffer */
    uint64_t again, forgotten;  /* left out as seen before; evicted from a full table while still needed for that */
};

struct live;

/* At most INTERFACES_MAX, none of them open. NULL when memory is short. */
struct live *live_new(const char *const *names, size_t count, const struct live_settings *settings);
void live_free(struct live *l);
size_t live_count(const struct live *l);

/* FORBIDDEN: this process may not capture at all; REFUSED: anything else, which may pass, as interfaces come and go. */
enum open_result { OPEN_DONE, OPEN_REFUSED, OPEN_FORBIDDEN };

/* Open, or open again, one interface; if that fails the reason (without the name) is in error[CAPTURE_ERROR]. */
enum open_result live_open(struct live *l, size_t i, char *error);
void live_shut(struct live *l, size_t i);
int live_fd(const struct live *l, size_t i);        /* to be polled; -1 if it is not open */
int live_linktype(const struct live *l, size_t i);
const char *live_lost(struct live *l, size_t i);    /* why it went away since the last call, or NULL if it did not */

/* The next frame of all, or CAPTURE_IDLE; never anything else. When a frame waits for older ones of other interfaces,
 * live_held() says so, and poll() is of no use: try again in some milliseconds. */
enum capture_result live_next(struct live *l, struct frame *frame);
bool live_held(const struct live *l);

void live_own(struct live *l, const uint64_t *macs, size_t count); /* MACs of this machine, for `once` */
struct live_stats live_statistics(struct live *l);

/* Write every further frame, as a pcap record of nanoseconds, to a file descriptor (-1: no more); live_flush() when a run
 * of frames has been taken. It returns 0, or the errno for which writing has stopped. */
void live_record(struct live *l, int file);
int live_flush(struct live *l);

/* ---- frames seen again ---- */

struct once;

struct once *once_new(uint64_t seed, bool several); /* several interfaces; NULL when memory is short */
void once_free(struct once *o);
void once_own(struct once *o, const uint64_t *macs, size_t count);
/* Return whether this frame was seen before: on another interface, or received and now sent on. Frames come in order of
 * time. */
bool once_again(struct once *o, const struct frame *frame);
uint64_t once_forgotten(const struct once *o);

/* ---- the ring ---- */

struct ring;

enum { RING_MIN = 1 << 16, RING_MAX = 1 << 28, RING_PAYLOAD_MAX = 65000 };

/* `size` bytes within RING_MIN .. RING_MAX for at least span_ns (1 s to 60 s) of traffic; NULL when memory is short. */
struct ring *ring_new(uint32_t size, int64_t span_ns, uint32_t payload);
void ring_free(struct ring *r);
void ring_put(struct ring *r, const struct frame *frame, const struct row_meta *row);

/* The subject of a cut: frames from or to a MAC (0: none) or an address (ip_version 0: none). */
struct subject {
    uint64_t mac;
    uint8_t ip_version, address[16]; /* as struct row_meta has it */
};

struct cut {
    int64_t from_ns, to_ns; /* to_ns excluded */
    struct subject subject;
    int linktype;
    bool newest; /* if there is no room for all frames: the newest, not the oldest */
};

/* Return the link type of the subject's last frame in the time of `cut`; else that of the last frame at all; else -1. */
int ring_linktype(const struct ring *r, const struct cut *cut);

/* Write records of a pcap file with nanoseconds in the order in which frames came: those of the subject, and others where
 * there is room left. Return the bytes written, at most `room`. */
size_t ring_cut(const struct ring *r, const struct cut *cut, uint8_t *out, size_t room);

size_t ring_bytes(const struct ring *r);
uint64_t ring_kept(const struct ring *r), ring_left_out(const struct ring *r); /* frames since the start */

/* ---- statistics ---- */

enum { BATCH = 32 };  /* frames decoded and hashed ahead, so that their buckets arrive while others are computed */

struct settings {
    uint32_t max_streams;  /* >= 16, <= 2^20 - 1 */
    uint32_t max_devices;  /* >= 1,  <= 2^20 - 1 */
    uint8_t compat;        /* first gap of a channel: its time since the epoch instead of 0 */
    uint8_t float_time;    /* gaps between float64 seconds, as published code takes them, instead of nanoseconds */
    uint8_t unused[6];
    uint64_t seed;
};

enum simd { SIMD_AUTO, SIMD_BASELINE, SIMD_AVX2 };  /* equal results bit for bit */

struct kernel;

/* NULL when memory is short or SIMD_AVX2 is asked for and cannot be used. */
struct kernel *kernel_new(const struct settings *settings, enum simd simd);
void kernel_free(struct kernel *k);
/* Keep what is pushed in a ring from now on (once; as ring_new). False when memory is short. */
bool kernel_keep(struct kernel *k, uint32_t size, int64_t span_ns, uint32_t payload);
const struct ring *kernel_ring(const struct kernel *k); /* NULL without kernel_keep() */
const char *kernel_simd(const struct kernel *k);

/* The place for rows: `limit` rows of COLUMNS float or double, and their metadata. */
struct rows {
    void *values;
    bool doubles;
    struct row_meta *meta;
    size_t limit;
};

/* A source of frames; `next` fills *frame or returns why there is none. */
struct source {
    enum capture_result (*next)(void *context, struct frame *frame);
    void *context;
};

/* Take up to rows->limit frames, and more only while they have given no row at all. Return the number of rows written; 0 means
 * that the source has ended or failed, as *result says. */
size_t kernel_push(struct kernel *k, struct source source, const struct rows *rows, enum capture_result *result);

enum { MAX_COUNTS = 48 };
struct count {
    const char *name;
    uint64_t value;
};
size_t kernel_counts(const struct kernel *k, struct count counts[MAX_COUNTS]);
size_t kernel_memory(const struct kernel *k, struct count counts[MAX_COUNTS]);

/* The whole learnt state as bytes of this machine's own layout. kernel_load() changes nothing unless it returns NULL;
 * otherwise it returns why the bytes cannot be this kernel's state. */
size_t kernel_saved_size(const struct kernel *k);
void kernel_save(const struct kernel *k, uint8_t *out);
/* The same of a kernel that knows the devices and what each has seen, and no stream; its counters are zero. */
size_t kernel_saved_seen_size(const struct kernel *k);
void kernel_save_seen(const struct kernel *k, uint8_t *out);
const char *kernel_load(struct kernel *k, const uint8_t *bytes, size_t size);

/* ---- scores ---- */

/* Transform of one network. There may be several variants of it, which leave out different columns: those have 0 in
 * `inverse` (so z = 0) and in `keep`. */
struct scaling {
    size_t stride, columns;     /* of a row of values; of z, inputs and rebuilt */
    const uint32_t *at;         /* columns of a row that are taken; NULL: the first ones */
    const float *mean;          /* [columns], of squashed values */
    const float *inverse;       /* [variants][columns] of the scale */
    const float *keep;          /* [variants][columns], 1 or 0 */
    const float *kept;          /* [variants], how many */
    float clip;                 /* of inputs; INFINITY: none */
    bool squash;                /* sign(x) log(1 + |x|) */
};

/* variant[i] is that of row i; NULL: 0 for all. row_errors: the mean squared difference over the kept columns. */
void scale_rows(const struct scaling *s, const float *values, const uint8_t *variant, size_t rows, float *z, float *inputs);
void row_errors(const struct scaling *s, const float *z, const float *rebuilt, const uint8_t *variant, size_t rows, float *out);

/* Write for each row the highest of the values `at`, at most COLUMNS of them, in units of their bounds, at least 0. */
void highest_ratios(const float *values, size_t stride, const uint32_t *at, const double *bounds, size_t columns, size_t rows,
                    double *out);

/* ---- subjects ---- */

struct network4 {
    uint32_t first, mask;
};
struct network6 {
    uint64_t first, mask; /* the upper 64 bits */
};

struct senders;

/* At most `capacity` senders and as many subjects are remembered; `rate` rows a second may be scored, 0: all. NULL when
 * memory is short. */
struct senders *senders_new(uint32_t capacity, double rate, uint64_t seed, const struct network4 *v4, size_t v4_count,
                            const struct network6 *v6, size_t v6_count);
void senders_free(struct senders *s);

/* What a row's `unanswered` (at λ = 0.1 and 0.01) and `opened` are counts of; contract/columns.py has the same order. A row
 * has those of its sender and its sort of packet; the others are 0, and all are for a row that is incoming or a router's. As
 * long as nothing came from outside, nothing there can have answered. */
enum host_count { UNANSWERED = 0, UNANSWERED_INSIDE = 2, PORTS_TRIED = 4, LOGINS_TRIED, PINGED, HOST_COUNTS };

/* The facts of each of n rows, and the rows by subject: group g is order[starts[g] .. starts[g + 1]), in row order; groups are
 * in the order of their first rows. */
struct routes {
    int64_t *order, *starts;     /* [n], [n + 1] */
    uint8_t *incoming, *carries; /* its subject is its target; its sender is a router whose own row this is */
    uint8_t *chosen;             /* it may be scored */
    uint8_t *addresses, *versions; /* [n][16] the sender's own as known then, IP version 0 if none */
    float (*host_counts)[HOST_COUNTS]; /* [n] */
    uint64_t (*keys)[3];         /* [n], of the groups */
    uint32_t *slot, *group;      /* scratch: [slots], [n] */
    uint32_t slots;              /* a power of two, at least 2 n */
};
/* Take in rows in the order in which they came, at times t_ns that do not step back far. Return the number of groups. */
size_t senders_route(struct senders *s, const struct row_meta *rows, const int64_t *t_ns, size_t count, struct routes *out);

struct senders_counts {
    uint64_t scored, shed, evicted;
    uint32_t step; /* 0: every row of a second was scored, 1: some were not, 2: hardly any was */
};
void senders_counts(const struct senders *s, struct senders_counts *out);

/* ---- the process ---- */

/* Give memory that the process used to start and does not need now back to the system, and keep little of what is freed from
 * now on. To be called when everything is set up, and seldom after that; it costs some page faults. For any thread. */
void memory_give_back(void);

#endif
