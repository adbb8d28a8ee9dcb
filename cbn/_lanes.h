/* Groups of 16 values, handled together: what only C can say.
 *
 * A group is an array of the widest vectors of the instruction set that this file is compiled for,
 * so that the number of lanes, and with it the order of every sum, is the same in every build.
 * GCC and Clang compile plain arithmetic on such vectors; no intrinsics but the streamed stores.
 * The loops over groups are in _kernels.pyx. `cbn_NAME(pointer, ...)` picks the element type.
 */
#ifndef CBN_LANES_H
#define CBN_LANES_H

#include <string.h>

#if !defined(__GNUC__)
#error "cbn needs GCC or Clang: its kernels use their vector types"
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define CBN_LANES 16

#if defined(__AVX512F__)
#define CBN_VECTOR 64
#elif defined(__AVX__)
#define CBN_VECTOR 32
#else
#define CBN_VECTOR 16
#endif

#define CBN_INLINE static inline __attribute__((always_inline))

typedef float cbn_vf __attribute__((vector_size(CBN_VECTOR)));
typedef double cbn_vd __attribute__((vector_size(CBN_VECTOR)));
typedef float cbn_vf_half __attribute__((vector_size(CBN_VECTOR / 2)));

enum { CBN_NF = CBN_LANES * 4 / CBN_VECTOR, CBN_ND = CBN_LANES * 8 / CBN_VECTOR };

/* 16 floats or 16 doubles; the second is also what every sum is kept in. */
typedef struct { cbn_vf v[CBN_NF]; } cbn_f32x16;
typedef struct { cbn_vd v[CBN_ND]; } cbn_f64x16;

/* ---- load, store ------------------------------------------------------------------------ */

CBN_INLINE cbn_f32x16 cbn_load_f32(const float *p) { cbn_f32x16 r; memcpy(&r, p, sizeof r); return r; }
CBN_INLINE cbn_f64x16 cbn_load_f64(const double *p) { cbn_f64x16 r; memcpy(&r, p, sizeof r); return r; }
CBN_INLINE void cbn_store_f32(float *p, cbn_f32x16 x) { memcpy(p, &x, sizeof x); }
CBN_INLINE void cbn_store_f64(double *p, cbn_f64x16 x) { memcpy(p, &x, sizeof x); }

/* Past the cache; p must be aligned to a vector. */
CBN_INLINE void cbn_stream_bytes(void *p, const void *x, int vectors) {
#pragma GCC unroll 8
    for (int k = 0; k < vectors; k++) {
        char *to = (char *)p + k * CBN_VECTOR;
        const char *from = (const char *)x + k * CBN_VECTOR;
#if defined(__AVX512F__)
        _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(from));
#elif defined(__AVX__)
        _mm256_stream_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
#elif defined(__SSE2__)
        _mm_stream_si128((__m128i *)to, _mm_loadu_si128((const __m128i *)from));
#else
        memcpy(to, from, CBN_VECTOR);
#endif
    }
}
CBN_INLINE void cbn_stream_f32(float *p, cbn_f32x16 x) { cbn_stream_bytes(p, &x, CBN_NF); }
CBN_INLINE void cbn_stream_f64(double *p, cbn_f64x16 x) { cbn_stream_bytes(p, &x, CBN_ND); }

/* Streamed stores are weakly ordered: end each task with this before other threads may read. */
CBN_INLINE void cbn_fence(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* ---- sums, always in double ---------------------------------------------------------------- */

CBN_INLINE cbn_f64x16 cbn_widen_f32(const float *p) {
    cbn_f64x16 r;
#pragma GCC unroll 8
    for (int k = 0; k < CBN_ND; k++) {
        cbn_vf_half half;
        memcpy(&half, p + k * (CBN_VECTOR / 8), sizeof half);
        r.v[k] = __builtin_convertvector(half, cbn_vd);
    }
    return r;
}
CBN_INLINE cbn_f64x16 cbn_widen_f64(const double *p) { return cbn_load_f64(p); }

/* Lane by lane: sum += x - shift, square += (x - shift)^2. */
CBN_INLINE void cbn_add_moments(cbn_f64x16 x, cbn_f64x16 shift, cbn_f64x16 *sum, cbn_f64x16 *square) {
#pragma GCC unroll 8
    for (int k = 0; k < CBN_ND; k++) {
        cbn_vd d = x.v[k] - shift.v[k];
        sum->v[k] += d;
        square->v[k] += d * d;
    }
}

CBN_INLINE cbn_f64x16 cbn_fill(double value) {
    cbn_f64x16 r;
#pragma GCC unroll 8
    for (int k = 0; k < CBN_ND; k++) r.v[k] = value - (cbn_vd){0};
    return r;
}

/* Lanes from n on are replaced by those of `other`. */
CBN_INLINE cbn_f64x16 cbn_first(cbn_f64x16 x, int n, cbn_f64x16 other) {
    double lanes[CBN_LANES], rest[CBN_LANES];
    memcpy(lanes, &x, sizeof lanes);
    memcpy(rest, &other, sizeof rest);
    for (int k = 0; k < CBN_LANES; k++) lanes[k] = k < n ? lanes[k] : rest[k];
    memcpy(&x, lanes, sizeof lanes);
    return x;
}

/* The sum of the lanes, in one order: halves onto halves. */
CBN_INLINE double cbn_total(const cbn_f64x16 *x) {
    double lanes[CBN_LANES];
    memcpy(lanes, x, sizeof lanes);
    for (int half = CBN_LANES / 2; half; half /= 2)
        for (int k = 0; k < half; k++) lanes[k] += lanes[k + half];
    return lanes[0];
}

/* ---- one group of each element type ---------------------------------------------------------
 *
 * moments        16 values of one channel into its sums
 * moments_part   the same for n < 16 values
 * columns        16 channels, `rows` values of each, into their sums
 * scale          16 values of one channel: (x - m) * a + b, rounded after each operation
 * scale_one      the same for one value
 * scale_columns  the same for 16 channels; m, a, b in the type that the arithmetic is done in
 * narrow         n doubles into that type
 */
typedef float cbn_f32;
typedef double cbn_f64;

#define CBN_DEFINE(T, TYPE, WORK, VECTORS)                                                         \
    CBN_INLINE void cbn_moments_##T(const TYPE *x, double shift, cbn_f64x16 *sum,                  \
                                    cbn_f64x16 *square) {                                          \
        cbn_add_moments(cbn_widen_##T(x), cbn_fill(shift), sum, square);                           \
    }                                                                                              \
    CBN_INLINE void cbn_moments_part_##T(const TYPE *x, int n, double shift, cbn_f64x16 *sum,      \
                                         cbn_f64x16 *square) {                                     \
        TYPE part[CBN_LANES] = {0};                                                                \
        for (int k = 0; k < n; k++) part[k] = x[k];                                                \
        cbn_f64x16 shifts = cbn_fill(shift);                                                       \
        cbn_add_moments(cbn_first(cbn_widen_##T(part), n, shifts), shifts, sum, square);           \
    }                                                                                              \
    CBN_INLINE void cbn_columns_##T(const TYPE *x, Py_ssize_t stride, int rows,                    \
                                    const double *shift, double *sum, double *square) {            \
        cbn_f64x16 k = cbn_load_f64(shift), s = cbn_load_f64(sum), q = cbn_load_f64(square);       \
        for (int row = 0; row < rows; row++)                                                       \
            cbn_add_moments(cbn_widen_##T(x + row * stride), k, &s, &q);                           \
        cbn_store_f64(sum, s);                                                                     \
        cbn_store_f64(square, q);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_scale_##T(const TYPE *x, TYPE *y, double m, double a, double b,            \
                                  int stream) {                                                    \
        cbn_##WORK##x16 r = cbn_load_##T(x);                                                       \
        _Pragma("GCC unroll 8") for (int k = 0; k < VECTORS; k++)                                  \
            r.v[k] = (r.v[k] - (cbn_##WORK)m) * (cbn_##WORK)a + (cbn_##WORK)b;                     \
        if (stream) cbn_stream_##T(y, r);                                                          \
        else cbn_store_##T(y, r);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_scale_one_##T(const TYPE *x, TYPE *y, double m, double a, double b) {      \
        *y = (TYPE)(((cbn_##WORK)*x - (cbn_##WORK)m) * (cbn_##WORK)a + (cbn_##WORK)b);             \
    }                                                                                              \
    CBN_INLINE void cbn_scale_columns_##T(const TYPE *x, TYPE *y, const void *m, const void *a,    \
                                          const void *b, Py_ssize_t at, int stream) {              \
        cbn_##WORK##x16 r = cbn_load_##T(x), mv = cbn_load_##WORK((const cbn_##WORK *)m + at),     \
                        av = cbn_load_##WORK((const cbn_##WORK *)a + at),                          \
                        bv = cbn_load_##WORK((const cbn_##WORK *)b + at);                          \
        _Pragma("GCC unroll 8") for (int k = 0; k < VECTORS; k++)                                  \
            r.v[k] = (r.v[k] - mv.v[k]) * av.v[k] + bv.v[k];                                       \
        if (stream) cbn_stream_##T(y, r);                                                          \
        else cbn_store_##T(y, r);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_narrow_##T(const TYPE *like, const double *from, void *to, Py_ssize_t n) { \
        (void)like;                                                                                \
        for (Py_ssize_t k = 0; k < n; k++) ((cbn_##WORK *)to)[k] = (cbn_##WORK)from[k];            \
    }

CBN_DEFINE(f32, float, f32, CBN_NF)
CBN_DEFINE(f64, double, f64, CBN_ND)

#define CBN_PICK(name, p)                                                                          \
    _Generic((p), float *: name##_f32, const float *: name##_f32, double *: name##_f64,            \
             const double *: name##_f64)
#define cbn_moments(p, ...) CBN_PICK(cbn_moments, p)(p, __VA_ARGS__)
#define cbn_moments_part(p, ...) CBN_PICK(cbn_moments_part, p)(p, __VA_ARGS__)
#define cbn_columns(p, ...) CBN_PICK(cbn_columns, p)(p, __VA_ARGS__)
#define cbn_scale(p, ...) CBN_PICK(cbn_scale, p)(p, __VA_ARGS__)
#define cbn_scale_one(p, ...) CBN_PICK(cbn_scale_one, p)(p, __VA_ARGS__)
#define cbn_scale_columns(p, ...) CBN_PICK(cbn_scale_columns, p)(p, __VA_ARGS__)
#define cbn_narrow(p, ...) CBN_PICK(cbn_narrow, p)(p, __VA_ARGS__)

#endif
