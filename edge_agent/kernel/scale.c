/* From rows to what a network sees, and from what it gives back to scores; edge_agent/contract/scaling.py has the formulas
 * and is the twin. Eight columns at a time in one pass: NumPy needs ten passes over the same memory, and more time than
 * the network. The vectors have the same width everywhere, so that processors with and without AVX2 agree bit for bit. */
#include "kernel.h"

#include <float.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define AVX2 __attribute__((target("avx2")))
#endif


enum { LANE = 8 };
typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));

#define INLINE static inline __attribute__((always_inline))

/* All that takes or gives a vector is inlined, so that no ABI matters (-Wno-psabi). */
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

/* log(1 + x) for x >= 0, within 3e-7 of itself: 1 + x = 2^e (1 + f) with f near 0, and the polynomial of Cephes' logf
 * (S. Moshier); a small x is f itself, so that nothing of it is lost in 1 + x. */
INLINE v8 log_of_one_more(v8 x)
{
    v8i bits = (v8i)(x + 1.0f), e = (bits >> 23) - 126;
    v8 m = (v8)((bits & 0x007fffff) | 0x3f000000); /* in [1/2, 1) */
    v8i low = m < 0.70710678f, small = x < 0.41421356f;
    e = (e + low) & ~small;
    v8 f = choose(small, x, m + (v8)((v8i)m & low) - 1.0f), n = __builtin_convertvector(e, v8), f2 = f * f;
    v8 p = 7.0376836292e-2f * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    v8 log = f + (p * f * f2 - n * 2.12194440e-4f - 0.5f * f2) + n * 0.693359375f;
    return choose(x <= FLT_MAX, log, x); /* what is no number stays none */
}

/* `count` columns of a row from j on. */
INLINE void scale_lane(const struct scaling *s, const float *values, const float *inverse, float *z, float *inputs, size_t j,
                       size_t count)
{
    v8 x = {0};
    if (s->at == NULL) {
        x = load(values + j, count);
    } else {
        float taken[LANE] = {0};
        for (size_t k = 0; k < count; k++)
            taken[k] = values[s->at[j + k]];
        x = load(taken, LANE);
    }
    if (s->squash) {
        v8i sign = (v8i)x & INT32_MIN;
        x = (v8)((v8i)log_of_one_more((v8)((v8i)x & INT32_MAX)) | sign);
    }
    x = (x - load(s->mean + j, count)) * load(inverse + j, count);
    store(z + j, x, count);
    v8 high = x - x + s->clip; /* comparisons with what is no number are false, and leave it */
    x = choose(x > high, high, x);
    x = choose(x < -high, -high, x);
    store(inputs + j, x, count);
}

INLINE void scale(const struct scaling *s, const float *values, const uint8_t *variant, size_t rows, float *z, float *inputs)
{
    for (size_t i = 0; i < rows; i++, values += s->stride, z += s->columns, inputs += s->columns) {
        const float *inverse = s->inverse + (variant != NULL ? variant[i] * s->columns : 0);
        size_t j = 0;
        for (; j + LANE <= s->columns; j += LANE)
            scale_lane(s, values, inverse, z, inputs, j, LANE);
        if (j < s->columns)
            scale_lane(s, values, inverse, z, inputs, j, s->columns - j);
    }
}

INLINE void errors(const struct scaling *s, const float *z, const float *rebuilt, const uint8_t *variant, size_t rows, float *out)
{
    for (size_t i = 0; i < rows; i++, z += s->columns, rebuilt += s->columns) {
        size_t which = variant != NULL ? variant[i] : 0;
        const float *keep = s->keep + which * s->columns;
        v8 sum = {0};
        size_t j = 0;
        for (; j + LANE <= s->columns; j += LANE) {
            v8 d = (load(z + j, LANE) - load(rebuilt + j, LANE)) * load(keep + j, LANE);
            sum = sum + d * d;
        }
        if (j < s->columns) {
            size_t count = s->columns - j;
            v8 d = (load(z + j, count) - load(rebuilt + j, count)) * load(keep + j, count);
            sum = sum + d * d;
        }
        out[i] = (((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]))) / s->kept[which];
    }
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
    for (size_t i = 0; i < rows; i++, values += stride) {
        double highest = 0;
        for (size_t j = 0; j < columns; j++) {
            double ratio = (double)values[at[j]] / bounds[j];
            highest = ratio > highest ? ratio : highest;
        }
        out[i] = highest;
    }
}
