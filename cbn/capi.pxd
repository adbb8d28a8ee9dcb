"""The C-level door: nogil functions for other Cython modules, in the build chosen for this CPU.

    from cbn cimport capi

    with nogil:
        status = capi.scale_shift_f32(x, y, n, channels, length, coefficients, capi.RELU, 0, 1)

Arrays are contiguous, (n, channels, length) in C order; channels last is n rows of `channels` with
a length of 1. x and y are the same array, or share no memory. Nothing here touches a Python object,
and each function may be called from many threads at once. All return OK, NO_MEMORY where
O(channels) of work memory was not to be had, or BAD_ARGUMENT for a null pointer, a size below 1, an
unknown activation, a num_threads below 1 or an eps that is negative or NaN; then y has not been
written, and mean and var hold nothing of use. The caller answers for what C cannot see: that the
arrays have these sizes.

`num_threads` is obeyed: ask for 1 unless the array is larger than a megabyte, and after a fork.
"""

cdef enum:
    OK = 0
    NO_MEMORY = -1
    BAD_ARGUMENT = -2

cdef enum:
    NONE = 0
    RELU = 1
    RELU6 = 2
    LEAKY_RELU = 3
    SILU = 4
    HARDSWISH = 5

# y = activation((x - shift) * scale + bias), the eval form. `coefficients` holds shift, scale and
# bias, `channels` values each, one after the other, rounded to the type of x: what
# np.stack([f.shift, f.scale, f.bias]) is for a cbn.ScaleShift f. `negative_slope` is leaky ReLU's.
cdef int scale_shift_f32(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *coefficients, int activation, double negative_slope, int num_threads
) noexcept nogil
cdef int scale_shift_f64(
    const double *x, double *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *coefficients, int activation, double negative_slope, int num_threads
) noexcept nogil

# y = (x - mean) / sqrt(var + eps) * weight + bias with the statistics of x, which go into mean and
# var (`channels` values each; var is the population variance, ddof=0). weight and bias may be NULL,
# for 1 and 0, and y too, for statistics alone. One value per channel is accepted here; where a
# variance and eps are both 0, y is not finite.
cdef int batch_norm_f32(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil
cdef int batch_norm_f64(
    const double *x, double *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil
