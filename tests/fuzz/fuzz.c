/* Mutated frames, capture files and saved states against the kernel, under AddressSanitizer and UndefinedBehaviorSanitizer.
 *
 *     fuzz SECONDS SEED SCRATCH CORPUS...
 *
 * CORPUS are capture files; SCRATCH is a file that may be overwritten. What is tried follows from SEED, how much of it
 * from SECONDS. Every frame handed over lies in a heap block of exactly its size, so one byte too far is a finding.
 * Besides memory errors, a value that is not finite, a variance below zero and a weight below one are findings. */
#define _DEFAULT_SOURCE
#include "kernel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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
    unsigned long long pushed, rows, opened, states;
    int64_t t;
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
    return CAPTURE_FRAME;
}

static void check_rows(const double *values, size_t rows)
{
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

static void push_burst(struct fuzz *f, struct kernel *k, bool check)
{
    static const int linktypes[] = {1, 1, 1, 12, 101, 113, 228, 229, 276};
    static double values[PUSH * COLUMNS];
    static struct row_meta meta[PUSH];
    struct burst burst = {f, linktypes[draw(f, sizeof linktypes / sizeof *linktypes)], PUSH, NULL};
    struct source source = {burst.linktype, next_mutated, &burst};
    struct rows rows = {values, true, meta, PUSH};
    enum capture_result result;
    size_t made = kernel_push(k, source, &rows, &result);
    free(burst.block);
    f->pushed += PUSH;
    f->rows += made;
    if (check)
        check_rows(values, made);
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

static enum capture_result next_of_capture(void *context, struct frame *frame)
{
    return capture_next(context, frame);
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
    struct source source = {capture_linktype(c), next_of_capture, c};
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
    if (argc < 5) {
        fprintf(stderr, "usage: fuzz SECONDS SEED SCRATCH CORPUS...\n");
        return 2;
    }
    double seconds = atof(argv[1]);
    struct fuzz *f = must(calloc(1, sizeof *f));
    f->random = strtoull(argv[2], NULL, 10) * 2 + 1;
    f->t = INT64_C(1700000000000000000);
    for (int i = 0; i < 20; i++)
        draw(f, 2);
    for (int i = 4; i < argc; i++)
        load(f, argv[i]);
    if (f->frame_count == 0) {
        fprintf(stderr, "no frames in the corpus\n");
        return 2;
    }
    time_t end = time(NULL) + (time_t)seconds;
    while (time(NULL) < end) {
        struct settings settings = {.max_streams = 16 + draw(f, 200), .max_devices = 1 + draw(f, 20)};
        settings.compat = draw(f, 2) != 0;
        settings.float_time = draw(f, 4) == 0;
        settings.seed = f->random;
        struct kernel *k = must(kernel_new(&settings, draw(f, 2) ? SIMD_AUTO : SIMD_BASELINE));
        must(kernel_keep(k, RING_MIN + draw(f, 1 << 16), 1000000000 + draw(f, 1000000000), draw(f, 4) ? 0 : draw(f, 2000))
                 ? k
                 : NULL);
        for (int i = 0; i < 50; i++)
            push_burst(f, k, true);
        cut_ring(f, k);
        damage_state(f, k, &settings);
        for (int i = 0; i < 25; i++)
            mutate_file(f, k, argv[3]);
        struct count counts[MAX_COUNTS];
        if (kernel_counts(k, counts) > MAX_COUNTS || kernel_memory(k, counts) > MAX_COUNTS)
            finding("more counts than room");
        kernel_free(k);
    }
    printf("fuzz: %llu frames, %llu files, %llu states, %llu rows, no finding\n", f->pushed, f->opened, f->states, f->rows);
    for (size_t i = 0; i < f->frame_count; i++)
        free(f->frames[i].bytes);
    for (size_t i = 0; i < f->file_count; i++)
        free(f->files[i].bytes);
    free(f);
    return 0;
}
