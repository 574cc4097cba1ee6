/* test_weights.c: loading weights: every rank's matrices against what model_dir_read and linear_new
 * make of the same tensors, for any size of pieces and number of threads; and files that are
 * damaged, cut off or changed on the way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/util.h"
#include "kernels/cpu/cpu.h"
#include "kernels/feed.h"
#include "model/quant.h"
#include "model/shard.h"
#include "model/synthetic.h"
#include "tests/unit/model/support.h"
#include "worker/engine/weights.h"

#define ONE_FILE "model-00001-of-00001.safetensors"

/* ---- the same rank without pieces ---- */

/* Reads slices one behind the other. */
static void *read_slices(const struct model_dir *d, const struct st_tensor *t,
                         const struct model_slice *slices, size_t n)
{
    size_t element = st_dtype_bytes(t->dtype), bytes = 0;
    for (size_t i = 0; i != n; i++)
        bytes += (size_t)(slices[i].n_rows * slices[i].n_cols) * element;
    char *to = malloc(bytes);
    assert_non_null(to);
    size_t at = 0;
    for (size_t i = 0; i != n; i++) {
        struct err e = ERR_INIT;
        if (model_dir_read(d, t, &slices[i], to + at, &e) < 0)
            fail_msg("%s", e.message);
        at += (size_t)(slices[i].n_rows * slices[i].n_cols) * element;
    }
    return to;
}

static void check_linear(const struct weights_load *load, const char *part, bool with_bias,
                         const struct k_linear *got)
{
    const struct model_dir *d = load->model;
    const struct quant_scheme *scheme = model_dir_scheme(d);
    char name[128];
    struct shard_tensor shard;
    struct shard_piece pieces[2];
    struct model_slice weight[2], scale[2], bias[2];
    snprintf(name, sizeof name, "%s.weight", part);
    assert_int_equal(shard_find(model_dir_arch(d), name, &shard), 0);
    bool quantized = quant_applies(scheme, &shard);
    uint32_t per = quantized && scheme->weights == QUANT_INT4 ? 2 : 1;
    size_t n = shard_pieces(&shard, load->tp_size, load->tp_rank, pieces);
    struct k_linear_src src = {.type = quantized ? (enum k_weight)scheme->weights : K_WEIGHT_F16,
                               .cols = (uint32_t)pieces[0].n_cols,
                               .n_groups = 1,
                               .group_cols = (uint32_t)pieces[0].n_cols};
    for (size_t i = 0; i != n; i++) {
        struct quant_groups g = {0};
        weight[i] = (struct model_slice){pieces[i].row0, pieces[i].n_rows, pieces[i].col0 / per,
                                         pieces[i].n_cols / per};
        bias[i] = (struct model_slice){0, 1, pieces[i].row0, pieces[i].n_rows};
        src.rows += (uint32_t)pieces[i].n_rows;
        if (!quantized)
            continue;
        assert_int_equal(quant_piece_groups(scheme, &shard, &pieces[i], &g, NULL), 0);
        scale[i] = (struct model_slice){pieces[i].row0, pieces[i].n_rows, g.group0, g.n_groups};
        src.n_groups = g.n_groups;
        src.group_cols = g.group_cols;
    }
    void *data = read_slices(d, model_dir_find(d, name), weight, n), *scales = NULL, *biases = NULL;
    if (quantized) {
        snprintf(name, sizeof name, "%s.weight_scale", part);
        scales = read_slices(d, model_dir_find(d, name), scale, n);
    }
    if (with_bias) {
        snprintf(name, sizeof name, "%s.bias", part);
        biases = read_slices(d, model_dir_find(d, name), bias, n);
    }
    src.data = data;
    src.scale = scales;
    src.bias = biases;
    struct k_linear *want = load->ops->linear_new(load->ctx, &src);
    assert_non_null(want);
    if (want->shape.matrix_bytes != got->shape.matrix_bytes)
        fail_msg("%s, rank %u of %u: %zu bytes, expected %zu", part, load->tp_rank, load->tp_size,
                 got->shape.matrix_bytes, want->shape.matrix_bytes);
    for (size_t i = 0; i != want->shape.matrix_bytes; i++)
        if (want->panels[i] != got->panels[i])
            fail_msg("%s, rank %u of %u: byte %zu is %02x, expected %02x", part, load->tp_rank,
                     load->tp_size, i, got->panels[i], want->panels[i]);
    assert_memory_equal(want->bias, got->bias, src.rows * sizeof *want->bias);
    load->ops->linear_free(load->ctx, want);
    free(data);
    free(scales);
    free(biases);
}

/* The INT8 head: this rank's rows of the embedding, quantized as a whole. */
static void check_head(const struct weights_load *load, const struct k_linear *got)
{
    static const struct quant_scheme scheme = {.weights = QUANT_INT8, .group = QUANT_GROUP_ROW};
    const struct st_tensor *t = model_dir_find(load->model, "transformer.word_embeddings.weight");
    uint64_t rows = st_rows(t) / load->tp_size, cols = st_cols(t);
    const struct model_slice mine = {load->tp_rank * rows, rows, 0, cols};
    uint16_t *weights = read_slices(load->model, t, &mine, 1), *scale = malloc(rows * 2);
    uint8_t *values = malloc(rows * cols);
    assert_true(scale && values);
    quant_rows(&scheme, weights, rows, cols, 1, values, scale);
    const struct k_linear_src src = {.type = K_WEIGHT_I8,
                                     .rows = (uint32_t)rows,
                                     .cols = (uint32_t)cols,
                                     .n_groups = 1,
                                     .group_cols = (uint32_t)cols,
                                     .data = values,
                                     .scale = scale};
    struct k_linear *want = load->ops->linear_new(load->ctx, &src);
    assert_non_null(want);
    assert_int_equal(want->shape.matrix_bytes, got->shape.matrix_bytes);
    assert_memory_equal(want->panels, got->panels, want->shape.matrix_bytes);
    load->ops->linear_free(load->ctx, want);
    free(weights);
    free(scale);
    free(values);
}

/* The bias of a row-parallel linear, which every rank has whole. */
static void check_bias(const struct weights_load *load, const char *name, const struct k_bias *got)
{
    const struct st_tensor *t = model_dir_find(load->model, name);
    const struct model_slice all = {0, 1, 0, st_cols(t)};
    uint16_t *values = read_slices(load->model, t, &all, 1);
    struct k_bias *want = load->ops->bias_new(load->ctx, values, (uint32_t)st_cols(t));
    assert_memory_equal(want->values, got->values, want->cols * sizeof *want->values);
    load->ops->bias_free(load->ctx, want);
    free(values);
}

static void check_weights(const struct weights_load *load, const struct glm_weights *w)
{
    char part[96];
    if (w->embedding)
        check_linear(load, "transformer.word_embeddings", false, w->embedding);
    assert_int_equal(w->head != NULL, model_dir_scheme(load->model)->head_int8);
    if (w->head)
        check_head(load, w->head);
    for (uint32_t i = 0; i != w->n_layers; i++) {
        const struct glm_layer *l = &w->layers[i];
        const struct {
            const char *name;
            bool bias;
            const struct k_linear *linear;
        } linears[] = {{"attention.query_key_value", true, l->qkv},
                       {"attention.dense", false, l->dense},
                       {"mlp.dense_h_to_4h", true, l->h_to_4h},
                       {"mlp.dense_4h_to_h", false, l->four_h_to_h}};
        for (size_t k = 0; k != ARRAY_LEN(linears); k++) {
            snprintf(part, sizeof part, "transformer.layers.%u.%s", load->layer_begin + i,
                     linears[k].name);
            check_linear(load, part, linears[k].bias, linears[k].linear);
        }
        snprintf(part, sizeof part, "transformer.layers.%u.mlp.dense_4h_to_h.bias",
                 load->layer_begin + i);
        check_bias(load, part, l->four_h_to_h_bias);
        assert_non_null(l->input_norm);
        assert_non_null(l->post_norm);
    }
    assert_non_null(w->exit_norm);
}

/* ---- a device that wants other pieces ---- */

static struct k_feed_ops feed;
static struct k_ops ops;

static struct k_ctx *open_cpu(const struct model_dir *d, size_t piece_bytes, uint32_t piece_rows,
                              bool direct)
{
    char message[256] = "";
    const struct k_ops *cpu = k_backend("cpu", message, sizeof message);
    assert_non_null(cpu);
    feed = *cpu->feed;
    feed.piece_bytes = piece_bytes;
    feed.piece_rows = piece_rows;
    feed.direct = direct;
    ops = *cpu;
    ops.feed = &feed;
    const struct arch *a = model_dir_arch(d);
    const struct k_open_params p = {.device = "cpu",
                                    .mode = K_MODE_FP32,
                                    .n_threads = 2,
                                    .max_rows = 1,
                                    .max_cols = MAX(a->hidden, a->inner),
                                    .max_seq = 1};
    struct k_ctx *c;
    if (ops.open(&p, &c, message, sizeof message) < 0)
        fail_msg("%s", message);
    return c;
}

static struct weights_load load_of(const struct model_dir *d, struct k_ctx *c)
{
    return (struct weights_load){
        .model = d, .ops = &ops, .ctx = c, .tp_size = 1, .layer_end = model_dir_arch(d)->n_layers};
}

/* The page cache forgets the file, where it can: direct reads are for what it does not hold. */
static void forget(const char *model)
{
    char *path = path_in(model, ONE_FILE);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    (void)fsync(fd);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    free(path);
}

struct way {
    size_t piece_bytes;
    uint32_t piece_rows, n_threads;
    bool verify, direct;
};

static const struct way ways[] = {{1, 16, 1, true, false},        {1, 16, 3, false, false},
                                  {4096, 16, 2, true, false},     {5000, 48, 4, false, false},
                                  {1 << 20, 128, 2, true, true},  {1, 128, 1, false, true},
                                  {256 << 10, 16, 8, true, false}};

static void check_model(const struct model_dir *d, const char *path, uint32_t tp)
{
    for (size_t i = 0; i != ARRAY_LEN(ways); i++) {
        const struct way *way = &ways[i];
        struct k_ctx *c = open_cpu(d, way->piece_bytes, way->piece_rows, way->direct);
        struct weights_load load = load_of(d, c);
        load.tp_size = tp;
        load.verify = way->verify;
        load.n_threads = way->n_threads;
        for (load.tp_rank = 0; load.tp_rank != tp; load.tp_rank += MAX(1u, tp / 3)) {
            struct glm_weights w;
            struct err e = ERR_INIT;
            if (path && way->direct)
                forget(path);
            if (weights_load(&load, &w, &e) < 0)
                fail_msg("way %zu, rank %u of %u: %s", i, load.tp_rank, tp, e.message);
            check_weights(&load, &w);
            assert_true(w.loaded.n_threads >= way->n_threads);
            assert_true(w.loaded.read_bytes >= w.loaded.bytes);
            weights_free(&ops, c, &w);
            if (load.tp_rank + 1 == tp)
                break;
        }
        ops.close(c);
    }
}

/* From the disk: more threads than were asked for. */
static void test_cold(void **state)
{
    (void)state;
    char *scratch = scratch_new(), *path = path_in(scratch, "model");
    convert_golden_ok("ckpt-int4-tp4", path, NULL, NULL);
    struct model_dir *d = open_model_ok(path);
    const struct st_tensor *t = model_dir_find(d, "transformer.layers.0.mlp.dense_h_to_4h.weight");
    assert_non_null(t);
    bool skipped = false;
    for (uint32_t i = 0; i != 2 && !skipped; i++) {
        struct k_ctx *c = open_cpu(d, 256 << 10, 16, false);
        struct weights_load load = load_of(d, c);
        struct glm_weights w;
        struct err e = ERR_INIT;
        load.n_threads = 2;
        load.verify = i == 1;
        forget(path);
        skipped = model_dir_is_cached(d, t); /* a file system in memory */
        if (weights_load(&load, &w, &e) < 0)
            fail_msg("%s", e.message);
        if (!skipped)
            assert_int_equal(w.loaded.n_threads, 16);
        check_weights(&load, &w);
        weights_free(&ops, c, &w);
        ops.close(c);
    }
    model_dir_close(d);
    free(path);
    scratch_remove(scratch);
    if (skipped)
        skip();
}

static void test_converted(void **state)
{
    (void)state;
    static const struct {
        const char *checkpoint, *weights, *group;
    } models[] = {{"ckpt-int4-tp4", NULL, NULL},
                  {"ckpt-int8-tp2", NULL, NULL},
                  {"ckpt-fp16-tp1", NULL, NULL},
                  {"ckpt-fp16-tp1", "int4", "32"}};
    for (size_t i = 0; i != ARRAY_LEN(models); i++) {
        char *scratch = scratch_new(), *path = path_in(scratch, "model");
        convert_golden_ok(models[i].checkpoint, path, models[i].weights, models[i].group);
        struct model_dir *d = open_model_ok(path);
        for (uint32_t tp = 1; tp <= (models[i].group ? 2u : 4u); tp *= 2)
            check_model(d, path, tp);
        model_dir_close(d);
        free(path);
        scratch_remove(scratch);
    }
}

static void test_synthetic(void **state)
{
    (void)state;
    struct arch a;
    assert_int_equal(synthetic_arch("glm-tiny", 1, &a), 0);
    static const struct quant_scheme schemes[] = {
        {QUANT_INT4, QUANT_GROUP_ROW, 0, .head_int8 = true},
        {QUANT_INT8, QUANT_GROUP_COLS, 64, .head_int8 = false}};
    for (size_t i = 0; i != ARRAY_LEN(schemes); i++) {
        struct model_dir *d;
        struct err e = ERR_INIT;
        if (model_dir_synthetic(&a, &schemes[i], 3, &d, &e) < 0)
            fail_msg("%s", e.message);
        check_model(d, NULL, 1);
        check_model(d, NULL, 8);
        if (schemes[i].group == QUANT_GROUP_ROW)
            check_model(d, NULL, 64);
        model_dir_close(d);
    }
}

/* ---- files that are not what they were ---- */

struct fault {
    const char *path; /* of the file with the weights */
    enum { NOTHING, TRUNCATE, TOUCH, CANCEL } what;
    uint32_t at, n_calls; /* the call of on_progress that does it */
    uint64_t done;
};

static int cause(void *context, uint64_t done, uint64_t total)
{
    struct fault *f = context;
    assert_true(done >= f->done && done <= total);
    f->done = done;
    if (++f->n_calls != f->at)
        return 0;
    if (f->what == TRUNCATE)
        assert_int_equal(truncate(f->path, 4096), 0);
    if (f->what == TOUCH) {
        const struct timespec times[2] = {{1000, 0}, {1000, 0}};
        assert_int_equal(utimensat(AT_FDCWD, f->path, times, 0), 0);
    }
    return f->what == CANCEL;
}

/* Loads in every way; every one of them must fail so. */
static void check_fails(const struct model_dir *d, struct fault *f, bool only_verified, int code,
                        const char *words)
{
    for (size_t i = 0; i != ARRAY_LEN(ways); i++) {
        if (only_verified && !ways[i].verify)
            continue;
        struct k_ctx *c = open_cpu(d, ways[i].piece_bytes, ways[i].piece_rows, ways[i].direct);
        struct weights_load load = load_of(d, c);
        load.verify = ways[i].verify;
        load.n_threads = ways[i].n_threads;
        if (f) {
            f->n_calls = 0;
            f->done = 0;
            load.on_progress = cause;
            load.progress_context = f;
        }
        struct glm_weights w;
        struct err e = ERR_INIT;
        int r = weights_load(&load, &w, &e);
        if (r != code || !strstr(e.message, words))
            fail_msg("way %zu: %d \"%s\", expected %d \"%s\"", i, r, e.message, code, words);
        assert_null(w.layers);
        ops.close(c);
    }
}

/* A model of its own for a test that spoils it. */
struct spoiled {
    char *scratch, *model, *file;
    struct model_dir *dir;
};

static struct spoiled spoiled_new(void)
{
    struct spoiled s = {.scratch = scratch_new()};
    s.model = path_in(s.scratch, "model");
    convert_golden_ok("ckpt-int4-tp4", s.model, NULL, NULL);
    s.file = path_in(s.model, ONE_FILE);
    s.dir = open_model_ok(s.model);
    return s;
}

static void spoiled_free(struct spoiled *s)
{
    model_dir_close(s->dir);
    free(s->file);
    free(s->model);
    scratch_remove(s->scratch);
}

/* A bit in the middle of a tensor, which another rank may own. */
static void test_damage(void **state)
{
    (void)state;
    static const char *const names[] = {"transformer.word_embeddings.weight",
                                        "transformer.layers.1.mlp.dense_4h_to_h.weight",
                                        "transformer.layers.0.attention.dense.weight_scale",
                                        "transformer.layers.0.input_layernorm.weight",
                                        "transformer.layers.1.attention.query_key_value.bias"};
    for (size_t i = 0; i != ARRAY_LEN(names); i++) {
        struct spoiled s = spoiled_new();
        const struct st_tensor *t = model_dir_find(s.dir, names[i]);
        struct stat before;
        assert_int_equal(stat(s.file, &before), 0);
        int fd = open(s.file, O_RDWR | O_CLOEXEC);
        uint8_t byte;
        off_t at = (off_t)(t->offset + t->bytes - 1);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
        check_fails(s.dir, NULL, true, -EBADMSG, names[i]);
        check_fails(s.dir, NULL, true, -EBADMSG, "the file is damaged");
        spoiled_free(&s);
    }
}

static void test_truncated(void **state)
{
    (void)state;
    struct spoiled s = spoiled_new();
    assert_int_equal(truncate(s.file, 4096), 0);
    check_fails(s.dir, NULL, false, -EBADMSG, "the file is truncated");
    spoiled_free(&s);
    s = spoiled_new();
    struct fault f = {.path = s.file, .what = TRUNCATE, .at = 2};
    check_fails(s.dir, &f, false, -EBADMSG, ONE_FILE);
    spoiled_free(&s);
}

static void test_changed(void **state)
{
    (void)state;
    struct spoiled s = spoiled_new();
    struct fault f = {.path = s.file, .what = TOUCH, .at = 3};
    check_fails(s.dir, &f, false, -EBADMSG, "was changed while it was read");
    spoiled_free(&s);
}

static void test_cancelled(void **state)
{
    (void)state;
    struct spoiled s = spoiled_new();
    for (uint32_t at = 1; at < 18; at += 4) {
        struct fault f = {.path = s.file, .what = CANCEL, .at = at};
        check_fails(s.dir, &f, false, -ECANCELED, "cancelled");
    }
    spoiled_free(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_converted), cmocka_unit_test(test_synthetic),
        cmocka_unit_test(test_damage),    cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_changed),   cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_cold),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
