# The object for embedded calls. Included by _kernels.pyx.

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

cdef enum:
    FAST_BYTES = 1 << 20    # of x: what is larger is worth the checks, and perhaps threads
    HOLD_BYTES = 1 << 14    # of x: up to here the GIL is not worth releasing
    WATCHED = 4

cdef object ndarray = np.ndarray
cdef object empty_like = np.empty_like


cdef class AffineMap:
    """act((x - m) * a + b + residual) of small contiguous arrays, with little around it.

    A call does what `_checked`, which the subclass has, would do; `attempt` returns None in place
    of calling it. Whatever is not small, contiguous and of the right kind goes that way: the fast
    path refuses nothing, and so needs no messages.

    Parameters (of `prepare`)
    -------------------------
    values : (3, C) float64
        m, a, b, rounded to the working type.
    kind : str
        Format of the elements, "f", "d" or "e"; "" for no fast path.
    last : bool
        Whether the channels are the last axis, and not the second.
    activation, slope
        As in `scale`.
    ranks : (int, int)
        Fewest and most axes of x.
    watched : tuple of arrays
        `attempt` returns None once one of them has been changed.
    """

    cdef Py_ssize_t channels
    cdef char kind
    cdef bint last
    cdef int fewest, most, watching
    cdef double *coefficients
    cdef char *narrowed
    cdef Map how
    cdef Periodic flat
    cdef Py_buffer[WATCHED] watched
    cdef char **remembered

    def __cinit__(self, *args, **kwargs):
        self.coefficients = NULL
        self.narrowed = NULL
        self.watching = 0
        self.remembered = <char **>calloc(WATCHED, sizeof(char *))
        if self.remembered == NULL:
            raise MemoryError("no memory for the parameters")

    def __dealloc__(self):
        cdef int k
        free(self.coefficients)
        free(self.narrowed)
        for k in range(self.watching):
            free(self.remembered[k])
            PyBuffer_Release(&self.watched[k])
        free(self.remembered)

    def prepare(
        self, const double[:, ::1] values, str kind, bint last, int activation, double slope,
        tuple ranks, tuple watched
    ):
        """Take over the coefficients, once."""
        cdef Py_ssize_t n = values.shape[1], c
        if self.coefficients != NULL:
            raise TypeError(f"{type(self).__name__} is immutable")
        self.channels, self.last = n, last
        self.kind = ord(kind) if kind else 0
        self.fewest, self.most = ranks
        self.coefficients = <double *>malloc(4 * n * sizeof(double))
        self.narrowed = <char *>malloc(4 * room_of(period_of(n)))
        if self.coefficients == NULL or self.narrowed == NULL:
            raise MemoryError("no memory for the coefficients")
        memcpy(self.coefficients, &values[0, 0], 3 * n * sizeof(double))
        for c in range(n):
            self.coefficients[3 * n + c] = 1
        self.how.m, self.how.a = self.coefficients, self.coefficients + n
        self.how.b, self.how.w = self.coefficients + 2 * n, self.coefficients + 3 * n
        self.how.activation, self.how.slope = activation, slope
        self.how.stream, self.how.ahead, self.how.ahead_beside = False, 0, 0
        if kind == "d":
            self.flat = periodic(<const double *>NULL, &self.how, n, 1, self.narrowed)
        else:
            self.flat = periodic(<const float *>NULL, &self.how, n, 1, self.narrowed)
        for array in watched[:WATCHED]:
            self.watch(array)

    cdef int watch(self, array) except -1:
        cdef Py_buffer *buffer = &self.watched[self.watching]
        PyObject_GetBuffer(array, buffer, PyBUF_SIMPLE)
        self.remembered[self.watching] = <char *>malloc(buffer.len)
        if self.remembered[self.watching] == NULL:
            PyBuffer_Release(buffer)
            raise MemoryError("no memory for the parameters")
        memcpy(self.remembered[self.watching], buffer.buf, buffer.len)
        self.watching += 1
        return 0

    def attempt(self, x, out=None):
        """The result, or None where the checked way must be gone."""
        cdef int k
        for k in range(self.watching):
            if memcmp(self.watched[k].buf, self.remembered[k], self.watched[k].len) != 0:
                return None
        return self.fast(x, out, None)

    def __call__(self, x, out=None, residual=None):
        result = self.fast(x, out, residual)
        return self._checked(x, out, residual) if result is None else result

    cdef object fast(self, x, out, residual):
        cdef Py_buffer given, beside
        result = None
        # Subclasses of ndarray, masked arrays among them, go the other way.
        if self.kind == 0 or (type(x) is not ndarray and (out is None or isinstance(x, ndarray))):
            return None
        if out is not None and type(out) is not ndarray and isinstance(out, ndarray):
            return None
        if not get_buffer(x, &given, PyBUF_FORMAT | PyBUF_ND):
            return None
        if self.fits(&given):
            if residual is None:
                result = self.fast_into(x, &given, NULL, out)
            elif get_buffer(residual, &beside, PyBUF_FORMAT | PyBUF_ND):
                if alike(&given, &beside):
                    result = self.fast_into(x, &given, &beside, out)
                PyBuffer_Release(&beside)
        PyBuffer_Release(&given)
        return result

    cdef object fast_into(self, x, const Py_buffer *given, const Py_buffer *beside, out):
        cdef Py_buffer taken
        result = None
        if out is None:
            out = empty_like(x)
        if not get_buffer(out, &taken, PyBUF_FORMAT | PyBUF_ND | PyBUF_WRITABLE):
            return None
        if alike(given, &taken) and apart(given, &taken) and (
                beside == NULL or apart(beside, &taken)):
            if given.len > HOLD_BYTES:
                with nogil:
                    self.run(given, beside, &taken)
            else:
                self.run(given, beside, &taken)
            result = out
        PyBuffer_Release(&taken)
        return result

    cdef bint fits(self, const Py_buffer *x) noexcept nogil:
        if x.format == NULL or x.format[0] != self.kind or x.format[1] != 0:
            return False
        if x.ndim < self.fewest or x.ndim > self.most or x.len == 0 or x.len > FAST_BYTES:
            return False
        return x.shape[x.ndim - 1 if self.last else 1] == self.channels and (
            <uintptr_t>x.buf % <uintptr_t>x.itemsize == 0)

    cdef void run(
        self, const Py_buffer *x, const Py_buffer *residual, const Py_buffer *y
    ) noexcept nogil:
        cdef First shape
        cdef const void *other = residual.buf if residual != NULL else NULL
        cdef Py_ssize_t n = x.len // x.itemsize
        cdef int k
        shape.runs, shape.channels, shape.length = x.shape[0], self.channels, 1
        for k in range(2, x.ndim):
            shape.length *= x.shape[k]
        shape.channel_stride = shape.length
        shape.run_stride = shape.channels * shape.length
        if self.kind == b"f":
            self.run_as(<const float *>x.buf, <const float *>other, <float *>y.buf, n, &shape)
        elif self.kind == b"d":
            self.run_as(<const double *>x.buf, <const double *>other, <double *>y.buf, n, &shape)
        else:
            self.run_as(<const f16 *>x.buf, <const f16 *>other, <f16 *>y.buf, n, &shape)

    cdef void run_as(
        self, const real *x, const real *residual, real *y, Py_ssize_t n, const First *shape
    ) noexcept nogil:
        if self.last or shape.length == 1:
            map_flat(x, residual, y, n, 0, &self.flat)
        else:
            map_first(x, shape, residual, shape, y, shape, &self.how, 1)


cdef inline bint get_buffer(object x, Py_buffer *buffer, int flags):
    try:
        PyObject_GetBuffer(x, buffer, flags)
    except (BufferError, TypeError, ValueError):
        return False
    return True


cdef inline bint alike(const Py_buffer *x, const Py_buffer *y) noexcept nogil:
    """Whether y has x's shape and type."""
    cdef int k
    if y.ndim != x.ndim or y.len != x.len or y.format == NULL:
        return False
    if y.format[0] != x.format[0] or y.format[1] != 0:
        return False
    for k in range(x.ndim):
        if y.shape[k] != x.shape[k]:
            return False
    return <uintptr_t>y.buf % <uintptr_t>y.itemsize == 0


cdef inline bint apart(const Py_buffer *x, const Py_buffer *y) noexcept nogil:
    """Whether y is x or shares no memory with it."""
    cdef const char *a = <const char *>x.buf
    cdef const char *b = <const char *>y.buf
    return a == b or a + x.len <= b or b + y.len <= a
