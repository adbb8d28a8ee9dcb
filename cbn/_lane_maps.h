/* The affine map of groups, for _maps.pxi and _periodic.pxi. Included by _lanes.h.
 *
 * scale          16 values of one channel: act((x - m) * a + b + residual * w), rounded after each
 *                operation; _mixed: the first n with m, a, b, w, the others with those of another
 *                channel; _run, with no activation: n >= 16 values, where the end, which overlaps
 *                what comes before, is computed first, so that y may be x; _channels: 16 channels,
 *                m, a, b, w being WORK arrays; _row, with neither residual nor activation: n of such
 *                channels, or a few less than 16 more; _rows: 16 channels, `rows` values of each,
 *                while what is read next is fetched in its order
 * narrow         one double into element `at` of a WORK array
 * value          one element as a double
 */
#ifndef CBN_LANE_MAPS_H
#define CBN_LANE_MAPS_H

/* Vector k of a group whose first n lanes are of one channel, the others of the next. */
#define CBN_DEFINE_MIX(WORK, INT)                                                                  \
    CBN_INLINE cbn_v##WORK cbn_mix_##WORK(int k, int n, double here, double after) {               \
        enum { WIDTH = CBN_VECTOR / sizeof(cbn_##WORK) };                                          \
        cbn_v##INT lane, first, one, next;                                                         \
        CBN_EACH(j, WIDTH) lane[j] = j;                                                            \
        first = lane < (cbn_v##INT){0} + (n - k * WIDTH);                                          \
        one = (cbn_v##INT)((cbn_##WORK)here - (cbn_v##WORK){0});                                   \
        next = (cbn_v##INT)((cbn_##WORK)after - (cbn_v##WORK){0});                                 \
        return (cbn_v##WORK)((first & one) | (~first & next));                                     \
    }
CBN_DEFINE_MIX(f32, i32)
CBN_DEFINE_MIX(f64, i64)

/* The least that a run is mapped by: a vector of floats or doubles; 16 values of 16 bits. */
#define CBN_DEFINE_STEP(T)                                                                         \
    enum { CBN_STEP_##T = CBN_VECTOR / sizeof(cbn_##T) };                                          \
    typedef cbn_v##T cbn_step_##T;                                                                 \
    CBN_INLINE cbn_v##T cbn_map_##T(const cbn_##T *x, const cbn_##T *residual, double m, double a, \
                                    double b, double w) {                                          \
        cbn_v##T r, other;                                                                         \
        memcpy(&r, x, sizeof r);                                                                   \
        r = (r - (cbn_##T)m) * (cbn_##T)a + (cbn_##T)b;                                            \
        if (residual) {                                                                            \
            memcpy(&other, residual, sizeof other);                                                \
            r += other * (cbn_##T)w;                                                               \
        }                                                                                          \
        return r;                                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_put_##T(cbn_##T *y, cbn_v##T r) { memcpy(y, &r, sizeof r); }
#define CBN_DEFINE_STEP16(T)                                                                       \
    enum { CBN_STEP_##T = CBN_LANES };                                                             \
    typedef cbn_f32x16 cbn_step_##T;                                                               \
    CBN_INLINE cbn_f32x16 cbn_map_##T(const cbn_##T *x, const cbn_##T *residual, double m,         \
                                      double a, double b, double w) {                              \
        cbn_f32x16 r = cbn_load_##T(x);                                                            \
        CBN_EACH(k, CBN_N32) r.v[k] = (r.v[k] - (float)m) * (float)a + (float)b;                   \
        if (residual) {                                                                            \
            cbn_f32x16 other = cbn_load_##T(residual);                                             \
            CBN_EACH(k, CBN_N32) r.v[k] += other.v[k] * (float)w;                                  \
        }                                                                                          \
        return r;                                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_put_##T(cbn_##T *y, cbn_f32x16 r) { cbn_store_##T(y, r); }
#define CBN_MAPPED(T, i) cbn_map_##T(x + (i), residual ? residual + (i) : 0, m, a, b, w)
CBN_DEFINE_STEP(f32)
CBN_DEFINE_STEP(f64)
CBN_DEFINE_STEP16(f16)
CBN_DEFINE_STEP16(bf16)

#define CBN_DEFINE_MAPS(T, WORK, COUNT)                                                            \
    CBN_INLINE void cbn_scale_##T(const cbn_##T *x, const cbn_##T *residual, cbn_##T *y, double m, \
                                  double a, double b, double w, int activation, double slope,      \
                                  int stream) {                                                    \
        cbn_##WORK##x16 r = cbn_load_##T(x);                                                       \
        CBN_EACH(k, COUNT)                                                                         \
            r.v[k] = (r.v[k] - (cbn_##WORK)m) * (cbn_##WORK)a + (cbn_##WORK)b;                     \
        if (residual) {                                                                            \
            cbn_##WORK##x16 other = cbn_load_##T(residual);                                        \
            CBN_EACH(k, COUNT) r.v[k] += other.v[k] * (cbn_##WORK)w;                               \
        }                                                                                          \
        if (activation) r = cbn_activate_##WORK(r, activation, slope);                             \
        if (stream) cbn_stream_##T(y, r);                                                          \
        else cbn_store_##T(y, r);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_scale_mixed_##T(                                                           \
        const cbn_##T *x, const cbn_##T *residual, cbn_##T *y, int n, double m, double a,          \
        double b, double w, double m2, double a2, double b2, double w2, int activation,            \
        double slope, int stream) {                                                                \
        cbn_##WORK##x16 r = cbn_load_##T(x);                                                       \
        CBN_EACH(k, COUNT)                                                                         \
            r.v[k] = (r.v[k] - cbn_mix_##WORK(k, n, m, m2)) * cbn_mix_##WORK(k, n, a, a2) +        \
                     cbn_mix_##WORK(k, n, b, b2);                                                  \
        if (residual) {                                                                            \
            cbn_##WORK##x16 other = cbn_load_##T(residual);                                        \
            CBN_EACH(k, COUNT) r.v[k] += other.v[k] * cbn_mix_##WORK(k, n, w, w2);                 \
        }                                                                                          \
        if (activation) r = cbn_activate_##WORK(r, activation, slope);                             \
        if (stream) cbn_stream_##T(y, r);                                                          \
        else cbn_store_##T(y, r);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_scale_channels_##T(                                                        \
        const cbn_##T *x, const cbn_##T *residual, cbn_##T *y, const void *m, const void *a,       \
        const void *b, const void *w, Py_ssize_t at, int activation, double slope, int stream) {   \
        cbn_##WORK##x16 r = cbn_load_##T(x), mv = cbn_load_##WORK((const cbn_##WORK *)m + at),     \
                        av = cbn_load_##WORK((const cbn_##WORK *)a + at),                          \
                        bv = cbn_load_##WORK((const cbn_##WORK *)b + at);                          \
        CBN_EACH(k, COUNT) r.v[k] = (r.v[k] - mv.v[k]) * av.v[k] + bv.v[k];                        \
        if (residual) {                                                                            \
            cbn_##WORK##x16 other = cbn_load_##T(residual),                                        \
                            wv = cbn_load_##WORK((const cbn_##WORK *)w + at);                      \
            CBN_EACH(k, COUNT) r.v[k] += other.v[k] * wv.v[k];                                     \
        }                                                                                          \
        if (activation) r = cbn_activate_##WORK(r, activation, slope);                             \
        if (stream) cbn_stream_##T(y, r);                                                          \
        else cbn_store_##T(y, r);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_scale_row_##T(const cbn_##T *x, cbn_##T *y, Py_ssize_t n, const void *m,   \
                                      const void *a, const void *b, Py_ssize_t at, int stream) {   \
        const cbn_##WORK *mp = (const cbn_##WORK *)m + at, *ap = (const cbn_##WORK *)a + at,       \
                         *bp = (const cbn_##WORK *)b + at;                                         \
        for (Py_ssize_t i = 0; i < n; i += CBN_LANES) {                                            \
            cbn_##WORK##x16 r = cbn_load_##T(x + i), mv = cbn_load_##WORK(mp + i),                 \
                            av = cbn_load_##WORK(ap + i), bv = cbn_load_##WORK(bp + i);            \
            cbn_prefetch((const char *)(x + i) + 2 * CBN_AHEAD);                                   \
            CBN_EACH(k, COUNT) r.v[k] = (r.v[k] - mv.v[k]) * av.v[k] + bv.v[k];                    \
            if (stream) cbn_stream_##T(y + i, r);                                                  \
            else cbn_store_##T(y + i, r);                                                          \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_scale_rows_##T(const cbn_##T *x, cbn_##T *y, Py_ssize_t stride, int rows,  \
                                       const cbn_##T *ahead, const void *m, const void *a,         \
                                       const void *b, Py_ssize_t at) {                             \
        cbn_##WORK##x16 mv = cbn_load_##WORK((const cbn_##WORK *)m + at),                          \
                        av = cbn_load_##WORK((const cbn_##WORK *)a + at),                          \
                        bv = cbn_load_##WORK((const cbn_##WORK *)b + at);                          \
        for (int row = 0; row < rows; row++) {                                                     \
            cbn_##WORK##x16 r = cbn_load_##T(x + row * stride);                                    \
            cbn_prefetch(ahead + row * CBN_LANES);                                                 \
            CBN_EACH(k, COUNT) r.v[k] = (r.v[k] - mv.v[k]) * av.v[k] + bv.v[k];                    \
            cbn_store_##T(y + row * stride, r);                                                    \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_scale_run_##T(const cbn_##T *x, const cbn_##T *residual, cbn_##T *y,       \
                                      Py_ssize_t n, double m, double a, double b, double w) {      \
        enum { STEP = CBN_STEP_##T };                                                              \
        Py_ssize_t i = 0, end = n - STEP;                                                          \
        cbn_step_##T last = CBN_MAPPED(T, end);                                                    \
        for (; i + STEP < end; i += 2 * STEP) {                                                    \
            cbn_put_##T(y + i, CBN_MAPPED(T, i));                                                  \
            cbn_put_##T(y + i + STEP, CBN_MAPPED(T, i + STEP));                                    \
        }                                                                                          \
        if (i < end) cbn_put_##T(y + i, CBN_MAPPED(T, i));                                         \
        cbn_put_##T(y + end, last);                                                                \
    }                                                                                              \
    CBN_INLINE void cbn_narrow_##T(const cbn_##T *like, double value, void *to, Py_ssize_t at) {   \
        (void)like;                                                                                \
        ((cbn_##WORK *)to)[at] = (cbn_##WORK)value;                                                \
    }                                                                                              \
    CBN_INLINE double cbn_value_##T(const cbn_##T *p) { return (double)cbn_get_##T(p); }

CBN_DEFINE_MAPS(f32, f32, CBN_N32)
CBN_DEFINE_MAPS(f64, f64, CBN_N64)
CBN_DEFINE_MAPS(f16, f32, CBN_N32)
CBN_DEFINE_MAPS(bf16, f32, CBN_N32)

#define cbn_scale(p, ...) CBN_PICK(cbn_scale, p)(p, __VA_ARGS__)
#define cbn_scale_mixed(p, ...) CBN_PICK(cbn_scale_mixed, p)(p, __VA_ARGS__)
#define cbn_scale_channels(p, ...) CBN_PICK(cbn_scale_channels, p)(p, __VA_ARGS__)
#define cbn_scale_row(p, ...) CBN_PICK(cbn_scale_row, p)(p, __VA_ARGS__)
#define cbn_scale_rows(p, ...) CBN_PICK(cbn_scale_rows, p)(p, __VA_ARGS__)
#define cbn_scale_run(p, ...) CBN_PICK(cbn_scale_run, p)(p, __VA_ARGS__)
#define cbn_narrow(p, ...) CBN_PICK(cbn_narrow, p)(p, __VA_ARGS__)
#define cbn_value(p) CBN_PICK(cbn_value, p)(p)

#endif
