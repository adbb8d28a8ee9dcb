/* Values of 16 bits: to floats and back, in groups and in cache lines. A part of _lanes.h. */
#ifndef CBN_LANES16_H
#define CBN_LANES16_H

/* ---- groups of 16 bits -------------------------------------------------------------------- */

typedef uint16_t cbn_vu16_half __attribute__((vector_size(CBN_VECTOR / 2)));

/* By intrinsics again: of the builtin conversions GCC 12 makes one instruction a value. */
CBN_INLINE cbn_u32x16 cbn_load_u16(const void *p) {
    cbn_u32x16 r;
    CBN_EACH(k, CBN_N32) {
        const char *at = (const char *)p + k * (CBN_VECTOR / 2);
#if defined(__AVX512F__)
        r.v[k] = (cbn_vu32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at));
#elif CBN_AVX2
        r.v[k] = (cbn_vu32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)at));
#else
        cbn_vu16_half half;
        memcpy(&half, at, sizeof half);
        r.v[k] = __builtin_convertvector(half, cbn_vu32);
#endif
    }
    return r;
}

/* The lower halves of 32 bits, in as few vectors as they fill: what is stored in pieces and then
 * loaded as one, to be streamed, is waited for. */
#if CBN_AVX2
typedef uint16_t cbn_vu16 __attribute__((vector_size(32)));
#elif defined(__SSE2__)
typedef uint16_t cbn_vu16 __attribute__((vector_size(16)));
#else
typedef cbn_vu16_half cbn_vu16;
#endif
enum { CBN_N16 = CBN_LANES * 2 / sizeof(cbn_vu16) };
typedef struct { cbn_vu16 v[CBN_N16]; } cbn_u16x16;

CBN_INLINE cbn_u16x16 cbn_pack_u16(cbn_u32x16 x) { /* no value is above 0xffff */
    cbn_u16x16 r;
#if defined(__AVX512F__)
    r.v[0] = (cbn_vu16)_mm512_cvtepi32_epi16((__m512i)x.v[0]);
#elif CBN_AVX2
    __m256i pairs = _mm256_packus_epi32((__m256i)x.v[0], (__m256i)x.v[1]);
    r.v[0] = (cbn_vu16)_mm256_permute4x64_epi64(pairs, 0xd8);
#elif defined(__SSE2__) /* by the signed one: SSE2 has no other */
    CBN_EACH(k, CBN_N16) {
        __m128i low = _mm_srai_epi32(_mm_slli_epi32((__m128i)x.v[2 * k], 16), 16);
        __m128i high = _mm_srai_epi32(_mm_slli_epi32((__m128i)x.v[2 * k + 1], 16), 16);
        r.v[k] = (cbn_vu16)_mm_packs_epi32(low, high);
    }
#else
    CBN_EACH(k, CBN_N16) r.v[k] = __builtin_convertvector(x.v[k], cbn_vu16_half);
#endif
    return r;
}

/* mask ? a : b, lane by lane */
CBN_INLINE cbn_vu32 cbn_select_u32(cbn_vi32 mask, cbn_vu32 a, cbn_vu32 b) {
    return ((cbn_vu32)mask & a) | (~(cbn_vu32)mask & b);
}

/* ---- bfloat16 ----------------------------------------------------------------------------- */

CBN_INLINE cbn_f32x16 cbn_load_bf16(const cbn_bf16 *p) {
    cbn_u32x16 bits = cbn_load_u16(p);
    cbn_f32x16 r;
    CBN_EACH(k, CBN_N32) r.v[k] = (cbn_vf32)(bits.v[k] << 16);
    return r;
}

/* Round to nearest, ties to even; the result is in the upper halves. */
CBN_INLINE cbn_vu32 cbn_round_upper(cbn_vf32 x) {
    cbn_vu32 bits = (cbn_vu32)x;
    return bits + 0x7fff + ((bits >> 16) & 1);
}
/* The same for any x: a NaN stays one. */
CBN_INLINE cbn_vu32 cbn_round_upper_nan(cbn_vf32 x) {
#if defined(__AVX512F__)
    __mmask16 nan = _mm512_cmp_ps_mask((__m512)x, (__m512)x, _CMP_UNORD_Q);
    return (cbn_vu32)_mm512_mask_or_epi32(
        (__m512i)cbn_round_upper(x), nan, (__m512i)x, _mm512_set1_epi32(0x400000));
#else
    return cbn_select_u32(x != x, (cbn_vu32)x | 0x400000, cbn_round_upper(x));
#endif
}

/* Whether there may be a NaN among them. */
CBN_INLINE int cbn_any_nan(cbn_vf32 x, cbn_vf32 y) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_UNORD_Q) != 0;
#elif CBN_AVX2
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)y, _CMP_UNORD_Q)) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps(_mm_cmpunord_ps((__m128)x, (__m128)y)) != 0;
#else
    return (void)x, (void)y, 1;
#endif
}

CBN_INLINE cbn_u16x16 cbn_round_bf16(cbn_f32x16 x) {
#if defined(__AVX512F__)
    const __m512i upper = _mm512_set_epi64(
        0, 0, 0, 0, 0x1f001d001b0019, 0x17001500130011, 0xf000d000b0009, 0x7000500030001);
    __m512i rounded = _mm512_permutexvar_epi16(upper, (__m512i)cbn_round_upper_nan(x.v[0]));
    cbn_u16x16 r;
    r.v[0] = (cbn_vu16)_mm512_castsi512_si256(rounded);
    return r;
#else
    cbn_u32x16 r;
    CBN_EACH(k, CBN_N32) r.v[k] = cbn_round_upper_nan(x.v[k]) >> 16;
    return cbn_pack_u16(r);
#endif
}

/* ---- float16 ------------------------------------------------------------------------------ */

#if CBN_AVX2
CBN_INLINE cbn_f32x16 cbn_load_f16(const cbn_f16 *p) {
    cbn_f32x16 r;
#if defined(__AVX512F__)
    r.v[0] = (cbn_vf32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    CBN_EACH(k, CBN_N32)
        r.v[k] = (cbn_vf32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + k));
#endif
    return r;
}

CBN_INLINE cbn_u16x16 cbn_round_f16(cbn_f32x16 x) {
    cbn_u16x16 r;
#if defined(__AVX512F__)
    r.v[0] = (cbn_vu16)_mm512_cvtps_ph((__m512)x.v[0], _MM_FROUND_TO_NEAREST_INT);
#else
    r.v[0] = (cbn_vu16)_mm256_set_m128i(_mm256_cvtps_ph((__m256)x.v[1], _MM_FROUND_TO_NEAREST_INT),
                                        _mm256_cvtps_ph((__m256)x.v[0], _MM_FROUND_TO_NEAREST_INT));
#endif
    return r;
}
#else
/* Without F16C: exponents are moved by a product with a power of two, which is exact. */
CBN_INLINE cbn_f32x16 cbn_load_f16(const cbn_f16 *p) {
    cbn_u32x16 bits = cbn_load_u16(p);
    cbn_f32x16 r;
    CBN_EACH(k, CBN_N32) {
        cbn_vu32 magnitude = (bits.v[k] & 0x7fff) << 13;
        cbn_vf32 scaled = (cbn_vf32)magnitude * 0x1p112f;
        cbn_vi32 special = (cbn_vi32)(magnitude >= (0x7c00u << 13));
        cbn_vu32 value = cbn_select_u32(special, magnitude | 0x7f800000u, (cbn_vu32)scaled);
        r.v[k] = (cbn_vf32)(value | ((bits.v[k] & 0x8000) << 16));
    }
    return r;
}

CBN_INLINE cbn_u16x16 cbn_round_f16(cbn_f32x16 x) {
    cbn_u32x16 r;
    CBN_EACH(k, CBN_N32) {
        cbn_vu32 bits = (cbn_vu32)x.v[k], sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
        cbn_vu32 normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        /* below 2^-14 the last bit is 2^-24: let the addition of 0.5 round there */
        cbn_vu32 small = (cbn_vu32)((cbn_vf32)magnitude + 0.5f) - 0x3f000000u;
        cbn_vu32 finite = cbn_select_u32((cbn_vi32)(magnitude < (113u << 23)), small, normal);
        cbn_vu32 nan = 0x7e00u | ((magnitude >> 13) & 0x1ff);
        cbn_vu32 large = cbn_select_u32(
            (cbn_vi32)(magnitude > 0x7f800000u), nan, (magnitude & 0) + 0x7c00u);
        r.v[k] = sign | cbn_select_u32((cbn_vi32)(magnitude >= 0x477ff000u), large, finite);
    }
    return cbn_pack_u16(r);
}
#endif

#define CBN_DEFINE_16(T)                                                                           \
    CBN_INLINE void cbn_store_##T(cbn_##T *p, cbn_f32x16 x) {                                      \
        cbn_u16x16 r = cbn_round_##T(x);                                                           \
        CBN_EACH(k, CBN_N16) memcpy((char *)p + k * sizeof r.v[0], &r.v[k], sizeof r.v[0]);        \
    }                                                                                              \
    CBN_INLINE void cbn_stream_##T(cbn_##T *p, cbn_f32x16 x) {                                     \
        cbn_u16x16 r = cbn_round_##T(x);                                                           \
        cbn_stream_bytes(p, &r, sizeof r);                                                         \
    }                                                                                              \
    CBN_INLINE cbn_vf64 cbn_wide_##T(const cbn_##T *p, int k) {                                    \
        return cbn_wide_half(cbn_load_##T(p).v[k / 2], k % 2);                                     \
    }                                                                                              \
    CBN_INLINE float cbn_get_##T(const cbn_##T *p) {                                               \
        cbn_##T group[CBN_LANES] = {*p};                                                           \
        float values[CBN_LANES];                                                                   \
        cbn_store_f32(values, cbn_load_##T(group));                                                \
        return values[0];                                                                          \
    }
CBN_DEFINE_16(f16)
CBN_DEFINE_16(bf16)

/* ---- lines ----------------------------------------------------------------------------------
 *
 * The map of 32 values, a cache line, where neither residual nor activation is asked for. Those of
 * bfloat16 are taken apart as even and odd ones, since so none has to move to another lane.
 */
#if CBN_AVX2
#define CBN_LINES 1
enum { CBN_NLINE = 2 * CBN_N32 };
typedef struct { cbn_vf32 v[CBN_NLINE]; } cbn_f32x32;
typedef struct { cbn_f32x32 m, a, b; } cbn_line;
typedef struct { cbn_vu32 v[CBN_N32]; } cbn_u32_line;

CBN_INLINE cbn_line cbn_line_fill(double m, double a, double b) {
    cbn_line r;
    CBN_EACH(k, CBN_NLINE) {
        r.m.v[k] = (float)m - (cbn_vf32){0};
        r.a.v[k] = (float)a - (cbn_vf32){0};
        r.b.v[k] = (float)b - (cbn_vf32){0};
    }
    return r;
}
CBN_INLINE cbn_f32x32 cbn_load_pair_f16(const float *p) {
    cbn_f32x32 r;
    CBN_EACH(k, CBN_NLINE) memcpy(&r.v[k], p + k * (CBN_VECTOR / 4), CBN_VECTOR);
    return r;
}
CBN_INLINE cbn_f32x32 cbn_load_pair_bf16(const float *p) {
    cbn_f32x32 x = cbn_load_pair_f16(p), r;
#if defined(__AVX512F__)
    __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    r.v[0] = (cbn_vf32)_mm512_permutex2var_ps((__m512)x.v[0], even, (__m512)x.v[1]);
    r.v[1] = (cbn_vf32)_mm512_permutex2var_ps((__m512)x.v[0], odd, (__m512)x.v[1]);
#else
    CBN_EACH(k, CBN_N32) {
        __m256 low = (__m256)x.v[2 * k], high = (__m256)x.v[2 * k + 1];
        __m256d even = (__m256d)_mm256_shuffle_ps(low, high, 0x88);
        __m256d odd = (__m256d)_mm256_shuffle_ps(low, high, 0xdd);
        r.v[2 * k] = (cbn_vf32)_mm256_permute4x64_pd(even, 0xd8);
        r.v[2 * k + 1] = (cbn_vf32)_mm256_permute4x64_pd(odd, 0xd8);
    }
#endif
    return r;
}
CBN_INLINE cbn_f32x32 cbn_take_f16(const cbn_f16 *p) {
    cbn_f32x16 low = cbn_load_f16(p), high = cbn_load_f16(p + CBN_LANES);
    cbn_f32x32 r;
    CBN_EACH(k, CBN_N32) r.v[k] = low.v[k], r.v[k + CBN_N32] = high.v[k];
    return r;
}
CBN_INLINE cbn_f32x32 cbn_take_bf16(const cbn_bf16 *p) {
    cbn_f32x32 r;
    CBN_EACH(k, CBN_N32) {
        cbn_vu32 bits;
        memcpy(&bits, (const char *)p + k * CBN_VECTOR, CBN_VECTOR);
        r.v[2 * k] = (cbn_vf32)(bits << 16);
        r.v[2 * k + 1] = (cbn_vf32)(bits & 0xffff0000u);
    }
    return r;
}
CBN_INLINE cbn_u32_line cbn_join_f16(cbn_f32x32 x) {
    cbn_u32_line r;
#if defined(__AVX512F__)
    __m256i low = _mm512_cvtps_ph((__m512)x.v[0], _MM_FROUND_TO_NEAREST_INT);
    __m256i high = _mm512_cvtps_ph((__m512)x.v[1], _MM_FROUND_TO_NEAREST_INT);
    r.v[0] = (cbn_vu32)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
    CBN_EACH(k, CBN_N32) {
        cbn_f32x16 half = {{x.v[2 * k], x.v[2 * k + 1]}};
        r.v[k] = (cbn_vu32)cbn_round_f16(half).v[0];
    }
#endif
    return r;
}
CBN_INLINE cbn_vu32 cbn_join_pair(cbn_vu32 even, cbn_vu32 odd) {
#if defined(__AVX512F__)
    return (cbn_vu32)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)(even >> 16), (__m512i)odd);
#else
    return (cbn_vu32)_mm256_blend_epi16((__m256i)(even >> 16), (__m256i)odd, 0xaa);
#endif
}
CBN_INLINE cbn_u32_line cbn_join_bf16(cbn_f32x32 x) {
    cbn_u32_line r;
    int nan = 0;
    CBN_EACH(k, CBN_N32) {
        r.v[k] = cbn_join_pair(cbn_round_upper(x.v[2 * k]), cbn_round_upper(x.v[2 * k + 1]));
        nan |= cbn_any_nan(x.v[2 * k], x.v[2 * k + 1]);
    }
    if (__builtin_expect(nan, 0))
        CBN_EACH(k, CBN_N32)
            r.v[k] = cbn_join_pair(cbn_round_upper_nan(x.v[2 * k]),
                                   cbn_round_upper_nan(x.v[2 * k + 1]));
    return r;
}
#define CBN_DEFINE_LINE(T)                                                                         \
    CBN_INLINE cbn_line cbn_line_load_##T(const cbn_##T *like, const void *m, const void *a,       \
                                          const void *b, Py_ssize_t at) {                          \
        (void)like;                                                                                \
        return (cbn_line){cbn_load_pair_##T((const float *)m + at),                                \
                          cbn_load_pair_##T((const float *)a + at),                                \
                          cbn_load_pair_##T((const float *)b + at)};                               \
    }                                                                                              \
    CBN_INLINE void cbn_scale_line_##T(const cbn_##T *x, cbn_##T *y, const cbn_line *line,         \
                                       int stream) {                                               \
        cbn_f32x32 r = cbn_take_##T(x);                                                            \
        CBN_EACH(k, CBN_NLINE)                                                                     \
            r.v[k] = (r.v[k] - line->m.v[k]) * line->a.v[k] + line->b.v[k];                        \
        cbn_u32_line joined = cbn_join_##T(r);                                                     \
        CBN_EACH(k, CBN_N32) {                                                                     \
            char *to = (char *)y + k * CBN_VECTOR;                                                 \
            if (stream) cbn_stream_bytes(to, &joined.v[k], CBN_VECTOR);                            \
            else memcpy(to, &joined.v[k], CBN_VECTOR);                                             \
        }                                                                                          \
    }
#else
#define CBN_LINES 0 /* and so the rest is not called */
typedef char cbn_line;
CBN_INLINE cbn_line cbn_line_fill(double m, double a, double b) { return (char)(0 * (m + a + b)); }
#define CBN_DEFINE_LINE(T)                                                                         \
    CBN_INLINE cbn_line cbn_line_load_##T(const cbn_##T *like, const void *m, const void *a,       \
                                          const void *b, Py_ssize_t at) {                          \
        return (void)like, (void)m, (void)a, (void)b, (void)at, 0;                                 \
    }                                                                                              \
    CBN_INLINE void cbn_scale_line_##T(const cbn_##T *x, cbn_##T *y, const cbn_line *line,         \
                                       int stream) {                                               \
        (void)x, (void)y, (void)line, (void)stream;                                                \
    }
#endif
CBN_DEFINE_LINE(f16)
CBN_DEFINE_LINE(bf16)

#define CBN_PICK_16(name, p)                                                                       \
    _Generic((p), const cbn_f16 *: name##_f16, const cbn_bf16 *: name##_bf16)
#define cbn_line_load(p, ...) CBN_PICK_16(cbn_line_load, p)(p, __VA_ARGS__)
#define cbn_scale_line(p, ...) CBN_PICK_16(cbn_scale_line, p)(p, __VA_ARGS__)

#endif
