/* weights.c: see weights.h.
 *
 * Work is cut into parts: one linear, norm or bias each, in the order of the file. Reader threads
 * take the next part and read its tensors' pieces into host memory; the calling thread packs the
 * parts in order. At most READ_AHEAD parts are in memory at once.
 *
 *   readers   take part i (i < n_packed + READ_AHEAD) -> read -> slot i % READ_AHEAD is full
 *   caller    wait until slot n_packed % READ_AHEAD is full -> pack -> empty it, n_packed++
 */
#include "worker/engine/weights.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "kernels/sizes.h"
#include "model/quant.h"
#include "model/shard.h"

enum { N_READERS = 2, READ_AHEAD = 3 };

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

/* ---- reading ---- */

/* A part in host memory. */
struct slot {
    void *weight;    /* linear: as on disk; norm: F16 [H] */
    uint8_t *values; /* INT8 head: [rows, H] */
    uint16_t *scale; /* linear, quantized: [rows, n_groups] */
    uint16_t *bias;  /* F16 [rows] */
    size_t cap[4];   /* bytes of weight, scale, bias, values; kept from part to part */
    struct k_linear_src src;
    uint64_t n_read; /* bytes */
    bool full;
    int result; /* of reading it */
    struct err error;
};

struct loader {
    const struct weights_load *in;
    const struct arch *arch;
    const struct quant_scheme *scheme;
    struct glm_weights *out;
    struct slot slots[READ_AHEAD];
    pthread_mutex_t lock; /* guards everything below and slots[].full */
    pthread_cond_t changed;
    size_t next_part; /* to be taken by a reader */
    size_t n_packed;
    bool stop;
};

static int grow(void **buffer, size_t *cap, size_t bytes)
{
    if (bytes <= *cap)
        return 0;
    free(*buffer);
    *buffer = malloc(MAX(bytes, (size_t)1));
    *cap = *buffer ? bytes : 0;
    return *buffer ? 0 : -ENOMEM;
}

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

/* Reads slices one behind the other into *buffer. */
static int read_slices(const struct loader *l, const struct st_tensor *t,
                       const struct model_slice *slices, size_t n, void **buffer, size_t *cap,
                       uint64_t *n_read, struct err *e)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i != n; i++)
        bytes += slices[i].n_rows * slices[i].n_cols * st_dtype_bytes(t->dtype);
    int r = grow(buffer, cap, bytes);
    if (r < 0)
        return err_set(e, r, "out of memory: %llu bytes for tensor %s", (unsigned long long)bytes,
                       t->name);
    if (l->in->verify) {
        r = model_dir_verify_tensor(l->in->model, t, e);
        if (r < 0)
            return r;
    }
    char *dst = *buffer;
    for (size_t i = 0; i != n; i++) {
        r = model_dir_read(l->in->model, t, &slices[i], dst, e);
        if (r < 0)
            return r;
        dst += slices[i].n_rows * slices[i].n_cols * st_dtype_bytes(t->dtype);
    }
    *n_read += bytes;
    return 0;
}

/* A 1-D tensor (norm weight or bias, linear bias): this rank's elements. */
static int read_vector(const struct loader *l, const char *name, uint16_t **buffer, size_t *cap,
                       uint64_t *n_read, struct err *e)
{
    struct shard_tensor shard;
    if (shard_find(l->arch, name, &shard) < 0)
        return err_set(e, -EINVAL, "tensor %s does not belong to this architecture", name);
    const struct st_tensor *t = NULL;
    int r = find_tensor(l, name, ST_F16, 1, shard.rows, &t, e);
    if (r < 0)
        return r;
    assert(t);
    struct shard_piece pieces[2];
    struct model_slice slices[2];
    size_t n = shard_pieces(&shard, l->in->tp_size, l->in->tp_rank, pieces);
    for (size_t i = 0; i != n; i++)
        slices[i] = (struct model_slice){0, 1, pieces[i].row0, pieces[i].n_rows};
    void *p = *buffer;
    r = read_slices(l, t, slices, n, &p, cap, n_read, e);
    *buffer = p;
    return r;
}

static enum st_dtype stored_dtype(enum quant_weights w)
{
    return w == QUANT_INT4 ? ST_U8 : w == QUANT_INT8 ? ST_I8 : ST_F16;
}

/* The scales of this rank's pieces. */
static int read_scales(const struct loader *l, const struct shard_tensor *shard,
                       const struct shard_piece *pieces, size_t n, struct slot *s, struct err *e)
{
    char name[112];
    snprintf(name, sizeof name, "%s_scale", shard->name);
    const struct st_tensor *t = NULL;
    int r = find_tensor(l, name, ST_F16, shard->rows, quant_n_groups(l->scheme, shard), &t, e);
    struct model_slice slices[2];
    for (size_t i = 0; i != n && r == 0; i++) {
        struct quant_groups groups;
        r = quant_piece_groups(l->scheme, shard, &pieces[i], &groups, e);
        if (r < 0)
            break;
        slices[i] =
            (struct model_slice){pieces[i].row0, pieces[i].n_rows, groups.group0, groups.n_groups};
        /* Pieces of one rank differ in rows only. */
        s->src.n_groups = groups.n_groups;
        s->src.group_cols = groups.group_cols;
    }
    if (r < 0)
        return r;
    assert(t);
    void *p = s->scale;
    r = read_slices(l, t, slices, n, &p, &s->cap[1], &s->n_read, e);
    s->scale = p;
    s->src.scale = s->scale;
    return r;
}

static int read_linear(const struct loader *l, const struct part *p, struct slot *s, struct err *e)
{
    char name[96];
    snprintf(name, sizeof name, "%s.weight", p->name);
    struct shard_tensor shard;
    if (shard_find(l->arch, name, &shard) < 0)
        return err_set(e, -EINVAL, "tensor %s does not belong to this architecture", name);
    bool quantized = quant_applies(l->scheme, &shard);
    enum quant_weights w = quantized ? l->scheme->weights : QUANT_FP16;
    uint64_t row_elements = w == QUANT_INT4 ? quant_row_bytes(w, shard.cols) : shard.cols;
    const struct st_tensor *t = NULL;
    int r = find_tensor(l, name, stored_dtype(w), shard.rows, row_elements, &t, e);
    if (r < 0)
        return r;
    assert(t);
    struct shard_piece pieces[2];
    struct model_slice slices[2];
    size_t n = shard_pieces(&shard, l->in->tp_size, l->in->tp_rank, pieces);
    uint32_t per_element = w == QUANT_INT4 ? 2 : 1; /* columns in a stored element */
    uint64_t rows = 0;
    for (size_t i = 0; i != n; i++) {
        if (pieces[i].col0 % per_element || pieces[i].n_cols % per_element)
            return err_set(e, -EINVAL,
                           "tensor %s: %u ranks split it inside a byte of two INT4 columns", name,
                           l->in->tp_size);
        slices[i] =
            (struct model_slice){pieces[i].row0, pieces[i].n_rows, pieces[i].col0 / per_element,
                                 pieces[i].n_cols / per_element};
        rows += pieces[i].n_rows;
    }
    s->src = (struct k_linear_src){
        .type = (enum k_weight)w,
        .rows = (uint32_t)rows,
        .cols = (uint32_t)pieces[0].n_cols,
        .glu = p->glu,
    };
    r = read_slices(l, t, slices, n, &s->weight, &s->cap[0], &s->n_read, e);
    s->src.data = s->weight;
    s->src.n_groups = 1; /* read_scales knows better */
    s->src.group_cols = s->src.cols;
    if (r == 0 && quantized)
        r = read_scales(l, &shard, pieces, n, s, e);
    if (r == 0 && p->with_bias) {
        snprintf(name, sizeof name, "%s.bias", p->name);
        r = read_vector(l, name, &s->bias, &s->cap[2], &s->n_read, e);
        s->src.bias = s->bias;
    }
    return r;
}

/* The rows of the embedding that this rank has, in INT8. */
static int read_head(const struct loader *l, const struct part *p, struct slot *s, struct err *e)
{
    int r = read_linear(l, p, s, e);
    if (r < 0)
        return r;
    void *values = s->values, *scale = s->scale;
    r = grow(&values, &s->cap[3], (size_t)s->src.rows * s->src.cols);
    s->values = values;
    if (r == 0)
        r = grow(&scale, &s->cap[1], s->src.rows * sizeof *s->scale);
    s->scale = scale;
    if (r < 0)
        return err_set(e, r, "out of memory for an INT8 head of %u rows", s->src.rows);
    const struct quant_scheme scheme = {.weights = QUANT_INT8, .group = QUANT_GROUP_ROW};
    quant_rows(&scheme, s->weight, s->src.rows, s->src.cols, 1, s->values, s->scale);
    s->src.type = K_WEIGHT_I8;
    s->src.data = s->values;
    s->src.scale = s->scale;
    return 0;
}

static int read_part(const struct loader *l, const struct part *p, struct slot *s, struct err *e)
{
    s->n_read = 0;
    if (p->kind == PART_LINEAR)
        return read_linear(l, p, s, e);
    if (p->kind == PART_HEAD)
        return read_head(l, p, s, e);
    char name[96];
    int r = 0;
    if (p->kind == PART_NORM) {
        snprintf(name, sizeof name, "%s.weight", p->name);
        uint16_t *weight = s->weight;
        r = read_vector(l, name, &weight, &s->cap[0], &s->n_read, e);
        s->weight = weight;
    }
    snprintf(name, sizeof name, "%s.bias", p->name);
    return r < 0 ? r : read_vector(l, name, &s->bias, &s->cap[2], &s->n_read, e);
}

static void *reader_main(void *context)
{
    struct loader *l = context;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->stop && l->next_part < n_parts(l->in) &&
               l->next_part >= l->n_packed + READ_AHEAD)
            pthread_cond_wait(&l->changed, &l->lock);
        if (l->stop || l->next_part >= n_parts(l->in))
            break;
        size_t idx = l->next_part++;
        pthread_mutex_unlock(&l->lock);

        struct slot *s = &l->slots[idx % READ_AHEAD];
        struct part p = part_at(l->arch, l->in, l->out, idx);
        s->result = read_part(l, &p, s, &s->error);

        pthread_mutex_lock(&l->lock);
        s->full = true;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* ---- packing ---- */

static int pack_part(struct loader *l, const struct part *p, const struct slot *s, struct err *e)
{
    const struct k_ops *ops = l->in->ops;
    struct k_ctx *ctx = l->in->ctx;
    uint32_t hidden = l->arch->hidden;
    void *object = NULL;
    if (p->kind == PART_LINEAR || p->kind == PART_HEAD) {
        object = ops->linear_new(ctx, &s->src);
        l->out->bytes +=
            ops->linear_bytes(ctx, s->src.type, s->src.rows, s->src.cols, s->src.n_groups);
    } else if (p->kind == PART_NORM) {
        object = ops->norm_new(ctx, K_NORM_LAYER, s->weight, s->bias, hidden);
        l->out->bytes += k_sizes(ops->name)->norm_bytes(hidden);
    } else {
        object = ops->bias_new(ctx, s->bias, hidden);
        l->out->bytes += k_sizes(ops->name)->bias_bytes(hidden);
    }
    if (!object)
        return err_set(e, -ENOMEM,
                       "out of device memory at %s after %.2f GB of weights: use more ranks or a "
                       "smaller weight type",
                       p->name, (double)l->out->bytes / 1e9);
    *p->place = object;
    return 0;
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

static int pack_all(struct loader *l, struct err *e)
{
    uint64_t total = total_bytes(l);
    uint64_t done = 0;
    for (size_t idx = 0; idx != n_parts(l->in); idx++) {
        struct slot *s = &l->slots[idx % READ_AHEAD];
        pthread_mutex_lock(&l->lock);
        while (!s->full)
            pthread_cond_wait(&l->changed, &l->lock);
        pthread_mutex_unlock(&l->lock);
        if (s->result < 0) {
            if (e)
                *e = s->error;
            return s->result;
        }
        struct part p = part_at(l->arch, l->in, l->out, idx);
        int r = pack_part(l, &p, s, e);
        if (r < 0)
            return r;
        done += s->n_read;
        pthread_mutex_lock(&l->lock);
        s->full = false;
        l->n_packed++;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        if (l->in->on_progress &&
            l->in->on_progress(l->in->progress_context, done, MAX(total, done)) != 0)
            return err_set(e, -ECANCELED, "loading was cancelled after %.2f GB",
                           (double)done / 1e9);
    }
    return 0;
}

int weights_load(const struct weights_load *load, struct glm_weights *ret, struct err *e)
{
    const struct arch *a = model_dir_arch(load->model);
    struct loader l = {.in = load,
                       .arch = a,
                       .scheme = model_dir_scheme(load->model),
                       .out = ret,
                       .lock = PTHREAD_MUTEX_INITIALIZER,
                       .changed = PTHREAD_COND_INITIALIZER};
    uint32_t n_layers = load->layer_end - load->layer_begin;
    assert(load->layer_begin < load->layer_end && load->layer_end <= a->n_layers);
    *ret = (struct glm_weights){.n_layers = n_layers,
                                .layers = alloc_array(n_layers, sizeof *ret->layers)};
    if (!ret->layers)
        return err_set(e, -ENOMEM, "out of memory");
    pthread_t readers[N_READERS];
    uint32_t n_readers = 0;
    int r = 0;
    for (; n_readers != N_READERS && r == 0; n_readers += r == 0)
        r = -pthread_create(&readers[n_readers], NULL, reader_main, &l);
    if (n_readers)
        r = pack_all(&l, e);
    else
        err_set(e, r, "cannot start a thread to read the weights: %s", err_name(r));
    pthread_mutex_lock(&l.lock);
    l.stop = true;
    pthread_cond_broadcast(&l.changed);
    pthread_mutex_unlock(&l.lock);
    for (uint32_t i = 0; i != n_readers; i++)
        pthread_join(readers[i], NULL);
    for (size_t i = 0; i != READ_AHEAD; i++) {
        free(l.slots[i].weight);
        free(l.slots[i].values);
        free(l.slots[i].scale);
        free(l.slots[i].bias);
    }
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
