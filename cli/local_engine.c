/* local_engine.c: see local_engine.h. */
#include "cli/local_engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"

const char local_engine_usage[] =
    "  --tp N              ranks (tensor parallel), as threads of this process; default 1\n"
    "  --pp N              pipeline stages of --tp ranks each; default 1\n"
    "  --stage-layers LIST layers of every stage, e.g. 17,18,18,17; default: shared out evenly\n"
    "  --backend NAME      cpu (default) or cuda (one GPU per rank)\n"
    "  --activations MODE  fp32 (default; everything equals the references), fp16 or a8\n"
    "  --kv-cache TYPE     keys and values: auto (default; as activations are), fp16 or int8\n"
    "  --threads N         CPU threads, shared out among the ranks; default: all allowed CPUs\n";

static int parse_count(const char *name, const char *text, uint32_t max, uint32_t *ret,
                       struct err *e)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (errno || *end || end == text || *text == '-' || n < 1 || n > max)
        return err_set(e, -EINVAL, "--%s: expected 1..%u, found \"%s\"", name, max, text);
    *ret = (uint32_t)n;
    return 0;
}

/* "17,18,18,17" */
static int parse_stage_layers(const char *text, struct local_engine_options *o, struct err *e)
{
    const char *at = text;
    for (uint32_t i = 0; i != COMM_MAX_STAGES; i++) {
        char *end;
        errno = 0;
        unsigned long n = strtoul(at, &end, 10);
        if (errno || end == at || *at < '0' || *at > '9' || n < 1 || n > UINT16_MAX ||
            (*end && *end != ','))
            break;
        o->stage_layers[i] = (uint32_t)n;
        if (!*end) {
            o->n_stage_layers = i + 1;
            return 0;
        }
        at = end + 1;
    }
    return err_set(e, -EINVAL,
                   "--stage-layers: expected 1..%d counts like 17,18,18,17, found \"%s\"",
                   COMM_MAX_STAGES, text);
}

int local_engine_option(int c, const char *text, struct local_engine_options *o, struct err *e)
{
    static const char *const modes[] = {
        [K_MODE_FP32] = "fp32", [K_MODE_FP16] = "fp16", [K_MODE_A8] = "a8"};
    switch (c) {
    case 'T':
        return parse_count("tp", text, COMM_MAX_RANKS, &o->tp, e);
    case 'P':
        return parse_count("pp", text, COMM_MAX_STAGES, &o->pp, e);
    case 'L':
        return parse_stage_layers(text, o, e);
    case 'N':
        return parse_count("threads", text, 4096, &o->n_threads, e);
    case 'B':
        if (strcmp(text, "cpu") != 0 && strcmp(text, "cuda") != 0)
            return err_set(e, -EINVAL, "--backend: expected cpu or cuda, found \"%s\"", text);
        o->device = text;
        return 0;
    case 'A':
        for (size_t i = 0; i != ARRAY_LEN(modes); i++) {
            if (strcmp(text, modes[i]) == 0) {
                o->mode = (enum k_mode)i;
                return 0;
            }
        }
        return err_set(e, -EINVAL, "--activations: expected fp32, fp16 or a8, found \"%s\"", text);
    case 'K':
        for (enum k_kv_type t = K_KV_AUTO; t <= K_KV_I8; t++) {
            if (strcmp(text, k_kv_type_name(t)) == 0) {
                o->kv_type = t;
                return 0;
            }
        }
        return err_set(e, -EINVAL, "--kv-cache: expected auto, fp16 or int8, found \"%s\"", text);
    default:
        return err_set(e, -EINVAL, "unknown option");
    }
}

int local_engine_config(const struct local_engine_options *o, struct engine_config *config,
                        struct err *e)
{
    if (o->n_stage_layers && o->n_stage_layers != o->pp)
        return err_set(e, -EINVAL,
                       "--stage-layers: expected one count for each of %u stages (--pp), "
                       "found %u",
                       o->pp, o->n_stage_layers);
    config->tp_size = o->tp;
    config->pp_size = o->pp;
    config->stage_layers = o->n_stage_layers ? o->stage_layers : NULL;
    config->device = o->device;
    config->mode = o->mode;
    config->kv_type = o->kv_type;
    config->n_threads = o->n_threads;
    return 0;
}

int local_engine_open(const char *model, const struct local_engine_options *o,
                      struct local_engine *ret, struct err *e)
{
    struct local_engine l = {0};
    struct engine_config config = {.n_slots = 1, .verify = true};
    int r = local_engine_config(o, &config, e);
    if (r == 0)
        r = model_dir_open(model, &l.dir, e);
    if (r < 0)
        return r;
    const struct arch *a = model_dir_arch(l.dir);
    l.n_blocks = (a->max_seq + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
    l.blocks = alloc_array(l.n_blocks, sizeof *l.blocks);
    if (!l.blocks) {
        local_engine_close(&l);
        return err_set(e, -ENOMEM, "out of memory");
    }
    for (uint32_t i = 0; i != l.n_blocks; i++)
        l.blocks[i] = i;
    config.model = l.dir;
    r = local_group_open(&config, &l.group, e);
    if (r < 0) {
        local_engine_close(&l);
        return r;
    }
    *ret = l;
    return 0;
}

void local_engine_close(struct local_engine *l)
{
    local_group_close(l->group);
    model_dir_close(l->dir);
    free(l->blocks);
    *l = (struct local_engine){0};
}

int local_engine_logits(struct local_engine *l, const int32_t *ids, const int32_t *positions,
                        uint32_t start, uint32_t n, uint32_t prefix_len, const float **ret,
                        struct err *e)
{
    l->slot_gen += start == 0;
    struct plan_item item = {.slot_gen = l->slot_gen,
                             .start = start,
                             .n_tokens = n,
                             .prefix_len = prefix_len,
                             .tokens = ids,
                             .positions = positions,
                             .blocks = l->blocks,
                             .n_blocks = l->n_blocks,
                             .output = PLAN_OUTPUT_LOGITS};
    struct plan plan = {.epoch = 1, .step = l->step + 1, .items = &item, .n_items = 1};
    const struct step_result *result;
    int r = local_group_step(l->group, &plan, &result, e);
    if (r < 0)
        return r;
    l->step++;
    *ret = result->items[0].logits;
    return 0;
}
