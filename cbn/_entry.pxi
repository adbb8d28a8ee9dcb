# What Python calls. Included by _kernels.pyx.
#
# The callers in this package have validated everything: no size is zero, arrays that go together
# have one shape, and each coefficient array has one value a channel. 16-bit arrays come as uint16,
# `brain` telling bfloat16 from float16.

ctypedef unsigned short ushort

ctypedef fused item:
    float
    double
    ushort


cdef struct Strided:
    Py_ssize_t[3] shape
    Py_ssize_t[3] strides   # in elements


cdef inline Strided strided_of(const item[:, :, ::view.contiguous] x) noexcept nogil:
    cdef Strided result
    cdef int k
    for k in range(3):
        result.shape[k] = x.shape[k]
        result.strides[k] = x.strides[k] // <Py_ssize_t>sizeof(item)
    return result


cdef inline First first_of(const Strided *x) noexcept nogil:
    cdef First shape
    shape.runs, shape.channels, shape.length = x.shape[0], x.shape[1], x.shape[2]
    shape.run_stride, shape.channel_stride = x.strides[0], x.strides[1]
    return shape


cdef inline Last last_of(const Strided *x) noexcept nogil:
    cdef Last shape
    shape.rows, shape.inner, shape.channels = x.shape[0] * x.shape[1], x.shape[1], x.shape[2]
    shape.outer_stride, shape.inner_stride = x.strides[0], x.strides[1]
    return shape


cdef int pass_(
    const real *x, const Strided *from_, const real *dy, const Strided *beside, real *y,
    const Strided *to, const Training *training, bint last, int num_threads
) noexcept nogil:
    cdef First first_from, first_beside, first_to
    cdef Last last_from, last_beside, last_to
    if last:
        last_from, last_beside, last_to = last_of(from_), last_of(beside), last_of(to)
        return pass_last(x, &last_from, dy, &last_beside, y, &last_to, training, num_threads)
    first_from, first_beside, first_to = first_of(from_), first_of(beside), first_of(to)
    return pass_first(x, &first_from, dy, &first_beside, y, &first_to, training, num_threads)


cdef int map_(
    const real *x, const Strided *from_, const real *residual, const Strided *beside, real *y,
    const Strided *to, const Map *how, bint last, int num_threads
) noexcept nogil:
    cdef First first_from, first_beside, first_to
    cdef Last last_from, last_beside, last_to
    cdef Map streamed = how[0]
    cdef Py_ssize_t values = from_.shape[0] * from_.shape[1] * from_.shape[2]
    streamed.stream = streams(x, residual, y, values * <Py_ssize_t>sizeof(real))
    if last:
        last_from, last_beside, last_to = last_of(from_), last_of(beside), last_of(to)
        return map_periodic(x, &last_from, residual, &last_beside, y, &last_to, &streamed,
                            from_.shape[2], 1, num_threads)
    first_from, first_beside, first_to = first_of(from_), first_of(beside), first_of(to)
    if is_short(&first_from) and is_short(&first_to) and (
            residual == NULL or is_short(&first_beside)):
        return map_short(x, &first_from, residual, &first_beside, y, &first_to, &streamed,
                         num_threads)
    streamed.stream = streams_first(x, &first_from, residual, y, &first_to,
                                    tile_of(&first_from, sizeof(real)).channels)
    map_first(x, &first_from, residual, &first_beside, y, &first_to, &streamed, num_threads)
    return 0


cdef inline Training forward_of(
    const double[::1] weight, const double[::1] bias, double eps, double[:, ::1] coefficients_,
    double[:, ::1] moments
) noexcept nogil:
    cdef Training training
    memset(&training, 0, sizeof(training))
    training.weight, training.bias, training.eps = &weight[0], &bias[0], eps
    training.m, training.a = &coefficients_[0, 0], &coefficients_[1, 0]
    training.b = &coefficients_[2, 0]
    training.mean, training.low = &moments[0, 0], &moments[1, 0]
    training.m2 = &moments[2, 0]
    return training


cdef int check(int status) except -1:
    if status == NO_MEMORY:
        raise MemoryError("cbn: no memory for the work arrays, O(C) in size")
    return 0


def stats(
    const item[:, :, ::view.contiguous] x, double[:, ::1] moments, bint last, bint brain,
    int num_threads
):
    """Mean, its lost part and sum of squared deviations of each channel, into moments (3, C)."""
    cdef Strided shape = strided_of(x)
    cdef Training training
    memset(&training, 0, sizeof(training))
    training.mean, training.low = &moments[0, 0], &moments[1, 0]
    training.m2 = &moments[2, 0]
    cdef int status
    with nogil:
        if item is ushort:
            if brain:
                status = pass_(
                    <const bf16 *>&x[0, 0, 0], &shape, <const bf16 *>NULL, &shape, <bf16 *>NULL,
                    &shape, &training, last, num_threads)
            else:
                status = pass_(
                    <const f16 *>&x[0, 0, 0], &shape, <const f16 *>NULL, &shape, <f16 *>NULL,
                    &shape, &training, last, num_threads)
        else:
            status = pass_(
                &x[0, 0, 0], &shape, <const item *>NULL, &shape, <item *>NULL, &shape, &training,
                last, num_threads)
    check(status)


def train(
    const item[:, :, ::view.contiguous] x, item[:, :, ::view.contiguous] y,
    const double[::1] weight, const double[::1] bias, double eps, double[:, ::1] moments, bint last,
    bint brain, int num_threads
):
    """Normalize x with its own statistics into y; they go into moments (3, C)."""
    cdef Strided from_ = strided_of(x), to = strided_of[item](y)
    cdef double[:, ::1] coefficients_ = np.empty((3, weight.shape[0]))
    cdef Training training = forward_of(weight, bias, eps, coefficients_, moments)
    cdef int status
    with nogil:
        if item is ushort:
            if brain:
                status = pass_(
                    <const bf16 *>&x[0, 0, 0], &from_, <const bf16 *>NULL, &from_,
                    <bf16 *>&y[0, 0, 0], &to, &training, last, num_threads)
            else:
                status = pass_(
                    <const f16 *>&x[0, 0, 0], &from_, <const f16 *>NULL, &from_,
                    <f16 *>&y[0, 0, 0], &to, &training, last, num_threads)
        else:
            status = pass_(
                &x[0, 0, 0], &from_, <const item *>NULL, &from_, &y[0, 0, 0], &to, &training, last,
                num_threads)
    check(status)


def backward(
    const item[:, :, ::view.contiguous] dy, const item[:, :, ::view.contiguous] x,
    item[:, :, ::view.contiguous] dx,
    const double[::1] weight, double[::1] mean, const double[::1] rstd, double[:, ::1] gradients,
    bint frozen, bint last, bint brain, int num_threads
):
    """dx, and dweight and dbias into gradients (2, C); `frozen`: the statistics are constants."""
    cdef Strided beside = strided_of(dy), from_ = strided_of(x), to = strided_of[item](dx)
    cdef double[:, ::1] coefficients_ = np.empty((4, weight.shape[0]))
    cdef Training training
    memset(&training, 0, sizeof(training))
    training.weight, training.rstd, training.mean = &weight[0], &rstd[0], &mean[0]
    training.m, training.a = &coefficients_[0, 0], &coefficients_[1, 0]
    training.b, training.w = &coefficients_[2, 0], &coefficients_[3, 0]
    training.dweight, training.dbias = &gradients[0, 0], &gradients[1, 0]
    training.backward, training.frozen = True, frozen
    cdef int status
    with nogil:
        if item is ushort:
            if brain:
                status = pass_(
                    <const bf16 *>&x[0, 0, 0], &from_, <const bf16 *>&dy[0, 0, 0], &beside,
                    <bf16 *>&dx[0, 0, 0], &to, &training, last, num_threads)
            else:
                status = pass_(
                    <const f16 *>&x[0, 0, 0], &from_, <const f16 *>&dy[0, 0, 0], &beside,
                    <f16 *>&dx[0, 0, 0], &to, &training, last, num_threads)
        else:
            status = pass_(
                &x[0, 0, 0], &from_, &dy[0, 0, 0], &beside, &dx[0, 0, 0], &to, &training, last,
                num_threads)
    check(status)


def scale(
    const item[:, :, ::view.contiguous] x, const item[:, :, ::view.contiguous] residual,
    item[:, :, ::view.contiguous] y,
    const double[:, ::1] coefficients_, int activation, double slope, bint last, bint brain,
    int num_threads
):
    """act((x - m) * a + b + residual) into y; coefficients (3, C) are m, a, b; residual or None."""
    cdef Strided from_ = strided_of(x), to = strided_of[item](y), beside = from_
    cdef const item *other = NULL
    cdef double[::1] ones
    cdef Map how
    how.m, how.a, how.b = &coefficients_[0, 0], &coefficients_[1, 0], &coefficients_[2, 0]
    how.w = NULL
    how.activation, how.slope, how.stream, how.order = activation, slope, False, 0
    if residual is not None:
        beside, other = strided_of(residual), &residual[0, 0, 0]
        ones = np.ones(coefficients_.shape[1])
        how.w = &ones[0]
    cdef int status
    with nogil:
        if item is ushort:
            if brain:
                status = map_(
                    <const bf16 *>&x[0, 0, 0], &from_, <const bf16 *>other, &beside,
                    <bf16 *>&y[0, 0, 0], &to, &how, last, num_threads)
            else:
                status = map_(
                    <const f16 *>&x[0, 0, 0], &from_, <const f16 *>other, &beside,
                    <f16 *>&y[0, 0, 0], &to, &how, last, num_threads)
        else:
            status = map_(
                &x[0, 0, 0], &from_, other, &beside, &y[0, 0, 0], &to, &how, last, num_threads)
    check(status)


cdef void fuse_all(
    const double *mean, const double *variance, const double *weight, const double *bias,
    double eps, Py_ssize_t n, bint single, double *m, double *a, double *b
) noexcept nogil:
    cdef Py_ssize_t c
    cdef const float *as_float = NULL
    cdef const double *as_double = NULL
    for c in range(n):
        if single:
            coefficients(as_float, mean[c], 0, variance[c], weight[c], bias[c], eps,
                         &m[c], &a[c], &b[c])
        else:
            coefficients(as_double, mean[c], 0, variance[c], weight[c], bias[c], eps,
                         &m[c], &a[c], &b[c])


def fuse(
    const double[::1] mean, const double[::1] variance, const double[::1] weight,
    const double[::1] bias, double eps, double[:, ::1] coefficients_, bint single
):
    """The coefficients m, a, b (3, C) of given statistics, rounded to float32 where `single`."""
    fuse_all(&mean[0], &variance[0], &weight[0], &bias[0], eps, mean.shape[0], single,
             &coefficients_[0, 0], &coefficients_[1, 0], &coefficients_[2, 0])


ctypedef fused wide:
    float
    double


cdef inline void move_by(
    wide *running, Py_ssize_t n, const double *values, double divisor, double momentum
) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(n):
        running[c] = <wide>((1 - momentum) * running[c] + momentum * (values[c] / divisor))


def move(wide[::1] running, const double[::1] values, double divisor, double momentum):
    """running = (1 - momentum) * running + momentum * (values / divisor), rounded once."""
    move_by(&running[0], running.shape[0], &values[0], divisor, momentum)


def processors():
    """How many processors the calling thread may run on; 0 where the system does not say."""
    return processors_()


def build():
    """How this module was compiled: bytes in a vector, whether it has threads."""
    return {"vector_bytes": VECTOR, "threads": bool(CBN_THREADED)}
