/* Mutated frames, capture files and saved states against the kernel, under AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 *     fuzz SECONDS FRAMES SEED SCRATCH CORPUS...
 *
 * CORPUS are capture files; SCRATCH is a file that may be overwritten. What is tried follows from SEED, how much of it
 * from SECONDS and FRAMES: it ends when both are reached. Every frame handed over lies in a heap block of exactly its size,
 * as do all arrays of rows, scaling and routing, so one byte too far is a finding. Besides memory errors, findings are: a
 * frame that is neither a row nor counted as too short for one, a frame of an unknown link type that is a row or is taken for
 * one seen before; a row that is neither scored nor shed, one that is in no group, or in two; a value that is not finite, a
 * variance below zero, a weight below one, an input beyond the clip. */
#define _DEFAULT_SOURCE
#include "kernel.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { UNKNOWN_LINKTYPE = 195 };
enum { MAX_CORPUS = 20000, MAX_FILES = 64, MAX_FRAME = 4096, MAX_FILE = 1 << 16, PUSH = 64 };

struct sample {
    uint8_t *bytes;
    size_t size;
    int linktype;
};

struct fuzz {
    uint64_t random;
    struct sample frames[MAX_CORPUS], files[MAX_FILES];
    size_t frame_count, file_count;
    unsigned long long pushed, rows, short_links, opened, read, states, routed;
    uint64_t handed; /* to the kernel in use */
    int64_t t;
    struct senders *senders; /* as old as the kernel in use */
    uint64_t senders_rows;
    struct once *once; /* the same */
};

static uint32_t draw(struct fuzz *f, uint32_t below)
{
    f->random ^= f->random << 13;
    f->random ^= f->random >> 7;
    f->random ^= f->random << 17;
    return (uint32_t)(f->random >> 11) % below;
}

static void *must(void *p)
{
    if (p == NULL) {
        fprintf(stderr, "out of memory\n");
        exit(2);
    }
    return p;
}

static void finding(const char *what)
{
    fprintf(stderr, "FINDING: %s\n", what);
    exit(1);
}

/* ---- mutation ---- */

static size_t mutate(struct fuzz *f, uint8_t *bytes, size_t size, size_t room, const struct sample *other)
{
    static const uint8_t interesting[] = {0, 1, 4, 5, 6, 8, 14, 15, 16, 17, 41, 43, 44, 50, 51, 58, 59, 60, 0x40, 0x45, 0x46, 0x4f,
                                          0x60, 0x64, 0x7f, 0x80, 0x81, 0x86, 0x88, 0xa8, 0xaa, 0xdd, 0xff};
    for (uint32_t n = 1 + draw(f, 6); n > 0; n--) {
        size_t at = size > 0 ? draw(f, (uint32_t)size) : 0, length;
        switch (draw(f, 8)) {
        case 0:
            if (size > 0)
                bytes[at] ^= (uint8_t)(1u << draw(f, 8));
            break;
        case 1: case 2:
            if (size > 0)
                bytes[at] = interesting[draw(f, sizeof interesting)];
            break;
        case 3:
            if (size > 0)
                bytes[at] = (uint8_t)draw(f, 256);
            break;
        case 4: /* cut */
            size = size > 0 ? draw(f, (uint32_t)size) : 0;
            break;
        case 5: /* repeat a piece: chains of headers */
            length = size > at ? draw(f, (uint32_t)(size - at)) % 64 : 0;
            if (size + length <= room) {
                memmove(bytes + at + length, bytes + at, size - at);
                size += length;
            }
            break;
        case 6: /* remove a piece */
            length = size > at ? draw(f, (uint32_t)(size - at)) % 64 : 0;
            memmove(bytes + at, bytes + at + length, size - at - length);
            size -= length;
            break;
        default: /* go on as another does */
            if (other->size > 0 && size > 0) {
                size_t from = draw(f, (uint32_t)other->size);
                length = other->size - from < room - at ? other->size - from : room - at;
                memcpy(bytes + at, other->bytes + from, length);
                size = at + length;
            }
            break;
        }
    }
    return size;
}

/* ---- frames ---- */

struct burst {
    struct fuzz *fuzz;
    int linktype, remaining;
    uint8_t *block; /* the frame handed over last */
};

static enum capture_result next_mutated(void *context, struct frame *frame)
{
    static const int64_t steps[] = {0, 1, 1000, 1000000, 50000000, 1000000000, 700000000000, 86400000000000, -1, -5000000000};
    struct burst *burst = context;
    struct fuzz *f = burst->fuzz;
    uint8_t bytes[MAX_FRAME];

    free(burst->block);
    burst->block = NULL;
    if (burst->remaining-- == 0)
        return CAPTURE_END;
    const struct sample *sample = &f->frames[draw(f, (uint32_t)f->frame_count)];
    size_t size = sample->size;
    memcpy(bytes, sample->bytes, size);
    if (draw(f, 8) != 0)
        size = mutate(f, bytes, size, sizeof bytes, &f->frames[draw(f, (uint32_t)f->frame_count)]);
    burst->block = must(malloc(size > 0 ? size : 1));
    memcpy(burst->block, bytes, size);
    f->t += steps[draw(f, sizeof steps / sizeof *steps)];
    if (f->t < 0 || f->t > (INT64_C(1) << 62) || draw(f, 4000) == 0)
        f->t = (int64_t)draw(f, 2) << (draw(f, 2) ? 62 : 60);
    frame->t_ns = f->t;
    frame->captured = (uint32_t)size;
    frame->wire_length = draw(f, 64) == 0 ? UINT32_MAX - draw(f, 2) : (uint32_t)size;
    frame->bytes = burst->block;
    frame->bad_time = false;
    frame->linktype = burst->linktype;
    frame->interface = (uint8_t)draw(f, 2);
    if (once_again(f->once, frame) && !link_supported(frame->linktype))
        finding("a frame of an unknown link type that was seen before");
    f->handed++;
    f->pushed++;
    return CAPTURE_FRAME;
}

/* Every frame must have become a row, or have been counted as too short to be one. */
static void check_counted(struct fuzz *f, const struct kernel *k, uint64_t handed)
{
    struct count counts[MAX_COUNTS];
    size_t n = kernel_counts(k, counts);
    uint64_t frames = 0, rows = 0, short_links = 0, in_ring = 0;
    if (n > MAX_COUNTS)
        finding("more counts than room");
    for (size_t i = 0; i < n; i++) {
        const char *name = counts[i].name;
        frames += strcmp(name, "frames") == 0 ? counts[i].value : 0;
        rows += strcmp(name, "rows") == 0 ? counts[i].value : 0;
        short_links += strcmp(name, "malformed_short_link") == 0 ? counts[i].value : 0;
        in_ring += strncmp(name, "ring_", 5) == 0 ? counts[i].value : 0;
    }
    if (frames != handed || rows + short_links != handed || in_ring != rows) {
        fprintf(stderr, "%" PRIu64 " frames handed over, %" PRIu64 " counted, %" PRIu64 " rows, %" PRIu64 " too short, %" PRIu64
                " for the ring\n", handed, frames, rows, short_links, in_ring);
        finding("frames in are not rows and errors out");
    }
    f->short_links += short_links;
}

static void check_rows(const double *values, const struct row_meta *meta, size_t rows)
{
    for (size_t i = 0; i < rows; i++) {
        const struct row_meta *m = &meta[i];
        const float numbers[] = {m->unanswered[0], m->unanswered[1], m->answers, m->opened};
        for (size_t j = 0; j < sizeof numbers / sizeof *numbers; j++)
            if (!(numbers[j] >= 0) || !isfinite(numbers[j]))
                finding("a number beside the columns that cannot be");
    }
    for (size_t i = 0; i < rows * COLUMNS; i++)
        if (!isfinite(values[i]) || (float)values[i] - (float)values[i] != 0)
            finding("a value that is not finite");
    for (size_t row = 0; row < rows; row++)
        for (int decay = 0; decay < DECAYS; decay++) {
            const double *r = values + row * COLUMNS;
            if (r[MI_DIR + decay * 3 + 2] < 0 || r[H + decay * 3 + 2] < 0 || r[HH_JIT + decay * 3 + 2] < 0 ||
                r[DEVICE + decay * 5 + 2] < 0 || r[HH + decay * 7 + 2] < 0 || r[HPHP + decay * 7 + 2] < 0)
                finding("a variance below zero");
            if (r[H + decay * 3] < 1 || r[HPHP + decay * 7] < 1)
                finding("a weight below one");
        }
}

/* ---- subjects and scores ---- */

static void *filled(struct fuzz *f, size_t size) /* a block of exactly `size` bytes of anything */
{
    uint8_t *block = must(malloc(size > 0 ? size : 1));
    for (size_t i = 0; i < size; i++)
        block[i] = (uint8_t)draw(f, 256);
    return block;
}

/* Rows as the kernel makes them, and some that it never makes. */
static void route_rows(struct fuzz *f, const struct row_meta *from, size_t rows)
{
    if (rows == 0)
        return;
    uint32_t slots = 4;
    while (slots < 2 * rows)
        slots *= 2;
    struct row_meta *meta = must(malloc(rows * sizeof *meta));
    int64_t *t_ns = must(malloc(rows * sizeof *t_ns));
    memcpy(meta, from, rows * sizeof *meta);
    if (draw(f, 8) == 0)
        for (size_t i = 0; i < rows * sizeof *meta; i += 1 + draw(f, 100))
            ((uint8_t *)meta)[i] = (uint8_t)draw(f, 256);
    for (size_t i = 0; i < rows; i++)
        t_ns[i] = from[i].t_ns;
    struct routes out = {
        .order = filled(f, rows * sizeof *out.order), .starts = filled(f, (rows + 1) * sizeof *out.starts),
        .incoming = filled(f, rows), .carries = filled(f, rows), .chosen = filled(f, rows),
        .addresses = filled(f, 16 * rows), .versions = filled(f, rows),
        .host_counts = filled(f, rows * sizeof *out.host_counts), .keys = filled(f, rows * sizeof *out.keys),
        .slot = filled(f, slots * sizeof *out.slot), .group = filled(f, rows * sizeof *out.group), .slots = slots};
    size_t groups = senders_route(f->senders, meta, t_ns, rows, &out);
    struct senders_counts counts;
    senders_counts(f->senders, &counts);
    f->senders_rows += rows;
    f->routed += rows;
    if (counts.scored + counts.shed != f->senders_rows || counts.step > 2)
        finding("a row that is neither scored nor shed");
    if (groups == 0 || groups > rows || out.starts[0] != 0 || out.starts[groups] != (int64_t)rows)
        finding("groups that are not all rows");
    uint8_t *seen = must(calloc(rows, 1));
    for (size_t g = 0; g < groups; g++)
        for (int64_t i = out.starts[g]; i < out.starts[g + 1]; i++) {
            if (out.order[i] < 0 || out.order[i] >= (int64_t)rows || seen[out.order[i]]++)
                finding("a row in no group, or in two");
            if (i > out.starts[g] && out.order[i] <= out.order[i - 1])
                finding("rows of a group out of order");
        }
    void *blocks[] = {meta, t_ns, seen, out.order, out.starts, out.incoming, out.carries, out.chosen,
                      out.addresses, out.versions, out.host_counts, out.keys, out.slot, out.group};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        free(blocks[i]);
}

/* Any scaling of any columns; what comes in is finite, so what comes out must be. */
static void scale_some(struct fuzz *f, const double *values, size_t rows)
{
    uint32_t columns = 1 + draw(f, COLUMNS), variants = 1 + draw(f, 3);
    float *narrow = must(malloc(rows * COLUMNS * sizeof *narrow + 1));
    for (size_t i = 0; i < rows * COLUMNS; i++)
        narrow[i] = (float)values[i];
    uint32_t *at = must(malloc(columns * sizeof *at));
    float *mean = must(malloc(columns * sizeof *mean)), *inverse = must(malloc(variants * columns * sizeof *inverse));
    float *keep = must(malloc(variants * columns * sizeof *keep)), *kept = must(calloc(variants, sizeof *kept));
    double *bounds = must(malloc(columns * sizeof *bounds));
    for (uint32_t j = 0; j < columns; j++) {
        at[j] = draw(f, COLUMNS);
        mean[j] = (float)draw(f, 1000) / 50 - 10;
        bounds[j] = draw(f, 8) == 0 ? INFINITY : (1 + draw(f, 1000)) / 100.0;
        for (uint32_t v = 0; v < variants; v++) {
            keep[v * columns + j] = (float)(j == 0 || draw(f, 4) != 0);
            inverse[v * columns + j] = keep[v * columns + j] / (0.1f + (float)draw(f, 100));
            kept[v] += keep[v * columns + j];
        }
    }
    uint8_t *variant = draw(f, 4) == 0 ? NULL : must(malloc(rows + 1));
    for (size_t i = 0; variant != NULL && i < rows; i++)
        variant[i] = (uint8_t)draw(f, variants);
    bool all = columns == COLUMNS && draw(f, 2) != 0;
    struct scaling s = {COLUMNS, columns, all ? NULL : at, mean, inverse, keep, kept, draw(f, 4) ? 10.0f : INFINITY, true};
    size_t size = rows * columns * sizeof(float);
    float *z = filled(f, size), *inputs = filled(f, size), *rebuilt = must(malloc(size + 1)), *out = filled(f, rows * sizeof *out);
    double *ratios = filled(f, rows * sizeof *ratios);
    scale_rows(&s, narrow, variant, rows, z, inputs);
    for (size_t i = 0; i < rows * columns; i++) {
        rebuilt[i] = (float)draw(f, 2000) / 100 - 10;
        if (!isfinite(z[i]) || !isfinite(inputs[i]) || fabsf(inputs[i]) > s.clip)
            finding("an input that is not finite or beyond the clip");
    }
    row_errors(&s, z, rebuilt, variant, rows, out);
    highest_ratios(narrow, COLUMNS, at, bounds, columns, rows, ratios);
    for (size_t i = 0; i < rows; i++)
        if (!isfinite(out[i]) || out[i] < 0 || !isfinite(ratios[i]) || ratios[i] < 0)
            finding("a score or a ratio that is not finite or below zero");
    void *blocks[] = {narrow, at, mean, inverse, keep, kept, bounds, variant, z, inputs, rebuilt, out, ratios};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++)
        free(blocks[i]);
}

static void push_burst(struct fuzz *f, struct kernel *k, bool check)
{
    static const int linktypes[] = {1, 1, 1, 12, 101, 113, 228, 229, 276, UNKNOWN_LINKTYPE};
    static double values[PUSH * COLUMNS];
    static struct row_meta meta[PUSH];
    struct burst burst = {f, linktypes[draw(f, sizeof linktypes / sizeof *linktypes)], PUSH, NULL};
    struct source source = {next_mutated, &burst};
    struct rows rows = {values, true, meta, PUSH};
    enum capture_result result;
    size_t made = kernel_push(k, source, &rows, &result);
    free(burst.block);
    f->rows += made;
    if (made > 0 && !link_supported(burst.linktype))
        finding("a row of a frame whose link type is unknown");
    if (!check)
        return;
    check_rows(values, meta, made);
    route_rows(f, meta, made);
    if (draw(f, 8) == 0)
        scale_some(f, values, made);
}

/* ---- the ring ---- */

static void cut_ring(struct fuzz *f, struct kernel *k)
{
    size_t room = draw(f, 1 << 17);
    uint8_t *out = must(malloc(room + 1)); /* so that ASan sees one byte too many */
    struct cut cut = {.from_ns = draw(f, 2) ? INT64_MIN : f->t - 1000000000, .to_ns = draw(f, 2) ? INT64_MAX : f->t};
    cut.subject.mac = draw(f, 2) ? 0x020000000001 : 0;
    cut.subject.ip_version = draw(f, 2) ? 4 : 0;
    cut.newest = draw(f, 2) != 0;
    cut.linktype = ring_linktype(kernel_ring(k), &cut);
    size_t made = ring_cut(kernel_ring(k), &cut, out, room), at = 0;
    while (at + 16 <= made) {
        uint32_t captured;
        memcpy(&captured, out + at + 8, sizeof captured);
        at += 16 + captured;
    }
    if (made > room || at != made)
        finding("a cut that is not whole records");
    free(out);
}

/* ---- states ---- */

static void damage_state(struct fuzz *f, struct kernel *k, const struct settings *settings)
{
    size_t size = kernel_saved_size(k), damaged;
    uint8_t *state = must(malloc(size + 64));
    kernel_save(k, state);
    struct kernel *other = must(kernel_new(settings, SIMD_AUTO));
    if (kernel_load(other, state, size) != NULL)
        finding("its own state refused");
    damaged = draw(f, 2) ? size : draw(f, (uint32_t)size);
    for (uint32_t n = draw(f, 64); n > 0 && damaged > 0; n--)
        state[draw(f, (uint32_t)(draw(f, 2) || damaged < 512 ? damaged : 512))] ^= (uint8_t)(1u << draw(f, 8));
    uint8_t *exact = must(malloc(damaged > 0 ? damaged : 1));
    memcpy(exact, state, damaged);
    if (kernel_load(other, exact, damaged) == NULL)
        push_burst(f, other, false); /* nonsense in, nonsense out, but nothing outside its memory */
    free(exact);
    free(state);
    kernel_free(other);
    f->states++;
}

/* ---- files ---- */

struct reading {
    struct fuzz *fuzz;
    struct capture *capture;
};

static enum capture_result next_of_capture(void *context, struct frame *frame)
{
    struct reading *reading = context;
    enum capture_result result = capture_next(reading->capture, frame);
    reading->fuzz->handed += result == CAPTURE_FRAME;
    reading->fuzz->read += result == CAPTURE_FRAME;
    return result;
}

static void read_file(struct fuzz *f, struct kernel *k, const char *path)
{
    static float values[PUSH * COLUMNS];
    static struct row_meta meta[PUSH];
    char reason[CAPTURE_ERROR];
    struct capture *c = capture_open_file(path, draw(f, 8) == 0 ? "udp or vlan" : NULL, reason);
    f->opened++;
    if (c == NULL)
        return;
    struct rows rows = {values, false, meta, PUSH};
    struct reading reading = {f, c};
    struct source source = {next_of_capture, &reading};
    enum capture_result result;
    size_t made;
    while ((made = kernel_push(k, source, &rows, &result)) > 0)
        f->rows += made;
    if (result == CAPTURE_FAILED && (capture_reason(c)[0] == '\0' || kernel_push(k, source, &rows, &result) != 0))
        finding("a failed capture without a reason, or that goes on");
    capture_close(c);
}

static void mutate_file(struct fuzz *f, struct kernel *k, const char *scratch)
{
    static uint8_t bytes[MAX_FILE];
    const struct sample *file = &f->files[draw(f, (uint32_t)f->file_count)];
    size_t size = file->size;
    memcpy(bytes, file->bytes, size);
    if (draw(f, 2)) /* the headers, where it matters */
        for (uint32_t n = 1 + draw(f, 4); n > 0 && size > 0; n--)
            bytes[draw(f, size < 160 ? (uint32_t)size : 160)] = (uint8_t)draw(f, 256);
    size = mutate(f, bytes, size, sizeof bytes, &f->files[draw(f, (uint32_t)f->file_count)]);
    FILE *out = must(fopen(scratch, "wb"));
    if (fwrite(bytes, 1, size, out) != size || fclose(out) != 0) {
        fprintf(stderr, "cannot write %s\n", scratch);
        exit(2);
    }
    read_file(f, k, scratch);
}

/* ---- corpus ---- */

static void load(struct fuzz *f, const char *path)
{
    char reason[CAPTURE_ERROR];
    static uint8_t bytes[MAX_FILE];
    FILE *in = must(fopen(path, "rb"));
    size_t size = fread(bytes, 1, sizeof bytes, in);
    fclose(in);
    if (f->file_count < MAX_FILES) {
        struct sample *file = &f->files[f->file_count++];
        file->bytes = must(malloc(size > 0 ? size : 1));
        file->size = size;
        memcpy(file->bytes, bytes, size);
    }
    struct capture *c = capture_open_file(path, NULL, reason);
    struct frame frame;
    while (c != NULL && f->frame_count < MAX_CORPUS && capture_next(c, &frame) == CAPTURE_FRAME) {
        struct sample *sample = &f->frames[f->frame_count++];
        sample->size = frame.captured < MAX_FRAME / 2 ? frame.captured : MAX_FRAME / 2;
        sample->bytes = must(malloc(sample->size > 0 ? sample->size : 1));
        memcpy(sample->bytes, frame.bytes, sample->size);
    }
    capture_close(c);
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: fuzz SECONDS FRAMES SEED SCRATCH CORPUS...\n");
        return 2;
    }
    double seconds = atof(argv[1]);
    unsigned long long frames = strtoull(argv[2], NULL, 10);
    struct fuzz *f = must(calloc(1, sizeof *f));
    f->random = strtoull(argv[3], NULL, 10) * 2 + 1;
    f->t = INT64_C(1700000000000000000);
    for (int i = 0; i < 20; i++)
        draw(f, 2);
    for (int i = 5; i < argc; i++)
        load(f, argv[i]);
    if (f->frame_count == 0) {
        fprintf(stderr, "no frames in the corpus\n");
        return 2;
    }
    time_t end = time(NULL) + (time_t)seconds;
    static const struct network4 v4[] = {{0x0a000000, 0xff000000}, {0xc0a80000, 0xffff0000}};
    static const struct network6 v6[] = {{0xfe80000000000000, 0xffc0000000000000}};
    while (time(NULL) < end || f->pushed < frames) {
        struct settings settings = {.max_streams = 16 + draw(f, 200), .max_devices = 1 + draw(f, 20)};
        settings.compat = draw(f, 2) != 0;
        settings.float_time = draw(f, 4) == 0;
        settings.seed = f->random;
        struct kernel *k = must(kernel_new(&settings, draw(f, 2) ? SIMD_AUTO : SIMD_BASELINE));
        must(kernel_keep(k, RING_MIN + draw(f, 1 << 16), 1000000000 + draw(f, 1000000000), draw(f, 4) ? 0 : draw(f, 2000))
                 ? k
                 : NULL);
        f->senders = must(senders_new(1 + draw(f, 64), draw(f, 3) ? 1 + draw(f, 5000) : 0, f->random, v4, draw(f, 3), v6, draw(f, 2)));
        f->once = must(once_new(f->random, draw(f, 2) != 0));
        f->senders_rows = f->handed = 0;
        for (int i = 0; i < 50; i++)
            push_burst(f, k, true);
        cut_ring(f, k);
        uint64_t handed = f->handed; /* a damaged state goes to another kernel */
        damage_state(f, k, &settings);
        f->handed = handed;
        for (int i = 0; i < 25; i++)
            mutate_file(f, k, argv[4]);
        check_counted(f, k, f->handed);
        struct count counts[MAX_COUNTS];
        if (kernel_memory(k, counts) > MAX_COUNTS)
            finding("more counts than room");
        once_free(f->once);
        senders_free(f->senders);
        kernel_free(k);
    }
    printf("fuzz: %llu mutated frames, %llu read from %llu damaged files, %llu damaged states: %llu rows, %llu frames too short "
           "for one, %llu rows routed, no finding\n",
           f->pushed, f->read, f->opened, f->states, f->rows, f->short_links, f->routed);
    for (size_t i = 0; i < f->frame_count; i++)
        free(f->frames[i].bytes);
    for (size_t i = 0; i < f->file_count; i++)
        free(f->files[i].bytes);
    free(f);
    return 0;
}
