/* The arithmetic of one row, for each vector width: instances of lanes.h, and the choice among them. */
#include "state.h"

#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#define X86 1
#endif

static const double minus_lambda[LANES] = {-5, -3, -1, -0.1, -0.01, -0.01};

typedef double v2d __attribute__((vector_size(16)));
typedef int64_t v2i __attribute__((vector_size(16)));
typedef uint64_t v2u __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) v2d sqrt_v2d(v2d x)
{
#ifdef X86
    return (v2d)_mm_sqrt_pd((__m128d)x);
#else
    return (v2d){__builtin_sqrt(x[0]), __builtin_sqrt(x[1])};
#endif
}

#define VEC v2d
#define MASK v2i
#define BITS v2u
#define N 2
#define FN(name) baseline_##name
#define TARGET
#define SQRT(x) sqrt_v2d(x)
#ifdef X86
#define FLOATS(x) _mm_cvtpd_ps((__m128d)(x))
#endif
#include "lanes.h"

_Static_assert(GAPS % 4 == 0 && GAP_DEVICE == GAP_HOST + 1 && GAP_HPHP == GAP_HH + 1 && GAP_HPHP_CF3 == GAP_HH_CF3 + 1 &&
               GAP_MAC == GAP_JITTER + 1 && GAP_HOST % 2 == 0 && GAP_HH % 2 == 0 && GAP_HH_CF3 % 2 == 0 && GAP_JITTER % 2 == 0,
               "fifth_row() takes the gaps in these pairs");

static inline __attribute__((always_inline)) void compute_baseline(const struct step *s, struct baseline_cells out)
{
    v2d fifth[GAPS / 2];
    for (int i = 0; i < GAPS / 2; i++)
        fifth[i] = baseline_power(baseline_load(s->gap, 2 * i) * minus_lambda[4]);
    baseline_main_row(s, out, 0);
    baseline_main_row(s, out, 2);
    baseline_fifth_row(s, out, fifth);
}

static void floats_baseline(const struct step *s, void *out)
{
    compute_baseline(s, (struct baseline_cells){out, false});
}

static void doubles_baseline(const struct step *s, void *out)
{
    compute_baseline(s, (struct baseline_cells){out, true});
}

#ifdef X86
typedef double v4d __attribute__((vector_size(32)));
typedef int64_t v4i __attribute__((vector_size(32)));
typedef uint64_t v4u __attribute__((vector_size(32)));

#define AVX2 __attribute__((target("avx2")))

#define VEC v4d
#define MASK v4i
#define BITS v4u
#define N 4
#define FN(name) avx2_##name
#define TARGET AVX2
#define SQRT(x) (v4d)_mm256_sqrt_pd((__m256d)(x))
#define FLOATS(x) _mm256_cvtpd_ps((__m256d)(x))
#include "lanes.h"

#define VEC v2d
#define MASK v2i
#define BITS v2u
#define N 2
#define FN(name) avx2_half_##name
#define TARGET AVX2
#define SQRT(x) (v2d)_mm_sqrt_pd((__m128d)(x))
#define FLOATS(x) _mm_cvtpd_ps((__m128d)(x))
#include "lanes.h"

static inline __attribute__((always_inline)) AVX2 void compute_avx2(const struct step *s, void *out, bool doubles)
{
    v2d fifth[GAPS / 2];
    for (int i = 0; i < GAPS / 4; i++) {
        v4d power = avx2_power(avx2_load(s->gap, 4 * i) * minus_lambda[4]);
        memcpy(&fifth[2 * i], &power, sizeof power);
    }
    avx2_main_row(s, (struct avx2_cells){out, doubles}, 0);
    avx2_half_fifth_row(s, (struct avx2_half_cells){out, doubles}, fifth);
}

static AVX2 void floats_avx2(const struct step *s, void *out)
{
    compute_avx2(s, out, false);
}

static AVX2 void doubles_avx2(const struct step *s, void *out)
{
    compute_avx2(s, out, true);
}
#endif

bool lanes_choose(enum simd simd, row_writer *writers[2], const char **name)
{
    writers[false] = floats_baseline;
    writers[true] = doubles_baseline;
    *name = "baseline";
    bool avx2 = false;
#ifdef X86
    __builtin_cpu_init();
    avx2 = __builtin_cpu_supports("avx2") != 0;
    if (avx2 && simd != SIMD_BASELINE) {
        writers[false] = floats_avx2;
        writers[true] = doubles_avx2;
        *name = "avx2";
    }
#endif
    return avx2 || simd != SIMD_AVX2;
}
