# Calls with little around them in training: a forward and its gradient. Included by _kernels.pyx.

cdef object empty = np.empty

cdef enum:
    WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, STATE


cdef struct State:
    # a layer's arrays during a call, all float or all double
    Py_buffer[STATE] buffers
    bint[STATE] held
    bint doubles


cdef void release(State *state):
    cdef int k
    for k in range(STATE):
        if state.held[k]:
            PyBuffer_Release(&state.buffers[k])


cdef void parameters(
    const State *state, int which, Py_ssize_t n, double absent, double *to
) noexcept nogil:
    """An array of the state, or what stands for one that is absent, as doubles."""
    cdef Py_ssize_t c
    cdef const float *given
    if not state.held[which]:
        for c in range(n):
            to[c] = absent
    elif state.doubles:
        memcpy(to, state.buffers[which].buf, n * sizeof(double))
    else:
        given = <const float *>state.buffers[which].buf
        for c in range(n):
            to[c] = given[c]


cdef class TrainingCall(ContiguousCall):
    """A training forward, which moves the running statistics, and its gradient.

    Parameters (of `prepare`)
    -------------------------
    channels, dtype, last, ranks, threads
        As for AffineMap.
    state : tuple of (C,) arrays, all of float32 or of float64, or None
        weight, bias, running_mean and running_var: read, and the last two written, at each call.
    """

    cdef tuple state

    def prepare(
        self, Py_ssize_t channels, dtype, bint last, tuple ranks, threads, tuple state
    ):
        """Take hold of the arrays, once."""
        if self.kind != 0:
            raise TypeError(f"{type(self).__name__} is immutable")
        self.state = state
        self.take(channels, dtype, last, ranks, threads)

    cdef bint hold(self, State *state):
        """Open the buffers of a call; False where one is read-only or of another type."""
        cdef Py_buffer *buffer
        cdef int k
        memset(state, 0, sizeof(State))
        for k in range(STATE):
            if self.state[k] is None:
                continue
            buffer = &state.buffers[k]
            if not get_buffer(self.state[k], buffer, PyBUF_FORMAT | (
                    PyBUF_WRITABLE if k >= RUNNING_MEAN else 0)):
                release(state)
                return False
            state.held[k] = True
            state.doubles = buffer.format[0] == b"d"
            if buffer.format[0] not in (b"f", b"d") or (
                    buffer.len != self.channels * buffer.itemsize):
                release(state)
                return False
        return True

    def attempt(self, x, out, double eps, double momentum):
        """The result, the moments of x, (3, C), and whether x was written over; or None where the
        checked way must be gone."""
        cdef Py_buffer given
        cdef State state
        if eps == 0 or self.refuses(x, out) or not self.open(x, &given, 0):
            return None
        try:
            if not self.fits(&given) or given.len // given.itemsize <= self.channels:
                return None
            if not self.hold(&state):
                return None
            try:
                return self.forward_into(x, &given, out, &state, eps, momentum)
            finally:
                release(&state)
        finally:
            PyBuffer_Release(&given)

    cdef object forward_into(
        self, x, const Py_buffer *given, out, State *state, double eps, double momentum
    ):
        cdef Py_buffer taken, found
        cdef Training training
        cdef double *memory
        cdef int status = NO_MEMORY
        cdef bint over
        if out is None:
            out = empty_like(x)
        if not self.open(out, &taken, PyBUF_WRITABLE):
            return None
        try:
            if not alike(given, &taken) or not apart(given, &taken):
                return None
            moments = empty((3, self.channels))
            PyObject_GetBuffer(moments, &found, PyBUF_WRITABLE)
            try:
                with nogil:
                    memory = <double *>malloc(5 * self.channels * sizeof(double))
                    if memory != NULL:
                        training = self.forward(state, memory, eps, <double *>found.buf)
                        status = self.run(given, NULL, &taken, &training)
                        free(memory)
                    if status == 0:
                        self.move(state, given, <const double *>found.buf, momentum)
            finally:
                PyBuffer_Release(&found)
            check(status)
            over = given.buf == taken.buf
        finally:
            PyBuffer_Release(&taken)
        return out, moments, over

    def gradient(self, dy, x, out, moments, double eps):
        """dx, and dweight and dbias as (2, C) float64, for the moments of x; or None."""
        cdef Py_buffer given, beside
        cdef State state
        if eps == 0 or self.refuses(x, out) or self.refuses(dy, out):
            return None
        if not self.open(x, &given, 0):
            return None
        try:
            if not self.fits(&given) or not self.open(dy, &beside, 0):
                return None
            try:
                if not alike(&given, &beside) or not self.hold(&state):
                    return None
                try:
                    return self.gradient_into(x, &given, &beside, out, &state, moments, eps)
                finally:
                    release(&state)
            finally:
                PyBuffer_Release(&beside)
        finally:
            PyBuffer_Release(&given)

    cdef object gradient_into(
        self, x, const Py_buffer *given, const Py_buffer *beside, out, State *state,
        moments, double eps
    ):
        cdef Py_buffer taken, known, found
        cdef Training training
        cdef double *memory
        cdef int status = NO_MEMORY
        if out is None:
            out = empty_like(x)
        if not self.open(out, &taken, PyBUF_WRITABLE):
            return None
        try:
            if not alike(given, &taken) or not apart(given, &taken) or not apart(beside, &taken):
                return None
            gradients = empty((2, self.channels))
            PyObject_GetBuffer(gradients, &found, PyBUF_WRITABLE)
            try:
                PyObject_GetBuffer(moments, &known, PyBUF_SIMPLE)
                try:
                    if known.len != 3 * self.channels * <Py_ssize_t>sizeof(double):
                        return None
                    with nogil:
                        memory = <double *>malloc(7 * self.channels * sizeof(double))
                        if memory != NULL:
                            training = self.backward(state, memory, eps, <const double *>known.buf,
                                                     given.len // given.itemsize)
                            training.dweight = <double *>found.buf
                            training.dbias = training.dweight + self.channels
                            status = self.run(given, beside, &taken, &training)
                            free(memory)
                finally:
                    PyBuffer_Release(&known)
            finally:
                PyBuffer_Release(&found)
            check(status)
        finally:
            PyBuffer_Release(&taken)
        return out, gradients

    cdef Training forward(
        self, const State *state, double *memory, double eps, double *moments
    ) noexcept nogil:
        cdef Training training
        cdef Py_ssize_t n = self.channels
        parameters(state, WEIGHT, n, 1, memory)
        parameters(state, BIAS, n, 0, memory + n)
        memset(&training, 0, sizeof(training))
        training.weight, training.bias, training.eps = memory, memory + n, eps
        training.m, training.a, training.b = memory + 2 * n, memory + 3 * n, memory + 4 * n
        training.mean, training.low, training.m2 = moments, moments + n, moments + 2 * n
        return training

    cdef Training backward(
        self, const State *state, double *memory, double eps, const double *moments,
        Py_ssize_t values
    ) noexcept nogil:
        cdef Training training
        cdef Py_ssize_t n = self.channels, c
        cdef double count = <double>(values // n)
        parameters(state, WEIGHT, n, 1, memory)
        memcpy(memory + n, moments, n * sizeof(double))
        for c in range(n):
            memory[2 * n + c] = 1 / sqrt(moments[2 * n + c] / count + eps)
        memset(&training, 0, sizeof(training))
        training.weight, training.mean, training.rstd = memory, memory + n, memory + 2 * n
        training.m, training.a = memory + 3 * n, memory + 4 * n
        training.b, training.w = memory + 5 * n, memory + 6 * n
        training.backward = True
        return training

    cdef int run(
        self, const Py_buffer *x, const Py_buffer *dy, const Py_buffer *y, const Training *training
    ) noexcept nogil:
        cdef const void *other = dy.buf if dy != NULL else NULL
        if self.kind == b"f":
            return self.run_as(<const float *>x.buf, <const float *>other, <float *>y.buf, x,
                               training)
        if self.kind == b"d":
            return self.run_as(<const double *>x.buf, <const double *>other, <double *>y.buf, x,
                               training)
        if self.kind == b"e":
            return self.run_as(<const f16 *>x.buf, <const f16 *>other, <f16 *>y.buf, x, training)
        return self.run_as(<const bf16 *>x.buf, <const bf16 *>other, <bf16 *>y.buf, x, training)

    cdef int run_as(
        self, const real *x, const real *dy, real *y, const Py_buffer *like,
        const Training *training
    ) noexcept nogil:
        cdef First first = self.first_of(like)
        cdef Last rows = self.last_of(like)
        cdef int threads = self.threads_of(like)
        if self.last or first.length == 1:
            return pass_last(x, &rows, dy, &rows, y, &rows, training, threads)
        return pass_first(x, &first, dy, &first, y, &first, training, threads)

    cdef void move(
        self, State *state, const Py_buffer *x, const double *moments, double momentum
    ) noexcept nogil:
        cdef Py_ssize_t n = self.channels
        cdef double count = <double>(x.len // x.itemsize // n)
        cdef void *mean = state.buffers[RUNNING_MEAN].buf
        cdef void *var = state.buffers[RUNNING_VAR].buf
        if not state.held[RUNNING_MEAN]:
            return
        if state.doubles:
            move_by(<double *>mean, n, moments, 1, momentum)
            move_by(<double *>var, n, moments + 2 * n, count - 1, momentum)
        else:
            move_by(<float *>mean, n, moments, 1, momentum)
            move_by(<float *>var, n, moments + 2 * n, count - 1, momentum)
