/* From rows to the inputs of a network, and from its outputs to scores; edge_agent/contract/scaling.py has the formulas and
 * is the twin. One pass takes eight columns at a time: NumPy needs ten passes over the same memory, and more time than the
 * network. The vectors have the same width everywhere, so that processors with and without AVX2 agree bit for bit. */
#include "kernel.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2")))
#endif


enum { LANE = 8 };
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))

/* Every function with a vector as argument or result is inlined, so that no ABI matters (-Wno-psabi). */
INLINE v8 load(const float *from, size_t count)
{
    v8 v = {0};
    if (count == LANE)
        memcpy(&v, from, sizeof v);
    else
        memcpy(&v, from, count * sizeof *from);
    return v;
}

INLINE void store(float *to, v8 v, size_t count)
{
    if (count == LANE)
        memcpy(to, &v, sizeof v);
    else
        memcpy(to, &v, count * sizeof *to);
}

INLINE v8 choose(v8i mask, v8 yes, v8 no)
{
    return (v8)((mask & (v8i)yes) | (~mask & (v8i)no));
}

/* Set all bits of each negative lane, and clear the others. Comparing floats would do the same, but the compiler compares
 * vectors wider than the processor's lane by lane; the bits of floats without a sign have the order of the floats. */
INLINE v8i negative(v8i x)
{
    return x >> 31;
}

INLINE v8i sign(v8 x)
{
    return (v8i)x & INT32_MIN;
}

INLINE v8 magnitude(v8 x)
{
    return (v8)((v8i)x & INT32_MAX);
}

/* log(1 + x) for x >= 0, within 3e-7 of itself: 1 + x = 2^e (1 + f) with 1 + f around 1, and log(1 + f) = 2 atanh s for
 * s = f / (2 + f), whose odd polynomial is that of FreeBSD's logf. Where e is 0, f is x itself, so that nothing of a small x
 * is lost in 1 + x. A smaller one is its own logarithm; its powers would be denormal, and cost as much as a whole row. */
INLINE v8 log_of_one_more(v8 x)
{
    const int32_t root = 0x3f3504f3, small = 0x33d6bf95, large = 0x7f7fffff; /* sqrt(1/2), 1e-7 and FLT_MAX */
    v8i beyond = negative(((v8i)x - small) | (large - (v8i)x)); /* NaN stays NaN */
    v8 some = (v8)((v8i)x & ~beyond);
    v8i bits = (v8i)(some + 1.0f), e = (bits - root) >> 23; /* 1 + f is from sqrt(1/2) to twice that */
    v8 f = choose(negative(e | -e), (v8)(bits - (e << 23)) - 1.0f, some);
    v8 s = f / (f + 2.0f), s2 = s * s, s4 = s2 * s2;
    v8 odd = s4 * (0.40000972152f + s4 * 0.24279078841f) + s2 * (0.66666662693f + s4 * 0.28498786688f);
    v8 log = __builtin_convertvector(e, v8) * 0.69314718056f + (s * odd + (s + s));
    return choose(beyond, x, log);
}

/* Where the lane begins that ends a row: the last one overlaps the one before it, so that none is cut short. */
INLINE size_t lane_at(size_t j, size_t columns)
{
    return j + LANE <= columns || columns < LANE ? j : columns - LANE;
}

/* `width` is LANE or, of a network narrower than that, its columns; a constant where it matters. */
INLINE void scale_by(size_t width, const struct scaling *scaling, const float *values, const uint8_t *variant, size_t rows,
                     float *z, float *inputs)
{
    const struct scaling s = *scaling; /* a copy, which the stores cannot change */
    const v8i clip = (v8i)((v8){0} + s.clip);
    for (size_t i = 0; i < rows; i++, values += s.stride, z += s.columns, inputs += s.columns) {
        const float *inverse = s.inverse + (variant != NULL ? variant[i] * s.columns : 0);
        for (size_t j = 0; j < s.columns; j += LANE) {
            size_t at = lane_at(j, s.columns);
            v8 x;
            if (s.at == NULL) {
                x = load(values + at, width);
            } else {
                float taken[LANE] = {0};
                for (size_t k = 0; k < width; k++)
                    taken[k] = values[s.at[at + k]];
                x = load(taken, LANE);
            }
            if (s.squash)
                x = (v8)((v8i)log_of_one_more(magnitude(x)) | sign(x));
            x = (x - load(s.mean + at, width)) * load(inverse + at, width);
            store(z + at, x, width);
            v8 size = magnitude(x);
            size = choose(negative(clip - (v8i)size), (v8)clip, size);
            store(inputs + at, (v8)((v8i)size | sign(x)), width);
        }
    }
}

INLINE void scale(const struct scaling *s, const float *values, const uint8_t *variant, size_t rows, float *z, float *inputs)
{
    if (s->columns >= LANE)
        scale_by(LANE, s, values, variant, rows, z, inputs);
    else
        scale_by(s->columns, s, values, variant, rows, z, inputs);
}

INLINE void errors_by(size_t width, const struct scaling *scaling, const float *z, const float *rebuilt, const uint8_t *variant,
                      size_t rows, float *out)
{
    static const v8i number = {0, 1, 2, 3, 4, 5, 6, 7};
    const struct scaling s = *scaling;
    for (size_t i = 0; i < rows; i++, z += s.columns, rebuilt += s.columns) {
        size_t which = variant != NULL ? variant[i] : 0;
        const float *keep = s.keep + which * s.columns;
        v8 sum = {0};
        for (size_t j = 0; j < s.columns; j += LANE) {
            size_t at = lane_at(j, s.columns);
            v8 d = (load(z + at, width) - load(rebuilt + at, width)) * load(keep + at, width);
            d = (v8)((v8i)d & ~negative(number - (int32_t)(j - at))); /* not again what the lane before has */
            sum = sum + d * d;
        }
        out[i] = (((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]))) / s.kept[which];
    }
}

INLINE void errors(const struct scaling *s, const float *z, const float *rebuilt, const uint8_t *variant, size_t rows, float *out)
{
    if (s->columns >= LANE)
        errors_by(LANE, s, z, rebuilt, variant, rows, out);
    else
        errors_by(s->columns, s, z, rebuilt, variant, rows, out);
}

#ifdef AVX2
static AVX2 void scale_avx2(const struct scaling *s, const float *values, const uint8_t *variant, size_t rows, float *z,
                            float *inputs)
{
    scale(s, values, variant, rows, z, inputs);
}

static AVX2 void errors_avx2(const struct scaling *s, const float *z, const float *rebuilt, const uint8_t *variant, size_t rows,
                             float *out)
{
    errors(s, z, rebuilt, variant, rows, out);
}
#endif

void scale_rows(const struct scaling *s, const float *values, const uint8_t *variant, size_t rows, float *z, float *inputs)
{
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) {
        scale_avx2(s, values, variant, rows, z, inputs);
        return;
    }
#endif
    scale(s, values, variant, rows, z, inputs);
}

void row_errors(const struct scaling *s, const float *z, const float *rebuilt, const uint8_t *variant, size_t rows, float *out)
{
#ifdef AVX2
    if (__builtin_cpu_supports("avx2")) {
        errors_avx2(s, z, rebuilt, variant, rows, out);
        return;
    }
#endif
    errors(s, z, rebuilt, variant, rows, out);
}

void highest_ratios(const float *values, size_t stride, const uint32_t *at, const double *bounds, size_t columns, size_t rows,
                    double *out)
{
    double inverse[COLUMNS]; /* a division for each row and column would take as long as all the rest */
    for (size_t j = 0; j < columns; j++)
        inverse[j] = 1.0 / bounds[j];
    for (size_t i = 0; i < rows; i++, values += stride) {
        double highest[2] = {0, 0}; /* two, so that one comparison need not wait for the other */
        for (size_t j = 0; j < columns; j++) {
            double ratio = (double)values[at[j]] * inverse[j];
            highest[j & 1] = ratio > highest[j & 1] ? ratio : highest[j & 1];
        }
        out[i] = highest[0] > highest[1] ? highest[0] : highest[1];
    }
}
