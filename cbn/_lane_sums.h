/* Sums of groups, for _sums.pxi and _columns.pxi. Included by _lanes.h.
 *
 * squares        16 values of one channel into its sums of x and x^2; _part: n < 16 of them, for
 *                the first lanes; the others stay
 * moments        the same for x - shift; _part
 * products       16 values of dy and x of one channel into its sums of dy and dy * (x - mean); _part
 * plain_products the same for dy * x
 * columns        16 channels, `rows` values of each, into their sums of x - shift and its square;
 *                _squares: without a shift
 * columns_products  16 channels, `rows` values of dy and x each, into such sums; columns_plain: of
 *                dy * x, while what is read next is fetched in its order, unless dy_ahead is NULL
 */
#ifndef CBN_LANE_SUMS_H
#define CBN_LANE_SUMS_H

/* The vectors that n < 16 values reach (no `else` may follow), and how many are in vector k. */
#define CBN_EACH_FEW(k, n) CBN_EACH(k, CBN_N64) if ((n) > k * CBN_W64)
#define CBN_FEW(k, n) ((n) - k * CBN_W64 < CBN_W64 ? (n) - k * CBN_W64 : CBN_W64)

#define CBN_DEFINE_SUMS(T)                                                                         \
    /* x - shift; zeros beyond n, also where the shift is not finite */                            \
    CBN_INLINE cbn_vf64 cbn_few_apart_##T(const cbn_##T *x, int n, double shift) {                 \
        cbn_vf64 apart = cbn_few_##T(x, n) - shift;                                                \
        return (cbn_vf64)(cbn_first_lanes(n) & (cbn_vi64)apart);                                   \
    }                                                                                              \
    CBN_INLINE void cbn_moments_##T(const cbn_##T *x, double shift, cbn_f64x16 *total,             \
                                    cbn_f64x16 *square) {                                          \
        CBN_EACH(k, CBN_N64) {                                                                     \
            cbn_vf64 d = cbn_wide_##T(x, k) - shift;                                               \
            total->v[k] += d;                                                                      \
            square->v[k] += d * d;                                                                 \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_plain_products_##T(const cbn_##T *dy, const cbn_##T *x, cbn_f64x16 *total, \
                                           cbn_f64x16 *product) {                                  \
        CBN_EACH(k, CBN_N64) {                                                                     \
            cbn_vf64 v = cbn_wide_##T(dy, k);                                                      \
            total->v[k] = cbn_add(total->v[k], v, sizeof *x < 8);                                  \
            product->v[k] =                                                                        \
                cbn_add_product(product->v[k], v, cbn_wide_##T(x, k), sizeof *x < 8);              \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_squares_##T(const cbn_##T *x, cbn_f64x16 *total, cbn_f64x16 *square) {     \
        CBN_EACH(k, CBN_N64) {                                                                     \
            cbn_vf64 v = cbn_wide_##T(x, k);                                                       \
            total->v[k] = cbn_add(total->v[k], v, sizeof *x < 8 && k % 2);                         \
            square->v[k] = cbn_add_product(square->v[k], v, v, sizeof *x < 8);                     \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_products_##T(const cbn_##T *dy, const cbn_##T *x, double mean,             \
                                     cbn_f64x16 *total, cbn_f64x16 *product) {                     \
        CBN_EACH(k, CBN_N64) {                                                                     \
            cbn_vf64 v = cbn_wide_##T(dy, k);                                                      \
            total->v[k] += v;                                                                      \
            product->v[k] += v * (cbn_wide_##T(x, k) - mean);                                      \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_squares_part_##T(const cbn_##T *x, int n, cbn_f64x16 *total,               \
                                         cbn_f64x16 *square) {                                     \
        CBN_EACH_FEW(k, n) {                                                                       \
            cbn_vf64 v = cbn_few_##T(x + k * CBN_W64, CBN_FEW(k, n));                              \
            total->v[k] += v;                                                                      \
            square->v[k] = cbn_add_product(square->v[k], v, v, sizeof *x < 8);                     \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_moments_part_##T(const cbn_##T *x, int n, double shift, cbn_f64x16 *total, \
                                         cbn_f64x16 *square) {                                     \
        CBN_EACH_FEW(k, n) {                                                                       \
            cbn_vf64 d = cbn_few_apart_##T(x + k * CBN_W64, CBN_FEW(k, n), shift);                 \
            total->v[k] += d;                                                                      \
            square->v[k] += d * d;                                                                 \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_products_part_##T(const cbn_##T *dy, const cbn_##T *x, int n, double mean, \
                                          cbn_f64x16 *total, cbn_f64x16 *product) {                \
        CBN_EACH_FEW(k, n) {                                                                       \
            cbn_vf64 v = cbn_few_##T(dy + k * CBN_W64, CBN_FEW(k, n));                             \
            total->v[k] += v;                                                                      \
            product->v[k] += v * cbn_few_apart_##T(x + k * CBN_W64, CBN_FEW(k, n), mean);          \
        }                                                                                          \
    }                                                                                              \
    CBN_INLINE void cbn_columns_##T(const cbn_##T *x, Py_ssize_t stride, int rows,                 \
                                    const double *shift, double *total, double *square) {          \
        cbn_f64x16 t = cbn_load_f64(total), s = cbn_load_f64(square);                              \
        for (int row = 0; row < rows; row++) {                                                     \
            CBN_EACH(k, CBN_N64) {                                                                 \
                cbn_vf64 d = cbn_wide_##T(x, k) - cbn_wide_f64(shift, k);                          \
                t.v[k] += d;                                                                       \
                s.v[k] += d * d;                                                                   \
            }                                                                                      \
            x += stride;                                                                           \
        }                                                                                          \
        cbn_store_f64(total, t);                                                                   \
        cbn_store_f64(square, s);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_columns_squares_##T(const cbn_##T *x, Py_ssize_t stride, int rows,         \
                                            const cbn_##T *ahead, Py_ssize_t by,                   \
                                            double *total, double *square) {                       \
        cbn_f64x16 t = cbn_load_f64(total), s = cbn_load_f64(square);                              \
        for (int row = 0; row < rows; row++) {                                                     \
            cbn_prefetch(ahead + row * by);                                                        \
            cbn_squares_##T(x, &t, &s);                                                            \
            x += stride;                                                                           \
        }                                                                                          \
        cbn_store_f64(total, t);                                                                   \
        cbn_store_f64(square, s);                                                                  \
    }                                                                                              \
    CBN_INLINE void cbn_columns_products_##T(const cbn_##T *dy, Py_ssize_t dy_stride,              \
                                             const cbn_##T *x, Py_ssize_t stride, int rows,        \
                                             const double *mean, double *total, double *product) { \
        cbn_f64x16 t = cbn_load_f64(total), s = cbn_load_f64(product);                             \
        for (int row = 0; row < rows; row++) {                                                     \
            CBN_EACH(k, CBN_N64) {                                                                 \
                cbn_vf64 v = cbn_wide_##T(dy, k);                                                  \
                t.v[k] += v;                                                                       \
                s.v[k] += v * (cbn_wide_##T(x, k) - cbn_wide_f64(mean, k));                        \
            }                                                                                      \
            x += stride;                                                                           \
            dy += dy_stride;                                                                       \
        }                                                                                          \
        cbn_store_f64(total, t);                                                                   \
        cbn_store_f64(product, s);                                                                 \
    }                                                                                              \
    CBN_INLINE void cbn_columns_plain_##T(const cbn_##T *dy, Py_ssize_t dy_stride,                 \
                                          const cbn_##T *x, Py_ssize_t stride, int rows,           \
                                          const cbn_##T *dy_ahead, const cbn_##T *ahead,           \
                                          double *total, double *product) {                        \
        cbn_f64x16 t = cbn_load_f64(total), s = cbn_load_f64(product);                             \
        for (int row = 0; row < rows; row++) {                                                     \
            if (dy_ahead) cbn_prefetch(dy_ahead + row * CBN_LANES);                                \
            if (dy_ahead) cbn_prefetch(ahead + row * CBN_LANES);                                   \
            cbn_plain_products_##T(dy, x, &t, &s);                                                 \
            x += stride;                                                                           \
            dy += dy_stride;                                                                       \
        }                                                                                          \
        cbn_store_f64(total, t);                                                                   \
        cbn_store_f64(product, s);                                                                 \
    }

CBN_DEFINE_SUMS(f32)
CBN_DEFINE_SUMS(f64)
CBN_DEFINE_SUMS(f16)
CBN_DEFINE_SUMS(bf16)

#define cbn_squares(p, ...) CBN_PICK(cbn_squares, p)(p, __VA_ARGS__)
#define cbn_squares_part(p, ...) CBN_PICK(cbn_squares_part, p)(p, __VA_ARGS__)
#define cbn_columns_squares(p, ...) CBN_PICK(cbn_columns_squares, p)(p, __VA_ARGS__)
#define cbn_moments(p, ...) CBN_PICK(cbn_moments, p)(p, __VA_ARGS__)
#define cbn_moments_part(p, ...) CBN_PICK(cbn_moments_part, p)(p, __VA_ARGS__)
#define cbn_plain_products(p, ...) CBN_PICK(cbn_plain_products, p)(p, __VA_ARGS__)
#define cbn_columns_plain(p, ...) CBN_PICK(cbn_columns_plain, p)(p, __VA_ARGS__)
#define cbn_products(p, ...) CBN_PICK(cbn_products, p)(p, __VA_ARGS__)
#define cbn_products_part(p, ...) CBN_PICK(cbn_products_part, p)(p, __VA_ARGS__)
#define cbn_columns(p, ...) CBN_PICK(cbn_columns, p)(p, __VA_ARGS__)
#define cbn_columns_products(p, ...) CBN_PICK(cbn_columns_products, p)(p, __VA_ARGS__)

#endif
