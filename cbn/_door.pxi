# The functions behind cbn.capi. Included by _kernels.pyx.

from cpython.pycapsule cimport PyCapsule_New

from cbn._table cimport Table

cdef enum:
    BAD_ARGUMENT = -2


cdef inline Strided contiguous(Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length) noexcept nogil:
    """(n, channels, length) as the kernels take it: rows where length is 1."""
    cdef Strided result
    cdef bint last = length == 1
    result.shape[0] = 1 if last else n
    result.shape[1] = n if last else channels
    result.shape[2] = channels if last else length
    result.strides[2] = 1
    result.strides[1] = result.shape[2]
    result.strides[0] = result.shape[1] * result.shape[2]
    return result


cdef int door_scale_shift(
    const real *x, real *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *values, int activation, double negative_slope, int num_threads
) noexcept nogil:
    cdef Strided shape
    cdef Map how
    if x == NULL or y == NULL or values == NULL or n < 1 or channels < 1 or length < 1 or (
            num_threads < 1 or activation < 0 or activation > 5):
        return BAD_ARGUMENT
    shape = contiguous(n, channels, length)
    how.m, how.a, how.b = values, values + channels, values + 2 * channels
    how.w = NULL
    how.activation, how.slope = activation, negative_slope
    how.stream, how.order = False, 0
    return map_(x, &shape, <const real *>NULL, &shape, y, &shape, &how, length == 1, num_threads)


cdef int door_batch_norm(
    const real *x, real *y, Py_ssize_t n, Py_ssize_t channels, Py_ssize_t length,
    const double *weight, const double *bias, double eps, double *mean, double *var,
    int num_threads
) noexcept nogil:
    cdef Strided shape
    cdef Training training
    cdef double *memory
    cdef Py_ssize_t c
    cdef int status
    if x == NULL or mean == NULL or var == NULL or n < 1 or channels < 1 or length < 1 or (
            num_threads < 1 or not eps >= 0):
        return BAD_ARGUMENT
    shape = contiguous(n, channels, length)
    memset(&training, 0, sizeof(training))
    memory = <double *>malloc(6 * channels * sizeof(double))
    if memory == NULL:
        return NO_MEMORY
    training.mean, training.m2, training.low, training.eps = mean, var, memory, eps
    if y != NULL:
        training.m, training.a = memory + channels, memory + 2 * channels
        training.b = memory + 3 * channels
        for c in range(channels):
            memory[4 * channels + c] = weight[c] if weight != NULL else 1
            memory[5 * channels + c] = bias[c] if bias != NULL else 0
        training.weight, training.bias = memory + 4 * channels, memory + 5 * channels
    status = pass_(x, &shape, <const real *>NULL, &shape, y, &shape, &training, length == 1,
                   num_threads)
    if status == 0:
        for c in range(channels):
            var[c] /= <double>(n * length)
    free(memory)
    return status


cdef Table table_
table_.scale_shift_f32 = door_scale_shift[float]
table_.scale_shift_f64 = door_scale_shift[double]
table_.batch_norm_f32 = door_batch_norm[float]
table_.batch_norm_f64 = door_batch_norm[double]


def table():
    """The functions behind cbn.capi, in a capsule."""
    return PyCapsule_New(&table_, "cbn.table", NULL)
