# The same map of channels that lie one after the other: channels last, and runs shorter than a
# group. Included by _kernels.pyx.

cdef enum:
    LINES_TASK_BYTES = 1 << 17  # of x, in a task that maps lines of 16-bit values
    LINES_AT_ONCE = 32      # lines whose coefficients are laid out together
    SHORT_PERIOD = 128      # values: the coefficients of fewer are repeated,
    LONG_PERIOD = 512       # and those of fewer where they fill no groups
    TOGETHER_BYTES = 1 << 13    # of neighbouring periods that are mapped together, where these are
    TOGETHER_LEAST = 5          # so many or more,
    TOGETHER_MOST = 8           # and at most so many


cdef struct Periodic:
    # m, a, b, w for values that lie one after the other, their channel having a period: WORK arrays
    # of `period` + LINE values, `room` bytes apart, so that any LINE of them can be loaded
    const char *narrowed
    Py_ssize_t room
    Py_ssize_t period
    int activation
    double slope
    bint stream
    int order


cdef inline Py_ssize_t period_of(Py_ssize_t channels) noexcept nogil:
    """The channels, repeated until they are worth a loop and, if that is soon, fill groups."""
    cdef Py_ssize_t period = channels
    while period < SHORT_PERIOD or (period % LANES and period < LONG_PERIOD):
        period *= 2
    return period


cdef inline Py_ssize_t room_of(Py_ssize_t period) noexcept nogil:
    """Bytes for one coefficient."""
    return (period + LINE) * sizeof(double)


cdef inline Periodic periodic(
    const real *like, const Map *map_, Py_ssize_t channels, Py_ssize_t repeat, char *memory
) noexcept nogil:
    """Lay out the coefficients, each repeated `repeat` times, in 4 * room_of(period) bytes."""
    cdef Periodic flat
    cdef Py_ssize_t i, c = 0, left = repeat
    flat.period = period_of(channels * repeat)
    flat.room = room_of(flat.period)
    flat.narrowed = memory
    flat.activation, flat.slope, flat.stream = map_.activation, map_.slope, map_.stream
    flat.order = map_.order
    for i in range(flat.period + LINE):
        narrow(like, map_.m[c], memory, i)
        narrow(like, map_.a[c], memory + flat.room, i)
        narrow(like, map_.b[c], memory + 2 * flat.room, i)
        narrow(like, map_.w[c] if map_.w != NULL else 1, memory + 3 * flat.room, i)
        left -= 1
        if left == 0:
            left = repeat
            c = c + 1 if c + 1 < channels else 0
    return flat


cdef inline Py_ssize_t flat_groups(
    const real *x, const real *residual, real *y, Py_ssize_t i, Py_ssize_t last, Py_ssize_t phase,
    const Periodic *flat, int activation, bint stream
) noexcept nogil:
    """Whole groups from i to last, the first of them at `phase` of the period; returns the next."""
    cdef const char *m = flat.narrowed
    cdef const char *a = m + flat.room
    cdef const char *b = a + flat.room
    cdef const char *w = b + flat.room
    cdef Py_ssize_t period = flat.period
    while i <= last:
        if stream:
            prefetch(<const char *>(x + i) + AHEAD)
            if residual != NULL:
                prefetch(<const char *>(residual + i) + AHEAD)
        scale_channels_step(x + i, residual + i if residual != NULL else NULL, y + i, m, a, b, w,
                            phase, activation, flat.slope, stream and in_line(y, i, last))
        i += LANES
        phase += LANES
        if phase >= period:
            phase -= period
    return i


cdef inline Py_ssize_t flat_period(
    const real *x, real *y, Py_ssize_t i, Py_ssize_t last, Py_ssize_t *phase, const Periodic *flat,
    bint stream
) noexcept nogil:
    """Whole groups from i to last, or to where a new period begins; returns the next."""
    cdef const char *m = flat.narrowed
    cdef Py_ssize_t n = min(flat.period - phase[0], last - i + 1)
    n = (n + LANES - 1) // LANES * LANES
    scale_row_step(x + i, y + i, n, m, m + flat.room, m + 2 * flat.room, phase[0], stream)
    phase[0] += n - flat.period
    return i + n


cdef inline void flat_periods(
    const real *x, real *y, Py_ssize_t i, Py_ssize_t last, Py_ssize_t phase, const Periodic *flat
) noexcept nogil:
    """Whole groups from i to last, with neither residual nor activation. Where a period is short,
    several are mapped together, so that coefficients are loaded once; but not where y is streamed,
    which wants to be in order."""
    cdef const char *m = flat.narrowed
    cdef Py_ssize_t row = flat.period, end, together, rows
    if flat.stream and sizeof(real) > 2:
        while i <= last:
            i = flat_period(x, y, i, last, &phase, flat, True)
        return
    while row % LANES:
        row *= 2
    rows = min(TOGETHER_BYTES // (row * <Py_ssize_t>sizeof(real)), <Py_ssize_t>TOGETHER_MOST)
    together = row * rows
    while rows >= TOGETHER_LEAST and i + together <= last + LANES:
        end = i + row
        while i < end:
            # what is fetched is what follows all of these, in its own order
            scale_rows_step(x + i, y + i, row, <int>rows,
                            x + i + together + (i + row - end) * (rows - 1),
                            m, m + flat.room, m + 2 * flat.room, phase)
            i += LANES
            phase += LANES
            if phase >= flat.period:
                phase -= flat.period
        i += together - row
    while i <= last:
        i = flat_period(x, y, i, last, &phase, flat, False)


cdef inline Py_ssize_t flat_lines(
    const real *x, real *y, Py_ssize_t i, Py_ssize_t n, Py_ssize_t phase, const Periodic *flat
) noexcept nogil:
    """Whole lines from i to n, the first of them at `phase` of the period; returns what is next."""
    cdef Line[LINES_AT_ONCE] lines
    cdef const char *m = flat.narrowed
    cdef const char *a = m + flat.room
    cdef const char *b = a + flat.room
    cdef Py_ssize_t stride = flat.period, count, k
    if real is f16 or real is bf16:
        while stride % LINE:
            stride *= 2
        count = stride // LINE
        if count > LINES_AT_ONCE or n - i < 4 * stride:
            return i
        for k in range(count):
            lines[k] = line_load(x, m, a, b, (phase + k * LINE) % flat.period)
        k = 0
        while i + LINE <= n:
            if flat.stream:
                prefetch(<const char *>(x + i) + AHEAD)
            scale_line(x + i, y + i, &lines[k], flat.stream)
            i += LINE
            k = k + 1 if k + 1 < count else 0
    return i


cdef inline void flat_group(
    const real *x, const real *residual, real *y, Py_ssize_t phase, const Periodic *flat
) noexcept nogil:
    """One group, not streamed."""
    if residual != NULL:
        flat_groups(x, residual, y, 0, 0, phase, flat, flat.activation, False)
    else:
        flat_groups(x, <const real *>NULL, y, 0, 0, phase, flat, flat.activation, False)


cdef inline void flat_part(
    const real *x, const real *residual, real *y, Py_ssize_t n, Py_ssize_t phase,
    const Periodic *flat
) noexcept nogil:
    """n < LANES values."""
    cdef real[LANES] given
    cdef real[LANES] other
    cdef real[LANES] result
    memset(given, 0, sizeof(given))
    memcpy(given, x, n * sizeof(real))
    if residual != NULL:
        memset(other, 0, sizeof(other))
        memcpy(other, residual, n * sizeof(real))
    flat_group(<const real *>given, <const real *>other if residual != NULL else NULL,
               <real *>result, phase, flat)
    memcpy(y, result, n * sizeof(real))


cdef void map_flat(
    const real *x, const real *residual, real *y, Py_ssize_t n, Py_ssize_t phase,
    const Periodic *flat
) noexcept nogil:
    """n values that follow each other, the first of them at `phase` of the period. Ends that fill
    no group are had as in map_runs."""
    cdef Py_ssize_t start = head_of(y, n, flat.stream), last = n - LANES
    cdef Py_ssize_t left = (n - start) % LANES, i = start, begin
    cdef real[LANES] head
    cdef real[LANES] tail
    phase = phase % flat.period
    if n < LANES:
        flat_part(x, residual, y, n, phase, flat)
        return
    if start:
        flat_group(x, residual, head, phase, flat)
    if left:
        flat_group(x + last, residual + last if residual != NULL else NULL, tail,
                   (phase + last) % flat.period, flat)
    if real is f16 or real is bf16:
        if LINES and residual == NULL and not flat.activation:
            if flat.stream and past_line(y + i) and i <= last:
                i = flat_groups(x, <const real *>NULL, y, i, i, (phase + i) % flat.period, flat, 0,
                                False)
            i = flat_lines(x, y, i, n, (phase + i) % flat.period, flat)
    begin = (phase + i) % flat.period
    # 16-bit groups that are streamed are looked at one by one: not all of them are in whole lines
    if residual != NULL or flat.activation or (sizeof(real) == 2 and flat.stream):
        flat_groups(x, residual, y, i, last, begin, flat, flat.activation, flat.stream)
    else:
        flat_periods(x, y, i, last, begin, flat)
    store_ends(y, n, start, left, <const real *>head, <const real *>tail, flat.stream)


cdef struct LastWork:
    # what the tasks of map_last share
    const void *x
    const Last *from_
    const void *residual
    const Last *beside
    void *y
    const Last *to
    const Periodic *flat
    Py_ssize_t step          # values of a task, or rows where these do not follow each other


cdef void map_piece(const real *work, Py_ssize_t task, Turn *turn) noexcept nogil:
    """Values that follow each other."""
    cdef const LastWork *w = <const LastWork *>work
    cdef Py_ssize_t at = task * w.step
    cdef const real *other = <const real *>w.residual
    map_flat(<const real *>w.x + at, other + at if other != NULL else NULL, <real *>w.y + at,
             min(w.step, w.from_.rows * w.from_.channels - at), at, w.flat)


cdef void map_rows(const real *work, Py_ssize_t task, Turn *turn) noexcept nogil:
    """Rows that do not follow each other."""
    cdef const LastWork *w = <const LastWork *>work
    cdef Py_ssize_t row
    cdef const real *other = NULL
    for row in range(task * w.step, min((task + 1) * w.step, w.from_.rows)):
        if w.residual != NULL:
            other = <const real *>w.residual + row_at(w.beside, row)
        map_flat(<const real *>w.x + row_at(w.from_, row), other,
                 <real *>w.y + row_at(w.to, row), w.from_.channels, 0, w.flat)


cdef inline bint adjacent(const Last *shape) noexcept nogil:
    """Whether each row begins where the one before it ends."""
    return (shape.inner == 1 or shape.inner_stride == shape.channels) and (
        shape.rows == shape.inner or shape.outer_stride == shape.inner * shape.channels)


cdef void map_last(
    const real *x, const Last *from_, const real *residual, const Last *beside, real *y,
    const Last *to, const Periodic *flat, int num_threads
) noexcept nogil:
    """The map of a whole array, channels last."""
    cdef Py_ssize_t n = from_.rows * from_.channels
    cdef bint whole = adjacent(from_) and adjacent(to) and (residual == NULL or adjacent(beside))
    # a task lays out anew the coefficients of its lines
    cdef bint lines = LINES and sizeof(real) == 2 and whole and residual == NULL and (
        not flat.activation)
    cdef Py_ssize_t values = (LINES_TASK_BYTES if lines else TASK_BYTES) // sizeof(real)
    cdef LastWork work
    if whole and (n <= values or num_threads == 1 and flat.order != BACKWARDS):
        map_flat(x, residual, y, n, 0, flat)
        fence()
        return
    work.x, work.from_ = x, from_
    work.residual, work.beside = residual, beside
    work.y, work.to, work.flat = y, to, flat
    if whole:
        work.step = values
        share(<Task>map_piece[real], &work, (n + values - 1) // values, num_threads, flat.order)
    else:
        work.step = max(<Py_ssize_t>1, values // from_.channels)
        share(<Task>map_rows[real], &work, (from_.rows + work.step - 1) // work.step, num_threads,
              flat.order)
