"""The loops of cbn: batch statistics, the affine map and its gradient, without the GIL.

(a) Two families. Channels first: x is (N, C, L), each run of L values contiguous, whatever the
    strides of N and C. Channels last: x is (A, B, C), each row of C values contiguous. (N, C) is
    the second with A = 1.

(b) Order of summation. A channel is cut into blocks of at most BLOCK values (ROW_BLOCK rows). In a
    block, value i of a run goes to lane i % LANES of a sum of x and one of x^2, in double. Where
    the mean turns out to be more than sqrt(CANCELLING) deviations, so that digits were lost, the
    block is summed again (it is in the cache), as x - shift with the shift its mean; what follows
    is then shifted at once, by the mean of what came before. Blocks are merged in their order by
    the rule of Chan, Golub and LeVeque (1979), the mean held in two doubles. Where one channel is
    the work of several tasks, its parts are fixed by shape and type. Hence the same bits for any
    number of threads, and for every build: LANES is the same in each, and what is fused with a sum,
    the product of two floats or of a value and 1, is exact.

(c) Normalization is (x - m) * a + b in the working type, m the mean rounded to that type and its
    rounding carried into b. The form x * a + b would lose all when |mean| is far above the
    deviation.

(d) Training forward and gradient, channels first: a task takes a few channels through sums,
    coefficients and map, so that their slab is read from memory once if it fits in L2. Where y of a
    forward goes past the cache, the task sums, while it maps, the channels of the one that the same
    thread will do next, piece by piece: so reads and stores are under way together. What stays in
    the cache is faster in turns. Only where channels are too few to share out, or last, are there
    two passes over x; over few at a time, where these fill the last cache.

(e) Threads: an argument, handed down to share() of _pool.h. Each thread has a share of the tasks
    and then takes from the others, so that a core which is busy elsewhere delays a task or two and
    not half of the array. A task is a function of its work, a struct, of its number, and of the
    turn of its thread; the pointer to the struct is declared as one to the element type, by which
    Cython tells the functions apart.

(f) Rows shorter than a group of lanes, or no multiple of it, are folded: several rows are taken for
    one longer one, and the sums of a channel's columns are merged. Runs shorter than a group are
    taken for rows of C * L columns.
"""

from cython cimport view
from libc.math cimport NAN, fabs, isfinite, sqrt
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

import numpy as np

cdef extern from "_lanes.h" nogil:
    enum: LANES "CBN_LANES"
    enum: VECTOR "CBN_VECTOR"
    enum: AHEAD "CBN_AHEAD"
    ctypedef struct f16 "cbn_f16":
        unsigned short bits
    ctypedef struct bf16 "cbn_bf16":
        unsigned short bits
    ctypedef struct Lanes "cbn_f64x16":
        pass
    Lanes lanes_fill "cbn_fill"(double)
    double lanes_total "cbn_total"(const Lanes *)
    void prefetch "cbn_prefetch"(const void *)
    # x, y and their like point to the element type: the header picks by the first of them
    void squares_step "cbn_squares"(const void *x, Lanes *total, Lanes *square)
    void squares_part "cbn_squares_part"(const void *x, int n, Lanes *total, Lanes *square)
    void moments_step "cbn_moments"(const void *x, double shift, Lanes *total, Lanes *square)
    void moments_part "cbn_moments_part"(
        const void *x, int n, double shift, Lanes *total, Lanes *square)
    void plain_products_step "cbn_plain_products"(
        const void *dy, const void *x, Lanes *total, Lanes *product)
    void columns_plain_step "cbn_columns_plain"(
        const void *dy, Py_ssize_t dy_stride, const void *x, Py_ssize_t stride, int rows,
        const void *dy_ahead, const void *ahead, double *total, double *product)
    void products_step "cbn_products"(
        const void *dy, const void *x, double mean, Lanes *total, Lanes *product)
    void products_part "cbn_products_part"(
        const void *dy, const void *x, int n, double mean, Lanes *total, Lanes *product)
    void columns_step "cbn_columns"(
        const void *x, Py_ssize_t stride, int rows, const double *shift, double *total,
        double *square)
    void columns_squares_step "cbn_columns_squares"(
        const void *x, Py_ssize_t stride, int rows, const void *ahead, Py_ssize_t by,
        double *total, double *square)
    void columns_products_step "cbn_columns_products"(
        const void *dy, Py_ssize_t dy_stride, const void *x, Py_ssize_t stride, int rows,
        const double *mean, double *total, double *product)
    void scale_step "cbn_scale"(
        const void *x, const void *residual, void *y, double m, double a, double b, double w,
        int activation, double slope, bint stream)
    void scale_mixed_step "cbn_scale_mixed"(
        const void *x, const void *residual, void *y, int n, double m, double a, double b, double w,
        double m2, double a2, double b2, double w2, int activation, double slope, bint stream)
    void scale_channels_step "cbn_scale_channels"(
        const void *x, const void *residual, void *y, const void *m, const void *a, const void *b,
        const void *w, Py_ssize_t at, int activation, double slope, bint stream)
    void scale_row_step "cbn_scale_row"(
        const void *x, void *y, Py_ssize_t n, const void *m, const void *a, const void *b,
        Py_ssize_t at, bint stream)
    void scale_rows_step "cbn_scale_rows"(
        const void *x, void *y, Py_ssize_t stride, int rows, const void *ahead, const void *m,
        const void *a, const void *b, Py_ssize_t at)
    void scale_run_step "cbn_scale_run"(
        const void *x, const void *residual, void *y, Py_ssize_t n, double m, double a, double b,
        double w)
    enum: LINES "CBN_LINES"
    ctypedef struct Line "cbn_line":
        pass
    Line line_fill "cbn_line_fill"(double m, double a, double b)
    Line line_load "cbn_line_load"(
        const void *like, const void *m, const void *a, const void *b, Py_ssize_t at)
    void scale_line "cbn_scale_line"(const void *x, void *y, const Line *line, bint stream)
    void narrow "cbn_narrow"(const void *like, double value, void *narrowed, Py_ssize_t at)
    double value_of "cbn_value"(const void *x)

cdef extern from "_pool.h" nogil:
    enum: CBN_THREADED
    enum: GROUP "CBN_GROUP"     # most channels that a task of short runs takes together
    enum: LOOK_AHEAD "CBN_LOOK_AHEAD"
    enum: BACKWARDS "CBN_BACKWARDS"
    ctypedef struct Turn "cbn_turn":
        Py_ssize_t next
        bint carries
        double *kept
    ctypedef void (*Task "cbn_task")(const void *work, Py_ssize_t task, Turn *turn)
    int processors_ "cbn_processors"()
    void fence "cbn_fence"()
    void share "cbn_share"(Task run, const void *work, Py_ssize_t tasks, int num_threads, int how)

ctypedef fused real:
    float
    double
    f16
    bf16

include "_sums.pxi"
include "_columns.pxi"
include "_maps.pxi"
include "_periodic.pxi"
include "_coefficients.pxi"
include "_passes.pxi"
include "_entry.pxi"
include "_calls.pxi"
include "_batchnorm.pxi"
include "_door.pxi"
