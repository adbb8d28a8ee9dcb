# Sums over a channel: moments (forward) and products (gradient). Included by _kernels.pyx.

cdef enum:
    BLOCK = 4096          # values of a channel between two merges
    CANCELLING = 16       # mean^2 / variance from which a block is shifted
    PILOT = 8             # values of x of which one must lie this part of the mean, a quarter,
    PILOT_PART = 4        # from it, where products with dy are not shifted
    PIECE = 512           # values of a channel that are summed between others that are mapped,
    LONG_PIECE = 1536     # and, where nothing is mapped meanwhile, before those of the next channel
    ROW_RUN = 1024        # values: the longest runs of a gradient that are summed by rows,
    ROW_BYTES = 1 << 11   # and what a row of them holds at least


cdef struct Sums:
    # of a part of a channel: its moments, or in the gradient the sums of dy and of dy * (x - mean)
    double count
    double mean           # or the sum of dy
    double low            # what the mean lost when it was rounded
    double m2             # the sum of (x - mean)^2, or of dy * (x - mean)


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


# ---- one channel ---------------------------------------------------------------------------------

cdef inline void move_mean(Sums *sums, double by) noexcept nogil:
    """mean + low moves; mean is again what rounds the two (Dekker's fast two-sum)."""
    cdef double low = sums.low + by
    cdef double mean = sums.mean + low
    sums.low = low - (mean - sums.mean)
    sums.mean = mean


cdef struct Weights:
    # of two parts that are merged
    double count
    double share     # of the second
    double product   # of both counts over their sum


cdef inline Weights weigh(double count, double other) noexcept nogil:
    cdef Weights weights
    weights.count = count + other
    weights.share = other / weights.count
    weights.product = count * other / weights.count
    return weights


cdef inline void merge_by(Sums *into, const Sums *other, const Weights *weights) noexcept nogil:
    """Chan, Golub and LeVeque (1979), equation 2.1."""
    cdef double apart = (other.mean - into.mean) + (other.low - into.low)
    if isfinite(apart):
        into.m2 += other.m2 + apart * apart * weights.product
        move_mean(into, apart * weights.share)
    else:
        into.mean, into.low, into.m2 = into.mean + other.mean, 0, NAN
    into.count = weights.count


cdef inline void merge(Sums *into, const Sums *other) noexcept nogil:
    cdef Weights weights
    if into.count == 0:
        into[0] = other[0]
    elif other.count != 0:
        weights = weigh(into.count, other.count)
        merge_by(into, other, &weights)


cdef inline void add(Sums *into, const Sums *other) noexcept nogil:
    """The same for the sums of the gradient."""
    into.count += other.count
    into.mean += other.mean
    into.m2 += other.m2


cdef inline Sums closed(double count, double shift, double total, double square) noexcept nogil:
    """A block, given its sums of x - shift and (x - shift)^2."""
    cdef Sums block
    cdef double mean = total / count
    block.count, block.mean, block.low = count, shift, 0
    block.m2 = square - total * mean
    if block.m2 < 0:   # rounding alone; a NaN passes
        block.m2 = 0
    if isfinite(total):
        move_mean(&block, mean)
    else:
        block.mean = total
    return block


cdef inline void close_block(
    Sums *into, double count, double shift, double total, double square
) noexcept nogil:
    """Merge a block, given its sums of x - shift and (x - shift)^2."""
    cdef Sums block = closed(count, shift, total, square)
    merge(into, &block)


cdef inline void close_blocks(
    Sums *into, Py_ssize_t n, double count, const double *shift, const double *total,
    const double *square
) noexcept nogil:
    """The same for a block of each of n channels, which have had as many values before."""
    cdef Py_ssize_t c
    cdef Sums block
    cdef Weights weights
    if into[0].count == 0:
        for c in range(n):
            into[c] = closed(count, shift[c], total[c], square[c])
        return
    weights = weigh(into[0].count, count)
    for c in range(n):
        block = closed(count, shift[c], total[c], square[c])
        merge_by(&into[c], &block, &weights)


cdef inline bint cancelled(double left, double lost) noexcept nogil:
    """Whether what is left of a sum of squares, without lost = total^2 / count, has lost digits to
    cancellation, or to an overflow."""
    return not left * CANCELLING >= lost


cdef inline double finite_or_zero(double shift) noexcept nogil:
    """x - shift must not make a NaN of an infinite x."""
    return shift if isfinite(shift) else 0


cdef inline bint is_far(
    const real *x, Py_ssize_t stride, Py_ssize_t n, double mean, double rstd
) noexcept nogil:
    """Whether a sum of dy * x might lose digits that one of dy * (x - mean) does not. The deviation
    says so, unless the eps in it hides that x hardly varies: then none of the first of n values
    lies away from the mean. In double each product is rounded, and any mean shows."""
    cdef Py_ssize_t k
    if real is double:
        return True
    else:
        if not (mean * rstd) * (mean * rstd) <= CANCELLING:
            return True
        for k in range(min(n, <Py_ssize_t>PILOT)):
            if fabs(value_of(x + k * stride) - mean) * PILOT_PART >= fabs(mean):
                return False
        return True


# Runs of n values each, `stride` apart. The sums are copied, so that they stay in registers: the
# compiler does not always put these functions in the place of their calls. `fresh`: whether they
# begin here; what they were is not read then.

cdef inline void prefetch_group(const real *x) noexcept nogil:
    prefetch(<const char *>x + AHEAD)
    if real is double:
        prefetch(<const char *>x + AHEAD + 64)


cdef void runs_squares(
    const real *x, Py_ssize_t stride, Py_ssize_t runs, Py_ssize_t n, bint fresh, Lanes *totals,
    Lanes *squares
) noexcept nogil:
    cdef Lanes total, square
    cdef Py_ssize_t r, i
    if fresh:
        total = square = lanes_fill(0)
    else:
        total, square = totals[0], squares[0]
    for r in range(runs):
        i = 0
        while i + 2 * LANES <= n:
            prefetch_group(x + i)
            squares_step(x + i, &total, &square)
            prefetch_group(x + i + LANES)
            squares_step(x + i + LANES, &total, &square)
            i += 2 * LANES
        if i + LANES <= n:
            prefetch_group(x + i)
            squares_step(x + i, &total, &square)
            i += LANES
        if i < n:
            squares_part(x + i, <int>(n - i), &total, &square)
        x += stride
    totals[0], squares[0] = total, square


cdef void runs_moments(
    const real *x, Py_ssize_t stride, Py_ssize_t runs, Py_ssize_t n, double shift, Lanes *totals,
    Lanes *squares
) noexcept nogil:
    cdef Lanes total = totals[0], square = squares[0]
    cdef Py_ssize_t r, i
    for r in range(runs):
        i = 0
        while i + LANES <= n:
            moments_step(x + i, shift, &total, &square)
            i += LANES
        if i < n:
            moments_part(x + i, <int>(n - i), shift, &total, &square)
        x += stride
    totals[0], squares[0] = total, square


cdef void runs_products(
    const real *dy, Py_ssize_t dy_stride, const real *x, Py_ssize_t stride, Py_ssize_t runs,
    Py_ssize_t n, const double *means, bint fresh, bint each, Lanes *totals, Lanes *products
) noexcept nogil:
    """The sums of dy and dy * (x - mean), a mean of 0 not being subtracted; with `each`, those of
    each run, which has a mean of its own."""
    cdef Lanes total, product
    cdef Py_ssize_t r, i
    cdef double mean = means[0]
    for r in range(runs):
        if each:
            mean = means[r]
        if r == 0 or each:
            if fresh:
                total = product = lanes_fill(0)
            else:
                total, product = totals[0], products[0]
        i = 0
        if mean == 0:
            while i + 2 * LANES <= n:
                prefetch_group(x + i)
                prefetch_group(dy + i)
                plain_products_step(dy + i, x + i, &total, &product)
                prefetch_group(x + i + LANES)
                prefetch_group(dy + i + LANES)
                plain_products_step(dy + i + LANES, x + i + LANES, &total, &product)
                i += 2 * LANES
            if i + LANES <= n:
                prefetch_group(x + i)
                prefetch_group(dy + i)
                plain_products_step(dy + i, x + i, &total, &product)
                i += LANES
        while i + LANES <= n:
            products_step(dy + i, x + i, mean, &total, &product)
            i += LANES
        if i < n:
            products_part(dy + i, x + i, <int>(n - i), mean, &total, &product)
        x += stride
        dy += dy_stride
        if each or r == runs - 1:
            totals[0], products[0] = total, product
            totals += 1
            products += 1


# ---- channels first ------------------------------------------------------------------------------

cdef struct Block:
    # runs first..last, and start..stop within each
    Py_ssize_t first
    Py_ssize_t last
    Py_ssize_t start
    Py_ssize_t stop


cdef inline Py_ssize_t block_count(const First *x) noexcept nogil:
    """The number of blocks in a channel: pieces of runs, or several runs together."""
    if x.length >= BLOCK:
        return x.runs * ((x.length + BLOCK - 1) // BLOCK)
    cdef Py_ssize_t together = BLOCK // x.length
    return (x.runs + together - 1) // together


cdef inline Block block_at(const First *x, Py_ssize_t index) noexcept nogil:
    cdef Block block
    cdef Py_ssize_t pieces, together
    if x.length >= BLOCK:
        pieces = (x.length + BLOCK - 1) // BLOCK
        block.first = index // pieces
        block.last = block.first + 1
        block.start = (index % pieces) * BLOCK
        block.stop = min(block.start + BLOCK, x.length)
    else:
        together = BLOCK // x.length
        block.first = index * together
        block.last = min(block.first + together, x.runs)
        block.start = 0
        block.stop = x.length
    return block


cdef void shifted_block(
    const real *x, Py_ssize_t stride, const Block *block, double shift, Sums *into
) noexcept nogil:
    """Merge one block of one channel, summed as x - shift."""
    cdef Lanes total = lanes_fill(0), square = lanes_fill(0)
    cdef Py_ssize_t runs = block.last - block.first, n = block.stop - block.start
    runs_moments(x + block.first * stride + block.start, stride, runs, n, shift, &total, &square)
    close_block(into, <double>(runs * n), shift, lanes_total(&total), lanes_total(&square))


cdef struct Summing:
    # The sums of up to GROUP neighbouring channels over some of their blocks, under way: they are
    # had in pieces, so that other work can be done between these.
    const void *x            # of the first channel
    const First *from_
    const void *dy           # in the gradient, or NULL
    const First *beside
    const double *mean       # in the gradient, as rstd
    const double *rstd
    Sums *out
    Py_ssize_t channels
    Py_ssize_t piece         # values to sum at a time
    Py_ssize_t index         # of the block
    Py_ssize_t last_block
    Block block
    double count             # values in the block
    Py_ssize_t runs          # in a piece
    Py_ssize_t run           # where in the block the next piece begins
    Py_ssize_t channel
    Py_ssize_t at
    Py_ssize_t owed          # values that are to be summed meanwhile, less those that were
    bint[GROUP] shifted
    double[GROUP] shift      # in the gradient
    Lanes[GROUP] totals
    Lanes[GROUP] products    # or squares


cdef inline void begin_block(Summing *s) noexcept nogil:
    cdef Py_ssize_t length
    s.block = block_at(s.from_, s.index)
    s.run, s.channel, s.at = s.block.first, 0, s.block.start
    length = s.block.stop - s.block.start
    s.count = <double>((s.block.last - s.block.first) * length)
    s.runs = max(<Py_ssize_t>1, s.piece // length)


cdef void begin_sums(const real *like, Summing *s) noexcept nogil:
    """Ready for sum_piece, what is not under way being given."""
    cdef Py_ssize_t c
    begin_block(s)
    for c in range(s.channels):
        s.out[c].count = s.out[c].mean = s.out[c].low = s.out[c].m2 = 0
        s.shifted[c], s.shift[c] = False, 0
        if s.dy != NULL and is_far(
                <const real *>s.x + c * s.from_.channel_stride + s.block.first * s.from_.run_stride
                + s.at, 1, s.block.stop - s.at, s.mean[c], s.rstd[c]):
            s.shift[c] = s.mean[c]
    s.owed = 0


cdef inline void close_moments(const real *like, Summing *s, Py_ssize_t c) noexcept nogil:
    """The end of a block of channel c."""
    cdef Sums block
    cdef double total, mean, lost, left, shift = s.out[c].mean
    if not s.shifted[c]:
        total = lanes_total(&s.totals[c])
        mean = total / s.count
        lost = total * mean
        left = lanes_total(&s.products[c]) - lost
        if not cancelled(left, lost):
            block.count, block.mean, block.low, block.m2 = s.count, mean, 0, left
            merge(&s.out[c], &block)
            return
        s.shifted[c], shift = True, mean
    shifted_block(<const real *>s.x + c * s.from_.channel_stride, s.from_.run_stride, &s.block,
                  finite_or_zero(shift), &s.out[c])


cdef inline void close_products(Summing *s, Py_ssize_t c) noexcept nogil:
    cdef Sums sums
    sums.count = s.count
    sums.low = 0
    sums.mean = lanes_total(&s.totals[c])
    sums.m2 = lanes_total(&s.products[c])
    if s.shift[c] != s.mean[c]:   # 0 * inf would be NaN
        sums.m2 -= (s.mean[c] - s.shift[c]) * sums.mean
    add(&s.out[c], &sums)


cdef Py_ssize_t sum_piece(const real *like, Summing *s) noexcept nogil:
    """Sum about s.piece values of one channel; how many, or 0 when all is done."""
    if s.index == s.last_block:
        return 0
    cdef Py_ssize_t c = s.channel, run = s.run
    cdef Py_ssize_t n = min(s.piece, s.block.stop - s.at)
    cdef Py_ssize_t runs = min(s.runs, s.block.last - run)
    cdef bint fresh = run == s.block.first and s.at == s.block.start
    cdef Py_ssize_t stride = s.from_.run_stride, dy_stride
    cdef const real *x = <const real *>s.x + c * s.from_.channel_stride + run * stride + s.at
    cdef const real *dy
    if s.dy != NULL:
        dy_stride = s.beside.run_stride
        dy = <const real *>s.dy + c * s.beside.channel_stride + run * dy_stride + s.at
        runs_products(dy, dy_stride, x, stride, runs, n, &s.shift[c], fresh, False, &s.totals[c],
                      &s.products[c])
    elif not s.shifted[c]:
        runs_squares(x, stride, runs, n, fresh, &s.totals[c], &s.products[c])
    s.at += n
    if s.at == s.block.stop:
        s.at = s.block.start
        if run + runs == s.block.last:
            if s.dy != NULL:
                close_products(s, c)
            else:
                close_moments(like, s, c)
        s.channel += 1
        if s.channel == s.channels:
            s.channel = 0
            s.run += runs
            if s.run == s.block.last:
                s.index += 1
                if s.index < s.last_block:
                    begin_block(s)
    return n * runs


cdef void sum_block(const real *like, Summing *s) noexcept nogil:
    """Sum a block of the gradient, all channels of a run before the next run: that is the order of
    memory, which pays where runs are short. Forward, where half as much is read, it does not."""
    cdef Py_ssize_t run, c
    cdef const real *x = <const real *>s.x
    cdef const real *dy = <const real *>s.dy
    for run in range(s.block.first, s.block.last):
        runs_products(dy + run * s.beside.run_stride, s.beside.channel_stride,
                      x + run * s.from_.run_stride, s.from_.channel_stride, s.channels,
                      s.from_.length, s.shift, run == s.block.first, True, s.totals, s.products)
    for c in range(s.channels):
        close_products(s, c)
    s.index += 1
    if s.index < s.last_block:
        begin_block(s)


cdef void sum_all(const real *like, Summing *s) noexcept nogil:
    """Sum all that is left."""
    if s.dy != NULL and s.from_.length <= ROW_RUN and (
            s.channels * s.from_.length * <Py_ssize_t>sizeof(real) >= ROW_BYTES):
        while s.index < s.last_block:   # whole blocks: in a gradient nothing is mapped meanwhile
            sum_block(like, s)
    while sum_piece(like, s):
        pass


cdef inline void sum_meanwhile(
    const real *like, Summing *s, Py_ssize_t values
) noexcept nogil:
    """Sum as many values, or a few more, of which later calls do less."""
    cdef Py_ssize_t done
    s.owed += values
    while s.owed > 0:
        done = sum_piece(like, s)
        if done == 0:
            return
        s.owed -= done
