# A batch norm with little around it; parameters are read at each call. Included by _kernels.pyx.

cdef object empty = np.empty

cdef enum:
    # the buffers of a call
    X, DY, OUT, WEIGHT, BIAS, MEAN, SPREAD, MOMENTS, RESULTS, BUFFERS

cdef enum:
    STATE = 4       # the arrays from WEIGHT to SPREAD
    UNFIT = -2      # a status: the checked way says what is wrong


cdef struct Held:
    Py_buffer[BUFFERS] buffers
    bint[BUFFERS] open


cdef inline void begin(Held *held) noexcept nogil:
    memset(held.open, 0, sizeof(held.open))


cdef bint hold(Held *held, int which, object x, int flags):
    held.open[which] = get_buffer(x, &held.buffers[which], flags)
    return held.open[which]


cdef void release(Held *held):
    cdef int k
    for k in range(BUFFERS):
        if held.open[k]:
            PyBuffer_Release(&held.buffers[k])


cdef inline bint disjoint(const Held *held, int which, int other) noexcept nogil:
    """Whether two buffers share no memory, or there are not two."""
    cdef const Py_buffer *x = &held.buffers[which]
    cdef const Py_buffer *y = &held.buffers[other]
    if not held.open[which] or not held.open[other]:
        return True
    return <const char *>x.buf + x.len <= <const char *>y.buf or (
        <const char *>y.buf + y.len <= <const char *>x.buf)


cdef inline void values_of(
    const Held *held, int which, Py_ssize_t n, double absent, double *to
) noexcept nogil:
    """An array of the state, or what stands for one that is absent, as doubles."""
    cdef const Py_buffer *buffer = &held.buffers[which]
    cdef Py_ssize_t c
    if not held.open[which]:
        for c in range(n):
            to[c] = absent
    elif buffer.itemsize == sizeof(double):
        memcpy(to, buffer.buf, n * sizeof(double))
    else:
        for c in range(n):
            to[c] = (<const float *>buffer.buf)[c]


cdef inline void move_held(
    const Held *held, int which, Py_ssize_t n, const double *values, double divisor, double momentum
) noexcept nogil:
    cdef const Py_buffer *buffer = &held.buffers[which]
    if not held.open[which]:
        return
    if buffer.itemsize == sizeof(double):
        move_by(<double *>buffer.buf, n, values, divisor, momentum)
    else:
        move_by(<float *>buffer.buf, n, values, divisor, momentum)


cdef class BatchNormCall(ContiguousCall):
    """The forward in training and in eval, the gradient, and the moments.

    Each method returns None where the checked way must be gone; nothing has been changed then. The
    state is read and written with the GIL held: threads may share running statistics.

    Parameters (of `_prepare`)
    --------------------------
    channels, dtype, last, ranks, threads
        As for AffineMap.
    state : tuple of four (C,) arrays of float32 or float64, or None
        weight, bias, and the running mean and variance (in `gradient_of` mean and rstd): read, and
        in training the last two written, at each call.
    """

    cdef tuple state

    def _prepare(
        self, Py_ssize_t channels, dtype, bint last, tuple ranks, threads, tuple state
    ):
        """Set up, once; buffers are taken at each call."""
        if self.kind != 0:
            raise TypeError(f"{type(self).__name__} is immutable")
        self.state = state
        self.take(channels, dtype, last, ranks, threads)

    cdef bint hold_x(self, Held *held, x, out):
        """Open x and, where it is given, out; False where one is not to be had."""
        if self.refuses(x, out):
            return False
        held.open[X] = self.open(x, &held.buffers[X], 0)
        if not held.open[X] or not self.fits(&held.buffers[X]):
            return False
        return out is None or self.hold_out(held, out)

    cdef bint hold_dy(self, Held *held, dy, out):
        """Open dy, after x and out."""
        if self.refuses(dy, out):
            return False
        held.open[DY] = self.open(dy, &held.buffers[DY], 0)
        return held.open[DY] and alike(&held.buffers[X], &held.buffers[DY]) and (
            not held.open[OUT] or apart(&held.buffers[DY], &held.buffers[OUT]))

    cdef bint hold_out(self, Held *held, out):
        held.open[OUT] = self.open(out, &held.buffers[OUT], PyBUF_WRITABLE)
        return held.open[OUT] and alike(&held.buffers[X], &held.buffers[OUT]) and (
            apart(&held.buffers[X], &held.buffers[OUT]))

    cdef bint hold_state(self, Held *held, bint writable):
        """Open the state; False where an array is not of its shape and types, or is read-only."""
        cdef int k, which, flags
        cdef const Py_buffer *buffer
        for k in range(STATE):
            array = self.state[k]
            if array is None:
                continue
            which = WEIGHT + k
            flags = PyBUF_FORMAT | PyBUF_ND
            if writable and which >= MEAN:
                flags |= PyBUF_WRITABLE
            if type(array) is not ndarray or not hold(held, which, array, flags):
                return False
            buffer = &held.buffers[which]
            # "=f" where it is not aligned, and so on
            if buffer.format[0] not in (b"f", b"d") or buffer.format[1] != 0:
                return False
            if buffer.ndim != 1 or buffer.shape[0] != self.channels:
                return False
        return True

    def train(self, x, out, double eps, double momentum):
        """The result, the moments of x, (3, C), and whether x was written over; the running
        statistics, if any, are moved."""
        cdef Held held
        cdef Training training
        cdef double *memory
        cdef double *moments
        cdef Py_ssize_t n = self.channels
        cdef double count
        cdef int status = NO_MEMORY, k
        begin(&held)
        try:
            if eps == 0 or not self.hold_x(&held, x, out) or not self.hold_state(&held, True):
                return None
            count = <double>(held.buffers[X].len // held.buffers[X].itemsize // n)
            if count < 2 or held.open[MEAN] != held.open[SPREAD]:
                return None
            if out is None:
                out = empty_like(x)
                if not self.hold_out(&held, out):
                    return None
            for k in range(MEAN, SPREAD + 1):
                if not disjoint(&held, k, X) or not disjoint(&held, k, OUT):
                    return None
            if not disjoint(&held, MEAN, SPREAD):
                return None
            found = empty((3, n))
            hold(&held, RESULTS, found, PyBUF_WRITABLE)
            moments = <double *>held.buffers[RESULTS].buf
            memory = <double *>malloc(5 * n * sizeof(double))
            if memory != NULL:
                training = self.forward(&held, memory, eps)
                training.mean, training.low = moments, moments + n
                training.m2 = moments + 2 * n
                with nogil:
                    status = self.run(&held, &training, NULL)
                free(memory)
            check(status)
            move_held(&held, MEAN, n, moments, 1, momentum)
            move_held(&held, SPREAD, n, moments + 2 * n, count - 1, momentum)
            return out, found, held.buffers[X].buf == held.buffers[OUT].buf
        finally:
            release(&held)

    def evaluate(self, x, out, double eps):
        """x normalized with the running statistics."""
        cdef Held held
        cdef Training training
        cdef Map how
        cdef double *memory
        cdef int status = NO_MEMORY
        begin(&held)
        try:
            if not self.hold_x(&held, x, out) or not self.hold_state(&held, False):
                return None
            if not held.open[MEAN] or not held.open[SPREAD]:
                return None
            if out is None:
                out = empty_like(x)
                if not self.hold_out(&held, out):
                    return None
            memory = <double *>malloc(7 * self.channels * sizeof(double))
            if memory != NULL:
                training = self.forward(&held, memory, eps)
                status = self.fused(&held, &training, memory + 5 * self.channels)
                if status == 0:
                    how = map_of(&training, False)
                    how.order = 0
                    with nogil:
                        status = self.run(&held, NULL, &how)
                free(memory)
            if status == UNFIT:
                return None
            check(status)
            return out
        finally:
            release(&held)

    def gradient(self, dy, x, out, moments, double eps):
        """dx, and dweight and dbias as (2, C) float64, for the moments of x."""
        cdef Held held
        begin(&held)
        try:
            if eps == 0 or not self.hold_x(&held, x, out) or not self.hold_dy(&held, dy, out):
                return None
            if not self.hold_state(&held, False):
                return None
            if not hold(&held, MOMENTS, moments, PyBUF_SIMPLE):
                return None
            if held.buffers[MOMENTS].len != 3 * self.channels * <Py_ssize_t>sizeof(double):
                return None
            return self.gradient_into(&held, x, out, eps, False)
        finally:
            release(&held)

    def gradient_of(self, dy, x, out, bint frozen):
        """The same for the mean and rstd of the state; `frozen`: they do not depend on x."""
        cdef Held held
        begin(&held)
        try:
            if not self.hold_x(&held, x, out) or not self.hold_dy(&held, dy, out):
                return None
            if not self.hold_state(&held, False):
                return None
            if not held.open[MEAN] or not held.open[SPREAD]:
                return None
            return self.gradient_into(&held, x, out, 0, frozen)
        finally:
            release(&held)

    cdef object gradient_into(self, Held *held, x, out, double eps, bint frozen):
        cdef Training training
        cdef double *memory
        cdef int status = NO_MEMORY
        if out is None:
            out = empty_like(x)
            if not self.hold_out(held, out):
                return None
        gradients = empty((2, self.channels))
        hold(held, RESULTS, gradients, PyBUF_WRITABLE)
        memory = <double *>malloc(7 * self.channels * sizeof(double))
        if memory != NULL:
            status = self.backward(held, memory, eps, &training)
            training.frozen = frozen
            if status == 0:
                with nogil:
                    status = self.run(held, &training, NULL)
            free(memory)
        if status == UNFIT:
            return None
        check(status)
        return out, gradients

    def moments(self, x):
        """Mean, its lost part and sum of squared deviations of each channel of x, (3, C)."""
        cdef Held held
        cdef Training training
        cdef int status
        begin(&held)
        try:
            if not self.hold_x(&held, x, None):
                return None
            found = empty((3, self.channels))
            hold(&held, RESULTS, found, PyBUF_WRITABLE)
            memset(&training, 0, sizeof(training))
            training.mean = <double *>held.buffers[RESULTS].buf
            training.low = training.mean + self.channels
            training.m2 = training.low + self.channels
            with nogil:
                status = self.run(&held, &training, NULL)
            check(status)
            return found
        finally:
            release(&held)

    cdef Training forward(self, const Held *held, double *memory, double eps) noexcept nogil:
        """In memory for 5 values a channel."""
        cdef Training training
        cdef Py_ssize_t n = self.channels
        values_of(held, WEIGHT, n, 1, memory)
        values_of(held, BIAS, n, 0, memory + n)
        memset(&training, 0, sizeof(training))
        training.weight, training.bias, training.eps = memory, memory + n, eps
        training.m, training.a, training.b = memory + 2 * n, memory + 3 * n, memory + 4 * n
        return training

    cdef int fused(self, const Held *held, const Training *training, double *memory) noexcept nogil:
        """The coefficients of the running statistics, for which there is memory."""
        cdef Py_ssize_t n = self.channels, c
        cdef double *var = memory + n
        values_of(held, MEAN, n, 0, memory)
        values_of(held, SPREAD, n, 1, var)
        for c in range(n):
            if not var[c] >= 0 or var[c] + training.eps == 0:
                return UNFIT
        fuse_all(memory, var, training.weight, training.bias, training.eps, n, self.kind != b"d",
                 training.m, training.a, training.b)
        return 0

    cdef int backward(
        self, const Held *held, double *memory, double eps, Training *training
    ) noexcept nogil:
        """In memory for 7 values a channel."""
        cdef Py_ssize_t n = self.channels, c
        cdef const Py_buffer *x = &held.buffers[X]
        cdef double count = <double>(x.len // x.itemsize // n)
        cdef double *mean = memory + n
        cdef double *rstd = mean + n
        values_of(held, WEIGHT, n, 1, memory)
        if held.open[MOMENTS]:
            memcpy(mean, held.buffers[MOMENTS].buf, n * sizeof(double))
            for c in range(n):
                rstd[c] = 1 / sqrt(
                    (<const double *>held.buffers[MOMENTS].buf)[2 * n + c] / count + eps)
        else:
            values_of(held, MEAN, n, 0, mean)
            values_of(held, SPREAD, n, 1, rstd)
            for c in range(n):
                if rstd[c] < 0:
                    return UNFIT
        memset(training, 0, sizeof(Training))
        training.weight, training.mean, training.rstd = memory, mean, rstd
        training.m, training.a = memory + 3 * n, memory + 4 * n
        training.b, training.w = memory + 5 * n, memory + 6 * n
        training.dweight = <double *>held.buffers[RESULTS].buf
        training.dbias = training.dweight + n
        training.backward = True
        return 0

    cdef int run(self, const Held *held, const Training *training, const Map *how) noexcept nogil:
        cdef const void *x = held.buffers[X].buf
        cdef const void *dy = held.buffers[DY].buf if held.open[DY] else NULL
        cdef void *y = held.buffers[OUT].buf if held.open[OUT] else NULL
        cdef const Py_buffer *like = &held.buffers[X]
        if self.kind == b"f":
            return self.run_as(<const float *>x, <const float *>dy, <float *>y, like, training, how)
        if self.kind == b"d":
            return self.run_as(<const double *>x, <const double *>dy, <double *>y, like, training,
                               how)
        if self.kind == b"e":
            return self.run_as(<const f16 *>x, <const f16 *>dy, <f16 *>y, like, training, how)
        return self.run_as(<const bf16 *>x, <const bf16 *>dy, <bf16 *>y, like, training, how)

    cdef int run_as(
        self, const real *x, const real *dy, real *y, const Py_buffer *like,
        const Training *training, const Map *how
    ) noexcept nogil:
        """A pass, or the map where there is one."""
        cdef First first = self.first_of(like)
        cdef bint last = self.last or first.length == 1
        cdef int threads = self.threads_of(like)
        cdef Strided shape
        shape.shape[0], shape.strides[0] = first.runs, first.run_stride
        shape.shape[1], shape.strides[1] = first.channels, first.channel_stride
        shape.shape[2], shape.strides[2] = first.length, 1
        if last:
            shape.shape[0], shape.shape[1] = 1, like.len // like.itemsize // self.channels
            shape.shape[2] = shape.strides[1] = self.channels
            shape.strides[0] = 0
        if how != NULL:
            return map_(x, &shape, <const real *>NULL, &shape, y, &shape, how, last, threads)
        return pass_(x, &shape, dy, &shape, y, &shape, training, last, threads)
