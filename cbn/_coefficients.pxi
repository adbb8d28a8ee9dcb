# From sums to coefficients: parts merged, and what is then known of each channel. Included by
# _kernels.pyx.

cdef enum:
    MERGED = 256            # channels whose parts one task merges


cdef struct Training:
    # what a pass needs beside x and y; the arrays hold one value a channel. In the gradient mean
    # and rstd are given, and dweight and dbias are found.
    const double *weight
    const double *bias
    double eps
    bint backward
    bint frozen              # gradient in eval: the statistics do not depend on x
    double *m
    double *a
    double *b
    double *w
    double *mean
    double *low
    double *m2
    const double *rstd
    double *dweight
    double *dbias


cdef inline double round_like(const real *like, double value) noexcept nogil:
    """Round to the type that the arithmetic on x is done in."""
    if real is double:
        return value
    else:
        return <double><float>value


cdef inline double product_error(double a, double b, double product) noexcept nogil:
    """a * b - product, exactly (Dekker 1971), where nothing overflows."""
    cdef double split = 134217729.0, c = split * a, d = split * b   # 2^27 + 1
    cdef double a_high = c - (c - a), b_high = d - (d - b)
    cdef double a_low = a - a_high, b_low = b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


cdef inline double scale_of(
    const real *like, double variance, double weight, double eps
) noexcept nogil:
    """weight / sqrt(variance + eps); in double with a step of Newton's, since three roundings would
    show in the result."""
    cdef double total = variance + eps, root = sqrt(total), scale = weight / root
    cdef double total_error, root_error, scale_error, product
    if real is double:
        total_error = (variance - (total - eps) if variance < eps else eps - (total - variance))
        product = root * root
        root_error = (
            (total - product) - product_error(root, root, product) + total_error) / (2 * root)
        product = scale * root
        scale_error = (
            (weight - product) - product_error(scale, root, product) - scale * root_error) / root
        if isfinite(scale_error):
            scale += scale_error
    return scale


cdef inline void coefficients(
    const real *like, double mean, double low, double variance, double weight, double bias,
    double eps, double *m, double *a, double *b
) noexcept nogil:
    """(x - m) * a + b, each rounded to the working type, m's rounding carried into b."""
    cdef double scale = scale_of(like, variance, weight, eps)
    m[0] = round_like(like, mean)
    a[0] = round_like(like, scale)
    b[0] = round_like(like, bias + ((m[0] - mean) - low) * scale)


cdef inline void gradient_coefficients(
    const real *like, const Sums *sums, const Training *training, Py_ssize_t c
) noexcept nogil:
    """dx = (x - m) * a + b + dy * w (Ioffe and Szegedy 2015, section 3); in eval, (dy - m) * a + b.
    """
    cdef double mean = training.mean[c], rstd = training.rstd[c]
    cdef double scale = training.weight[c] * rstd
    cdef double slope = -scale * rstd * rstd * (sums.m2 / sums.count)
    cdef double level = -scale * (sums.mean / sums.count)
    training.dbias[c] = sums.mean
    training.dweight[c] = sums.m2 * rstd
    if training.frozen:
        training.m[c], training.a[c], training.b[c] = 0, round_like(like, scale), 0
        return
    training.m[c] = round_like(like, mean)
    training.a[c] = round_like(like, slope)
    training.b[c] = round_like(like, level + (training.m[c] - mean) * slope)
    training.w[c] = round_like(like, scale)


cdef inline void finish_channel(
    const real *like, const Sums *sums, const Training *training, Py_ssize_t c
) noexcept nogil:
    if training.backward:
        gradient_coefficients(like, sums, training, c)
        return
    training.mean[c] = sums.mean
    training.low[c] = sums.low
    training.m2[c] = sums.m2
    if training.m != NULL:
        coefficients(like, sums.mean, sums.low, sums.m2 / sums.count, training.weight[c],
                     training.bias[c], training.eps,
                     &training.m[c], &training.a[c], &training.b[c])


cdef inline Map map_of(const Training *training, bint stream) noexcept nogil:
    cdef Map map_
    map_.m, map_.a, map_.b, map_.w = training.m, training.a, training.b, training.w
    map_.activation, map_.slope, map_.stream, map_.order = 0, 0, stream, BACKWARDS
    return map_


cdef inline const double *after(const double *values, Py_ssize_t channel) noexcept nogil:
    return values + channel if values != NULL else NULL


cdef inline Training from_channel(const Training *training, Py_ssize_t channel) noexcept nogil:
    """What is left of the arrays from a channel on."""
    cdef Training rest = training[0]
    rest.weight, rest.bias = after(rest.weight, channel), after(rest.bias, channel)
    rest.m, rest.a = <double *>after(rest.m, channel), <double *>after(rest.a, channel)
    rest.b, rest.w = <double *>after(rest.b, channel), <double *>after(rest.w, channel)
    rest.mean, rest.low = <double *>after(rest.mean, channel), <double *>after(rest.low, channel)
    rest.m2, rest.rstd = <double *>after(rest.m2, channel), after(rest.rstd, channel)
    rest.dweight = <double *>after(rest.dweight, channel)
    rest.dbias = <double *>after(rest.dbias, channel)
    return rest


cdef struct Merging:
    # what the tasks of merge_parts share. Channel c has the columns c * channel_step +
    # k * fold_step; `rest`, if any, comes last.
    Sums *partial            # [part, column]
    Py_ssize_t parts
    Py_ssize_t columns
    Py_ssize_t channels
    Py_ssize_t channel_step
    Py_ssize_t fold_step
    const Sums *rest
    const Training *training


cdef void merge_some(const real *work, Py_ssize_t task, Turn *turn) noexcept nogil:
    """Merge the parts in their order, then the columns of a channel; MERGED channels."""
    cdef const Merging *w = <const Merging *>work
    cdef Py_ssize_t first = task * MERGED, last = min(first + MERGED, w.channels)
    cdef Py_ssize_t c, k, part, at, columns = w.columns
    cdef bint backward = w.training.backward
    cdef Sums *partial = w.partial
    cdef Sums sums
    cdef Weights weights
    for k in range(columns // w.channels):
        for part in range(1, w.parts):
            # the columns of a part have as many values each
            at = first * w.channel_step + k * w.fold_step
            weights = weigh(partial[at].count, partial[part * columns + at].count)
            for c in range(first, last):
                at = c * w.channel_step + k * w.fold_step
                if backward:
                    add(&partial[at], &partial[part * columns + at])
                else:
                    merge_by(&partial[at], &partial[part * columns + at], &weights)
    for c in range(first, last):
        sums = partial[c * w.channel_step]
        for k in range(1, columns // w.channels):
            at = c * w.channel_step + k * w.fold_step
            if backward:
                add(&sums, &partial[at])
            else:
                merge(&sums, &partial[at])
        if w.rest != NULL:
            if backward:
                add(&sums, &w.rest[c])
            else:
                merge(&sums, &w.rest[c])
        finish_channel(work, &sums, w.training, c)


cdef void merge_parts(
    const real *like, Sums *partial, Py_ssize_t parts, Py_ssize_t columns, Py_ssize_t channels,
    Py_ssize_t channel_step, Py_ssize_t fold_step, const Sums *rest, const Training *training,
    int num_threads
) noexcept nogil:
    """From partial[part, column] to what is known of each channel."""
    cdef Merging work
    work.partial, work.parts, work.columns, work.channels = partial, parts, columns, channels
    work.channel_step, work.fold_step, work.rest = channel_step, fold_step, rest
    work.training = training
    share(<Task>merge_some[real], &work, (channels + MERGED - 1) // MERGED, num_threads, 0)
