/* convert.c: see convert.h. */
#include "model/convert.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "model/checksum.h"
#include "model/convert_quant.h"
#include "model/dialogue.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/layout.h"
#include "model/source_sat.h"
#include "model/writer.h"

enum {
    CHUNK_BYTES = 2 << 20, /* stays in the cache from reading to writing */
    MAX_TOKENIZER_BYTES = 64 << 20
};

struct conversion {
    const struct convert_options *o;
    struct convert_result *result; /* arch and scheme: what is written */
    struct sat_source *source;
    struct quant_scheme from; /* what the source has */
    struct writer *writer;
    json_t *config; /* of the model directory */
    struct buf tokenizer;
    struct shard_tensor tensor; /* that is being converted */
    struct convert_progress progress;
};

static void warn(const struct conversion *c, const char *text)
{
    if (c->o->on_warning)
        c->o->on_warning(c->o->context, text);
}

static int report(struct conversion *c, uint64_t more_bytes, struct err *e)
{
    c->progress.done_bytes += more_bytes;
    if (c->o->on_progress && c->o->on_progress(c->o->context, &c->progress))
        return err_set(e, -ECANCELED,
                       "interrupted; run the same command again to go on where it stopped");
    return 0;
}

/* ---- what to do ---- */

/* Heads, special ids and the like are not in the tensors. */
static int read_arch(struct conversion *c, struct err *e)
{
    const struct sat_info *info = sat_info(c->source);
    const struct arch *known = &arch_glm_130b;
    char *beside = file_join(c->o->from, LAYOUT_CONFIG);
    const char *path = c->o->config;
    if (!beside)
        return err_set(e, -ENOMEM, "out of memory");
    if (!path && access(beside, F_OK) == 0)
        path = beside;
    int r = 0;
    if (path) {
        json_t *config = NULL;
        r = jsonfile_load(path, LAYOUT_MAX_CONFIG_BYTES, &config, e);
        if (r == 0) {
            r = arch_from_json(config, &c->result->arch, e);
            if (r < 0)
                err_prefix(e, "%s", path);
        }
        json_decref(config);
    } else if (info->n_layers == known->n_layers && info->hidden == known->hidden &&
               info->inner == known->inner && info->vocab == known->vocab) {
        c->result->arch = *known;
    } else {
        r = err_set(e, -EINVAL,
                    "%s: %u layers, hidden %u, inner %u, vocabulary %u: not GLM-130B's sizes, so "
                    "heads and special tokens are not known: pass --config FILE, a JSON file with "
                    "num_heads, num_image_tokens, special_base, special_tokens, max_seq, ... (see "
                    "docs/model.md)",
                    c->o->from, info->n_layers, info->hidden, info->inner, info->vocab);
    }
    free(beside);
    return r < 0 ? r : sat_check(c->source, &c->result->arch, e);
}

static bool same_scheme(const struct quant_scheme *a, const struct quant_scheme *b)
{
    return a->weights == b->weights &&
           (a->weights == QUANT_FP16 || (a->group == b->group && a->group_n == b->group_n));
}

static int choose_scheme(struct conversion *c, struct err *e)
{
    const struct convert_options *o = c->o;
    struct quant_scheme want = o->scheme;
    c->from = sat_info(c->source)->scheme;
    bool quantized = c->from.weights != QUANT_FP16;
    if (!o->has_weights)
        want.weights = quantized ? c->from.weights : QUANT_INT4;
    if (!o->has_group && quantized) {
        want.group = c->from.group;
        want.group_n = c->from.group_n;
    } else if (!o->has_group) {
        want.group = QUANT_GROUP_ROW;
        want.group_n = 0;
    }
    if (want.weights == QUANT_FP16 && want.head_int8)
        return err_set(e, -EINVAL, "an INT8 head needs --weights int4 or int8");
    if (want.group == QUANT_GROUP_SHARD && want.group_n == 0)
        want.group_n = sat_info(c->source)->n_shards;
    if (want.weights == QUANT_FP16 || (want.group == QUANT_GROUP_SHARD && want.group_n == 1)) {
        want.group = QUANT_GROUP_ROW;
        want.group_n = 0;
    }
    if (quantized && want.weights != QUANT_FP16 && !same_scheme(&want, &c->from)) {
        char have[QUANT_DESCRIBE_BYTES], asked[QUANT_DESCRIBE_BYTES];
        quant_describe(&c->from, have);
        quant_describe(&want, asked);
        return err_set(e, -EINVAL,
                       "%s: the checkpoint is already quantized (%s); it cannot become \"%s\": "
                       "leave --weights and --group out, use --weights fp16, or start from the "
                       "FP16 checkpoint",
                       o->from, have, asked);
    }
    c->result->scheme = want;
    return quant_check(&want, &c->result->arch, e);
}

/* An identifier of everything that decides the bytes of the output. */
static int identify(const struct conversion *c, char ret_hex[CHECKSUM_HEX_BYTES], struct err *e)
{
    struct buf text = {0};
    struct checksum sum;
    struct checksum_state *state = checksum_new();
    int r = state ? jsonfile_format(c->config, &text) : -ENOMEM;
    if (r == 0)
        r = buf_printf(&text, "%s %s %" PRIu64, GLMD_VERSION, sat_info(c->source)->fingerprint,
                       c->o->max_file_bytes);
    if (r == 0) {
        checksum_update(state, text.data, text.size);
        checksum_update(state, c->tokenizer.data ? c->tokenizer.data : "", c->tokenizer.size);
        checksum_final(state, &sum);
        checksum_hex(&sum, ret_hex);
    }
    checksum_free(state);
    buf_deinit(&text);
    return r < 0 ? err_set(e, -ENOMEM, "out of memory") : 0;
}

static int read_tokenizer(struct conversion *c, struct err *e)
{
    char *beside = file_join(c->o->from, LAYOUT_TOKENIZER);
    if (!beside)
        return err_set(e, -ENOMEM, "out of memory");
    const char *path = c->o->tokenizer ? c->o->tokenizer : beside;
    int r = 0;
    if (!c->o->tokenizer && access(beside, F_OK) < 0) {
        warn(c, "no --tokenizer given and no tokenizer.model beside the checkpoint: the model "
                "directory has no tokenizer and can be used with token ids only");
    } else {
        r = file_read_all(path, MAX_TOKENIZER_BYTES, &c->tokenizer, e);
        c->result->has_tokenizer = r == 0;
    }
    free(beside);
    return r;
}

static int make_config(struct conversion *c, struct err *e)
{
    c->config = json_object();
    if (!c->config || arch_to_json(&c->result->arch, c->config) < 0 ||
        quant_to_json(&c->result->scheme, c->config) < 0 ||
        json_object_set_new(c->config, "torch_dtype", json_string("float16")) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    return 0;
}

static void warn_about_unknown(const struct conversion *c)
{
    const char *example;
    size_t n = sat_n_unknown(c->source, &c->result->arch, &example);
    if (n == 0)
        return;
    char text[512];
    snprintf(text, sizeof text,
             "skipped %zu tensors that the architecture does not have, such as "
             "\"%.256s\"",
             n, example);
    warn(c, text);
}

static int open_writer(struct conversion *c, struct err *e)
{
    char conversion[CHECKSUM_HEX_BYTES];
    struct st_list tensors;
    int r = identify(c, conversion, e);
    if (r < 0)
        return r;
    if (layout_tensors(&c->result->arch, &c->result->scheme, &tensors) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    const struct writer_options wo = {.path = c->o->out,
                                      .max_file_bytes = c->o->max_file_bytes,
                                      .conversion = conversion,
                                      .on_warning = c->o->on_warning,
                                      .context = c->o->context};
    return writer_open(&wo, &tensors, &c->writer, e);
}

/* ---- doing it ---- */

static uint64_t row_bytes(const struct sat_tensor *t)
{
    return t->t.cols * t->element_bytes;
}

/* As it is: FP16 to FP16, or quantized values and scales of a source that stays quantized. */
static int copy_tensor(struct conversion *c, const struct sat_tensor *t, struct err *e)
{
    uint64_t rows_per_chunk = MAX((uint64_t)CHUNK_BYTES / row_bytes(t), UINT64_C(1));
    rows_per_chunk = MIN(rows_per_chunk, t->t.rows);
    void *chunk = malloc((size_t)(rows_per_chunk * row_bytes(t)));
    uint64_t n_broken = 0;
    int r = chunk ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (uint64_t row = 0; row < t->t.rows && r == 0; row += rows_per_chunk) {
        uint64_t n = MIN(rows_per_chunk, t->t.rows - row);
        size_t bytes = (size_t)(n * row_bytes(t));
        r = sat_read(c->source, t, row, n, chunk, e);
        if (r == 0 && t->element_bytes == 2)
            n_broken += convert_count_broken(chunk, bytes / 2);
        if (r == 0)
            r = writer_append(c->writer, chunk, bytes, e);
        if (r == 0)
            r = report(c, bytes, e);
    }
    free(chunk);
    if (n_broken) {
        char text[256];
        snprintf(text, sizeof text, "tensor \"%s\": %" PRIu64 " values are infinite or NaN",
                 t->t.name, n_broken);
        warn(c, text);
    }
    return r;
}

static int quantize_tensor(struct conversion *c, const struct shard_tensor *t, struct err *e)
{
    struct sat_tensor in;
    sat_weight(c->source, t, &in);
    struct convert_quant q;
    uint64_t rows_per_chunk =
        MIN(MAX((uint64_t)CHUNK_BYTES / row_bytes(&in), UINT64_C(1)), t->rows);
    int r = convert_quant_init(&q, &c->result->scheme, t, rows_per_chunk, c->o->n_threads);
    if (r < 0)
        return err_set(e, r, "tensor \"%s\": out of memory", t->name);
    for (uint64_t row = 0; row < t->rows && r == 0; row += rows_per_chunk) {
        uint64_t n = MIN(rows_per_chunk, t->rows - row);
        r = sat_read(c->source, &in, row, n, q.weights, e);
        if (r < 0)
            break;
        convert_quantize(&q, row, n);
        r = writer_append(c->writer, q.values, (size_t)(n * q.row_bytes), e);
        if (r == 0)
            r = report(c, n * row_bytes(&in), e);
    }
    if (r == 0)
        r = writer_append(c->writer, q.scales, q.scale_bytes, e);
    if (q.n_broken) {
        char text[256];
        snprintf(text, sizeof text,
                 "tensor \"%s\": %" PRIu64 " weights are infinite or NaN; they were quantized as 0",
                 t->name, q.n_broken);
        warn(c, text);
    }
    convert_quant_deinit(&q);
    return r;
}

static int dequantize_tensor(struct conversion *c, const struct shard_tensor *t, struct err *e)
{
    struct sat_tensor in, scale;
    sat_weight(c->source, t, &in);
    sat_scale(c->source, t, &scale);
    struct convert_quant q;
    uint64_t rows_per_chunk = MIN(MAX((uint64_t)CHUNK_BYTES / (2 * t->cols), UINT64_C(1)), t->rows);
    int r = convert_quant_init(&q, &c->from, t, rows_per_chunk, 1);
    if (r < 0)
        return err_set(e, r, "tensor \"%s\": out of memory", t->name);
    r = sat_read(c->source, &scale, 0, t->rows, q.scales, e);
    if (r == 0)
        r = report(c, q.scale_bytes, e);
    for (uint64_t row = 0; row < t->rows && r == 0; row += rows_per_chunk) {
        uint64_t n = MIN(rows_per_chunk, t->rows - row);
        r = sat_read(c->source, &in, row, n, q.values, e);
        if (r < 0)
            break;
        quant_dequantize_rows(c->from.weights, q.values, q.scales + row * q.n_groups, n, t->cols,
                              q.n_groups, q.weights);
        r = writer_append(c->writer, q.weights, (size_t)(n * t->cols * 2), e);
        if (r == 0)
            r = report(c, n * row_bytes(&in), e);
    }
    convert_quant_deinit(&q);
    return r;
}

static int convert_tensor(struct conversion *c, const struct shard_tensor *t, struct err *e)
{
    struct sat_tensor stored;
    struct err why = ERR_INIT;
    c->progress.tensor = t->name;
    sat_weight(c->source, t, &stored);
    if (t->split == SHARD_COPY && sat_check_copies(c->source, &stored, &why) < 0)
        warn(c, why.message);
    bool was = quant_applies(&c->from, t), becomes = quant_applies(&c->result->scheme, t);
    if (becomes && !was)
        return quantize_tensor(c, t, e);
    if (was && !becomes)
        return dequantize_tensor(c, t, e);
    int r = copy_tensor(c, &stored, e);
    if (r == 0 && was) {
        sat_scale(c->source, t, &stored);
        r = copy_tensor(c, &stored, e);
    }
    return r;
}

/* Bytes of a canonical tensor as the source has it. */
static uint64_t source_bytes(const struct conversion *c, const struct shard_tensor *t)
{
    struct sat_tensor stored;
    sat_weight(c->source, t, &stored);
    uint64_t bytes = stored.t.rows * row_bytes(&stored);
    if (quant_applies(&c->from, t)) {
        sat_scale(c->source, t, &stored);
        bytes += stored.t.rows * row_bytes(&stored);
    }
    return bytes;
}

static int convert_tensors(struct conversion *c, struct err *e)
{
    const struct arch *a = &c->result->arch;
    size_t n = shard_n_tensors(a), out = 0; /* out: index into the writer's list */
    struct shard_tensor t;
    for (size_t i = 0; i < n; i++) {
        shard_tensor_at(a, i, &t);
        uint64_t bytes = source_bytes(c, &t);
        c->progress.total_bytes += bytes;
        if (writer_has(c->writer, out))
            c->progress.kept_bytes += bytes;
        out += quant_applies(&c->result->scheme, &t) ? 2 : 1;
    }
    c->progress.done_bytes = c->progress.kept_bytes;
    c->result->source_bytes = c->progress.total_bytes;
    c->result->kept_bytes = c->progress.kept_bytes;
    out = 0;
    for (size_t i = 0; i < n; i++) {
        shard_tensor_at(a, i, &c->tensor);
        int r = writer_has(c->writer, out) ? 0 : convert_tensor(c, &c->tensor, e);
        if (r < 0)
            return r;
        out += quant_applies(&c->result->scheme, &c->tensor) ? 2 : 1;
    }
    return 0;
}

/* The published defaults of a generation, and how a conversation reads. */
static int add_generation_config(struct conversion *c, struct err *e)
{
    const struct arch_tokens *t = &c->result->arch.tokens;
    json_t *g = json_pack("{s:b, s:f, s:i, s:f, s:[i, i], s:o}", "do_sample", 1, "temperature", 1.0,
                          "top_k", 0, "top_p", 0.7, "eos_token_id", t->eop, t->eos, "dialogue",
                          dialogue_to_json(&dialogue_default));
    int r = g ? writer_add_json(c->writer, LAYOUT_GENERATION_CONFIG, g, e)
              : err_set(e, -ENOMEM, "out of memory");
    json_decref(g);
    return r;
}

static int add_tokenizer(struct conversion *c, struct err *e)
{
    if (!c->result->has_tokenizer)
        return 0;
    int r = writer_add_file(c->writer, LAYOUT_TOKENIZER, c->tokenizer.data, c->tokenizer.size, e);
    if (r < 0)
        return r;
    json_t *config = json_pack("{s:s}", "variant", "plain");
    r = config ? writer_add_json(c->writer, LAYOUT_TOKENIZER_CONFIG, config, e)
               : err_set(e, -ENOMEM, "out of memory");
    json_decref(config);
    return r;
}

static int finish(struct conversion *c, struct err *e)
{
    const struct sat_info *info = sat_info(c->source);
    int r = writer_add_json(c->writer, LAYOUT_CONFIG, c->config, e);
    if (r == 0)
        r = add_generation_config(c, e);
    if (r == 0)
        r = add_tokenizer(c, e);
    if (r < 0)
        return r;
    char weights[QUANT_DESCRIBE_BYTES];
    quant_describe(&info->scheme, weights);
    json_t *source = json_pack("{s:s, s:s, s:i, s:s, s:s}", "format", "sat", "iteration",
                               info->iteration, "shards", (int)info->n_shards, "weights", weights,
                               "fingerprint", info->fingerprint);
    r = source ? writer_finish(c->writer, source, e) : err_set(e, -ENOMEM, "out of memory");
    json_decref(source);
    return r;
}

static int prepare(struct conversion *c, struct err *e)
{
    int r = sat_open(c->o->from, &c->source, e);
    if (r == 0)
        r = read_arch(c, e);
    if (r == 0)
        r = choose_scheme(c, e);
    if (r < 0)
        return r;
    const struct sat_info *info = sat_info(c->source);
    c->result->n_shards = info->n_shards;
    memcpy(c->result->iteration, info->iteration, sizeof c->result->iteration);
    warn_about_unknown(c);
    r = make_config(c, e);
    if (r == 0)
        r = read_tokenizer(c, e);
    if (r == 0)
        r = open_writer(c, e);
    return r;
}

int convert_run(const struct convert_options *o, struct convert_result *ret, struct err *e)
{
    *ret = (struct convert_result){0};
    struct conversion c = {.o = o, .result = ret};
    int r = prepare(&c, e);
    if (r == 0 && writer_is_complete(c.writer)) {
        ret->was_complete = true;
    } else if (r == 0) {
        r = convert_tensors(&c, e);
        if (r == 0)
            r = finish(&c, e);
    }
    writer_close(c.writer);
    sat_close(c.source);
    json_decref(c.config);
    buf_deinit(&c.tokenizer);
    return r;
}
