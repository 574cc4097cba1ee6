/* local_engine.c: see local_engine.h. */
#include "cli/local_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/common.h"

const char *const local_engine_modes[] = {
    [K_MODE_FP32] = "fp32", [K_MODE_FP16] = "fp16", [K_MODE_A8] = "a8", NULL};
const char *const local_engine_kv_types[] = {
    [K_KV_AUTO] = "auto", [K_KV_F16] = "fp16", [K_KV_I8] = "int8", NULL};

/* "17,18,18,17" */
static int take_stage_layers(void *context, const char *verb, const char *text)
{
    struct local_engine_options *o = context;
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
    return cli_usage_error(verb, "--stage-layers %s: expected 1 to %d counts like 17,18,18,17",
                           text, COMM_MAX_STAGES);
}

static int take_backend(void *context, const char *verb, const char *text)
{
    const char **device = context;
    if (strcmp(text, "cpu") != 0 && strcmp(text, "cuda") != 0)
        return cli_usage_error(verb, "--backend %s: expected cpu or cuda", text);
    *device = text;
    return 0;
}

struct cli_options local_engine_options(struct local_engine_options *o,
                                        struct cli_option ret[LOCAL_ENGINE_N_OPTIONS])
{
    static const char help[] =
        "  --tp N              ranks (tensor parallel), as threads of this process; default 1\n"
        "  --pp N              pipeline stages of --tp ranks each; default 1 (bench stages: 2)\n"
        "  --stage-layers LIST  of every stage, e.g. 17,18,18,17; default: shared out evenly\n"
        "  --backend NAME      cpu (default) or cuda (one GPU per rank)\n"
        "  --activations MODE  fp32 (everything equals the references; default, but fp16 where\n"
        "                      speed is measured), fp16 or a8\n"
        "  --kv-cache TYPE     keys and values: auto (default; as activations are), fp16 or int8\n"
        "  --threads N         CPU threads, shared out among the ranks; default: all allowed "
        "CPUs\n";
    const struct cli_option options[LOCAL_ENGINE_N_OPTIONS] = {
        CLI_U32("tp", &o->tp, 1, COMM_MAX_RANKS),
        CLI_U32("pp", &o->pp, 1, COMM_MAX_STAGES),
        CLI_TAKE("stage-layers", take_stage_layers, o),
        CLI_TAKE("backend", take_backend, &o->device),
        CLI_CHOICE("activations", &o->mode, local_engine_modes),
        CLI_CHOICE("kv-cache", &o->kv_type, local_engine_kv_types),
        CLI_U32("threads", &o->n_threads, 1, 4096),
    };
    memcpy(ret, options, sizeof options);
    return (struct cli_options){ret, LOCAL_ENGINE_N_OPTIONS, help};
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
