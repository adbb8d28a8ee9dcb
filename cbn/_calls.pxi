# Calls with little around them, for contiguous arrays. Included by _kernels.pyx.

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

cdef enum:
    HOLD_BYTES = 1 << 14    # of x: up to here the GIL is not worth releasing
    WATCHED = 4

cdef object ndarray = np.ndarray
cdef object empty_like = np.empty_like
cdef object uint16 = np.uint16


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


cdef class ContiguousCall:
    """What calls on contiguous arrays of one element type have in common.

    They refuse nothing, and so need no messages: whatever is not as they want it (another type or
    shape, an array that is not contiguous, a wrong `out`) makes them return None, and the caller
    goes the way that checks and says what is wrong.
    """

    cdef Py_ssize_t channels
    cdef char kind           # of the elements: "f", "d", "e", or "H" for bfloat16
    cdef object brain        # bfloat16, which has no buffer, where that is the kind
    cdef bint last
    cdef int fewest, most
    cdef Py_ssize_t serial_bytes
    cdef int most_threads
    cdef bint fixed_threads

    cdef int take(
        self, Py_ssize_t channels, dtype, bint last, tuple ranks, threads
    ) except -1:
        """Set up: see `_prepare` of the subclasses."""
        self.channels, self.last = channels, last
        self.brain = None if dtype.kind == "f" else dtype
        self.kind = ord("H" if self.brain is not None else dtype.char)
        if self.kind not in b"fdeH":   # "g", which equals "d" on some machines
            self.kind = 0
        self.fewest, self.most = ranks
        self.serial_bytes, self.most_threads, self.fixed_threads = threads
        return 0

    cdef bint refuses(self, x, out):
        """Whether a type is not served. Subclasses of ndarray, masked arrays among them, are not.
        """
        if self.kind == 0 or (type(x) is not ndarray and (out is None or isinstance(x, ndarray))):
            return True
        return out is not None and type(out) is not ndarray and isinstance(out, ndarray)

    cdef bint open(self, x, Py_buffer *buffer, int flags):
        """The buffer of x, or of the bits of a bfloat16 array; False where there is none."""
        if self.brain is not None:
            if type(x) is not ndarray or x.dtype != self.brain:
                return False
            x = x.view(uint16)
        return get_buffer(x, buffer, PyBUF_FORMAT | PyBUF_ND | flags)

    cdef bint fits(self, const Py_buffer *x) noexcept nogil:
        if x.format == NULL or x.format[0] != self.kind or x.format[1] != 0:
            return False
        if x.ndim < self.fewest or x.ndim > self.most or x.len == 0:
            return False
        return x.shape[x.ndim - 1 if self.last else 1] == self.channels and (
            <uintptr_t>x.buf % <uintptr_t>x.itemsize == 0)

    cdef int threads_of(self, const Py_buffer *x) noexcept nogil:
        cdef int found
        if x.len <= self.serial_bytes:
            return 1
        if self.fixed_threads:
            return self.most_threads
        found = processors_()
        return min(found, self.most_threads) if found > 0 else self.most_threads

    cdef First first_of(self, const Py_buffer *x) noexcept nogil:
        cdef First shape
        cdef int k
        shape.runs, shape.channels, shape.length = x.shape[0], self.channels, 1
        for k in range(2, x.ndim):
            shape.length *= x.shape[k]
        shape.channel_stride = shape.length
        shape.run_stride = shape.channels * shape.length
        return shape

    cdef Last last_of(self, const Py_buffer *x) noexcept nogil:
        cdef Last shape
        shape.channels, shape.inner_stride, shape.outer_stride = self.channels, self.channels, 0
        shape.rows = shape.inner = x.len // x.itemsize // self.channels
        return shape


cdef class AffineMap(ContiguousCall):
    """act((x - m) * a + b + residual) of contiguous arrays, with little around it.

    A call does what `_checked`, which the subclass has, would do; `_attempt` returns None in place
    of calling it.

    Parameters (of `_prepare`)
    --------------------------
    values : (3, C) float64
        m, a, b, rounded to the working type.
    dtype : numpy.dtype
        Of x.
    last : bool
        Whether the channels are the last axis, and not the second.
    activation, slope
        As in `scale`.
    ranks : (int, int)
        Fewest and most axes of x.
    watched : tuple of arrays
        `_attempt` returns None once one of them has been changed.
    threads : (int, int, bool)
        A ThreadRule of _threads.py.
    """

    cdef int watching
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

    def _prepare(
        self, const double[:, ::1] values, dtype, bint last, int activation, double slope,
        tuple ranks, tuple watched, threads
    ):
        """Take over the coefficients, once."""
        cdef Py_ssize_t n = values.shape[1], c
        if self.coefficients != NULL:
            raise TypeError(f"{type(self).__name__} is immutable")
        self.take(n, dtype, last, ranks, threads)
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
        self.how.stream, self.how.order = False, 0
        if self.kind == b"d":
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

    def _attempt(self, x, out=None):
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
        if self.refuses(x, out) or (residual is not None and self.refuses(residual, out)):
            return None
        if not self.open(x, &given, 0):
            return None
        try:
            if self.fits(&given):
                if residual is None:
                    result = self.fast_into(x, &given, NULL, out)
                elif self.open(residual, &beside, 0):
                    try:
                        if alike(&given, &beside):
                            result = self.fast_into(x, &given, &beside, out)
                    finally:
                        PyBuffer_Release(&beside)
        finally:
            PyBuffer_Release(&given)
        return result

    cdef object fast_into(self, x, const Py_buffer *given, const Py_buffer *beside, out):
        cdef Py_buffer taken
        cdef int threads, status
        result = None
        if out is None:
            out = empty_like(x)
        if not self.open(out, &taken, PyBUF_WRITABLE):
            return None
        try:
            if alike(given, &taken) and apart(given, &taken) and (
                    beside == NULL or apart(beside, &taken)):
                threads = self.threads_of(given)
                if given.len > HOLD_BYTES:
                    with nogil:
                        status = self.run(given, beside, &taken, threads)
                else:
                    status = self.run(given, beside, &taken, threads)
                check(status)
                result = out
        finally:
            PyBuffer_Release(&taken)
        return result

    cdef int run(
        self, const Py_buffer *x, const Py_buffer *residual, const Py_buffer *y, int threads
    ) noexcept nogil:
        cdef const void *other = residual.buf if residual != NULL else NULL
        if self.kind == b"f":
            return self.run_as(
                <const float *>x.buf, <const float *>other, <float *>y.buf, x, threads)
        if self.kind == b"d":
            return self.run_as(
                <const double *>x.buf, <const double *>other, <double *>y.buf, x, threads)
        if self.kind == b"e":
            return self.run_as(<const f16 *>x.buf, <const f16 *>other, <f16 *>y.buf, x, threads)
        return self.run_as(<const bf16 *>x.buf, <const bf16 *>other, <bf16 *>y.buf, x, threads)

    cdef int run_as(
        self, const real *x, const real *residual, real *y, const Py_buffer *like, int threads
    ) noexcept nogil:
        cdef Py_ssize_t bytes_ = like.len
        cdef Map how = self.how
        cdef Periodic flat = self.flat
        cdef First shape = self.first_of(like)
        cdef Last rows
        if self.last or shape.length == 1:
            rows = self.last_of(like)
            flat.stream = streams(x, residual, y, bytes_)
            map_last(x, &rows, residual, &rows, y, &rows, &flat, threads)
            return 0
        if is_short(&shape) and bytes_ > HOLD_BYTES:
            how.stream = streams(x, residual, y, bytes_)
            return map_short(x, &shape, residual, &shape, y, &shape, &how, threads)
        how.stream = streams_first(x, &shape, residual, y, &shape,
                                   tile_of(&shape, sizeof(real)).channels)
        map_first(x, &shape, residual, &shape, y, &shape, &how, threads)
        return 0
