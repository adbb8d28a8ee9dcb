"""The loops of cbn: batch statistics and the affine map, over typed memoryviews, without the GIL.

(a) Two families. `*_first` take x as (N, C, L), each run of L values contiguous, whatever the
    strides of N and C. `*_last` take x as (A, B, C), each row of C values contiguous. (N, C) is
    the second with A = 1.

(b) Order of summation. A channel is cut into blocks of at most BLOCK values (ROW_BLOCK rows). In a
    block, value i goes to lane i % LANES of a sum of x - shift and one of (x - shift)^2, in
    double; shift is the mean of what came before (for the first block, of its first PILOT values),
    so that nothing cancels: the mean of n values is off by no more than sqrt(k) deviations of any
    k of them. Blocks are merged in their order by the rule of Chan, Golub and LeVeque (1979).
    Where one channel is the work of several tasks, its parts are fixed by the shape. Hence the same
    bits for any number of threads, and for every build: LANES is the same in each, and no product
    is contracted into an FMA.

(c) Normalization is (x - m) * a + b in the working type, m the mean rounded to that type and its
    rounding carried into b. The form x * a + b would lose all when |mean| is far above the
    deviation.

(d) Training forward, channels first: a task takes a few channels through statistics,
    coefficients and normalization, so that their slab is read from memory once if it fits in L2.
    Only where channels are too few to share out, or last, are there two passes over x.

(e) Threads: an argument, handed down to prange. Tasks are shared out dynamically, so that a core
    which is busy elsewhere delays one task and not half of the array.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc

cdef extern from "_lanes.h" nogil:
    enum: LANES "CBN_LANES"
    enum: VECTOR "CBN_VECTOR"
    ctypedef struct Lanes "cbn_f64x16":
        pass
    Lanes lanes_fill "cbn_fill"(double)
    double lanes_total "cbn_total"(const Lanes *)
    void fence "cbn_fence"()
    # x and y point to the element type: the header picks by it
    void moments_step "cbn_moments"(const void *x, double shift, Lanes *total, Lanes *square)
    void moments_part "cbn_moments_part"(
        const void *x, int n, double shift, Lanes *total, Lanes *square)
    void columns_step "cbn_columns"(
        const void *x, Py_ssize_t stride, int rows, const double *shift, double *total,
        double *square)
    void scale_step "cbn_scale"(const void *x, void *y, double m, double a, double b, bint stream)
    void scale_one "cbn_scale_one"(const void *x, void *y, double m, double a, double b)
    void scale_columns_step "cbn_scale_columns"(
        const void *x, void *y, const void *m, const void *a, const void *b, Py_ssize_t at,
        bint stream)
    void narrow "cbn_narrow"(const void *like, const double *values, void *narrowed, Py_ssize_t n)

cdef extern from *:
    """
    #ifdef _OPENMP
    #define CBN_OPENMP _OPENMP
    #else
    #define CBN_OPENMP 0
    #endif
    """
    enum: CBN_OPENMP

ctypedef fused real:
    float
    double

cdef enum:
    BLOCK = 4096          # values of a channel between two merges
    PILOT = 64            # values whose mean is the first shift
    GROUP = 64            # most channels that a task of short runs takes together
    ROW_BLOCK = 512       # rows between two merges, channels last
    ROW_PILOT = 16
    COLUMNS = 256         # most channels that a task of rows takes together
    ROWS_AT_ONCE = 4
    TASKS = 32            # parts are made until there are this many tasks
    LINE = 64             # bytes: where streamed stores begin
    TASK_BYTES = 1 << 17  # of x, in a task that only normalizes
    SLAB_BYTES = 1 << 20  # of x, to stay in L2 between two passes
    STREAM_BYTES = 1 << 22  # of x, above which y goes past the cache
    STREAM_RUN = 1 << 10    # bytes: the shortest run that is streamed


cdef struct Moments:
    double count
    double mean
    double m2      # the sum of (x - mean)^2


cdef struct First:
    # x as (N, C, L); strides in elements
    Py_ssize_t runs
    Py_ssize_t channels
    Py_ssize_t length
    Py_ssize_t run_stride
    Py_ssize_t channel_stride


cdef struct Last:
    # x as (A, B, C)
    Py_ssize_t rows           # A * B
    Py_ssize_t channels
    Py_ssize_t inner          # B
    Py_ssize_t outer_stride
    Py_ssize_t inner_stride


# ---- one channel's sums --------------------------------------------------------------------------

cdef inline void merge(Moments *into, const Moments *other) noexcept nogil:
    """Chan, Golub and LeVeque (1979), equation 2.1."""
    cdef double count = into.count + other.count
    cdef double apart = other.mean - into.mean
    if into.count == 0:
        into[0] = other[0]
    elif other.count != 0:
        into.mean += apart * (other.count / count)
        into.m2 += other.m2 + apart * apart * (into.count * other.count / count)
        into.count = count


cdef inline void close_block(
    Moments *into, double count, double shift, double total, double square
) noexcept nogil:
    """Merge a block, given its sums of x - shift and (x - shift)^2."""
    cdef Moments block
    block.count = count
    block.mean = shift + total / count
    block.m2 = square - total * (total / count)
    if block.m2 < 0:   # rounding alone; a NaN passes
        block.m2 = 0
    merge(into, &block)


cdef inline void run_moments(
    const real *x, Py_ssize_t n, double shift, Lanes *total, Lanes *square
) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef Lanes t = total[0], s = square[0]
    while i + LANES <= n:
        moments_step(x + i, shift, &t, &s)
        i += LANES
    if i < n:
        moments_part(x + i, <int>(n - i), shift, &t, &s)
    total[0] = t
    square[0] = s


cdef inline double round_like(const real *like, double value) noexcept nogil:
    """Round to the type that the arithmetic on x is done in."""
    if real is double:
        return value
    else:
        return <double><float>value


cdef inline void coefficients(
    const real *like, double mean, double variance, double weight, double bias, double eps,
    double *m, double *a, double *b
) noexcept nogil:
    """(x - m) * a + b, each rounded to the working type, m's rounding carried into b."""
    cdef double scale = weight / sqrt(variance + eps)
    m[0] = round_like(like, mean)
    a[0] = round_like(like, scale)
    b[0] = round_like(like, bias + (m[0] - mean) * scale)


# ---- channels first: (N, C, L) -------------------------------------------------------------------

cdef inline Py_ssize_t blocks_of(const First *x) noexcept nogil:
    """The number of blocks in a channel: pieces of runs, or several runs together."""
    if x.length >= BLOCK:
        return x.runs * ((x.length + BLOCK - 1) // BLOCK)
    cdef Py_ssize_t together = BLOCK // x.length
    return (x.runs + together - 1) // together


cdef double pilot(const real *x, const First *shape) noexcept nogil:
    """The mean of a channel's first values, about PILOT of them."""
    cdef Lanes total = lanes_fill(0), square = lanes_fill(0)
    cdef Py_ssize_t run = 0, count = 0
    cdef Py_ssize_t n = min(shape.length, <Py_ssize_t>PILOT)
    while run < shape.runs and count < PILOT:
        run_moments(x + run * shape.run_stride, n, 0, &total, &square)
        count += n
        run += 1
    return lanes_total(&total) / count


cdef void group_moments(
    const real *x, const First *shape, Py_ssize_t channels, Py_ssize_t first_block,
    Py_ssize_t last_block, Moments *out
) noexcept nogil:
    """Statistics of up to GROUP neighbouring channels over some of their blocks."""
    cdef Lanes total[GROUP]
    cdef Lanes square[GROUP]
    cdef double shift[GROUP]
    cdef First rest = shape[0]
    cdef Py_ssize_t block, run, last_run, start, stop, c, pieces, together
    for c in range(channels):
        out[c].count = out[c].mean = out[c].m2 = 0
    for block in range(first_block, last_block):
        if shape.length >= BLOCK:
            pieces = (shape.length + BLOCK - 1) // BLOCK
            run = block // pieces
            last_run = run + 1
            start = (block % pieces) * BLOCK
            stop = min(start + BLOCK, shape.length)
        else:
            together = BLOCK // shape.length
            run = block * together
            last_run = min(run + together, shape.runs)
            start = 0
            stop = shape.length
        for c in range(channels):
            if block == first_block:
                rest.runs = last_run - run
                rest.length = stop - start
                shift[c] = pilot(
                    x + run * shape.run_stride + c * shape.channel_stride + start, &rest)
            else:
                shift[c] = out[c].mean
            total[c] = lanes_fill(0)
            square[c] = lanes_fill(0)
        rest.runs = last_run - run
        while run < last_run:
            for c in range(channels):
                run_moments(x + run * shape.run_stride + c * shape.channel_stride + start,
                            stop - start, shift[c], &total[c], &square[c])
            run += 1
        for c in range(channels):
            close_block(&out[c], <double>(rest.runs * (stop - start)), shift[c],
                        lanes_total(&total[c]), lanes_total(&square[c]))


cdef inline void scale_run(
    const real *x, real *y, Py_ssize_t n, double m, double a, double b, bint stream
) noexcept nogil:
    cdef Py_ssize_t i = 0
    if stream:
        while i < n and <uintptr_t>(y + i) % LINE:
            scale_one(x + i, y + i, m, a, b)
            i += 1
        while i + LANES <= n:
            scale_step(x + i, y + i, m, a, b, True)
            i += LANES
    else:
        while i + LANES <= n:
            scale_step(x + i, y + i, m, a, b, False)
            i += LANES
    while i < n:
        scale_one(x + i, y + i, m, a, b)
        i += 1


cdef inline Py_ssize_t group_size(const First *x, Py_ssize_t itemsize) noexcept nogil:
    """Channels to a task: enough for long reads, few enough for L2 and for many tasks."""
    cdef Py_ssize_t run_bytes = max(<Py_ssize_t>1, x.length * itemsize)
    cdef Py_ssize_t size = min((1 << 14) // run_bytes, SLAB_BYTES // (run_bytes * x.runs))
    return max(<Py_ssize_t>1, min(size, <Py_ssize_t>GROUP, x.channels // 16))


cdef inline Py_ssize_t parts_of(Py_ssize_t tasks, Py_ssize_t blocks) noexcept nogil:
    """Parts to cut each task into, where there are too few tasks to share out."""
    if tasks >= TASKS // 4:
        return 1
    return max(<Py_ssize_t>1, min((TASKS + tasks - 1) // tasks, blocks))


cdef inline bint streams(Py_ssize_t values, Py_ssize_t run, Py_ssize_t itemsize) noexcept nogil:
    return values * itemsize >= STREAM_BYTES and run * itemsize >= STREAM_RUN


cdef struct Tile:
    # what one task of the normalization covers, and how many tiles there are along each axis
    Py_ssize_t runs
    Py_ssize_t channels
    Py_ssize_t length
    Py_ssize_t along_runs
    Py_ssize_t along_channels
    Py_ssize_t along_length


cdef inline Tile tile_of(const First *x, Py_ssize_t itemsize) noexcept nogil:
    """Tiles of about TASK_BYTES, as contiguous as they can be."""
    cdef Tile tile
    cdef Py_ssize_t values = TASK_BYTES // itemsize
    tile.length = min(x.length, values)
    tile.channels = max(<Py_ssize_t>1, min(x.channels, values // x.length))
    tile.runs = 1
    if tile.channels == x.channels:
        tile.runs = max(<Py_ssize_t>1, min(x.runs, values // (x.channels * x.length)))
    tile.along_runs = (x.runs + tile.runs - 1) // tile.runs
    tile.along_channels = (x.channels + tile.channels - 1) // tile.channels
    tile.along_length = (x.length + tile.length - 1) // tile.length
    return tile


cdef inline void scale_box(
    const real *x, real *y, const First *from_, const First *to,
    Py_ssize_t run, Py_ssize_t last_run, Py_ssize_t channel, Py_ssize_t last_channel,
    Py_ssize_t start, Py_ssize_t stop, const double *m, const double *a, const double *b,
    bint stream
) noexcept nogil:
    cdef Py_ssize_t r, c
    for r in range(run, last_run):
        for c in range(channel, last_channel):
            scale_run(x + r * from_.run_stride + c * from_.channel_stride + start,
                      y + r * to.run_stride + c * to.channel_stride + start,
                      stop - start, m[c], a[c], b[c], stream)
    if stream:
        fence()


cdef void scale_tile(
    Py_ssize_t task, const Tile *tile, const real *x, real *y, const First *from_, const First *to,
    const double *m, const double *a, const double *b, bint stream
) noexcept nogil:
    cdef Py_ssize_t start = (task % tile.along_length) * tile.length
    cdef Py_ssize_t channel = (task // tile.along_length % tile.along_channels) * tile.channels
    cdef Py_ssize_t run = (task // (tile.along_length * tile.along_channels)) * tile.runs
    scale_box(x, y, from_, to, run, min(run + tile.runs, from_.runs),
              channel, min(channel + tile.channels, from_.channels),
              start, min(start + tile.length, from_.length), m, a, b, stream)


cdef void scale_tiles(
    const real *x, real *y, const First *from_, const First *to,
    const double *m, const double *a, const double *b, int num_threads
) noexcept nogil:
    cdef Tile tile = tile_of(from_, sizeof(real))
    cdef Py_ssize_t tasks = tile.along_runs * tile.along_channels * tile.along_length, task
    cdef bint stream = streams(
        from_.runs * from_.channels * from_.length, from_.length, sizeof(real))
    for task in prange(tasks, num_threads=num_threads, schedule="dynamic", chunksize=1,
                       use_threads_if=num_threads > 1):
        scale_tile(task, &tile, x, y, from_, to, m, a, b, stream)


cdef struct Training:
    # what a training forward needs beside x and y; the arrays hold one value a channel
    const double *weight
    const double *bias
    double eps
    double *m
    double *a
    double *b
    double *mean
    double *m2


cdef inline void finish_channel(
    const real *like, const Moments *moments, const Training *training, Py_ssize_t c
) noexcept nogil:
    training.mean[c] = moments.mean
    training.m2[c] = moments.m2
    if training.m != NULL:
        coefficients(like, moments.mean, moments.m2 / moments.count, training.weight[c],
                     training.bias[c], training.eps,
                     &training.m[c], &training.a[c], &training.b[c])


cdef void first_group(
    Py_ssize_t group, Py_ssize_t size, const real *x, real *y, const First *from_, const First *to,
    const Training *training, bint stream
) noexcept nogil:
    """Take a group of channels through statistics, coefficients and normalization."""
    cdef Moments moments[GROUP]
    cdef Py_ssize_t channel = group * size, c
    cdef Py_ssize_t channels = min(size, from_.channels - channel)
    group_moments(x + channel * from_.channel_stride, from_, channels, 0, blocks_of(from_), moments)
    for c in range(channels):
        finish_channel(x, &moments[c], training, channel + c)
    if y != NULL:
        scale_box(x, y, from_, to, 0, from_.runs, channel, channel + channels, 0, from_.length,
                  training.m, training.a, training.b, stream)


cdef void first_part(
    Py_ssize_t task, Py_ssize_t parts, Py_ssize_t size, const real *x, const First *shape,
    Moments *partial
) noexcept nogil:
    """One part of the statistics of a group of channels, into partial[part, channel]."""
    cdef Py_ssize_t channel = (task // parts) * size, part = task % parts
    cdef Py_ssize_t blocks = blocks_of(shape)
    group_moments(x + channel * shape.channel_stride, shape, min(size, shape.channels - channel),
                  part * blocks // parts, (part + 1) * blocks // parts,
                  partial + part * shape.channels + channel)


cdef int train_first_(
    const real *x, real *y, const First *from_, const First *to, const Training *training,
    int num_threads
) except -1 nogil:
    """Statistics of x and, where y is given, its normalization."""
    cdef Py_ssize_t size = group_size(from_, sizeof(real))
    cdef Py_ssize_t groups = (from_.channels + size - 1) // size, task
    cdef Py_ssize_t parts = parts_of(groups, blocks_of(from_)), tasks = groups * parts
    cdef bint stream = streams(
        from_.runs * from_.channels * from_.length, from_.length, sizeof(real))
    cdef Moments *partial = NULL
    if parts == 1:
        for task in prange(groups, num_threads=num_threads, schedule="dynamic", chunksize=1,
                           use_threads_if=num_threads > 1):
            first_group(task, size, x, y, from_, to, training, stream)
        return 0
    partial = <Moments *>malloc(parts * from_.channels * sizeof(Moments))
    if partial == NULL:
        raise MemoryError("no memory for the statistics")
    for task in prange(tasks, num_threads=num_threads, schedule="dynamic", chunksize=1,
                       use_threads_if=num_threads > 1):
        first_part(task, parts, size, x, from_, partial)
    merge_parts(x, partial, parts, from_.channels, training)
    free(partial)
    if y != NULL:
        scale_tiles(x, y, from_, to, training.m, training.a, training.b, num_threads)
    return 0


cdef void merge_parts(
    const real *like, Moments *partial, Py_ssize_t parts, Py_ssize_t channels,
    const Training *training
) noexcept nogil:
    """Merge partial[part, channel] in the order of the parts."""
    cdef Py_ssize_t c, part
    for c in range(channels):
        for part in range(1, parts):
            merge(&partial[c], &partial[part * channels + c])
        finish_channel(like, &partial[c], training, c)


# ---- channels last: (A, B, C) --------------------------------------------------------------------

cdef inline Py_ssize_t row_at(const Last *shape, Py_ssize_t row) noexcept nogil:
    return (row // shape.inner) * shape.outer_stride + (row % shape.inner) * shape.inner_stride


cdef inline void rows_moments(
    const real *x, const Last *shape, Py_ssize_t row, Py_ssize_t last_row, Py_ssize_t columns,
    const double *shift, double *total, double *square
) noexcept nogil:
    """Add rows to the sums of up to COLUMNS channels."""
    cdef Py_ssize_t whole = columns - columns % LANES, c, k, rows
    cdef Py_ssize_t stride = shape.inner_stride
    cdef const real *at
    cdef double apart
    while row < last_row:
        at = x + row_at(shape, row)
        rows = min(<Py_ssize_t>ROWS_AT_ONCE, last_row - row, shape.inner - row % shape.inner)
        c = 0
        if rows == ROWS_AT_ONCE:
            while c < whole:
                columns_step(at + c, stride, ROWS_AT_ONCE, shift + c, total + c, square + c)
                c += LANES
        else:
            while c < whole:
                columns_step(at + c, stride, <int>rows, shift + c, total + c, square + c)
                c += LANES
        for c in range(whole, columns):
            for k in range(rows):
                apart = <double>at[k * stride + c] - shift[c]
                total[c] += apart
                square[c] += apart * apart
        row += rows


cdef void columns_moments(
    const real *x, const Last *shape, Py_ssize_t first_row, Py_ssize_t last_row,
    Py_ssize_t columns, Moments *out
) noexcept nogil:
    """Statistics of up to COLUMNS neighbouring channels over some of the rows."""
    cdef double shift[COLUMNS]
    cdef double total[COLUMNS]
    cdef double square[COLUMNS]
    cdef Py_ssize_t row = first_row, last = min(first_row + ROW_PILOT, last_row), c
    for c in range(columns):
        out[c].count = out[c].mean = out[c].m2 = shift[c] = total[c] = square[c] = 0
    rows_moments(x, shape, row, last, columns, shift, total, square)
    for c in range(columns):
        shift[c] = total[c] / (last - row)
    while row < last_row:
        last = min(row + ROW_BLOCK, last_row)
        for c in range(columns):
            total[c] = square[c] = 0
        rows_moments(x, shape, row, last, columns, shift, total, square)
        for c in range(columns):
            close_block(&out[c], <double>(last - row), shift[c], total[c], square[c])
            shift[c] = out[c].mean
        row = last


cdef void last_part(
    Py_ssize_t task, Py_ssize_t parts, const real *x, const Last *shape, Moments *partial
) noexcept nogil:
    """One part of the rows of COLUMNS channels, into partial[part, channel]."""
    cdef Py_ssize_t channel = (task // parts) * COLUMNS, part = task % parts
    columns_moments(x + channel, shape, part * shape.rows // parts,
                    (part + 1) * shape.rows // parts,
                    min(<Py_ssize_t>COLUMNS, shape.channels - channel),
                    partial + part * shape.channels + channel)


cdef inline void scale_row(
    const real *x, real *y, Py_ssize_t n, const double *m, const double *a, const double *b,
    const char *narrowed, Py_ssize_t room, bint stream
) noexcept nogil:
    """One row of n channels; `narrowed` holds m, a, b in the working type, `room` bytes each."""
    cdef Py_ssize_t c = 0
    if stream:
        while c < n and <uintptr_t>(y + c) % LINE:
            scale_one(x + c, y + c, m[c], a[c], b[c])
            c += 1
        while c + LANES <= n:
            scale_columns_step(
                x + c, y + c, narrowed, narrowed + room, narrowed + 2 * room, c, True)
            c += LANES
    else:
        while c + LANES <= n:
            scale_columns_step(
                x + c, y + c, narrowed, narrowed + room, narrowed + 2 * room, c, False)
            c += LANES
    while c < n:
        scale_one(x + c, y + c, m[c], a[c], b[c])
        c += 1


cdef void rows_task(
    Py_ssize_t task, Py_ssize_t rows, const real *x, real *y, const Last *from_, const Last *to,
    const double *m, const double *a, const double *b, const char *narrowed, Py_ssize_t room,
    bint stream
) noexcept nogil:
    cdef Py_ssize_t row
    for row in range(task * rows, min((task + 1) * rows, from_.rows)):
        scale_row(x + row_at(from_, row), y + row_at(to, row), from_.channels, m, a, b,
                  narrowed, room, stream)
    if stream:
        fence()


cdef int scale_rows(
    const real *x, real *y, const Last *from_, const Last *to, const double *m, const double *a,
    const double *b, int num_threads
) except -1 nogil:
    cdef Py_ssize_t room = from_.channels * sizeof(double), task
    cdef Py_ssize_t rows = max(
        <Py_ssize_t>1, TASK_BYTES // (from_.channels * <Py_ssize_t>sizeof(real)))
    cdef Py_ssize_t tasks = (from_.rows + rows - 1) // rows
    cdef bint stream = streams(from_.rows * from_.channels, TASK_BYTES, 1)
    cdef char *narrowed = <char *>malloc(3 * room)
    if narrowed == NULL:
        raise MemoryError("no memory for the coefficients")
    narrow(x, m, narrowed, from_.channels)
    narrow(x, a, narrowed + room, from_.channels)
    narrow(x, b, narrowed + 2 * room, from_.channels)
    for task in prange(tasks, num_threads=num_threads, schedule="dynamic", chunksize=1,
                       use_threads_if=num_threads > 1):
        rows_task(task, rows, x, y, from_, to, m, a, b, narrowed, room, stream)
    free(narrowed)
    return 0


cdef int train_last_(
    const real *x, real *y, const Last *from_, const Last *to, const Training *training,
    int num_threads
) except -1 nogil:
    cdef Py_ssize_t groups = (from_.channels + COLUMNS - 1) // COLUMNS, task
    cdef Py_ssize_t blocks = (from_.rows + ROW_BLOCK - 1) // ROW_BLOCK
    cdef Py_ssize_t parts = max(<Py_ssize_t>1, min((TASKS + groups - 1) // groups, blocks))
    cdef Py_ssize_t tasks = groups * parts
    cdef Moments *partial = <Moments *>malloc(parts * from_.channels * sizeof(Moments))
    if partial == NULL:
        raise MemoryError("no memory for the statistics")
    for task in prange(tasks, num_threads=num_threads, schedule="dynamic", chunksize=1,
                       use_threads_if=num_threads > 1):
        last_part(task, parts, x, from_, partial)
    merge_parts(x, partial, parts, from_.channels, training)
    free(partial)
    if y != NULL:
        scale_rows(x, y, from_, to, training.m, training.a, training.b, num_threads)
    return 0


# ---- from Python ---------------------------------------------------------------------------------
#
# The callers in this package have validated everything: no size is zero, x and y have one shape,
# and each coefficient array has one value a channel.

cdef First first_of(const real[:, :, ::1] x) noexcept nogil:
    cdef First shape
    shape.runs, shape.channels, shape.length = x.shape[0], x.shape[1], x.shape[2]
    shape.run_stride = x.strides[0] // <Py_ssize_t>sizeof(real)
    shape.channel_stride = x.strides[1] // <Py_ssize_t>sizeof(real)
    return shape


cdef Last last_of(const real[:, :, ::1] x) noexcept nogil:
    cdef Last shape
    shape.rows, shape.channels = x.shape[0] * x.shape[1], x.shape[2]
    shape.inner = x.shape[1]
    shape.outer_stride = x.strides[0] // <Py_ssize_t>sizeof(real)
    shape.inner_stride = x.strides[1] // <Py_ssize_t>sizeof(real)
    return shape


cdef Training training_of(
    const double[::1] weight, const double[::1] bias, double eps, double[:, ::1] coefficients_,
    double[:, ::1] moments
) noexcept nogil:
    cdef Training training
    training.weight, training.bias, training.eps = &weight[0], &bias[0], eps
    training.m, training.a = &coefficients_[0, 0], &coefficients_[1, 0]
    training.b = &coefficients_[2, 0]
    training.mean, training.m2 = &moments[0, 0], &moments[1, 0]
    return training


cdef Training statistics_only(double[:, ::1] moments) noexcept nogil:
    cdef Training training
    training.weight = training.bias = NULL
    training.m = training.a = training.b = NULL
    training.eps = 0
    training.mean, training.m2 = &moments[0, 0], &moments[1, 0]
    return training


def stats_first(const real[:, :, ::1] x, double[:, ::1] moments, int num_threads):
    """Mean and sum of squared deviations of x (N, C, L) into moments (2, C)."""
    cdef First shape = first_of(x)
    cdef Training training = statistics_only(moments)
    with nogil:
        train_first_[real](&x[0, 0, 0], NULL, &shape, &shape, &training, num_threads)


def stats_last(const real[:, :, ::1] x, double[:, ::1] moments, int num_threads):
    """Mean and sum of squared deviations of x (A, B, C) into moments (2, C)."""
    cdef Last shape = last_of(x)
    cdef Training training = statistics_only(moments)
    with nogil:
        train_last_[real](&x[0, 0, 0], NULL, &shape, &shape, &training, num_threads)


def train_first(
    const real[:, :, ::1] x, real[:, :, ::1] y, const double[::1] weight, const double[::1] bias,
    double eps, double[:, ::1] coefficients_, double[:, ::1] moments, int num_threads
):
    """Normalize x (N, C, L) with its own statistics into y; coefficients (3, C), moments (2, C)."""
    cdef First from_ = first_of(x)
    cdef First to = first_of[real](y)
    cdef Training training = training_of(weight, bias, eps, coefficients_, moments)
    with nogil:
        train_first_(&x[0, 0, 0], &y[0, 0, 0], &from_, &to, &training, num_threads)


def train_last(
    const real[:, :, ::1] x, real[:, :, ::1] y, const double[::1] weight, const double[::1] bias,
    double eps, double[:, ::1] coefficients_, double[:, ::1] moments, int num_threads
):
    """Normalize x (A, B, C) with its own statistics into y; coefficients (3, C), moments (2, C)."""
    cdef Last from_ = last_of(x)
    cdef Last to = last_of[real](y)
    cdef Training training = training_of(weight, bias, eps, coefficients_, moments)
    with nogil:
        train_last_(&x[0, 0, 0], &y[0, 0, 0], &from_, &to, &training, num_threads)


def scale_first(
    const real[:, :, ::1] x, real[:, :, ::1] y, const double[:, ::1] coefficients_, int num_threads
):
    """(x - m) * a + b of x (N, C, L) into y; coefficients (3, C) are m, a, b."""
    cdef First from_ = first_of(x)
    cdef First to = first_of[real](y)
    with nogil:
        scale_tiles(&x[0, 0, 0], &y[0, 0, 0], &from_, &to, &coefficients_[0, 0],
                    &coefficients_[1, 0], &coefficients_[2, 0], num_threads)


def scale_last(
    const real[:, :, ::1] x, real[:, :, ::1] y, const double[:, ::1] coefficients_, int num_threads
):
    """(x - m) * a + b of x (A, B, C) into y; coefficients (3, C) are m, a, b."""
    cdef Last from_ = last_of(x)
    cdef Last to = last_of[real](y)
    with nogil:
        scale_rows(&x[0, 0, 0], &y[0, 0, 0], &from_, &to, &coefficients_[0, 0],
                   &coefficients_[1, 0], &coefficients_[2, 0], num_threads)


def fuse(
    const double[::1] mean, const double[::1] variance, const double[::1] weight,
    const double[::1] bias, double eps, double[:, ::1] coefficients_, bint single
):
    """The coefficients m, a, b (3, C) of given statistics, rounded to float32 where `single`."""
    cdef Py_ssize_t c
    cdef const float *as_float = NULL
    cdef const double *as_double = NULL
    for c in range(mean.shape[0]):
        if single:
            coefficients(as_float, mean[c], variance[c], weight[c], bias[c], eps,
                         &coefficients_[0, c], &coefficients_[1, c], &coefficients_[2, c])
        else:
            coefficients(as_double, mean[c], variance[c], weight[c], bias[c], eps,
                         &coefficients_[0, c], &coefficients_[1, c], &coefficients_[2, c])


def build():
    """How this module was compiled: bytes in a vector, OpenMP's version (0: serial)."""
    return {"vector_bytes": VECTOR, "openmp": CBN_OPENMP}
