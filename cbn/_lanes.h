/* Groups of 16 values, handled together: what only C can say.
 *
 * A group is an array of the widest vectors of the instruction set that this file is compiled for,
 * so that the number of lanes, and with it the order of every sum, is the same in every build.
 * GCC and Clang compile plain arithmetic on such vectors; intrinsics are for what has no plain form,
 * or one of which GCC makes more instructions. The loops over groups are in _kernels.pyx
 * and what it includes.
 *
 * Element types: f32, f64, f16 (IEEE binary16) and bf16 (bfloat16). Sums are kept in f64; the rest
 * of the arithmetic is done in f64 for f64 and in f32 for the others ("WORK" below).
 */
#ifndef CBN_LANES_H
#define CBN_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__)
#error "cbn needs GCC or Clang: its kernels use their vector types"
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define CBN_LANES 16

/* Vectors of 32 bytes take all three; where one is absent, those of 16 do. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CBN_AVX2 1
#else
#define CBN_AVX2 0
#endif

#if defined(__AVX512F__)
#define CBN_VECTOR 64
#elif CBN_AVX2
#define CBN_VECTOR 32
#else
#define CBN_VECTOR 16
#endif

#define CBN_INLINE static inline __attribute__((always_inline))
#define CBN_EACH(k, n) _Pragma("GCC unroll 16") for (int k = 0; k < (n); k++)

typedef float cbn_f32;
typedef double cbn_f64;
typedef struct { uint16_t bits; } cbn_f16;
typedef struct { uint16_t bits; } cbn_bf16;

typedef float cbn_vf32 __attribute__((vector_size(CBN_VECTOR)));
typedef double cbn_vf64 __attribute__((vector_size(CBN_VECTOR)));
typedef int32_t cbn_vi32 __attribute__((vector_size(CBN_VECTOR)));
typedef uint32_t cbn_vu32 __attribute__((vector_size(CBN_VECTOR)));
typedef int64_t cbn_vi64 __attribute__((vector_size(CBN_VECTOR)));
typedef float cbn_vf32_half __attribute__((vector_size(CBN_VECTOR / 2)));

enum {
    CBN_N32 = CBN_LANES * 4 / CBN_VECTOR, /* vectors in a group of floats */
    CBN_N64 = CBN_LANES * 8 / CBN_VECTOR, /* and of doubles */
    CBN_W64 = CBN_VECTOR / 8
};

typedef struct { cbn_vf32 v[CBN_N32]; } cbn_f32x16;
typedef struct { cbn_vf64 v[CBN_N64]; } cbn_f64x16;
typedef struct { cbn_vu32 v[CBN_N32]; } cbn_u32x16;

/* ---- past the cache ---------------------------------------------------------------------- */

/* `to` must be aligned to 64 bytes, or to 32 where that is all that is stored. */
CBN_INLINE void cbn_stream_bytes(void *to, const void *from, int bytes) {
#if defined(__AVX512F__)
    if (bytes % 64 == 0) {
        CBN_EACH(k, bytes / 64)
            _mm512_stream_si512((__m512i *)to + k, _mm512_loadu_si512((const char *)from + 64 * k));
        return;
    }
#endif
#if CBN_AVX2
    CBN_EACH(k, bytes / 32)
        _mm256_stream_si256((__m256i *)to + k, _mm256_loadu_si256((const __m256i *)from + k));
#elif defined(__SSE2__)
    CBN_EACH(k, bytes / 16)
        _mm_stream_si128((__m128i *)to + k, _mm_loadu_si128((const __m128i *)from + k));
#else
    memcpy(to, from, bytes);
#endif
}

enum { CBN_AHEAD = 2048 }; /* bytes from what is read to what is fetched meanwhile */

CBN_INLINE void cbn_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

/* ---- float32 and float64 ------------------------------------------------------------------ */

/* Vector by vector: GCC copies a whole group by 16 bytes, through memory where vectors are wider. */
#define CBN_DEFINE_MOVES(T, COUNT)                                                                 \
    CBN_INLINE cbn_##T##x16 cbn_load_##T(const cbn_##T *p) {                                       \
        cbn_##T##x16 r;                                                                            \
        CBN_EACH(k, COUNT) memcpy(&r.v[k], p + k * (CBN_LANES / COUNT), CBN_VECTOR);               \
        return r;                                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_store_##T(cbn_##T *p, cbn_##T##x16 x) {                                    \
        CBN_EACH(k, COUNT) memcpy(p + k * (CBN_LANES / COUNT), &x.v[k], CBN_VECTOR);               \
    }
CBN_DEFINE_MOVES(f32, CBN_N32)
CBN_DEFINE_MOVES(f64, CBN_N64)
CBN_INLINE void cbn_stream_f32(float *p, cbn_f32x16 x) { cbn_stream_bytes(p, &x, sizeof x); }
CBN_INLINE void cbn_stream_f64(double *p, cbn_f64x16 x) { cbn_stream_bytes(p, &x, sizeof x); }
CBN_INLINE float cbn_get_f32(const float *p) { return *p; }
CBN_INLINE double cbn_get_f64(const double *p) { return *p; }

/* Vector k of a group, as doubles. Where values are summed, groups are widened vector by vector:
 * whole, they would not fit the registers of AVX2 beside the sums. By intrinsics: GCC 12 makes five
 * instructions of the builtin conversion where one does. */
CBN_INLINE cbn_vf64 cbn_wide_f32(const float *p, int k) {
    p += k * CBN_W64;
#if defined(__AVX512F__)
    return (cbn_vf64)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif CBN_AVX2
    return (cbn_vf64)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
    cbn_vf32_half half;
    memcpy(&half, p, sizeof half);
    return __builtin_convertvector(half, cbn_vf64);
#endif
}
CBN_INLINE cbn_vf64 cbn_wide_f64(const double *p, int k) {
    cbn_vf64 r;
    memcpy(&r, p + k * CBN_W64, sizeof r);
    return r;
}

/* One half of a vector of floats, as doubles. */
CBN_INLINE cbn_vf64 cbn_wide_half(cbn_vf32 x, int upper) {
#if defined(__AVX512F__)
    __m256d half = upper ? _mm512_extractf64x4_pd(_mm512_castps_pd((__m512)x), 1)
                         : _mm512_castpd512_pd256(_mm512_castps_pd((__m512)x));
    return (cbn_vf64)_mm512_cvtps_pd(_mm256_castpd_ps(half));
#elif CBN_AVX2
    __m128 half = upper ? _mm256_extractf128_ps((__m256)x, 1) : _mm256_castps256_ps128((__m256)x);
    return (cbn_vf64)_mm256_cvtps_pd(half);
#else
    cbn_vf32_half half;
    memcpy(&half, (const char *)&x + upper * sizeof half, sizeof half);
    return __builtin_convertvector(half, cbn_vf64);
#endif
}
CBN_INLINE cbn_f64x16 cbn_widen_work(cbn_f32x16 x) {
    cbn_f64x16 r;
    CBN_EACH(k, CBN_N64) r.v[k] = cbn_wide_half(x.v[k / 2], k % 2);
    return r;
}

#include "_lanes16.h"

/* ---- sums --------------------------------------------------------------------------------- */

CBN_INLINE cbn_f64x16 cbn_fill(double value) {
    cbn_f64x16 r;
    CBN_EACH(k, CBN_N64) r.v[k] = value - (cbn_vf64){0};
    return r;
}

/* The sum of the lanes, in one order: halves onto halves. */
CBN_INLINE double cbn_total(const cbn_f64x16 *x) {
    cbn_vf64 v[CBN_N64]; /* no copy of the struct: GCC would make it by 16 bytes, through memory */
    CBN_EACH(k, CBN_N64) v[k] = x->v[k];
    for (int half = CBN_N64 / 2; half; half /= 2)
        CBN_EACH(k, half) v[k] += v[k + half];
#if defined(__AVX512F__)
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)v[0]),
                                 _mm512_extractf64x4_pd((__m512d)v[0], 1));
#elif CBN_AVX2
    __m256d four = (__m256d)v[0];
#endif
#if CBN_AVX2
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return two[0] + two[1];
#else
    return v[0][0] + v[0][1];
#endif
}

/* sum + a * b. The product of two floats is `exact` in double, so that an FMA gives the same bits. */
CBN_INLINE cbn_vf64 cbn_add_product(cbn_vf64 sum, cbn_vf64 a, cbn_vf64 b, int exact) {
#if defined(__AVX512F__)
    if (exact) return (cbn_vf64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif CBN_AVX2
    if (exact) return (cbn_vf64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#endif
    return sum + a * b;
}

/* sum + value. AMD's cores convert floats where they add, and multiply elsewhere: there an FMA, of the
 * same bits, is the sum that waits for nobody. */
CBN_INLINE cbn_vf64 cbn_add(cbn_vf64 sum, cbn_vf64 value, int fused) {
#if CBN_AVX2 && !defined(__AVX512F__)
    if (fused) return (cbn_vf64)_mm256_fmadd_pd((__m256d)value, _mm256_set1_pd(1), (__m256d)sum);
#endif
    (void)fused;
    return sum + value;
}

#include "_activations.h"

/* ---- fewer values than lanes ---------------------------------------------------------------- */

/* The first n of a vector's lanes: all bits set. */
CBN_INLINE cbn_vi64 cbn_first_lanes(int n) {
    cbn_vi64 lane;
    CBN_EACH(j, CBN_W64) lane[j] = j;
    return lane < (cbn_vi64){0} + n;
}

/* A vector of the first n values, 1 <= n <= CBN_W64, and zeros; nothing is read beyond them. */
#if defined(__AVX512F__)
CBN_INLINE cbn_vf64 cbn_few_f64(const double *p, int n) {
    return (cbn_vf64)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
CBN_INLINE cbn_vf64 cbn_few_f32(const float *p, int n) {
    return (cbn_vf64)_mm512_cvtps_pd(_mm256_maskz_loadu_ps((__mmask8)((1u << n) - 1), p));
}
CBN_INLINE cbn_vf64 cbn_few_f16(const cbn_f16 *p, int n) {
    __m128i bits = _mm_maskz_loadu_epi16((__mmask8)((1u << n) - 1), p);
    return (cbn_vf64)_mm512_cvtps_pd(_mm256_cvtph_ps(bits));
}
CBN_INLINE cbn_vf64 cbn_few_bf16(const cbn_bf16 *p, int n) {
    __m128i bits = _mm_maskz_loadu_epi16((__mmask8)((1u << n) - 1), p);
    return (cbn_vf64)_mm512_cvtps_pd((__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#elif CBN_AVX2
CBN_INLINE cbn_vf64 cbn_few_f64(const double *p, int n) {
    return (cbn_vf64)_mm256_maskload_pd(p, (__m256i)cbn_first_lanes(n));
}
CBN_INLINE cbn_vf64 cbn_few_f32(const float *p, int n) {
    if (n == 4) return cbn_wide_f32(p, 0);
    if (n == 1) return (cbn_vf64)_mm256_cvtps_pd(_mm_load_ss(p)); /* as of 7 x 7 values */
    __m128i first = _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_set_epi32(3, 2, 1, 0));
    return (cbn_vf64)_mm256_cvtps_pd(_mm_maskload_ps(p, first));
}
/* Four values of 16 bits. */
CBN_INLINE __m128i cbn_few_u16(const void *p, int n) {
    uint64_t bits = 0;
    uint32_t pair = 0;
    uint16_t last = 0;
    if (n == 4) memcpy(&bits, p, 8);
    else {
        if (n & 2) memcpy(&pair, p, 4);
        if (n & 1) memcpy(&last, (const char *)p + 2 * (n - 1), 2);
        bits = pair | (uint64_t)last << (16 * (n & 2));
    }
    return _mm_loadl_epi64((const __m128i *)&bits);
}
CBN_INLINE cbn_vf64 cbn_few_f16(const cbn_f16 *p, int n) {
    return (cbn_vf64)_mm256_cvtps_pd(_mm_cvtph_ps(cbn_few_u16(p, n)));
}
CBN_INLINE cbn_vf64 cbn_few_bf16(const cbn_bf16 *p, int n) {
    __m128i bits = _mm_cvtepu16_epi32(cbn_few_u16(p, n));
    return (cbn_vf64)_mm256_cvtps_pd((__m128)_mm_slli_epi32(bits, 16));
}
#else
#define CBN_DEFINE_FEW(T)                                                                          \
    CBN_INLINE cbn_vf64 cbn_few_##T(const cbn_##T *p, int n) {                                     \
        cbn_vf64 r = {0};                                                                          \
        CBN_EACH(j, CBN_W64) if (j < n) r[j] = cbn_get_##T(p + j);                                 \
        return r;                                                                                  \
    }
CBN_DEFINE_FEW(f32)
CBN_DEFINE_FEW(f64)
CBN_DEFINE_FEW(f16)
CBN_DEFINE_FEW(bf16)
#endif

/* What is done for each element type: cbn_NAME(pointer, ...) picks by what the pointer points to. */
#define CBN_PICK(name, p)                                                                          \
    _Generic((p),                                                                                  \
        cbn_f32 *: name##_f32, const cbn_f32 *: name##_f32,                                        \
        cbn_f64 *: name##_f64, const cbn_f64 *: name##_f64,                                        \
        cbn_f16 *: name##_f16, const cbn_f16 *: name##_f16,                                        \
        cbn_bf16 *: name##_bf16, const cbn_bf16 *: name##_bf16)

#include "_lane_sums.h"
#include "_lane_maps.h"

#endif
