/* Batch normalization by oneDNN (3.x), one primitive at a time, over buffers that the caller keeps. */
#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { EVAL, TRAIN, BACKWARD };

/* x: what goes in, y: what comes out, dy: what goes in besides in BACKWARD, each (N, C, A, B) in
   its layout. The others are (C,): mean and variance come out in TRAIN and go in otherwise. */
typedef struct {
    void *x, *y, *dy;
    float *mean, *variance, *scale, *shift, *dscale, *dshift;
} buffers;

typedef struct {
    dnnl_primitive_t primitive;
    dnnl_stream_t stream;
    dnnl_exec_arg_t args[9];
    int count;
} operation;

static dnnl_engine_t engine;

static int add(operation *op, int what, const_dnnl_memory_desc_t description, void *data)
{
    dnnl_exec_arg_t *argument = &op->args[op->count];
    argument->arg = what;
    if (dnnl_memory_create(&argument->memory, description, engine, data)) return 1;
    op->count++;
    return 0;
}

void onednn_free(operation *op)
{
    for (int i = 0; i < op->count; i++) dnnl_memory_destroy(op->args[i].memory);
    if (op->primitive) dnnl_primitive_destroy(op->primitive);
    if (op->stream) dnnl_stream_destroy(op->stream);
    free(op);
}

/* Returns NULL where oneDNN has no such kernel here; else writes the kernel's name. */
operation *onednn_new(int kind, const int64_t sizes[4], int channels_last, int type, float eps,
                      const buffers *b, int threads, char *name, size_t length)
{
    omp_set_num_threads(threads);
    if (!engine && dnnl_engine_create(&engine, dnnl_cpu, 0)) return NULL;
    operation *op = calloc(1, sizeof *op);
    dnnl_memory_desc_t x = NULL, c = NULL;
    dnnl_primitive_desc_t forward = NULL, backward = NULL, chosen;
    dnnl_dims_t dims = {sizes[0], sizes[1], sizes[2], sizes[3]}, channels = {sizes[1]};
    unsigned flags = dnnl_use_scale | dnnl_use_shift | (kind == EVAL ? dnnl_use_global_stats : 0);
    int failed = !op
        || dnnl_memory_desc_create_with_tag(&x, 4, dims, type, channels_last ? dnnl_nhwc : dnnl_nchw)
        || dnnl_memory_desc_create_with_tag(&c, 1, channels, dnnl_f32, dnnl_a)
        || dnnl_stream_create(&op->stream, engine, dnnl_stream_default_flags)
        || dnnl_batch_normalization_forward_primitive_desc_create(
            &forward, engine, kind == EVAL ? dnnl_forward_inference : dnnl_forward_training,
            x, x, eps, flags, NULL)
        || (kind == BACKWARD && dnnl_batch_normalization_backward_primitive_desc_create(
            &backward, engine, dnnl_backward, x, x, x, eps, flags, forward, NULL));
    if (!failed) {
        const char *text = "";
        chosen = kind == BACKWARD ? backward : forward;
        dnnl_primitive_desc_query(chosen, dnnl_query_impl_info_str, 0, &text);
        strncpy(name, text, length - 1);
        failed = dnnl_primitive_create(&op->primitive, chosen)
            || add(op, DNNL_ARG_SRC, x, b->x)
            || add(op, DNNL_ARG_MEAN, c, b->mean)
            || add(op, DNNL_ARG_VARIANCE, c, b->variance)
            || add(op, DNNL_ARG_SCALE, c, b->scale);
    }
    if (!failed && kind == BACKWARD)
        failed = add(op, DNNL_ARG_DIFF_DST, x, b->dy)
            || add(op, DNNL_ARG_DIFF_SRC, x, b->y)
            || add(op, DNNL_ARG_DIFF_SCALE, c, b->dscale)
            || add(op, DNNL_ARG_DIFF_SHIFT, c, b->dshift);
    else if (!failed)
        failed = add(op, DNNL_ARG_SHIFT, c, b->shift) || add(op, DNNL_ARG_DST, x, b->y);
    if (backward) dnnl_primitive_desc_destroy(backward);
    if (forward) dnnl_primitive_desc_destroy(forward);
    if (x) dnnl_memory_desc_destroy(x);
    if (c) dnnl_memory_desc_destroy(c);
    if (failed && op) onednn_free(op);
    return failed ? NULL : op;
}

int onednn_run(operation *op)
{
    return dnnl_primitive_execute(op->primitive, op->stream, op->count, op->args)
        || dnnl_stream_wait(op->stream);
}
