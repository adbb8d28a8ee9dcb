"""The C-level door; capi.pxd documents it."""

from cpython.pycapsule cimport PyCapsule_GetPointer

from cbn._table cimport Table

from cbn._dispatch import kernels

cdef const Table *table = <const Table *>PyCapsule_GetPointer(kernels.table(), "cbn.table")


cdef int scale_shift_f32(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *coefficients, int activation, double negative_slope, int num_threads
) noexcept nogil:
    return table.scale_shift_f32(
        x, y, n, channels, length, coefficients, activation, negative_slope, num_threads)


cdef int scale_shift_f64(
    const double *x, double *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *coefficients, int activation, double negative_slope, int num_threads
) noexcept nogil:
    return table.scale_shift_f64(
        x, y, n, channels, length, coefficients, activation, negative_slope, num_threads)


cdef int batch_norm_f32(
    const float *x, float *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil:
    return table.batch_norm_f32(
        x, y, n, channels, length, weight, bias, eps, mean, var, num_threads)


cdef int batch_norm_f64(
    const double *x, double *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil:
    return table.batch_norm_f64(
        x, y, n, channels, length, weight, bias, eps, mean, var, num_threads)
