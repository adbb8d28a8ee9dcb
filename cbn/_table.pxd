# What each build of the kernels offers to C: the functions behind cbn.capi, which documents them.

ctypedef int (*scale_shift_f32_t)(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *coefficients, int activation, double negative_slope, int num_threads
) noexcept nogil
ctypedef int (*scale_shift_f64_t)(
    const double *x, double *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *coefficients, int activation, double negative_slope, int num_threads
) noexcept nogil
ctypedef int (*batch_norm_f32_t)(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil
ctypedef int (*batch_norm_f64_t)(
    const double *x, double *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil

cdef struct Table:
    scale_shift_f32_t scale_shift_f32
    scale_shift_f64_t scale_shift_f64
    batch_norm_f32_t batch_norm_f32
    batch_norm_f64_t batch_norm_f64
