# The affine map of each channel, act((x - m) * a + b + residual * w), channels first. Included by
# _kernels.pyx.

cdef enum:
    TASK_BYTES = 1 << 15    # of x, in a task that only maps
    STREAM_BYTES = 8 << 20  # of x, from which y goes past the cache
    STREAM_RUN = 1 << 10    # bytes: the shortest run that is streamed
    LONG_RUN = 1 << 8       # values: the shortest run whose stores are aligned
    LINE = 2 * LANES        # 16-bit values in a cache line


cdef struct Map:
    # m, a, b, w: one value a channel
    const double *m
    const double *a
    const double *b
    const double *w
    int activation
    double slope             # of leaky_relu
    bint stream
    int order                # of the tasks: BACKWARDS where x was read just before


cdef inline bint streams(
    const void *x, const void *beside, const void *y, Py_ssize_t bytes
) noexcept nogil:
    """Whether y goes past the cache. In place its lines are there already, and are kept."""
    return bytes >= STREAM_BYTES and x != y and beside != y


cdef inline bint follows(const First *shape) noexcept nogil:
    """Whether the runs of neighbouring channels follow each other, each a group or longer."""
    return shape.channel_stride == shape.length and shape.length >= LANES


cdef inline bint streams_first(
    const real *x, const First *from_, const real *beside, const real *y, const First *to,
    Py_ssize_t together
) noexcept nogil:
    """The same, channels first, where `together` neighbouring channels are mapped at a time: only
    where enough values follow each other in x and in y."""
    cdef Py_ssize_t along = from_.length * <Py_ssize_t>sizeof(real)
    cdef Py_ssize_t bytes_ = from_.runs * from_.channels * along
    if follows(from_) and follows(to):
        along *= together
    return along >= STREAM_RUN and streams(x, beside, y, bytes_)


cdef inline Py_ssize_t head_of(const real *y, Py_ssize_t n, bint stream) noexcept nogil:
    """Values before y is aligned to what is stored at once; fewer than LANES. A streamed store
    must be aligned; any other of a long run is faster."""
    cdef Py_ssize_t line = min(<Py_ssize_t>64, LANES * <Py_ssize_t>sizeof(real))
    if not stream and n < LONG_RUN:
        return 0
    return min(n, (line - <Py_ssize_t>(<uintptr_t>y % line)) % line // <Py_ssize_t>sizeof(real))


cdef inline Py_ssize_t past_line(const real *y) noexcept nogil:
    """Values from the beginning of y's cache line."""
    return <Py_ssize_t>(<uintptr_t>y % 64) // <Py_ssize_t>sizeof(real)


cdef inline bint in_line(const real *y, Py_ssize_t i, Py_ssize_t last) noexcept nogil:
    """Whether a group is part of a cache line that groups up to `last` fill: of one that is not,
    nothing may be streamed, since a line that is stored in both ways costs several times as much.
    """
    cdef Py_ssize_t first = i - past_line(y + i)
    return sizeof(real) > 2 or 0 <= first <= last - LANES


cdef inline void store_ends(
    real *y, Py_ssize_t n, Py_ssize_t start, Py_ssize_t left, const real *head, const real *tail,
    bint stream
) noexcept nogil:
    """The first values, before `start`, and the last, of which `left` are in no whole group."""
    if stream:   # a streamed line is not touched again
        memcpy(y, head, start * sizeof(real))
        memcpy(y + n - left, tail + LANES - left, left * sizeof(real))
        return
    if start:
        memcpy(y, head, LANES * sizeof(real))
    if left:
        memcpy(y + n - LANES, tail, LANES * sizeof(real))


# ---- channels that follow each other -------------------------------------------------------------

cdef inline void map_part(
    const real *x, const real *residual, real *y, Py_ssize_t n, Py_ssize_t c, const Map *map_
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
    scale_step(<const real *>given, <const real *>other if residual != NULL else NULL,
               <real *>result, map_.m[c], map_.a[c], map_.b[c],
               map_.w[c] if residual != NULL else 1, map_.activation, map_.slope, False)
    memcpy(y, result, n * sizeof(real))


cdef inline void map_group(
    const real *x, const real *residual, real *y, Py_ssize_t c, const Map *map_
) noexcept nogil:
    """One group, not streamed."""
    scale_step(x, residual, y, map_.m[c], map_.a[c], map_.b[c],
               map_.w[c] if residual != NULL else 1, map_.activation, map_.slope, False)


cdef void map_groups(
    const real *x, const real *residual, real *y, Py_ssize_t i, Py_ssize_t n, Py_ssize_t c,
    Py_ssize_t channels, const Map *map_
) noexcept nogil:
    """Whole groups from i on, of `channels` runs of n values. One may hold the end of a run and the
    beginning of the next."""
    cdef Py_ssize_t end = 0, last = c + channels, last_group = n * channels - LANES
    cdef double m = map_.m[c], a = map_.a[c], b = map_.b[c], w = 1, m2, a2, b2, w2 = 1
    cdef Line line
    if residual != NULL:
        w = map_.w[c]
    while True:
        end += n
        if map_.activation:
            while i + LANES <= end:
                scale_step(x + i, residual + i if residual != NULL else NULL, y + i, m, a, b, w,
                           map_.activation, map_.slope,
                           map_.stream and in_line(y, i, last_group))
                i += LANES
        elif residual != NULL and map_.stream:
            while i + LANES <= end:
                prefetch(<const char *>(x + i) + AHEAD)
                prefetch(<const char *>(residual + i) + AHEAD)
                scale_step(x + i, residual + i, y + i, m, a, b, w, 0, 0, in_line(y, i, last_group))
                i += LANES
        elif residual != NULL:
            while i + LANES <= end:
                scale_step(x + i, residual + i, y + i, m, a, b, w, 0, 0, False)
                i += LANES
        elif map_.stream:
            if real is f16 or real is bf16:
                line = line_fill(m, a, b)
            while i + LANES <= end:
                prefetch(<const char *>(x + i) + AHEAD)
                if real is f16 or real is bf16:
                    if LINES and i + LINE <= end and past_line(y + i) == 0:
                        scale_line(x + i, y + i, &line, True)
                        i += LINE
                        continue
                scale_step(x + i, <const real *>NULL, y + i, m, a, b, 1, 0, 0,
                           in_line(y, i, last_group))
                i += LANES
        else:
            if real is f16 or real is bf16:
                line = line_fill(m, a, b)
                while LINES and i + LINE <= end:
                    scale_line(x + i, y + i, &line, False)
                    i += LINE
            while i + LANES <= end:
                scale_step(x + i, <const real *>NULL, y + i, m, a, b, 1, 0, 0, False)
                i += LANES
        c += 1
        if c == last:
            return
        m2, a2, b2 = map_.m[c], map_.a[c], map_.b[c]
        if residual != NULL:
            w2 = map_.w[c]
        if i < end:
            scale_mixed_step(x + i, residual + i if residual != NULL else NULL, y + i,
                             <int>(end - i), m, a, b, w, m2, a2, b2, w2, map_.activation,
                             map_.slope, map_.stream and in_line(y, i, last_group))
            i += LANES
        m, a, b, w = m2, a2, b2, w2


cdef void map_one_by_one(
    const real *x, const real *residual, real *y, Py_ssize_t n, Py_ssize_t c, Py_ssize_t channels,
    const Map *map_
) noexcept nogil:
    """The same as map_groups for all of some runs, without activation, not streamed. The end of
    each run is had from a vector (16-bit values: from a group) that overlaps what comes before: for
    a run of a few groups that costs less than stores that are aligned."""
    cdef Py_ssize_t k
    for k in range(c, c + channels):
        if residual != NULL:
            scale_run_step(x, residual, y, n, map_.m[k], map_.a[k], map_.b[k], map_.w[k])
            residual += n
        else:
            scale_run_step(x, <const real *>NULL, y, n, map_.m[k], map_.a[k], map_.b[k], 1)
        x += n
        y += n


cdef inline void map_runs(
    const real *x, const real *residual, real *y, Py_ssize_t n, Py_ssize_t c, Py_ssize_t channels,
    const Map *map_
) noexcept nogil:
    """The runs of some channels that follow each other, n values each. What comes before the first
    whole group and after the last is had from groups that overlap these: computed first, since y
    may be x, and stored last."""
    cdef Py_ssize_t values = n * channels, last = values - LANES
    cdef Py_ssize_t i = head_of(y, values, map_.stream)
    cdef Py_ssize_t left = (values - i) % LANES
    cdef real[LANES] head
    cdef real[LANES] tail
    if n < LANES:   # alone
        map_part(x, residual, y, n, c, map_)
        return
    if n < LONG_RUN and channels > 1 and not map_.activation and not map_.stream:
        map_one_by_one(x, residual, y, n, c, channels, map_)
        return
    if i:
        map_group(x, residual, head, c, map_)
    if left:
        map_group(x + last, residual + last if residual != NULL else NULL, tail, c + channels - 1,
                  map_)
    map_groups(x, residual, y, i, n, c, channels, map_)
    store_ends(y, values, i, left, <const real *>head, <const real *>tail, map_.stream)


cdef void map_box(
    const real *x, const First *from_, const real *residual, const First *beside, real *y,
    const First *to, Py_ssize_t run, Py_ssize_t last_run, Py_ssize_t channel,
    Py_ssize_t last_channel, Py_ssize_t start, Py_ssize_t stop, const Map *map_, Summing *meanwhile
) noexcept nogil:
    """Some runs of some channels, from start to stop of each run; and `meanwhile` sums, so that
    these are had while stores are under way."""
    cdef Py_ssize_t r, c, step = 1, at, n, most = stop - start
    cdef const real *given
    cdef const real *other = NULL
    cdef real *result
    if last_channel - channel > 1 and most == from_.length and follows(from_) and follows(to) and (
            residual == NULL or follows(beside)):
        step = last_channel - channel
    elif meanwhile != NULL:
        most = min(most, meanwhile.piece)
    for r in range(run, last_run):
        c = channel
        while c < last_channel:
            given = x + r * from_.run_stride + c * from_.channel_stride
            result = y + r * to.run_stride + c * to.channel_stride
            if residual != NULL:
                other = residual + r * beside.run_stride + c * beside.channel_stride
            at = start
            while at < stop:
                n = most
                if n < stop - at:  # pieces end where a store does
                    n -= past_line(result + at + n)
                n = min(n, stop - at)
                map_runs(given + at, other + at if other != NULL else NULL, result + at, n, c,
                         step, map_)
                at += n
                if meanwhile != NULL:
                    sum_meanwhile(x, meanwhile, n * step)
            c += step


cdef struct Tile:
    # what one task covers, and how many tiles there are along each axis
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
    if tile.length < x.length:   # pieces of one size
        tile.length = (x.length + x.length // values) // (x.length // values + 1)
        tile.length += -tile.length % 64
    tile.channels = max(<Py_ssize_t>1, min(x.channels, values // x.length))
    tile.runs = 1
    if tile.channels == x.channels:
        tile.runs = max(<Py_ssize_t>1, min(x.runs, values // (x.channels * x.length)))
    tile.along_runs = (x.runs + tile.runs - 1) // tile.runs
    tile.along_channels = (x.channels + tile.channels - 1) // tile.channels
    tile.along_length = (x.length + tile.length - 1) // tile.length
    return tile


cdef struct FirstWork:
    # what the tasks of map_first share
    const void *x
    const First *from_
    const void *residual
    const First *beside
    void *y
    const First *to
    const Map *map_
    Tile tile


cdef void map_tile(const real *work, Py_ssize_t task, Turn *turn) noexcept nogil:
    cdef const FirstWork *w = <const FirstWork *>work
    cdef const Tile *tile = &w.tile
    cdef Py_ssize_t start = (task % tile.along_length) * tile.length
    cdef Py_ssize_t channel = (task // tile.along_length % tile.along_channels) * tile.channels
    cdef Py_ssize_t run = (task // (tile.along_length * tile.along_channels)) * tile.runs
    map_box(<const real *>w.x, w.from_, <const real *>w.residual, w.beside, <real *>w.y, w.to,
            run, min(run + tile.runs, w.from_.runs),
            channel, min(channel + tile.channels, w.from_.channels),
            start, min(start + tile.length, w.from_.length), w.map_, NULL)


cdef void map_first(
    const real *x, const First *from_, const real *residual, const First *beside, real *y,
    const First *to, const Map *map_, int num_threads
) noexcept nogil:
    """The map of a whole array, channels first."""
    cdef FirstWork work
    work.x, work.from_ = x, from_
    work.residual, work.beside = residual, beside
    work.y, work.to, work.map_ = y, to, map_
    work.tile = tile_of(from_, sizeof(real))
    share(<Task>map_tile[real], &work,
          work.tile.along_runs * work.tile.along_channels * work.tile.along_length, num_threads,
          map_.order)
