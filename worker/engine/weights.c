/* weights.c: see weights.h. The calling thread goes through the parts of the stage, one linear,
 * norm or bias each, in the order of the file: it checks that their tensors are what the
 * architecture says, makes their objects on the device, and reads what is small. What is large it
 * leaves to the readers of weights_stream.c, who begin at once.
 */
#include "worker/engine/weights.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "kernels/feed.h"
#include "kernels/sizes.h"
#include "model/checksum.h"
#include "model/quant.h"
#include "model/shard.h"
#include "worker/engine/weights_stream.h"

/* ---- what there is to load ---- */

enum part_kind { PART_LINEAR, PART_HEAD, PART_NORM, PART_BIAS };

/* One thing that the forward pass uses. */
struct part {
    enum part_kind kind;
    char name[80];  /* tensor name without ".weight" / ".bias" */
    bool with_bias; /* PART_LINEAR: the bias belongs to this rank's rows and is added by linear() */
    bool glu;       /* PART_LINEAR: its rows are two halves of a gated unit */
    void **place;   /* where the packed object goes, inside the weights */
};

enum { PARTS_PER_LAYER = 8 };

/* The embedding is on the first stage and, as the output head, on the last. */
static bool has_embedding(const struct arch *a, uint32_t layer_begin, uint32_t layer_end)
{
    return layer_begin == 0 || layer_end == a->n_layers;
}

struct weights_embedding weights_embedding(const struct arch *a, const struct quant_scheme *s,
                                           uint32_t layer_begin, uint32_t layer_end)
{
    bool last = layer_end == a->n_layers;
    return (struct weights_embedding){.fp16 = layer_begin == 0 || (last && !s->head_int8),
                                      .int8_head = last && s->head_int8};
}

static struct weights_embedding embedding_of(const struct weights_load *in)
{
    return weights_embedding(model_dir_arch(in->model), model_dir_scheme(in->model),
                             in->layer_begin, in->layer_end);
}

static size_t n_parts(const struct weights_load *in)
{
    size_t n_layers = in->layer_end - in->layer_begin;
    const struct weights_embedding use = embedding_of(in);
    return (size_t)use.fp16 + use.int8_head + n_layers * PARTS_PER_LAYER + 1;
}

/* Name of the norm behind the last layer of a stage, without ".weight" and ".bias". */
static void exit_norm_name(const struct arch *a, uint32_t layer_end, char name[80])
{
    if (layer_end == a->n_layers)
        snprintf(name, 80, "transformer.final_layernorm");
    else
        snprintf(name, 80, "transformer.layers.%u.input_layernorm", layer_end);
}

bool weights_stage_needs(const struct arch *a, uint32_t layer_begin, uint32_t layer_end, size_t idx)
{
    /* File order: the embedding; of every layer the input norm (weight, bias), then the rest; the
     * final norm (weight, bias). */
    enum { N_NORM = 2 };
    size_t per_layer = (shard_n_tensors(a) - 1 - N_NORM) / a->n_layers;
    if (idx == 0)
        return has_embedding(a, layer_begin, layer_end);
    size_t begin = 1 + layer_begin * per_layer;
    return idx >= begin && idx < 1 + layer_end * per_layer + N_NORM;
}

static void set_part(struct part *p, enum part_kind kind, bool with_bias, void *place)
{
    p->kind = kind;
    p->with_bias = with_bias;
    p->place = place;
}

/* Part `idx` of the stage: embedding, INT8 head, layers, the norm behind them. */
static struct part part_at(const struct arch *a, const struct weights_load *in,
                           struct glm_weights *w, size_t idx)
{
    struct part p = {0};
    const struct weights_embedding use = embedding_of(in);
    size_t n_before = (size_t)use.fp16 + use.int8_head;
    if (idx < n_before) {
        if (idx == 0 && use.fp16)
            set_part(&p, PART_LINEAR, false, &w->embedding);
        else
            set_part(&p, PART_HEAD, false, &w->head);
        snprintf(p.name, sizeof p.name, "transformer.word_embeddings");
        return p;
    }
    if (idx == n_parts(in) - 1) {
        set_part(&p, PART_NORM, false, &w->exit_norm);
        exit_norm_name(a, in->layer_end, p.name);
        return p;
    }
    size_t layer_idx = (idx - n_before) / PARTS_PER_LAYER;
    struct glm_layer *l = &w->layers[layer_idx];
    const struct {
        const char *name;
        enum part_kind kind;
        bool with_bias;
        void *place;
    } table[PARTS_PER_LAYER] = {
        {"input_layernorm", PART_NORM, false, &l->input_norm},
        {"attention.query_key_value", PART_LINEAR, true, &l->qkv},
        {"attention.dense", PART_LINEAR, false, &l->dense},
        {"attention.dense", PART_BIAS, false, &l->dense_bias},
        {"post_attention_layernorm", PART_NORM, false, &l->post_norm},
        {"mlp.dense_h_to_4h", PART_LINEAR, true, &l->h_to_4h},
        {"mlp.dense_4h_to_h", PART_LINEAR, false, &l->four_h_to_h},
        {"mlp.dense_4h_to_h", PART_BIAS, false, &l->four_h_to_h_bias},
    };
    size_t i = (idx - n_before) % PARTS_PER_LAYER;
    set_part(&p, table[i].kind, table[i].with_bias, table[i].place);
    p.glu = table[i].place == (void *)&l->h_to_4h;
    snprintf(p.name, sizeof p.name, "transformer.layers.%zu.%s", in->layer_begin + layer_idx,
             table[i].name);
    return p;
}

/* ---- loading ---- */

struct vector {
    uint16_t *values; /* this rank's */
    uint16_t *whole;  /* as stored */
    size_t cap;       /* bytes of either, kept from part to part */
};

struct loader {
    const struct weights_load *in;
    const struct arch *arch;
    const struct quant_scheme *scheme;
    struct glm_weights *out;
    struct stream *stream;
    /* owned */
    struct vector weight, bias;
    /* state */
    uint64_t total, small; /* bytes in all, bytes read on this thread */
};

/* Finds a tensor and checks that it is what the architecture says. */
static int find_tensor(const struct loader *l, const char *name, enum st_dtype dtype, uint64_t rows,
                       uint64_t cols, const struct st_tensor **ret, struct err *e)
{
    const struct st_tensor *t = model_dir_find(l->in->model, name);
    if (!t)
        return err_set(e, -EINVAL, "%s: tensor %s is missing; convert the model again",
                       model_dir_path(l->in->model), name);
    if (t->dtype != dtype || st_rows(t) != rows || st_cols(t) != cols)
        return err_set(
            e, -EINVAL,
            "%s: tensor %s: expected %s [%llu, %llu], found %s [%llu, %llu]; convert the "
            "model again",
            model_dir_path(l->in->model), name, st_dtype_name(dtype), (unsigned long long)rows,
            (unsigned long long)cols, st_dtype_name(t->dtype), (unsigned long long)st_rows(t),
            (unsigned long long)st_cols(t));
    *ret = t;
    return 0;
}

static int grow(struct vector *v, size_t bytes)
{
    if (bytes <= v->cap)
        return 0;
    free(v->values);
    free(v->whole);
    v->values = malloc(bytes);
    v->whole = malloc(bytes);
    v->cap = v->values && v->whole ? bytes : 0;
    return v->cap ? 0 : -ENOMEM;
}

static int verify_vector(const struct loader *l, const struct st_tensor *t, const void *bytes,
                         struct err *e)
{
    struct checksum_state *sum = checksum_new();
    struct checksum found;
    if (!sum)
        return err_set(e, -ENOMEM, "out of memory");
    checksum_update(sum, bytes, (size_t)t->bytes);
    checksum_final(sum, &found);
    checksum_free(sum);
    return model_dir_check_sum(l->in->model, t, &found, e);
}

/* A 1-D tensor (norm weight or bias, linear bias): this rank's elements. */
static int read_vector(struct loader *l, const char *name, struct vector *v, struct err *e)
{
    struct shard_tensor shard;
    if (shard_find(l->arch, name, &shard) < 0)
        return err_set(e, -EINVAL, "tensor %s does not belong to this architecture", name);
    const struct st_tensor *t = NULL;
    int r = find_tensor(l, name, ST_F16, 1, shard.rows, &t, e);
    if (r < 0)
        return r;
    assert(t);
    if (grow(v, (size_t)t->bytes) < 0)
        return err_set(e, -ENOMEM, "out of memory: %llu bytes for tensor %s",
                       (unsigned long long)t->bytes, t->name);
    r = model_dir_read_bytes(l->in->model, t, 0, (size_t)t->bytes, v->whole, e);
    if (r == 0 && l->in->verify && !model_dir_is_synthetic(l->in->model))
        r = verify_vector(l, t, v->whole, e);
    if (r < 0)
        return r;
    struct shard_piece pieces[2];
    size_t n = shard_pieces(&shard, l->in->tp_size, l->in->tp_rank, pieces), at = 0;
    for (size_t i = 0; i != n; i++) {
        memcpy(v->values + at, v->whole + pieces[i].row0, pieces[i].n_rows * sizeof *v->values);
        at += pieces[i].n_rows;
    }
    l->small += at * sizeof *v->values;
    return 0;
}

static enum st_dtype stored_dtype(enum quant_weights w)
{
    return w == QUANT_INT4 ? ST_U8 : w == QUANT_INT8 ? ST_I8 : ST_F16;
}

/* A linear: its shape on this rank, and where weights and scales lie. */
struct linear_part {
    struct k_linear_src shape;
    struct stream_job weight, scale; /* scale: n_slices 0 = none */
};

/* The scales of this rank's pieces. */
static int find_scales(const struct loader *l, const struct shard_tensor *shard,
                       const struct shard_piece *pieces, size_t n, struct linear_part *ret,
                       struct err *e)
{
    char name[112];
    snprintf(name, sizeof name, "%s_scale", shard->name);
    struct stream_job *job = &ret->scale;
    int r = find_tensor(l, name, ST_F16, shard->rows, quant_n_groups(l->scheme, shard),
                        &job->tensor, e);
    for (size_t i = 0; i != n && r == 0; i++) {
        struct quant_groups groups;
        r = quant_piece_groups(l->scheme, shard, &pieces[i], &groups, e);
        if (r < 0)
            break;
        job->slices[i] =
            (struct model_slice){pieces[i].row0, pieces[i].n_rows, groups.group0, groups.n_groups};
        /* Pieces of one rank differ in rows only. */
        ret->shape.n_groups = groups.n_groups;
        ret->shape.group_cols = groups.group_cols;
    }
    job->n_slices = n;
    job->scales = true;
    return r;
}

static int find_linear(const struct loader *l, const struct part *p, struct linear_part *ret,
                       struct err *e)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", p->name);
    struct shard_tensor shard;
    if (shard_find(l->arch, name, &shard) < 0)
        return err_set(e, -EINVAL, "tensor %s does not belong to this architecture", name);
    bool quantized = quant_applies(l->scheme, &shard);
    enum quant_weights w = quantized ? l->scheme->weights : QUANT_FP16;
    uint64_t row_elements = w == QUANT_INT4 ? quant_row_bytes(w, shard.cols) : shard.cols;
    struct stream_job *job = &ret->weight;
    *ret = (struct linear_part){0};
    int r = find_tensor(l, name, stored_dtype(w), shard.rows, row_elements, &job->tensor, e);
    if (r < 0)
        return r;
    struct shard_piece pieces[2];
    size_t n = shard_pieces(&shard, l->in->tp_size, l->in->tp_rank, pieces);
    uint32_t per_element = w == QUANT_INT4 ? 2 : 1; /* columns in a stored element */
    uint64_t rows = 0;
    for (size_t i = 0; i != n; i++) {
        if (pieces[i].col0 % per_element || pieces[i].n_cols % per_element)
            return err_set(e, -EINVAL,
                           "tensor %s: %u ranks split it inside a byte of two INT4 columns", name,
                           l->in->tp_size);
        job->slices[i] =
            (struct model_slice){pieces[i].row0, pieces[i].n_rows, pieces[i].col0 / per_element,
                                 pieces[i].n_cols / per_element};
        rows += pieces[i].n_rows;
    }
    job->n_slices = n;
    ret->shape = (struct k_linear_src){.type = (enum k_weight)w,
                                       .rows = (uint32_t)rows,
                                       .cols = (uint32_t)pieces[0].n_cols,
                                       .glu = p->glu,
                                       .n_groups = 1, /* find_scales knows better */
                                       .group_cols = (uint32_t)pieces[0].n_cols};
    return quantized ? find_scales(l, &shard, pieces, n, ret, e) : 0;
}

static int no_device_memory(const struct loader *l, const struct part *p, struct err *e)
{
    return err_set(e, -ENOMEM,
                   "out of device memory at %s after %.2f GB of weights: use more ranks or a "
                   "smaller weight type",
                   p->name, (double)l->out->bytes / 1e9);
}

static int begin_linear(struct loader *l, const struct part *p, struct err *e)
{
    const struct k_ops *ops = l->in->ops;
    char name[96];
    struct linear_part found;
    int r = find_linear(l, p, &found, e);
    snprintf(name, sizeof name, "%s.bias", p->name);
    if (r == 0 && p->with_bias)
        r = read_vector(l, name, &l->bias, e);
    if (r < 0)
        return r;
    if (p->kind == PART_HEAD) {
        found.shape.type = K_WEIGHT_I8;
        found.weight.to_int8 = true;
    }
    const struct k_linear_src *shape = &found.shape;
    found.shape.bias = p->with_bias ? l->bias.values : NULL;
    struct k_linear *linear = ops->feed->linear_begin(l->in->ctx, shape);
    if (!linear)
        return no_device_memory(l, p, e);
    *p->place = linear;
    l->out->bytes +=
        ops->linear_bytes(l->in->ctx, shape->type, shape->rows, shape->cols, shape->n_groups);
    found.weight.to = found.scale.to = linear;
    r = stream_push(l->stream, &found.weight, e);
    if (r == 0 && found.scale.n_slices)
        r = stream_push(l->stream, &found.scale, e);
    return r;
}

static int load_small(struct loader *l, const struct part *p, struct err *e)
{
    const struct k_ops *ops = l->in->ops;
    uint32_t hidden = l->arch->hidden;
    char name[96];
    int r = 0;
    if (p->kind == PART_NORM) {
        snprintf(name, sizeof name, "%s.weight", p->name);
        r = read_vector(l, name, &l->weight, e);
    }
    snprintf(name, sizeof name, "%s.bias", p->name);
    if (r == 0)
        r = read_vector(l, name, &l->bias, e);
    if (r < 0)
        return r;
    if (p->kind == PART_NORM) {
        *p->place =
            ops->norm_new(l->in->ctx, K_NORM_LAYER, l->weight.values, l->bias.values, hidden);
        l->out->bytes += k_sizes(ops->name)->norm_bytes(hidden);
    } else {
        *p->place = ops->bias_new(l->in->ctx, l->bias.values, hidden);
        l->out->bytes += k_sizes(ops->name)->bias_bytes(hidden);
    }
    return *p->place ? 0 : no_device_memory(l, p, e);
}

/* Bytes of one stored tensor that this rank reads. */
static uint64_t share_of(const struct loader *l, const struct shard_tensor *shard,
                         const struct st_tensor *t, bool scales)
{
    struct shard_piece pieces[2];
    size_t n = shard_pieces(shard, l->in->tp_size, l->in->tp_rank, pieces);
    uint64_t elements = 0; /* logical */
    for (size_t i = 0; i != n; i++) {
        struct quant_groups groups = {0};
        if (scales)
            quant_piece_groups(l->scheme, shard, &pieces[i], &groups, NULL);
        elements += pieces[i].n_rows * (scales ? groups.n_groups : pieces[i].n_cols);
    }
    if (scales || !elements)
        return elements * sizeof(uint16_t);
    return t->bytes / (shard->rows * shard->cols / elements);
}

/* Bytes that this rank will read, for the progress report; tensors that do not exist count 0. */
static uint64_t total_bytes(const struct loader *l)
{
    uint64_t total = 0;
    for (size_t i = 0; i != shard_n_tensors(l->arch); i++) {
        struct shard_tensor shard;
        if (!weights_stage_needs(l->arch, l->in->layer_begin, l->in->layer_end, i))
            continue;
        shard_tensor_at(l->arch, i, &shard);
        char name[112];
        snprintf(name, sizeof name, "%s_scale", shard.name);
        const struct st_tensor *weight = model_dir_find(l->in->model, shard.name);
        const struct st_tensor *scale = model_dir_find(l->in->model, name);
        total += weight ? share_of(l, &shard, weight, false) : 0;
        total += scale ? share_of(l, &shard, scale, true) : 0;
    }
    return total;
}

/* Tells how far the loading is; -ECANCELED when it is to end. */
static int tell_progress(struct loader *l, struct err *e)
{
    uint64_t done = l->small + stream_done(l->stream);
    if (l->in->on_progress &&
        l->in->on_progress(l->in->progress_context, done, MAX(l->total, done)) != 0)
        return err_set(e, -ECANCELED, "loading was cancelled after %.2f GB", (double)done / 1e9);
    return 0;
}

static int load_parts(struct loader *l, struct err *e)
{
    int r = 0;
    l->total = total_bytes(l);
    for (size_t idx = 0; idx != n_parts(l->in) && r == 0; idx++) {
        struct part p = part_at(l->arch, l->in, l->out, idx);
        bool linear = p.kind == PART_LINEAR || p.kind == PART_HEAD;
        r = linear ? begin_linear(l, &p, e) : load_small(l, &p, e);
        if (r == 0)
            r = stream_failed(l->stream, e);
        if (r == 0)
            r = tell_progress(l, e);
    }
    for (bool done = false; r == 0 && !done;) {
        uint64_t before = stream_done(l->stream);
        done = stream_wait(l->stream);
        r = stream_failed(l->stream, e);
        if (r == 0 && (done || stream_done(l->stream) != before))
            r = tell_progress(l, e);
    }
    return r;
}

int weights_load(const struct weights_load *load, struct glm_weights *ret, struct err *e)
{
    const struct arch *a = model_dir_arch(load->model);
    struct loader l = {.in = load, .arch = a, .scheme = model_dir_scheme(load->model), .out = ret};
    uint32_t n_layers = load->layer_end - load->layer_begin;
    int64_t begin = clock_now_ns();
    assert(load->layer_begin < load->layer_end && load->layer_end <= a->n_layers);
    *ret = (struct glm_weights){.n_layers = n_layers,
                                .layers = alloc_array(n_layers, sizeof *ret->layers)};
    if (!ret->layers)
        return err_set(e, -ENOMEM, "out of memory");
    int r = stream_open(load, &l.stream, e);
    if (r == 0) {
        r = load_parts(&l, e);
        ret->loaded = (struct weights_report){.bytes = l.small + stream_done(l.stream),
                                              .read_bytes = l.small + stream_read_bytes(l.stream),
                                              .n_threads = stream_n_threads(l.stream)};
        stream_close(l.stream);
    }
    /* the device's own words, where it is what failed */
    char message[256];
    int device = load->ops->sync(load->ctx, message, sizeof message);
    if (device < 0)
        r = err_set(e, device, "%s", message);
    if (r == 0)
        r = model_dir_check_unchanged(load->model, e);
    ret->loaded.ns = clock_now_ns() - begin;
    free(l.weight.values);
    free(l.weight.whole);
    free(l.bias.values);
    free(l.bias.whole);
    if (r < 0)
        weights_free(load->ops, load->ctx, ret);
    return r;
}

static void free_linear(const struct k_ops *ops, struct k_ctx *ctx, struct k_linear *l)
{
    if (l)
        ops->linear_free(ctx, l);
}

static void free_norm(const struct k_ops *ops, struct k_ctx *ctx, struct k_norm *n)
{
    if (n)
        ops->norm_free(ctx, n);
}

static void free_bias(const struct k_ops *ops, struct k_ctx *ctx, struct k_bias *b)
{
    if (b)
        ops->bias_free(ctx, b);
}

void weights_free(const struct k_ops *ops, struct k_ctx *ctx, struct glm_weights *w)
{
    for (uint32_t i = 0; w->layers && i != w->n_layers; i++) {
        struct glm_layer *l = &w->layers[i];
        free_norm(ops, ctx, l->input_norm);
        free_linear(ops, ctx, l->qkv);
        free_linear(ops, ctx, l->dense);
        free_bias(ops, ctx, l->dense_bias);
        free_norm(ops, ctx, l->post_norm);
        free_linear(ops, ctx, l->h_to_4h);
        free_linear(ops, ctx, l->four_h_to_h);
        free_bias(ops, ctx, l->four_h_to_h_bias);
    }
    free_linear(ops, ctx, w->embedding);
    free_linear(ops, ctx, w->head);
    free_norm(ops, ctx, w->exit_norm);
    free(w->layers);
    *w = (struct glm_weights){0};
}
