# Whole arrays: sums, then coefficients, then the map. Included by _kernels.pyx.

cdef enum:
    NO_MEMORY = -1          # what a pass returns where it could not have its O(C) work memory
    TASKS = 32              # parts are made until there are this many tasks
    SLAB_BYTES = 1 << 20    # of x, to stay in L2 between two passes
    SHORT_COLUMNS = 1 << 15  # most columns that short runs are taken for at a time
    FEW_COLUMNS = 128       # of rows that are too few to share out: the fewest of a task
    WINDOW_BYTES = 1 << 24  # of few channels, to stay in the last cache between two passes,
    WINDOW_RUN = 1 << 14    # where their runs are as long as this
    READ_BYTES = 1 << 13    # of a task's neighbouring channels, to read at a time


cdef inline Py_ssize_t parts_of(Py_ssize_t tasks, Py_ssize_t blocks) noexcept nogil:
    """Parts to cut each task into, where there are too few tasks to share out."""
    return max(<Py_ssize_t>1, min((TASKS + tasks - 1) // tasks, blocks))


# ---- channels first ------------------------------------------------------------------------------

cdef inline Py_ssize_t group_size(const First *x, Py_ssize_t itemsize) noexcept nogil:
    """Channels to a task: enough for long reads, few enough for L2 and for many tasks."""
    cdef Py_ssize_t run_bytes = x.length * itemsize
    cdef Py_ssize_t size = min(READ_BYTES // run_bytes, SLAB_BYTES // (run_bytes * x.runs))
    return max(<Py_ssize_t>1, min(size, <Py_ssize_t>GROUP, x.channels // 16))


cdef struct FirstPass:
    # what the tasks of pass_first share
    const void *x
    const First *from_
    const void *dy
    const First *beside
    void *y
    const First *to
    const Training *training
    Py_ssize_t size          # channels of a group
    bint stream
    Py_ssize_t parts         # of a group, where they are tasks
    Sums *partial            # [part, channel]


cdef inline void begin_group(
    const real *like, const FirstPass *w, Py_ssize_t group, Py_ssize_t first_block,
    Py_ssize_t last_block, Sums *out, bint meanwhile, Summing *s
) noexcept nogil:
    """The sums of a group of channels over some of their blocks, ready for sum_piece."""
    cdef Py_ssize_t channel = group * w.size
    s.x = <const real *>w.x + channel * w.from_.channel_stride
    s.from_, s.beside = w.from_, w.beside
    s.dy = NULL
    if w.training.backward:
        s.dy = <const real *>w.dy + channel * w.beside.channel_stride
        s.mean, s.rstd = w.training.mean + channel, w.training.rstd + channel
    s.channels = min(w.size, w.from_.channels - channel)
    s.index, s.last_block = first_block, last_block
    s.piece = PIECE if meanwhile else LONG_PIECE
    s.out = out
    begin_sums(like, s)


cdef void first_group(const real *work, Py_ssize_t group, Turn *turn) noexcept nogil:
    """Take a group of channels through sums, coefficients and map; where the thread looks ahead,
    sum the group that is next while mapping. In a gradient that gains nothing."""
    cdef const FirstPass *w = <const FirstPass *>work
    cdef const First *from_ = w.from_
    cdef const Training *training = w.training
    cdef Sums *sums = <Sums *>turn.kept
    cdef Summing summing
    cdef Py_ssize_t channel = group * w.size, c
    cdef Py_ssize_t channels = min(w.size, from_.channels - channel)
    cdef Map map_ = map_of(training, w.stream)
    cdef Py_ssize_t blocks = block_count(from_)
    cdef bint ahead = turn.next >= 0   # only where there is a y, and no dy
    if not turn.carries:
        begin_group(work, w, group, 0, blocks, sums, False, &summing)
        sum_all(work, &summing)
    for c in range(channels):
        finish_channel(work, &sums[c], training, channel + c)
    turn.carries = ahead
    if ahead:
        begin_group(work, w, turn.next, 0, blocks, sums, True, &summing)
    if training.frozen:
        map_box(<const real *>w.dy, w.beside, <const real *>NULL, w.beside, <real *>w.y, w.to, 0,
                from_.runs, channel, channel + channels, 0, from_.length, &map_, NULL)
    elif w.y != NULL:
        map_box(<const real *>w.x, from_, <const real *>w.dy, w.beside, <real *>w.y, w.to, 0,
                from_.runs, channel, channel + channels, 0, from_.length, &map_,
                &summing if ahead else NULL)
    if ahead:
        sum_all(work, &summing)


cdef void first_part(const real *work, Py_ssize_t task, Turn *turn) noexcept nogil:
    """One part of the sums of a group of channels, into partial[part, channel]."""
    cdef const FirstPass *w = <const FirstPass *>work
    cdef Py_ssize_t group = task // w.parts, part = task % w.parts
    cdef Py_ssize_t blocks = block_count(w.from_)
    cdef Summing summing
    begin_group(work, w, group, part * blocks // w.parts, (part + 1) * blocks // w.parts,
                w.partial + part * w.from_.channels + group * w.size, False, &summing)
    sum_all(work, &summing)


cdef void pass_few(
    const real *x, const First *from_, const real *dy, const First *beside, real *y,
    const First *to, const Training *training, bint stream, Sums *partial, int num_threads
) noexcept nogil:
    """pass_first for channels that are too few to share out: parts of their sums are tasks.
    `partial` has room for TASKS of them and one a channel."""
    cdef Map map_
    cdef FirstPass work
    work.x, work.from_ = x, from_
    work.dy, work.beside = dy, beside
    work.y, work.to, work.training = y, to, training
    work.size, work.stream = 1, stream
    work.parts = parts_of(from_.channels, block_count(from_))
    work.partial = partial
    share(<Task>first_part[real], &work, from_.channels * work.parts, num_threads, 0)
    merge_parts(x, partial, work.parts, from_.channels, from_.channels, 1, 0, NULL, training,
                num_threads)
    if y != NULL:
        map_ = map_of(training, stream)
        if training.frozen:
            map_first(dy, beside, <const real *>NULL, beside, y, to, &map_, num_threads)
        else:
            map_first(x, from_, dy, beside, y, to, &map_, num_threads)


cdef inline Py_ssize_t window_of(
    const First *shape, Py_ssize_t itemsize, Py_ssize_t arrays
) noexcept nogil:
    """Channels to take through sums and map at a time, so that what is read stays in the last
    cache; all of them where runs are short, since one channel alone would be read in fragments."""
    cdef Py_ssize_t run_bytes = shape.length * itemsize, most, windows
    if run_bytes < WINDOW_RUN:
        return shape.channels
    most = max(<Py_ssize_t>1, WINDOW_BYTES // (shape.runs * run_bytes * arrays))
    windows = (shape.channels + most - 1) // most
    return (shape.channels + windows - 1) // windows


cdef inline First some_channels(const First *shape, Py_ssize_t channels) noexcept nogil:
    cdef First result = shape[0]
    result.channels = channels
    return result


cdef int pass_first(
    const real *x, const First *from_, const real *dy, const First *beside, real *y,
    const First *to, const Training *training, int num_threads
) noexcept nogil:
    """Sums of x (and dy) and, where y is given, the map into it."""
    cdef Py_ssize_t groups, channel = 0, n, window
    cdef First from_n, beside_n, to_n
    cdef Training training_n
    cdef FirstPass work
    cdef Sums *partial
    if is_short(from_) and (dy == NULL or is_short(beside)) and (y == NULL or is_short(to)):
        return pass_short(x, from_, dy, beside, y, to, training, num_threads)
    work.x, work.from_ = x, from_
    work.dy, work.beside = dy, beside
    work.y, work.to, work.training = y, to, training
    work.size = group_size(from_, sizeof(real))
    groups = (from_.channels + work.size - 1) // work.size
    work.stream = streams_first(x, from_, dy, y, to, work.size)
    if groups >= TASKS // 4:
        share(<Task>first_group[real], &work, groups, num_threads,
              LOOK_AHEAD if work.stream and dy == NULL else 0)
        return 0
    window = window_of(from_, sizeof(real), 1 if dy == NULL else 2)
    partial = <Sums *>malloc((TASKS + window) * sizeof(Sums))
    if partial == NULL:
        return NO_MEMORY
    while channel < from_.channels:
        n = min(window, from_.channels - channel)
        from_n, beside_n = some_channels(from_, n), some_channels(beside, n)
        to_n, training_n = some_channels(to, n), from_channel(training, channel)
        pass_few(x + channel * from_.channel_stride, &from_n,
                 dy + channel * beside.channel_stride if dy != NULL else NULL, &beside_n,
                 y + channel * to.channel_stride if y != NULL else NULL, &to_n, &training_n,
                 work.stream, partial, num_threads)
        channel += n
    free(partial)
    return 0


# ---- channels last -------------------------------------------------------------------------------

cdef struct LastPass:
    # what the tasks of column_sums share
    const void *x
    const Last *from_
    const void *dy
    const Last *beside
    const double *mean       # of each column, as rstd
    const double *rstd
    Py_ssize_t step          # columns of a task
    Py_ssize_t parts
    Sums *partial            # [part, column]


cdef void last_part(const real *work, Py_ssize_t task, Turn *turn) noexcept nogil:
    """One part of the rows of some channels, into partial[part, channel]."""
    cdef const LastPass *w = <const LastPass *>work
    cdef const Last *from_ = w.from_
    cdef const real *x = <const real *>w.x
    cdef Py_ssize_t channel = (task // w.parts) * w.step, part = task % w.parts
    cdef Py_ssize_t row = part * from_.rows // w.parts, last = (part + 1) * from_.rows // w.parts
    cdef Py_ssize_t columns = min(w.step, from_.channels - channel)
    cdef Sums *partial = w.partial + part * from_.channels + channel
    if w.dy != NULL:
        columns_products(<const real *>w.dy + channel, w.beside, x + channel, from_,
                         w.mean + channel, w.rstd + channel, row, last, columns, partial)
    else:
        columns_moments(x + channel, from_, row, last, columns, partial)


cdef inline Py_ssize_t folds_of(const Last *shape) noexcept nogil:
    """Rows to take for one, so that its length is a multiple of LANES."""
    cdef Py_ssize_t folds = 1
    if shape.channels >= COLUMNS:
        return 1
    while shape.channels * folds % LANES:
        folds *= 2
    return folds if shape.rows >= folds * 64 else 1


cdef inline Last folded(const Last *shape, Py_ssize_t folds) noexcept nogil:
    cdef Last result = shape[0]
    if folds > 1:
        result.channels = shape.channels * folds
        result.rows = result.inner = shape.rows // folds
        result.inner_stride = result.channels
        result.outer_stride = result.rows * result.channels
    return result


cdef int column_sums(
    const real *x, const Last *from_, const real *dy, const Last *beside,
    Py_ssize_t channels, Py_ssize_t channel_step, Py_ssize_t fold_step, const Sums *rest,
    const Training *training, int num_threads
) noexcept nogil:
    """Sums of the columns of x (and dy), merged into those of the channels."""
    cdef Py_ssize_t columns = from_.channels, c, k
    cdef Py_ssize_t step = COLUMNS, blocks = (from_.rows + ROW_BLOCK - 1) // ROW_BLOCK
    while blocks == 1 and columns < 4 * step and step > FEW_COLUMNS:
        step //= 2
    cdef Py_ssize_t groups = (columns + step - 1) // step
    cdef Py_ssize_t parts = parts_of(groups, (blocks + 3) // 4 * 4 if blocks > 1 else 1)
    cdef LastPass work
    cdef Sums *partial = <Sums *>malloc(parts * columns * sizeof(Sums))
    cdef double *mean = <double *>malloc(2 * columns * sizeof(double))
    cdef double *rstd = mean + columns
    if partial == NULL or mean == NULL:
        free(partial)
        free(mean)
        return NO_MEMORY
    if dy != NULL:
        for c in range(channels):
            for k in range(columns // channels):
                mean[c * channel_step + k * fold_step] = training.mean[c]
                rstd[c * channel_step + k * fold_step] = training.rstd[c]
    work.x, work.from_ = x, from_
    work.dy, work.beside, work.mean, work.rstd = dy, beside, mean, rstd
    work.step, work.parts, work.partial = step, parts, partial
    share(<Task>last_part[real], &work, groups * parts, num_threads, 0)
    merge_parts(x, partial, parts, columns, channels, channel_step, fold_step, rest, training,
                num_threads)
    free(partial)
    free(mean)
    return 0


cdef int map_periodic(
    const real *x, const Last *from_, const real *residual, const Last *beside, real *y,
    const Last *to, const Map *map_, Py_ssize_t channels, Py_ssize_t repeat, int num_threads
) noexcept nogil:
    """The map of rows, coefficients given one a channel, each for `repeat` columns."""
    cdef Py_ssize_t room = room_of(period_of(channels * repeat))
    cdef char *memory = <char *>malloc(4 * room)
    cdef Periodic flat
    if memory == NULL:
        return NO_MEMORY
    flat = periodic(x, map_, channels, repeat, memory)
    map_last(x, from_, residual, beside, y, to, &flat, num_threads)
    free(memory)
    return 0


cdef int pass_last(
    const real *x, const Last *from_, const real *dy, const Last *beside, real *y, const Last *to,
    const Training *training, int num_threads
) noexcept nogil:
    """Sums of x (and dy) and, where y is given, the map into it."""
    cdef Py_ssize_t folds = 1, tail, channels = from_.channels
    cdef Last wide, wide_beside, narrow_
    cdef Sums[COLUMNS] rest
    cdef Sums *rest_ = NULL
    cdef Map map_
    if adjacent(from_) and (dy == NULL or adjacent(beside)):
        folds = folds_of(from_)
    wide = folded(from_, folds)
    if dy != NULL:
        wide_beside = folded(beside, folds)
    tail = from_.rows - wide.rows * folds
    if tail:   # the rows that fill no fold
        narrow_ = from_[0]
        narrow_.rows = narrow_.inner = tail
        narrow_.inner_stride = channels
        rest_ = rest
        if dy != NULL:
            columns_products(dy + wide.rows * wide.channels, &narrow_,
                             x + wide.rows * wide.channels, &narrow_, training.mean,
                             training.rstd, 0, tail, channels, rest_)
        else:
            columns_moments(x + wide.rows * wide.channels, &narrow_, 0, tail, channels, rest_)
    if column_sums(x, &wide, dy, &wide_beside, channels, 1, channels, rest_, training, num_threads):
        return NO_MEMORY
    if y != NULL:
        map_ = map_of(training, streams(
            x, dy, y, from_.rows * channels * <Py_ssize_t>sizeof(real)))
        if training.frozen:
            return map_periodic(dy, beside, <const real *>NULL, beside, y, to, &map_, channels, 1,
                                num_threads)
        return map_periodic(x, from_, dy, beside, y, to, &map_, channels, 1, num_threads)
    return 0


# ---- channels first, short runs ------------------------------------------------------------------

cdef inline bint is_short(const First *shape) noexcept nogil:
    """Whether runs are shorter than a group, and those of one sample follow each other."""
    return shape.length < LANES and shape.channel_stride == shape.length


cdef inline Last as_rows(const First *shape, Py_ssize_t channels) noexcept nogil:
    """(N, C, L) as N rows of C * L columns; some of the channels."""
    cdef Last rows
    rows.rows = rows.inner = shape.runs
    rows.channels = channels * shape.length
    rows.inner_stride = shape.run_stride
    rows.outer_stride = 0
    return rows


cdef int map_short(
    const real *x, const First *from_, const real *residual, const First *beside, real *y,
    const First *to, const Map *map_, int num_threads
) noexcept nogil:
    """The map of runs shorter than a group, SHORT_COLUMNS columns at a time."""
    cdef Py_ssize_t step = max(<Py_ssize_t>1, SHORT_COLUMNS // from_.length), channel = 0, n, at
    cdef Last rows, other, target
    cdef Map some = map_[0]
    while channel < from_.channels:
        n = min(step, from_.channels - channel)
        at = channel * from_.length
        rows, other, target = as_rows(from_, n), as_rows(beside, n), as_rows(to, n)
        some.m, some.a = after(map_.m, channel), after(map_.a, channel)
        some.b, some.w = after(map_.b, channel), after(map_.w, channel)
        if map_periodic(x + at, &rows, residual + at if residual != NULL else NULL, &other, y + at,
                        &target, &some, n, from_.length, num_threads):
            return NO_MEMORY
        channel += n
    return 0


cdef int pass_short(
    const real *x, const First *from_, const real *dy, const First *beside, real *y,
    const First *to, const Training *training, int num_threads
) noexcept nogil:
    """Sums and map of runs shorter than a group, SHORT_COLUMNS columns at a time."""
    cdef Py_ssize_t step = max(<Py_ssize_t>1, SHORT_COLUMNS // from_.length), channel = 0, n, at
    cdef Last rows, other
    cdef Training some
    cdef Map map_
    while channel < from_.channels:
        n = min(step, from_.channels - channel)
        at = channel * from_.length
        rows, other = as_rows(from_, n), as_rows(beside, n)
        some = from_channel(training, channel)
        if column_sums(x + at, &rows, dy + at if dy != NULL else NULL, &other, n, from_.length, 1,
                       NULL, &some, num_threads):
            return NO_MEMORY
        channel += n
    if y == NULL:
        return 0
    map_ = map_of(training, streams(
        x, dy, y, from_.runs * from_.channels * from_.length * <Py_ssize_t>sizeof(real)))
    if training.frozen:
        return map_short(dy, beside, <const real *>NULL, beside, y, to, &map_, num_threads)
    return map_short(x, from_, dy, beside, y, to, &map_, num_threads)
