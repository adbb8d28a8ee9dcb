/* What may follow the affine map, on groups of lanes. A part of _lanes.h. */
#ifndef CBN_ACTIVATIONS_H
#define CBN_ACTIVATIONS_H

enum {
    CBN_NONE, CBN_RELU, CBN_RELU6, CBN_LEAKY_RELU, CBN_SILU, CBN_HARDSWISH
};

/* e^x to about one unit in the last place; x is cut to where the result is normal. */
CBN_INLINE cbn_vf64 cbn_exp(cbn_vf64 x) {
    static const double inverse_factorials[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
        1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
    cbn_vf64 low = -708 - (cbn_vf64){0}, high = 708 - (cbn_vf64){0};
    cbn_vi64 under = x < low, over = x > high;
    x = (cbn_vf64)((under & (cbn_vi64)low) | (over & (cbn_vi64)high) | (~(under | over) & (cbn_vi64)x));
    cbn_vf64 shifted = x * 1.4426950408889634 + 0x1.8p52;   /* the nearest integer, in the low bits */
    cbn_vf64 n = shifted - 0x1.8p52;
    cbn_vf64 r = (x - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;   /* less n ln 2 */
    cbn_vf64 p = inverse_factorials[0] - (cbn_vf64){0};
    for (int k = 1; k < 14; k++) p = p * r + inverse_factorials[k];
    cbn_vi64 power = ((cbn_vi64)shifted << 52) + (cbn_vi64)(1.0 - (cbn_vf64){0});
    return p * (cbn_vf64)power;
}

/* Below -745, where e^x is 0 even as a subnormal, -0: the limit, at minus infinity too. */
static __attribute__((noinline)) void cbn_silu_into_f64(cbn_f64x16 *x) { /* large: once a build */
    CBN_EACH(k, CBN_N64) {
        cbn_vf64 v = x->v[k];
        cbn_vi64 under = v < -745 - (cbn_vf64){0};
        cbn_vi64 value = (cbn_vi64)(v / (1.0 + cbn_exp(-v)));
        x->v[k] = (cbn_vf64)((under & (cbn_vi64)(-0.0 - (cbn_vf64){0})) | (~under & value));
    }
}
static __attribute__((noinline)) void cbn_silu_into_f32(cbn_f32x16 *x) {
    double wide[CBN_LANES];
    float values[CBN_LANES];
    cbn_f64x16 r = cbn_widen_work(*x);
    cbn_silu_into_f64(&r);
    cbn_store_f64(wide, r);
    for (int k = 0; k < CBN_LANES; k++) values[k] = (float)wide[k];
    *x = cbn_load_f32(values);
}
CBN_INLINE cbn_f64x16 cbn_silu_f64(cbn_f64x16 x) { return cbn_silu_into_f64(&x), x; }
CBN_INLINE cbn_f32x16 cbn_silu_f32(cbn_f32x16 x) { return cbn_silu_into_f32(&x), x; }

/* Comparisons are such that a NaN passes through. */
#define CBN_DEFINE_ACTIVATION(WORK, INT, COUNT)                                                    \
    CBN_INLINE cbn_v##WORK cbn_above_##WORK(cbn_v##WORK x, cbn_##WORK low) {                       \
        cbn_v##WORK bound = low - (cbn_v##WORK){0};                                                \
        cbn_v##INT under = x < bound;                                                              \
        return (cbn_v##WORK)((under & (cbn_v##INT)bound) | (~under & (cbn_v##INT)x));              \
    }                                                                                              \
    CBN_INLINE cbn_v##WORK cbn_below_##WORK(cbn_v##WORK x, cbn_##WORK high) {                      \
        cbn_v##WORK bound = high - (cbn_v##WORK){0};                                               \
        cbn_v##INT over = x > bound;                                                               \
        return (cbn_v##WORK)((over & (cbn_v##INT)bound) | (~over & (cbn_v##INT)x));                \
    }                                                                                              \
    CBN_INLINE cbn_##WORK##x16 cbn_activate_##WORK(cbn_##WORK##x16 x, int activation,              \
                                                   double slope) {                                 \
        if (activation == CBN_SILU) return cbn_silu_##WORK(x);                                     \
        CBN_EACH(k, COUNT) {                                                                       \
            cbn_v##WORK v = x.v[k];                                                                \
            if (activation == CBN_RELU) v = cbn_above_##WORK(v, 0);                                \
            else if (activation == CBN_RELU6) v = cbn_below_##WORK(cbn_above_##WORK(v, 0), 6);     \
            else if (activation == CBN_LEAKY_RELU) {                                               \
                cbn_v##INT under = v < (cbn_v##WORK){0};                                           \
                cbn_v##WORK scaled = v * (cbn_##WORK)slope;                                        \
                v = (cbn_v##WORK)((under & (cbn_v##INT)scaled) | (~under & (cbn_v##INT)v));        \
            } else                                                                                 \
                v = v * (cbn_below_##WORK(cbn_above_##WORK(v + 3, 0), 6) / 6);                     \
            x.v[k] = v;                                                                            \
        }                                                                                          \
        return x;                                                                                  \
    }
CBN_DEFINE_ACTIVATION(f32, i32, CBN_N32)
CBN_DEFINE_ACTIVATION(f64, i64, CBN_N64)

#endif
