/* golden.c: see golden.h. */
#include "tests/golden/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum { MAX_NPY_BYTES = 16 << 20 };

static void golden_path(char path[512], const char *name)
{
    const char *root = getenv("GLMD_SOURCE_DIR");
    if (!root)
        fail_msg("GLMD_SOURCE_DIR is not set: run the test through ctest");
    snprintf(path, 512, "%s/tests/golden/glm130b/%s", root, name);
}

json_t *golden_manifest(void)
{
    char path[512];
    golden_path(path, "manifest.json");
    json_error_t e;
    json_t *manifest = json_load_file(path, 0, &e);
    if (!manifest)
        fail_msg("%s: %s", path, e.text);
    return manifest;
}

void golden_npy(const char *name, enum npy_type type, uint32_t n_dims, struct npy *ret)
{
    char path[512];
    golden_path(path, name);
    struct err e = ERR_INIT;
    if (npy_load(path, type, n_dims, MAX_NPY_BYTES, ret, &e) < 0)
        fail_msg("%s", e.message);
}

uint32_t golden_ids(const json_t *list, int32_t *ret_ids, uint32_t max)
{
    size_t n = json_array_size(list);
    assert_true(json_is_array(list) && n <= max);
    for (size_t i = 0; i != n; i++)
        ret_ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (uint32_t)n;
}

const char *golden_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

int64_t golden_int(const json_t *object, const char *key, int64_t absent)
{
    const json_t *v = json_object_get(object, key);
    return v ? (int64_t)json_integer_value(v) : absent;
}

static const char *golden_isa(void)
{
    return getenv("GLMD_TEST_ISA");
}

bool golden_long(void)
{
    const char *value = getenv("GLMD_TEST_LONG");
    return value && *value && strcmp(value, "0") != 0;
}

const char *golden_shape(const struct golden_options *o, char text[64])
{
    int n = snprintf(text, 64, "%ux%u", o->tp, MAX(o->pp, 1u));
    for (uint32_t i = 0; o->stage_layers && i != o->pp; i++)
        n += snprintf(text + n, 64 - (size_t)n, "%s%u%s", i ? "+" : " (", o->stage_layers[i],
                      i + 1 == o->pp ? " layers)" : "");
    return text;
}

void golden_open(struct golden_engine *g, const struct golden_options *o)
{
    const char *models = getenv("GLMD_GOLDEN_MODELS");
    if (!models)
        fail_msg("GLMD_GOLDEN_MODELS is not set: run the test through ctest");
    char path[512];
    snprintf(path, sizeof path, "%s/%s", models, o->model);
    *g = (struct golden_engine){0};
    struct err e = ERR_INIT;
    if (model_dir_open(path, &g->dir, &e) < 0)
        fail_msg("%s", e.message);
    g->arch = model_dir_arch(g->dir);
    assert_int_equal(g->arch->max_seq, GOLDEN_MAX_SEQ);
    struct engine_config config = {.model = g->dir,
                                   .tp_size = o->tp,
                                   .pp_size = o->pp,
                                   .stage_layers = o->stage_layers,
                                   .device = o->device ? o->device : "cpu",
                                   .mode = o->mode,
                                   .kv_type = o->kv_type,
                                   .n_threads = o->tp * MAX(o->pp, 1u) * MAX(o->threads, 1u),
                                   .isa = o->isa || o->device ? o->isa : golden_isa(),
                                   .n_slots = o->n_slots,
                                   .n_kv_blocks = o->n_blocks,
                                   .max_step_tokens = o->max_step_tokens,
                                   .collectives = o->collectives,
                                   .no_graphs = o->no_graphs,
                                   .library_rows = o->library_rows,
                                   .verify = true};
    if (local_group_open(&config, &g->group, &e) < 0)
        fail_msg("%s, %s ranks: %s", o->model, golden_shape(o, (char[64]){0}), e.message);
    g->epoch = 1;
    g->slice_layers = o->slice_layers;
    g->n_stages = MAX(o->pp, 1u);
}

void golden_close(struct golden_engine *g)
{
    local_group_close(g->group);
    model_dir_close(g->dir);
    *g = (struct golden_engine){0};
}

const struct step_result *golden_run(struct golden_engine *g, struct plan *plan)
{
    plan->epoch = g->epoch;
    plan->step = g->step + 1;
    const struct step_result *result = NULL;
    struct err e = ERR_INIT;
    if (local_group_step(g->group, plan, &result, &e) < 0)
        fail_msg("step %llu: %s", (unsigned long long)plan->step, e.message);
    g->step++;
    assert_int_equal(result->n_items, plan->n_items);
    assert_int_equal(result->step, plan->step);
    return result;
}

/* Whether the items can be cut by layers together. */
static bool only_begin(const struct plan *p)
{
    for (uint32_t i = 0; i != p->n_items; i++)
        if (p->items[i].start || p->items[i].output == PLAN_OUTPUT_LOGITS)
            return false;
    return true;
}

static const struct step_result *run_slices(struct golden_engine *g, struct plan plan)
{
    struct plan_item items[16];
    assert_true(plan.n_items <= ARRAY_LEN(items));
    for (uint32_t i = 0; i != plan.n_items; i++) {
        items[i] = plan.items[i];
        items[i].sliced = true;
    }
    plan.items = items;
    const struct step_result *result = NULL;
    while (plan.layer_end != g->arch->n_layers) {
        plan.layer_begin = plan.layer_end;
        plan.layer_end = MIN(plan.layer_begin + g->slice_layers, g->arch->n_layers);
        result = golden_run(g, &plan);
        plan.n_copies = 0;
    }
    return result;
}

const struct step_result *golden_step(struct golden_engine *g, const struct plan_item *items,
                                      uint32_t n_items, const struct plan_beam_group *groups,
                                      uint32_t n_groups, const struct plan_copy *copies,
                                      uint32_t n_copies)
{
    struct plan plan = {.copies = copies,
                        .n_copies = n_copies,
                        .items = items,
                        .n_items = n_items,
                        .groups = groups,
                        .n_groups = n_groups};
    return g->slice_layers && only_begin(&plan) ? run_slices(g, plan) : golden_run(g, &plan);
}

void golden_run_refused(struct golden_engine *g, struct plan *plan, const char *words)
{
    plan->epoch = g->epoch;
    plan->step = g->step + 1;
    const struct step_result *result = NULL;
    struct err e = ERR_INIT;
    int r = local_group_step(g->group, plan, &result, &e);
    if (r != -EINVAL || !strstr(e.message, words))
        fail_msg("expected -EINVAL and \"%s\", found %d and \"%s\"", words, r, e.message);
}

void golden_step_refused(struct golden_engine *g, const struct plan_item *items, uint32_t n_items,
                         const char *words)
{
    struct plan plan = {.items = items, .n_items = n_items};
    golden_run_refused(g, &plan, words);
}

const float *golden_logits(struct golden_engine *g, const int32_t *ids, const int32_t *positions,
                           uint32_t n, uint32_t prefix_len)
{
    uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ];
    golden_blocks(0, blocks);
    struct plan_item item = {.slot_gen = ++g->next_gen,
                             .n_tokens = n,
                             .prefix_len = prefix_len,
                             .tokens = ids,
                             .positions = positions,
                             .blocks = blocks,
                             .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                             .output = PLAN_OUTPUT_LOGITS};
    return golden_step(g, &item, 1, NULL, 0, NULL, 0)->items[0].logits;
}

struct plan_item golden_prompt(struct golden_engine *g, uint32_t slot, const int32_t *tokens,
                               const int32_t *positions, uint32_t n,
                               const uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ])
{
    return (struct plan_item){.slot = slot,
                              .slot_gen = ++g->next_gen,
                              .n_tokens = n,
                              .prefix_len = n - 1,
                              .tokens = tokens,
                              .positions = positions,
                              .blocks = blocks,
                              .n_blocks = GOLDEN_BLOCKS_PER_SEQ,
                              .output = PLAN_OUTPUT_SAMPLE,
                              .sampling = {.temperature = 1.0f, .top_k = 1}};
}

void golden_blocks(uint32_t first, uint32_t blocks[GOLDEN_BLOCKS_PER_SEQ])
{
    for (uint32_t i = 0; i != GOLDEN_BLOCKS_PER_SEQ; i++)
        blocks[i] = first + i;
}

double golden_logprob(const float *row, uint32_t vocab, int32_t token)
{
    double max = -INFINITY;
    double sum = 0.0;
    for (uint32_t i = 0; i != vocab; i++)
        max = fmax(max, (double)row[i]);
    for (uint32_t i = 0; i != vocab; i++)
        sum += exp((double)row[i] - max);
    return (double)row[token] - max - log(sum);
}

const char *golden_gpu(void)
{
    const char *device = getenv("GLMD_GPU") ? getenv("GLMD_GPU") : "cuda:0";
    char message[512] = "";
    const struct k_open_params p = {
        .device = device, .mode = K_MODE_FP16, .max_rows = 1, .max_cols = 8, .max_seq = 1};
    const struct k_ops *ops = k_backend("cuda", message, sizeof message);
    struct k_ctx *c;
    if (!ops || ops->open(&p, &c, message, sizeof message) != 0) {
        print_message("skipped: %s\n", message);
        return NULL;
    }
    print_message("%s\n", ops->describe(c));
    ops->close(c);
    return device;
}
