/* bench_engine.c: `glmd bench engine`: prefill and decode of the engine by itself, over batch
 * sizes.
 *
 * Prefill: one prompt as one step. Decode: a batch of sequences that all hold --context tokens,
 * each in KV blocks of its own (copies of one prompt's), and in every measured step each gets the
 * token behind them: a step is repeated, the cache does not grow. So all steps of a row must choose
 * the same tokens, which is checked. The ceiling of reading memory is measured in the same run,
 * before and after, with as many threads.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/bench_profile.h"
#include "cli/bench_target.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "model/synthetic.h"
#include "worker/engine/local_group.h"

static const char verb[] = "bench engine";

static const char usage[] =
    "usage: glmd bench engine --model DIR | --synthetic NAME [OPTIONS]\n"
    "\n"
    "Measures prefill and decode without a server: time of a step, tokens per second, bytes of\n"
    "weights per second, and that as a share of what memory gives in the same run.\n"
    "\n"
    "  --prefill LIST      tokens of a prompt; default 128,512; 0 = none\n"
    "  --batch LIST        sequences of a decode step; default 1,2,4,8,16,32; 0 = none\n"
    "  --profile           where the steps went: products, attention and so on (CPU)\n"
    "  --svg FILE          plot of the decode rows\n";

enum { MAX_ROWS = 32, MIN_STEPS = 3, MAX_BATCH = 1024, MAX_STEPS = 100000 };

struct row {
    uint32_t n; /* tokens of the prompt, or sequences */
    struct bench_summary ms;
    double tokens_per_s, weights_per_s; /* by the median */
    uint64_t hash;
    struct bench_profile profile;
};

struct bench {
    struct bench_target target;
    /* options */
    const char *svg;
    bool profile;
    uint32_t prefill[MAX_ROWS], batch[MAX_ROWS];
    size_t n_prefill, n_batch;
    /* owned */
    struct local_group *group;
    int32_t *tokens, *positions; /* [max_seq] of a prompt */
    uint32_t *blocks;            /* [max batch, per_sequence] of the slots */
    struct plan_item *items;     /* [max batch] */
    int32_t *last;               /* [max batch] the token behind each slot's context */
    struct plan_copy *copies;
    /* state */
    uint32_t per_sequence; /* blocks */
    uint64_t step;
    uint32_t slot_gen;
    double ceiling; /* bytes/s of memory; 0 = not measured */
    uint64_t weight_bytes;
    struct row prefill_rows[MAX_ROWS], decode_rows[MAX_ROWS];
};

/* ---- options ---- */

_Static_assert((int)MAX_ROWS <= (int)PROFILE_MAX_ROWS, "all rows fit a plot of their parts");

/* "0" is the empty list. */
static int take_list(const char *option, const char *text, uint32_t max, uint32_t *ret,
                     size_t *ret_n)
{
    if (bench_parse_list(text, 0, max, ret, MAX_ROWS, ret_n) < 0)
        return cli_usage_error(verb, "%s %s: expected up to %d whole numbers up to %u, as 1,2,4",
                               option, text, MAX_ROWS, max);
    if (*ret_n == 1 && ret[0] == 0)
        *ret_n = 0;
    for (size_t i = 0; i != *ret_n; i++)
        if (!ret[i])
            return cli_usage_error(verb, "%s %s: 0 stands alone", option, text);
    return 0;
}

static int take_prefill(void *context, const char *name, const char *text)
{
    (void)name;
    struct bench *b = context;
    return take_list("--prefill", text, 65536, b->prefill, &b->n_prefill);
}

static int take_batch(void *context, const char *name, const char *text)
{
    (void)name;
    struct bench *b = context;
    return take_list("--batch", text, MAX_BATCH, b->batch, &b->n_batch);
}

/* -1: go on; otherwise an exit code. */
static int parse_args(void *state, int argc, char **argv)
{
    struct bench *b = state;
    static const uint32_t prefill[] = {128, 512}, batch[] = {1, 2, 4, 8, 16, 32};
    *b = (struct bench){
        .target = BENCH_TARGET_INIT, .n_prefill = ARRAY_LEN(prefill), .n_batch = ARRAY_LEN(batch)};
    memcpy(b->prefill, prefill, sizeof prefill);
    memcpy(b->batch, batch, sizeof batch);
    const struct cli_option own[] = {
        CLI_TAKE("prefill", take_prefill, b),
        CLI_TAKE("batch", take_batch, b),
        CLI_FLAG("profile", &b->profile),
        CLI_TEXT("svg", &b->svg),
    };
    return bench_target_parse(&b->target, argc, argv, usage, own, ARRAY_LEN(own));
}

/* ---- setting up ---- */

static uint32_t n_ranks(const struct bench *b)
{
    return b->target.engine.tp * b->target.engine.pp;
}

static uint32_t max_of(const uint32_t *list, size_t n, uint32_t least)
{
    for (size_t i = 0; i != n; i++)
        least = MAX(least, list[i]);
    return least;
}

static int check_lengths(const struct bench *b, struct err *e)
{
    uint32_t longest = max_of(b->prefill, b->n_prefill, b->n_batch ? b->target.context + 1 : 1);
    uint32_t max_seq = model_dir_arch(b->target.dir)->max_seq;
    if (longest > max_seq)
        return err_set(e, -EINVAL, "expected sequences of at most %u tokens, found %u", max_seq,
                       longest);
    return 0;
}

/* Every slot has blocks of its own; a prompt runs in slot 0. */
static int make_tables(struct bench *b, uint32_t max_batch, uint32_t longest)
{
    const struct arch *a = model_dir_arch(b->target.dir);
    uint32_t first = a->tokens.n_image_tokens, n_text = a->tokens.special_base - first;
    b->tokens = alloc_array(longest, sizeof *b->tokens);
    b->positions = alloc_array(longest, sizeof *b->positions);
    b->blocks = alloc_array((size_t)max_batch * b->per_sequence, sizeof *b->blocks);
    b->copies = alloc_array((size_t)max_batch * b->per_sequence, sizeof *b->copies);
    b->items = alloc_array(max_batch, sizeof *b->items);
    b->last = alloc_array(max_batch, sizeof *b->last);
    if (!b->tokens || !b->positions || !b->blocks || !b->copies || !b->items || !b->last)
        return -ENOMEM;
    for (uint32_t i = 0; i != longest; i++) {
        b->tokens[i] = (int32_t)(first + (i * UINT64_C(2654435761) >> 7) % n_text);
        b->positions[i] = (int32_t)i;
    }
    for (uint32_t i = 0; i != max_batch * b->per_sequence; i++)
        b->blocks[i] = i;
    for (uint32_t i = 0; i != max_batch; i++)
        b->last[i] = (int32_t)(first + (i * UINT64_C(40503) + 17) % n_text);
    return 0;
}

static int set_up(struct bench *b, struct err *e)
{
    int r = bench_target_open(&b->target, e);
    if (r == 0)
        r = check_lengths(b, e);
    if (r < 0)
        return r;
    uint32_t max_batch = max_of(b->batch, b->n_batch, 1);
    uint32_t longest = max_of(b->prefill, b->n_prefill, b->target.context + 1);
    b->per_sequence = (b->target.context + PLAN_KV_BLOCK_TOKENS) / PLAN_KV_BLOCK_TOKENS;
    uint32_t prompt_blocks = (longest + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
    uint32_t slots = max_batch;
    while (slots * b->per_sequence < prompt_blocks)
        slots++; /* room in the table for the longest prompt */
    if (make_tables(b, slots, longest) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    struct engine_config config = {.model = b->target.dir,
                                   .n_slots = max_batch,
                                   .n_kv_blocks = MAX(slots * b->per_sequence, 2u),
                                   .max_step_tokens = MAX(longest, max_batch),
                                   .verify = false};
    r = local_engine_config(&b->target.engine, &config, e);
    if (r == 0)
        r = local_group_open(&config, &b->group, e);
    for (uint32_t i = 0; r == 0 && i != n_ranks(b); i++) {
        struct engine_memory m;
        engine_memory(local_group_engine(b->group, i), &m);
        b->weight_bytes += m.weights;
    }
    return r;
}

static void tear_down(void *state)
{
    struct bench *b = state;
    local_group_close(b->group);
    bench_target_close(&b->target);
    free(b->tokens);
    free(b->positions);
    free(b->blocks);
    free(b->copies);
    free(b->items);
    free(b->last);
}

/* ---- measuring ---- */

static int run_step(struct bench *b, struct plan *p, uint64_t *ret_hash, struct err *e)
{
    const struct step_result *result;
    p->epoch = 1;
    p->step = b->step + 1;
    int r = local_group_step(b->group, p, &result, e);
    if (r < 0)
        return r;
    b->step++;
    *ret_hash = 0;
    for (uint32_t i = 0; i != result->n_items; i++) {
        const struct result_item *item = &result->items[i];
        *ret_hash = XXH3_64bits_withSeed(&item->token, sizeof item->token, *ret_hash);
        *ret_hash = XXH3_64bits_withSeed(&item->logprob, sizeof item->logprob, *ret_hash);
    }
    return 0;
}

static const struct plan_sampling greedy = {.temperature = 1.0f, .top_k = 1};

/* The whole prompt in slot 0. */
static int run_prompt(struct bench *b, uint32_t n, uint64_t *ret_hash, struct err *e)
{
    bool bidirectional = model_dir_arch(b->target.dir)->context == ARCH_CONTEXT_BIDIRECTIONAL;
    struct plan_item item = {.slot_gen = ++b->slot_gen,
                             .n_tokens = n,
                             .prefix_len = bidirectional ? n - 1 : 0,
                             .tokens = b->tokens,
                             .positions = b->positions,
                             .blocks = b->blocks,
                             .n_blocks = (n + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS,
                             .output = PLAN_OUTPUT_SAMPLE,
                             .sampling = greedy};
    struct plan p = {.items = &item, .n_items = 1};
    return run_step(b, &p, ret_hash, e);
}

/* One token behind the context, in each of n slots. */
static int run_decode(struct bench *b, uint32_t n, uint32_t n_copies, uint64_t *ret_hash,
                      struct err *e)
{
    b->slot_gen++;
    for (uint32_t i = 0; i != n; i++)
        b->items[i] = (struct plan_item){.slot = i,
                                         .slot_gen = b->slot_gen,
                                         .start = b->target.context,
                                         .n_tokens = 1,
                                         .prefix_len = 0,
                                         .tokens = &b->last[i],
                                         .positions = &b->positions[b->target.context],
                                         .blocks = b->blocks + (size_t)i * b->per_sequence,
                                         .n_blocks = b->per_sequence,
                                         .output = PLAN_OUTPUT_SAMPLE,
                                         .sampling = greedy};
    struct plan p = {.copies = b->copies, .n_copies = n_copies, .items = b->items, .n_items = n};
    return run_step(b, &p, ret_hash, e);
}

/* The prompt's blocks for every other slot. */
static uint32_t plan_copies(struct bench *b, uint32_t n)
{
    uint32_t n_copies = 0;
    for (uint32_t i = b->per_sequence; i != n * b->per_sequence; i++)
        b->copies[n_copies++] = (struct plan_copy){b->blocks[i % b->per_sequence], b->blocks[i]};
    return n_copies;
}

/* Repeats a step for the row's time; the first one warms up. */
static int measure(struct bench *b, struct row *row, bool decode, struct err *e)
{
    struct bench_samples ms = {0};
    struct bench_counts before, after;
    double ns = 0;
    uint64_t hash = 0;
    int r = 0;
    if (decode) {
        r = run_prompt(b, b->target.context, &hash, e);
        if (r == 0)
            r = run_decode(b, row->n, plan_copies(b, row->n), &row->hash, e);
    } else {
        r = run_prompt(b, row->n, &row->hash, e);
    }
    bench_counts_read(b->group, n_ranks(b), &before);
    int64_t end = clock_now_ns() + (int64_t)(b->target.seconds * (double)NSEC_PER_SEC);
    while (r == 0 && ms.n != MAX_STEPS && (ms.n < MIN_STEPS || clock_now_ns() < end)) {
        int64_t begin = clock_now_ns();
        r = decode ? run_decode(b, row->n, 0, &hash, e) : run_prompt(b, row->n, &hash, e);
        double took = (double)(clock_now_ns() - begin);
        ns += took;
        if (r == 0)
            r = bench_samples_add(&ms, took / (double)NSEC_PER_MSEC);
        if (r == 0 && hash != row->hash)
            r = err_set(e, -EIO,
                        "the same step had other results: %016" PRIx64 ", then %016" PRIx64,
                        row->hash, hash);
    }
    if (r == 0) {
        bench_counts_read(b->group, n_ranks(b), &after);
        bench_profile_make(&before, &after, ns, ms.n, &row->profile);
        row->ms = bench_summarize(&ms);
        row->tokens_per_s = row->n * 1000.0 / row->ms.median;
        row->weights_per_s = (double)b->weight_bytes * 1000.0 / row->ms.median;
    }
    bench_samples_deinit(&ms);
    return r;
}

static void measure_ceiling(struct bench *b)
{
    if (strcmp(b->target.engine.device, "cpu") != 0)
        return; /* another memory */
    double rate = bench_read_ceiling(b->target.engine.n_threads);
    b->ceiling = rate > b->ceiling ? rate : b->ceiling;
}

/* ---- results ---- */

static void print_model(const struct bench *b, FILE *out)
{
    const struct arch *a = model_dir_arch(b->target.dir);
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(model_dir_scheme(b->target.dir), scheme);
    fprintf(out,
            "%s%s: %u layers, hidden %u, %.3g parameters, %s, %.3f GB of weights\n"
            "%s; %u rank%s; activations %s\n",
            a->name, b->target.synthetic ? " (synthetic)" : "", a->n_layers, a->hidden,
            (double)synthetic_n_parameters(a), scheme, (double)b->weight_bytes / 1e9,
            engine_describe(local_group_engine(b->group, 0)), n_ranks(b), n_ranks(b) > 1 ? "s" : "",
            local_engine_modes[b->target.engine.mode]);
}

static void print_row(const struct bench *b, FILE *out, const char *phase, const struct row *r)
{
    fprintf(out, "%-8s %6u %10.3f %10.3f %6zu %12.1f %9.2f", phase, r->n, r->ms.median, r->ms.min,
            r->ms.n, r->tokens_per_s, r->weights_per_s / 1e9);
    if (b->ceiling > 0)
        fprintf(out, " %7.1f%%", 100 * r->weights_per_s / b->ceiling);
    else
        fprintf(out, " %8s", "-");
    fprintf(out, "  %016" PRIx64 "\n", r->hash);
}

static void print_profiles(const struct bench *b, FILE *out)
{
    bench_profile_print_header(out);
    for (size_t i = 0; i != b->n_prefill; i++)
        bench_profile_print(out, "prefill", b->prefill[i], &b->prefill_rows[i].profile);
    for (size_t i = 0; i != b->n_batch; i++)
        bench_profile_print(out, "decode", b->batch[i], &b->decode_rows[i].profile);
}

static void print_results(const struct bench *b, FILE *out)
{
    if (b->ceiling > 0)
        fprintf(out, "memory ceiling of this run: %.2f GB/s read\n", b->ceiling / 1e9);
    fprintf(out, "\n%-8s %6s %10s %10s %6s %12s %9s %8s  %s\n", "", "tokens", "ms median",
            "ms best", "steps", "tokens/s", "GB/s", "ceiling", "hash of tokens and logprobs");
    for (size_t i = 0; i != b->n_prefill; i++)
        print_row(b, out, "prefill", &b->prefill_rows[i]);
    for (size_t i = 0; i != b->n_batch; i++)
        print_row(b, out, "decode", &b->decode_rows[i]);
    const struct row *first = &b->decode_rows[0], *last = &b->decode_rows[b->n_batch - 1];
    if (b->profile)
        print_profiles(b, out);
    if (b->n_batch > 1)
        fprintf(out, "\n%u sequences: %.2f times the tokens/s of %u\n", last->n,
                last->tokens_per_s / first->tokens_per_s, first->n);
}

static json_t *rows_json(const struct bench *b, const struct row *rows, size_t n, const char *key)
{
    json_t *list = json_array();
    for (size_t i = 0; i != n; i++) {
        const struct row *r = &rows[i];
        json_t *o = json_pack("{s:I, s:o, s:f, s:f, s:o}", key, (json_int_t)r->n, "step_ms",
                              bench_summary_json(&r->ms, 1), "tokens_per_s", r->tokens_per_s,
                              "weights_bytes_per_s", r->weights_per_s, "result_hash",
                              json_sprintf("%016" PRIx64, r->hash));
        if (o && b->ceiling > 0)
            json_object_set_new(o, "share_of_ceiling", json_real(r->weights_per_s / b->ceiling));
        if (o && r->profile.counted)
            json_object_set_new(o, "profile", bench_profile_json(&r->profile));
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *to_json(const struct bench *b)
{
    const struct arch *a = model_dir_arch(b->target.dir);
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(model_dir_scheme(b->target.dir), scheme);
    json_t *root = json_pack(
        "{s:s, s:s, s:{s:s, s:b, s:I, s:I, s:I, s:s}, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:o}",
        "bench", "engine", "version", GLMD_VERSION, "model", "name", a->name, "synthetic",
        b->target.synthetic != NULL, "layers", (json_int_t)a->n_layers, "hidden_size",
        (json_int_t)a->hidden, "parameters", (json_int_t)synthetic_n_parameters(a), "weights",
        scheme, "device", engine_describe(local_group_engine(b->group, 0)), "activations",
        local_engine_modes[b->target.engine.mode], "tp", (json_int_t)b->target.engine.tp, "pp",
        (json_int_t)b->target.engine.pp, "weights_bytes", (json_int_t)b->weight_bytes, "context",
        (json_int_t)b->target.context, "prefill",
        rows_json(b, b->prefill_rows, b->n_prefill, "tokens"), "decode",
        rows_json(b, b->decode_rows, b->n_batch, "batch"));
    if (root && b->ceiling > 0)
        json_object_set_new(root, "memory_read_bytes_per_s", json_real(b->ceiling));
    return root;
}

static int write_svg(const struct bench *b, struct err *e)
{
    double batch[MAX_ROWS], rate[MAX_ROWS], ms[MAX_ROWS], gbs[MAX_ROWS], prompt[MAX_ROWS];
    struct bench_profile_series decode_parts, prefill_parts;
    for (size_t i = 0; i != b->n_batch; i++) {
        batch[i] = b->decode_rows[i].n;
        rate[i] = b->decode_rows[i].tokens_per_s;
        ms[i] = b->decode_rows[i].ms.median;
        gbs[i] = b->decode_rows[i].weights_per_s / 1e9;
    }
    for (size_t i = 0; i != b->n_prefill; i++)
        prompt[i] = b->prefill_rows[i].n;
    const size_t stride = sizeof(struct row);
    bench_profile_plot(&b->decode_rows[0].profile, stride, batch, b->n_batch, &decode_parts);
    bench_profile_plot(&b->prefill_rows[0].profile, stride, prompt, b->n_prefill, &prefill_parts);
    const struct plot_series series[] = {{"tokens/s", batch, rate, b->n_batch},
                                         {"median", batch, ms, b->n_batch},
                                         {"weights", batch, gbs, b->n_batch}};
    struct plot panels[] = {
        {"decode: tokens per second", "sequences in a step", "tokens/s", true, true, 0, NULL,
         &series[0], 1},
        {"decode: time of a step", "sequences in a step", "ms", true, true, 0, NULL, &series[1], 1},
        {"decode: weights read", "sequences in a step", "GB/s", true, true, b->ceiling / 1e9,
         "memory of this run", &series[2], 1},
        {"decode: where a step goes", "sequences in a step", "% of it", true, true, 0, NULL,
         decode_parts.series, PROFILE_N_SERIES},
        {"prefill: where a step goes", "tokens of the prompt", "% of it", true, true, 0, NULL,
         prefill_parts.series, PROFILE_N_SERIES},
    };
    int r = bench_write_plot(b->svg, panels, b->profile ? ARRAY_LEN(panels) : 3, e);
    return r;
}

static int run(void *state, struct err *e)
{
    struct bench *b = state;
    int r = set_up(b, e);
    if (r < 0)
        return r;
    FILE *out = bench_report_file(b->target.json);
    print_model(b, out);
    fflush(out);
    measure_ceiling(b);
    for (size_t i = 0; i != b->n_prefill && r == 0; i++) {
        b->prefill_rows[i].n = b->prefill[i];
        r = measure(b, &b->prefill_rows[i], false, e);
    }
    for (size_t i = 0; i != b->n_batch && r == 0; i++) {
        b->decode_rows[i].n = b->batch[i];
        r = measure(b, &b->decode_rows[i], true, e);
    }
    if (r < 0)
        return r;
    measure_ceiling(b);
    print_results(b, out);
    if (b->target.json)
        r = bench_write_json(b->target.json, to_json(b), e);
    if (r == 0 && b->svg)
        r = write_svg(b, e);
    return r;
}

int bench_engine(int argc, char **argv)
{
    static const struct bench_verb v = {verb, sizeof(struct bench), parse_args, run, tear_down};
    return bench_main(&v, argc, argv);
}
