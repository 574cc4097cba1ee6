/* cmd_plan.c: `glmd plan`: whether and how a model fits on devices (fit.h). Needs neither the
 * weights nor the devices: a folder with config.json, or the name of a known architecture. */
#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/fit.h"
#include "cli/local_engine.h"
#include "cli/options.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/layout.h"

static const char usage[] =
    "usage: glmd plan --model DIR|NAME --devices LIST [OPTIONS]\n"
    "\n"
    "Says whether a model fits on devices, in which layout, and how many tokens and sequences its\n"
    "KV cache then holds. The numbers are those that workers print when they start; for GPUs they\n"
    "are computed, not measured. Exit code 1: it does not fit, with the reason and what would "
    "help.\n"
    "\n"
    "  --model M          a model directory (its config.json is enough), or glm-130b\n"
    "  --devices LIST     devices of one host: 8x24GiB, 2x24GiB,1x48GiB, cpu:64GiB, cpu:2x64GiB;\n"
    "                     GPUs unless it says cpu. Once for every host of the group\n"
    "  --context N        tokens of a sequence, prompt and output (default: the model's longest)\n"
    "  --concurrency N    sequences that must have room at once (default 1)\n"
    "  --tp N, --pp N     tensor-parallel ranks per stage, pipeline stages (default: chosen)\n"
    "  --weights W        int4, int8 or fp16 (default: the directory's; int4 for a name)\n"
    "  --group G          scales: row (default), shard, shard:N, 32, 64 or 128\n"
    "  --kv-cache T       auto (default), fp16 or int8\n"
    "  --activations A    fp32, fp16 (default) or a8\n"
    "  --slots N          worker.slots (default 32, at least the concurrency)\n"
    "  --step-tokens N    worker.max_step_tokens (default: the model's longest sequence)\n"
    "  --json             everything as JSON, sizes in bytes\n"
    "  -h, --help\n";

enum { DEFAULT_SLOTS = 32, PUBLISHED_SHARDS = 8 };

struct options {
    const char *model, *weights, *group;
    struct fit_devices devices;
    struct local_engine_options engine; /* activations, KV type */
    uint32_t context, concurrency, tp, pp, slots, step_tokens;
    bool json;
};

/* ---- command line ---- */

static int add_devices(void *context, const char *verb, const char *text)
{
    struct err e = ERR_INIT;
    return fit_devices_add(context, text, &e) < 0 ? cli_usage_error(verb, "%s", e.message) : 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_options(int argc, char **argv, struct options *o)
{
    const struct cli_option own[] = {
        CLI_TEXT("model", &o->model),
        CLI_TAKE("devices", add_devices, &o->devices),
        CLI_U32("context", &o->context, 1, 1 << 20),
        CLI_U32("concurrency", &o->concurrency, 1, PLAN_MAX_ITEMS),
        CLI_U32("tp", &o->tp, 1, FIT_MAX_DEVICES),
        CLI_U32("pp", &o->pp, 1, FIT_MAX_DEVICES),
        CLI_TEXT("weights", &o->weights),
        CLI_TEXT("group", &o->group),
        CLI_CHOICE("kv-cache", &o->engine.kv_type, local_engine_kv_types),
        CLI_CHOICE("activations", &o->engine.mode, local_engine_modes),
        CLI_U32("slots", &o->slots, 1, PLAN_MAX_ITEMS),
        CLI_U32("step-tokens", &o->step_tokens, 1, PLAN_MAX_TOKENS),
        CLI_FLAG("json", &o->json),
    };
    const struct cli_options table = CLI_OWN(own);
    int code = cli_parse(argc, argv, usage, &table, 1);
    if (code >= 0)
        return code;
    if (optind != argc)
        return cli_usage_error("plan", "unexpected argument \"%s\"", argv[optind]);
    if (!o->model)
        return cli_usage_error("plan", "--model is missing");
    if (!o->devices.n)
        return cli_usage_error("plan", "--devices is missing, e.g. --devices 8x24GiB");
    return -1;
}

/* ---- the model ---- */

static int read_config(const char *path, struct arch *a, struct quant_scheme *s, struct err *e)
{
    json_t *config;
    int r = jsonfile_load(path, LAYOUT_MAX_CONFIG_BYTES, &config, e);
    if (r < 0)
        return r;
    r = arch_from_json(config, a, e);
    if (r == 0)
        r = quant_from_json(config, s, e);
    if (r < 0)
        err_prefix(e, "%s", path);
    json_decref(config);
    return r;
}

/* A folder comes before a name. */
static int find_model(const char *model, struct arch *a, struct quant_scheme *s, struct err *e)
{
    char *path = file_join(model, LAYOUT_CONFIG);
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int r = 0;
    if (access(path, F_OK) == 0) {
        r = read_config(path, a, s, e);
    } else if (strcmp(model, arch_glm_130b.name) == 0) {
        *a = arch_glm_130b;
        *s = (struct quant_scheme){.weights = QUANT_INT4};
    } else {
        r = err_set(e, -ENOENT, "%s: expected a folder with %s, or the name %s", model,
                    LAYOUT_CONFIG, arch_glm_130b.name);
    }
    free(path);
    return r;
}

static int change_scheme(const struct options *o, struct quant_scheme *s, struct err *e)
{
    if (o->weights) {
        enum quant_weights weights = s->weights;
        if (quant_weights_parse(o->weights, &weights) < 0)
            return err_set(e, -EINVAL, "--weights: expected int4, int8 or fp16, found \"%s\"",
                           o->weights);
        if (weights != s->weights)
            *s = (struct quant_scheme){.weights = weights};
    }
    if (!o->group)
        return 0;
    if (s->weights == QUANT_FP16)
        return err_set(e, -EINVAL, "--group: FP16 weights have no scales");
    int r = quant_group_parse(o->group, s, e);
    if (r == 0 && s->group == QUANT_GROUP_SHARD && !s->group_n)
        s->group_n = PUBLISHED_SHARDS;
    return r;
}

/* ---- as text ---- */

static double gib(uint64_t bytes)
{
    return (double)bytes / (1 << 30);
}

/* A GPU's activations and cache are FP16 in every mode. */
static const char *kv_name(const struct fit_request *q)
{
    bool gpu = !q->devices->sizes->host_memory;
    return k_kv_type_name(gpu && q->kv_type == K_KV_AUTO ? K_KV_F16
                                                         : k_kv_resolve(q->kv_type, q->mode));
}

static uint64_t n_parameters(const struct arch *a)
{
    uint64_t n = 0;
    for (size_t i = 0; i != shard_n_tensors(a); i++) {
        struct shard_tensor t;
        shard_tensor_at(a, i, &t);
        n += t.rows * t.cols;
    }
    return n;
}

/* "2 x 24.0 GiB, 48.0 GiB" of one host. */
static void print_devices(const struct fit_devices *d)
{
    const char *kind = d->sizes->host_memory ? "CPU" : "GPU";
    for (uint32_t i = 0, n; i != d->n; i += n) {
        const struct fit_device *first = &d->device[i];
        for (n = 1; i + n != d->n && d->device[i + n].host == first->host &&
                    d->device[i + n].bytes == first->bytes;)
            n++;
        const char *between = i == 0 ? "" : first->host == first[-1].host ? ", " : " | ";
        printf("%s%u x %.2f GiB %s", between, n, gib(first->bytes), kind);
    }
    if (d->n_hosts > 1)
        printf(" on %u hosts", d->n_hosts);
    printf("%s\n", d->sizes->host_memory ? "" : "; computed for GPUs, not measured");
}

static void print_question(const struct fit_request *q, const struct options *o)
{
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(q->scheme, scheme);
    printf("model     %s: %u layers, hidden %u, %.4g G parameters; weights %s\n", q->arch->name,
           q->arch->n_layers, q->arch->hidden, (double)n_parameters(q->arch) / 1e9, scheme);
    printf("devices   ");
    print_devices(q->devices);
    printf("reserve   %.2f GiB %s and %d %% of the device as head room, nothing is planned into "
           "it\n",
           gib(fit_reserve(q->devices->sizes, 0)),
           q->devices->sizes->host_memory ? "for program and system"
                                          : "for CUDA context and NCCL buffers (assumed)",
           FIT_HEAD_ROOM_PERCENT);
    printf("asked     %u sequence%s of %u tokens; KV cache in %s, steps of up to %u tokens, %u "
           "slots\n\n",
           q->concurrency, q->concurrency == 1 ? "" : "s", q->context, kv_name(q),
           o->step_tokens ? MAX(o->step_tokens, q->n_slots) : q->arch->max_seq, q->n_slots);
}

/* "cuda:0-3", "host1/cpu": the devices of ranks [first, last], which are neighbours. */
static void device_name(const struct fit_devices *d, uint32_t first, uint32_t last, char ret[64])
{
    char host[24] = "", numbers[32] = "";
    uint32_t from = d->device[first].index, to = d->device[last].index;
    if (d->n_hosts > 1)
        snprintf(host, sizeof host, "host%u/", d->device[first].host);
    if (!d->sizes->host_memory && from == to)
        snprintf(numbers, sizeof numbers, ":%u", from);
    else if (!d->sizes->host_memory)
        snprintf(numbers, sizeof numbers, ":%u-%u", from, to);
    snprintf(ret, 64, "%s%s%s", host, d->sizes->backend, numbers);
}

/* The last of the ranks from `first` that one line can stand for: one stage, devices alike and
 * side by side. */
static uint32_t last_alike(const struct fit_devices *d, const struct fit_layout *l, uint32_t first)
{
    uint32_t last = first;
    for (uint32_t i = first + 1; i != l->tp * l->pp; last = i++) {
        const struct fit_device *a = &d->device[l->ranks[i - 1].device];
        const struct fit_device *b = &d->device[l->ranks[i].device];
        if (l->ranks[i].stage != l->ranks[first].stage || a->host != b->host ||
            a->index + 1 != b->index || a->bytes != b->bytes)
            break;
    }
    return last;
}

static void print_rank_line(const struct fit_request *q, const struct fit_layout *l, uint32_t first,
                            uint32_t last, uint32_t layer)
{
    const struct fit_rank *r = &l->ranks[first];
    char ranks[24], layers[24], device[64];
    snprintf(ranks, sizeof ranks, first == last ? "%u" : "%u-%u", first, last);
    snprintf(layers, sizeof layers, "%u-%u", layer, layer + l->stage_layers[r->stage] - 1);
    device_name(q->devices, r->device, l->ranks[last].device, device);
    printf("%6s %6u %7s %-14s %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %11" PRIu64 "\n", ranks, r->stage,
           layers, device, gib(q->devices->device[r->device].bytes), gib(r->need.weights),
           gib(r->kv_bytes), gib(r->scratch), gib(r->reserve), gib(r->free),
           r->need.kv_block / PLAN_KV_BLOCK_TOKENS);
}

static void print_ranks(const struct fit_request *q, const struct fit_layout *l)
{
    uint64_t weights = 0, kv = 0, scratch = 0, host = 0, per_token = 0, memory = 0, reserve = 0,
             free_bytes = 0;
    printf("%6s %6s %7s %-14s %9s %9s %9s %9s %9s %9s %11s\n", "RANK", "STAGE", "LAYERS", "DEVICE",
           "GiB", "WEIGHTS", "KV CACHE", "SCRATCH", "RESERVE", "FREE", "KV B/TOKEN");
    for (uint32_t i = 0, layer = 0, shown = 0; i != l->tp * l->pp; i++) {
        const struct fit_rank *r = &l->ranks[i];
        if (i == shown) {
            uint32_t last = last_alike(q->devices, l, i);
            print_rank_line(q, l, i, last, layer);
            shown = last + 1;
        }
        memory += q->devices->device[r->device].bytes;
        weights += r->need.weights;
        kv += r->kv_bytes;
        scratch += r->scratch;
        host += r->need.scratch_host;
        reserve += r->reserve;
        free_bytes += r->free;
        per_token += r->need.kv_block / PLAN_KV_BLOCK_TOKENS;
        if (r->tp_rank + 1 == l->tp)
            layer += l->stage_layers[r->stage];
    }
    printf("%6s %6s %7s %-14s %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %11" PRIu64 "\n", "all", "", "",
           "", gib(memory), gib(weights), gib(kv), gib(scratch), gib(reserve), gib(free_bytes),
           per_token);
    if (!q->devices->sizes->host_memory)
        printf("of the scratch, %.3f GiB are in the memory of the hosts\n", gib(host));
}

/* What to write into glmd.yaml. */
static void print_settings(const struct fit_request *q, const struct fit_layout *l)
{
    printf("\nsettings  group.tensor_parallel: %u\n", l->tp);
    if (l->pp > 1)
        printf("          group.pipeline_parallel: %u\n", l->pp);
    if (!l->even) {
        printf("          group.stage_layers: [");
        for (uint32_t i = 0; i != l->pp; i++)
            printf("%s%u", i ? ", " : "", l->stage_layers[i]);
        puts("]");
    }
    printf("          worker.slots: %u\n", q->n_slots);
    if (q->max_step_tokens)
        printf("          worker.max_step_tokens: %u\n", q->max_step_tokens);
    if (q->kv_type != K_KV_AUTO)
        printf("          worker.kv_cache: %s\n", k_kv_type_name(q->kv_type));
    printf("          worker.kv_blocks: %" PRIu64 "\n", l->n_blocks);
}

static void print_others(const struct fit_choices *c)
{
    for (uint32_t i = 1; i < c->n; i++) {
        const struct fit_choice *o = &c->choice[i];
        printf("%s tp %u x pp %u (%u device%s): ", i == 1 ? "\nothers   " : "         ", o->tp,
               o->pp, o->tp * o->pp, o->tp * o->pp == 1 ? "" : "s");
        if (!o->n_blocks)
            puts("does not fit");
        else
            printf("%" PRIu64 " tokens, %u sequence%s%s%s\n", fit_tokens(o->n_blocks), o->sequences,
                   o->sequences == 1 ? "" : "s", o->fits ? "" : ", too few",
                   o->crosses_hosts ? "; tensor parallelism crosses hosts" : "");
    }
}

static int print_text(const struct fit_request *q, const struct options *o,
                      const struct fit_choices *c, const char *why, const struct fit_advice *advice)
{
    const struct fit_layout *l = &c->best;
    print_question(q, o);
    if (l->fits) {
        printf("fits      tp %u x pp %u: %s\n", l->tp, l->pp, why);
        printf("holds     %" PRIu64 " tokens of KV cache (%" PRIu64
               " blocks of %d), %u sequence%s of %u tokens at once\n\n",
               fit_tokens(l->n_blocks), l->n_blocks, PLAN_KV_BLOCK_TOKENS, l->sequences,
               l->sequences == 1 ? "" : "s", q->context);
    } else {
        printf("DOES NOT FIT (tp %u x pp %u is the best layout): %s\n", l->tp, l->pp,
               advice->reason);
        for (uint32_t i = 0; i != advice->n_help; i++)
            printf("would help: %s\n", advice->help[i]);
        putchar('\n');
    }
    print_ranks(q, l);
    if (l->fits)
        print_settings(q, l);
    print_others(c);
    return fflush(stdout) == EOF ? EXIT_FAILED : l->fits ? EXIT_OK : EXIT_FAILED;
}

/* ---- as JSON ---- */

static json_t *ranks_to_json(const struct fit_request *q, const struct fit_layout *l)
{
    json_t *ranks = json_array();
    for (uint32_t i = 0, layer = 0; i != l->tp * l->pp; i++) {
        const struct fit_rank *r = &l->ranks[i];
        char device[64];
        device_name(q->devices, r->device, r->device, device);
        json_array_append_new(
            ranks,
            json_pack("{s:i, s:i, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "rank",
                      (int)i, "stage", (int)r->stage, "layer_begin", (int)layer, "layer_end",
                      (int)(layer + l->stage_layers[r->stage]), "device", device, "device_bytes",
                      (json_int_t)q->devices->device[r->device].bytes, "weights_bytes",
                      (json_int_t)r->need.weights, "kv_bytes", (json_int_t)r->kv_bytes,
                      "scratch_bytes", (json_int_t)r->scratch, "scratch_host_bytes",
                      (json_int_t)r->need.scratch_host, "reserve_bytes", (json_int_t)r->reserve,
                      "free_bytes", (json_int_t)r->free, "kv_bytes_per_token",
                      (json_int_t)(r->need.kv_block / PLAN_KV_BLOCK_TOKENS)));
        if (r->tp_rank + 1 == l->tp)
            layer += l->stage_layers[r->stage];
    }
    return ranks;
}

static json_t *texts_to_json(const struct fit_advice *advice)
{
    json_t *texts = json_array();
    for (uint32_t i = 0; i != advice->n_help; i++)
        json_array_append_new(texts, json_string(advice->help[i]));
    return texts;
}

static json_t *choices_to_json(const struct fit_choices *c)
{
    json_t *array = json_array();
    for (uint32_t i = 0; i != c->n; i++) {
        const struct fit_choice *o = &c->choice[i];
        json_array_append_new(
            array, json_pack("{s:i, s:i, s:b, s:I, s:i, s:b}", "tensor_parallel", (int)o->tp,
                             "pipeline_parallel", (int)o->pp, "fits", o->fits, "kv_tokens",
                             (json_int_t)fit_tokens(o->n_blocks), "sequences", (int)o->sequences,
                             "crosses_hosts", o->crosses_hosts));
    }
    return array;
}

static json_t *to_json(const struct fit_request *q, const struct fit_choices *c, const char *why,
                       const struct fit_advice *advice)
{
    const struct fit_layout *l = &c->best;
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(q->scheme, scheme);
    json_t *layers = json_array();
    for (uint32_t i = 0; i != l->pp; i++)
        json_array_append_new(layers, json_integer(l->stage_layers[i]));
    return json_pack(
        "{s:b, s:s, s:s, s:s, s:b, s:i, s:i, s:i, s:s, s:{s:i, s:i, s:o, s:s}, s:I, s:I, s:i, "
        "s:s, s:o, s:o, s:o}",
        "fits", l->fits, "model", q->arch->name, "weights", scheme, "backend",
        q->devices->sizes->backend, "measured", q->devices->sizes->host_memory, "context",
        (int)q->context, "concurrency", (int)q->concurrency, "slots", (int)q->n_slots, "kv_cache",
        kv_name(q), "layout", "tensor_parallel", (int)l->tp, "pipeline_parallel", (int)l->pp,
        "stage_layers", layers, "why", why, "kv_blocks", (json_int_t)l->n_blocks, "kv_tokens",
        (json_int_t)fit_tokens(l->n_blocks), "sequences", (int)l->sequences, "reason",
        advice->reason, "help", texts_to_json(advice), "ranks", ranks_to_json(q, l), "choices",
        choices_to_json(c));
}

/* ---- the verb ---- */

static int run(const struct options *o, const struct arch *a, const struct quant_scheme *s)
{
    struct fit_request q = {.arch = a,
                            .scheme = s,
                            .devices = &o->devices,
                            .mode = o->engine.mode,
                            .kv_type = o->engine.kv_type,
                            .context = o->context ? o->context : a->max_seq,
                            .concurrency = o->concurrency,
                            .n_slots = MAX(o->slots, o->concurrency),
                            .max_step_tokens = o->step_tokens,
                            .tp = o->tp,
                            .pp = o->pp};
    if (q.context > a->max_seq)
        return cli_usage_error("plan", "--context %u: the model's longest sequence is %u",
                               q.context, a->max_seq);
    struct err e = ERR_INIT;
    struct fit_choices choices;
    if (fit_choose(&q, &choices, &e) < 0)
        return cli_failed("plan", &e);
    char why[FIT_TEXT_BYTES];
    struct fit_advice advice = {0};
    fit_why(&q, &choices, why);
    if (!choices.best.fits)
        fit_advise(&q, &choices, &advice);
    if (!o->json)
        return print_text(&q, o, &choices, why, &advice);
    int code = cli_print_json("plan", to_json(&q, &choices, why, &advice));
    return code == EXIT_OK && !choices.best.fits ? EXIT_FAILED : code;
}

int cmd_plan(int argc, char **argv)
{
    struct options o = {
        .engine = LOCAL_ENGINE_OPTIONS_INIT, .concurrency = 1, .slots = DEFAULT_SLOTS};
    o.engine.mode = K_MODE_FP16;
    int code = parse_options(argc, argv, &o);
    if (code >= 0)
        return code;
    struct arch arch = {0};
    struct quant_scheme scheme = {0};
    struct err e = ERR_INIT;
    assert(o.model);
    int r = find_model(o.model, &arch, &scheme, &e);
    if (r < 0)
        return cli_failed("plan", &e);
    r = change_scheme(&o, &scheme, &e);
    if (r == 0)
        r = quant_check(&scheme, &arch, &e);
    return r < 0 ? cli_usage_error("plan", "%s", e.message) : run(&o, &arch, &scheme);
}
