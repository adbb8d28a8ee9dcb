# Calls with little around them, for contiguous arrays. Included by _kernels.pyx.

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

cdef enum:
    HOLD_BYTES = 1 << 14    # of x: up to here the GIL is not worth releasing
    WATCHED = 4

cdef object ndarray = np.ndarray
cdef object empty_like = np.empty_like


cdef class ContiguousCall:
    """What calls on contiguous arrays of one element type have in common.

    They refuse nothing, and so need no messages: whatever is not as they want it (another type or
    shape, an array that is not contiguous, a wrong `out`) makes them return None, and the caller
    goes the way that checks and says what is wrong.
    """

    cdef Py_ssize_t channels
    cdef char kind
    cdef bint last
    cdef int fewest, most
    cdef Py_ssize_t serial_bytes
    cdef int most_threads
    cdef bint fixed_threads

    cdef int take(
        self, Py_ssize_t channels, str kind, bint last, tuple ranks, threads
    ) except -1:
        """Set up: see `prepare` of the subclasses."""
        self.channels, self.last = channels, last
        self.kind = ord(kind) if kind else 0
        self.fewest, self.most = ranks
        self.serial_bytes, self.most_threads, self.fixed_threads = threads
        return 0

    cdef bint refuses(self, x, out):
        """Whether a type is not served. Subclasses of ndarray, masked arrays among them, are not.
        """
        if self.kind == 0 or (type(x) is not ndarray and (out is None or isinstance(x, ndarray))):
            return True
        return out is not None and type(out) is not ndarray and isinstance(out, ndarray)

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

    A call does what `_checked`, which the subclass has, would do; `attempt` returns None in place
    of calling it.

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

    def prepare(
        self, const double[:, ::1] values, str kind, bint last, int activation, double slope,
        tuple ranks, tuple watched, threads
    ):
        """Take over the coefficients, once."""
        cdef Py_ssize_t n = values.shape[1], c
        if self.coefficients != NULL:
            raise TypeError(f"{type(self).__name__} is immutable")
        self.take(n, kind, last, ranks, threads)
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
        if self.refuses(x, out) or not get_buffer(x, &given, PyBUF_FORMAT | PyBUF_ND):
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
        cdef int threads, status
        result = None
        if out is None:
            out = empty_like(x)
        if not get_buffer(out, &taken, PyBUF_FORMAT | PyBUF_ND | PyBUF_WRITABLE):
            return None
        if alike(given, &taken) and apart(given, &taken) and (
                beside == NULL or apart(beside, &taken)):
            threads = self.threads_of(given)
            if given.len > HOLD_BYTES:
                with nogil:
                    status = self.run(given, beside, &taken, threads)
            else:
                status = self.run(given, beside, &taken, threads)
            if status == 0:
                result = out
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
        return self.run_as(<const f16 *>x.buf, <const f16 *>other, <f16 *>y.buf, x, threads)

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
            flat.stream = streams(bytes_, STREAM_RUN)
            map_last(x, &rows, residual, &rows, y, &rows, &flat, threads)
            return 0
        if is_short(&shape) and bytes_ > HOLD_BYTES:
            how.stream = streams(bytes_, STREAM_RUN)
            return map_short(x, &shape, residual, &shape, y, &shape, &how, threads)
        how.stream = streams(bytes_, shape.length * <Py_ssize_t>sizeof(real))
        map_first(x, &shape, residual, &shape, y, &shape, &how, threads)
        return 0


cdef enum:
    WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, STATE


cdef class TrainingCall(ContiguousCall):
    """A training forward: normalizes with the batch, moves the running statistics.

    Parameters (of `prepare`)
    -------------------------
    kind, last, ranks, threads
        As for AffineMap; `kind` is "f" or "d".
    weight, bias, running_mean, running_var : (C,) arrays of that kind, or None
        Read, and the last two written, at each call.
    """

    cdef Py_buffer[STATE] state
    cdef bint[STATE] held

    def __dealloc__(self):
        cdef int k
        for k in range(STATE):
            if self.held[k]:
                PyBuffer_Release(&self.state[k])

    def prepare(
        self, Py_ssize_t channels, str kind, bint last, tuple ranks, threads, tuple state
    ):
        """Take hold of the arrays, once."""
        cdef int k
        if self.kind != 0:
            raise TypeError(f"{type(self).__name__} is immutable")
        for k in range(STATE):
            if state[k] is not None:
                if not get_buffer(state[k], &self.state[k], PyBUF_FORMAT | (
                        PyBUF_WRITABLE if k >= RUNNING_MEAN else 0)):
                    return   # it is read-only, and stays unserved
                self.held[k] = True
        self.take(channels, kind, last, ranks, threads)

    def attempt(self, x, out, double eps, double momentum):
        """The result and the moments of x, (3, C); or None where the checked way must be gone."""
        cdef Py_buffer given, taken
        cdef double[:, ::1] moments
        cdef int threads, status
        done = None
        if eps == 0 or self.refuses(x, out) or not get_buffer(x, &given, PyBUF_FORMAT | PyBUF_ND):
            return None
        if self.fits(&given) and given.len // given.itemsize > self.channels:
            if out is None:
                out = empty_like(x)
            if get_buffer(out, &taken, PyBUF_FORMAT | PyBUF_ND | PyBUF_WRITABLE):
                if alike(&given, &taken) and apart(&given, &taken):
                    found = np.empty((3, self.channels))
                    moments = found
                    threads = self.threads_of(&given)
                    with nogil:
                        if self.kind == b"f":
                            status = self.run(<const float *>given.buf, <float *>taken.buf, &given,
                                              eps, momentum, moments, threads)
                        else:
                            status = self.run(<const double *>given.buf, <double *>taken.buf,
                                              &given, eps, momentum, moments, threads)
                    if status == 0:
                        done = (out, found)
                PyBuffer_Release(&taken)
        PyBuffer_Release(&given)
        return done

    cdef int run(
        self, const real *x, real *y, const Py_buffer *like, double eps, double momentum,
        double[:, ::1] moments, int threads
    ) noexcept nogil:
        cdef Py_ssize_t n = self.channels, c
        cdef Training training
        cdef First first = self.first_of(like)
        cdef Last rows = self.last_of(like)
        cdef double *memory = <double *>malloc(5 * n * sizeof(double))
        cdef const real *weight = <const real *>self.state[WEIGHT].buf
        cdef const real *bias = <const real *>self.state[BIAS].buf
        cdef double count = <double>rows.rows
        cdef int status
        if memory == NULL:
            return NO_MEMORY
        for c in range(n):
            memory[c] = value_of(weight + c) if self.held[WEIGHT] else 1
            memory[n + c] = value_of(bias + c) if self.held[BIAS] else 0
        memset(&training, 0, sizeof(training))
        training.weight, training.bias, training.eps = memory, memory + n, eps
        training.m, training.a, training.b = memory + 2 * n, memory + 3 * n, memory + 4 * n
        training.mean, training.low = &moments[0, 0], &moments[1, 0]
        training.m2 = &moments[2, 0]
        if self.last or first.length == 1:
            status = pass_last(x, &rows, <const real *>NULL, &rows, y, &rows, &training, threads)
        else:
            status = pass_first(
                x, &first, <const real *>NULL, &first, y, &first, &training, threads)
        free(memory)
        if status == 0 and self.held[RUNNING_MEAN]:
            move_by(<real *>self.state[RUNNING_MEAN].buf, n, &moments[0, 0], 1, momentum)
            move_by(<real *>self.state[RUNNING_VAR].buf, n, &moments[2, 0], count - 1, momentum)
        return status


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
