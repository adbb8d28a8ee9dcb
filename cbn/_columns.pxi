# Sums over the columns of rows: the channels, where they are last. Included by _kernels.pyx.

cdef enum:
    ROW_BLOCK = 512       # rows between two merges
    ROWS_AT_ONCE = 16     # most rows that are read together,
    ROWS_BYTES = 1 << 14    # and the bytes in them, which share the first cache with their sums
    COLUMNS = 1024        # most channels that a task of rows takes together


cdef inline Py_ssize_t row_at(const Last *shape, Py_ssize_t row) noexcept nogil:
    return (row // shape.inner) * shape.outer_stride + (row % shape.inner) * shape.inner_stride


cdef inline Py_ssize_t rows_at_once(
    const Last *shape, Py_ssize_t row, Py_ssize_t last, Py_ssize_t itemsize
) noexcept nogil:
    """Rows from `row` on that are one stride apart. Their number does not show in the sums."""
    cdef Py_ssize_t most = min(<Py_ssize_t>ROWS_AT_ONCE, ROWS_BYTES // (shape.channels * itemsize))
    return min(max(most, <Py_ssize_t>4), last - row, shape.inner - row % shape.inner)


cdef inline void rows_moments(
    const real *x, const Last *shape, Py_ssize_t row, Py_ssize_t last_row, Py_ssize_t columns,
    const double *shift, double *total, double *square
) noexcept nogil:
    """Add rows to the sums of up to COLUMNS channels, shifted where there is a shift."""
    cdef Py_ssize_t whole = columns - columns % LANES, c, k, rows, step, by
    cdef Py_ssize_t stride = shape.inner_stride
    cdef const real *at
    cdef const real *ahead
    cdef double apart
    while row < last_row:
        at = x + row_at(shape, row)
        rows = rows_at_once(shape, row, last_row, sizeof(real))
        ahead, step, by = at + rows * stride, 1, stride
        if stride == columns:
            ahead, step, by = at + ROWS_BYTES // sizeof(real), rows, LANES
        c = 0
        if shift != NULL:
            while c < whole:
                columns_step(at + c, stride, <int>rows, shift + c, total + c, square + c)
                c += LANES
        else:
            while c < whole:
                columns_squares_step(at + c, stride, <int>rows, ahead + c * step, by, total + c,
                                     square + c)
                c += LANES
        for c in range(whole, columns):
            for k in range(rows):
                apart = value_of(at + k * stride + c) - (shift[c] if shift != NULL else 0)
                total[c] += apart
                square[c] += apart * apart
        row += rows


cdef void columns_moments(
    const real *x, const Last *shape, Py_ssize_t row, Py_ssize_t last_row, Py_ssize_t columns,
    Sums *out
) noexcept nogil:
    """Statistics of up to COLUMNS neighbouring channels over some of the rows."""
    cdef double[COLUMNS] shift
    cdef double[COLUMNS] total
    cdef double[COLUMNS] square
    cdef bint shifted = False, again
    cdef Py_ssize_t last, c
    cdef double count, lost
    for c in range(columns):
        out[c].count = out[c].mean = out[c].low = out[c].m2 = shift[c] = 0
    while row < last_row:
        last = min(row + ROW_BLOCK, last_row)
        count = <double>(last - row)
        memset(total, 0, columns * sizeof(double))
        memset(square, 0, columns * sizeof(double))
        again = False
        if not shifted:
            rows_moments(x, shape, row, last, columns, <const double *>NULL, <double *>total,
                         <double *>square)
            for c in range(columns):
                lost = total[c] * (total[c] / count)
                again = again or cancelled(square[c] - lost, lost)
            if again:   # all of them: they lie in the same lines
                shifted = True
                for c in range(columns):
                    shift[c] = finite_or_zero(total[c] / count)
                memset(total, 0, columns * sizeof(double))
                memset(square, 0, columns * sizeof(double))
        if shifted:
            rows_moments(x, shape, row, last, columns, <const double *>shift, <double *>total,
                         <double *>square)
        close_blocks(out, columns, count, <const double *>shift, <const double *>total,
                     <const double *>square)
        if shifted:
            for c in range(columns):
                shift[c] = finite_or_zero(out[c].mean)
        row = last


cdef void columns_products(
    const real *dy, const Last *dy_shape, const real *x, const Last *shape, const double *mean,
    const double *rstd, Py_ssize_t row, Py_ssize_t last_row, Py_ssize_t columns, Sums *out
) noexcept nogil:
    """Sums of the gradient for up to COLUMNS neighbouring channels over some of the rows."""
    cdef double[COLUMNS] total
    cdef double[COLUMNS] product
    cdef Py_ssize_t whole = columns - columns % LANES, c, k, rows
    cdef double slope
    cdef bint shifted = False
    cdef const real *at
    cdef const real *dy_at
    cdef Py_ssize_t ahead = 0   # values to what is fetched, where rows follow each other
    cdef Py_ssize_t pilot = min(last_row - row, shape.inner - row % shape.inner)
    if shape.inner_stride == columns and dy_shape.inner_stride == columns:
        ahead = ROWS_BYTES // 2 // sizeof(real)
    memset(total, 0, columns * sizeof(double))
    memset(product, 0, columns * sizeof(double))
    for c in range(columns):
        # all of them: they share lines
        shifted = shifted or is_far(
            x + row_at(shape, row) + c, shape.inner_stride, pilot, mean[c], rstd[c])
        out[c].count, out[c].low = <double>(last_row - row), 0
    while row < last_row:
        at = x + row_at(shape, row)
        dy_at = dy + row_at(dy_shape, row)
        rows = min(rows_at_once(shape, row, last_row, sizeof(real)),
                   rows_at_once(dy_shape, row, last_row, sizeof(real)))
        c = 0
        if not shifted:
            while c < whole:
                columns_plain_step(
                    dy_at + c, dy_shape.inner_stride, at + c, shape.inner_stride, <int>rows,
                    dy_at + ahead + c * rows if ahead else NULL, at + ahead + c * rows,
                    &total[c], &product[c])
                c += LANES
        while c < whole:
            columns_products_step(dy_at + c, dy_shape.inner_stride, at + c, shape.inner_stride,
                                  <int>rows, mean + c, &total[c], &product[c])
            c += LANES
        for c in range(whole, columns):
            for k in range(rows):
                slope = value_of(dy_at + k * dy_shape.inner_stride + c)
                total[c] += slope
                product[c] += slope * (
                    value_of(at + k * shape.inner_stride + c) - (mean[c] if shifted else 0))
        row += rows
    for c in range(columns):
        out[c].mean = total[c]
        out[c].m2 = product[c]
        if not shifted and mean[c] != 0:   # 0 * inf would be NaN
            out[c].m2 -= mean[c] * total[c]
