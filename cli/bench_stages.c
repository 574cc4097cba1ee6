/* bench_stages.c: `glmd bench stages`: how busy pipeline stages are, against the ideal.
 *
 * A micro-batch is a set of sequences that hold --context tokens; a step gives each of them one
 * token, at the same place every time, so that all steps of a micro-batch must choose the same.
 * With m of them in flight, a micro-batch's next step is given when its last one has come back, as
 * a scheduler has to that waits for the sample. With t_s the time that stage s works on a step:
 *
 *   period of a step, at best   T(m) = max(max t_s, sum t_s / m)
 *   share of time busy          t_s / T(m)
 *   bubble                      1 - sum t_s / (n_stages T(m))
 *
 * t_s comes from the row itself: what stages cost each other in memory bandwidth or CPUs is in it,
 * what they wait for each other is not.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/bench_target.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "worker/engine/local_group.h"

static const char verb[] = "bench stages";

static const char usage[] =
    "usage: glmd bench stages --model DIR | --synthetic NAME [OPTIONS]\n"
    "\n"
    "Measures decode steps of several micro-batches in flight over pipeline stages: how busy each\n"
    "stage is, and how far that is from the ideal.\n"
    "\n"
    "  --in-flight LIST    micro-batches at once; default 1,2,3\n"
    "  --batch N           sequences of a micro-batch; default 8\n";

enum { MAX_ROWS = LOCAL_GROUP_MAX_STEPS, MAX_BATCH = 64, WARM_UP = 2, MIN_STEPS = 8 };

struct micro_batch {
    struct plan plan;
    struct plan_item items[MAX_BATCH];
    uint64_t hash; /* of the tokens of its first step; 0 = none yet */
};

struct row {
    uint32_t in_flight;
    uint64_t n_steps;
    double seconds;
    double work_ms[COMM_MAX_STAGES]; /* t_s */
    double period_ms, ideal_ms;
};

struct bench {
    struct bench_target target;
    /* options */
    uint32_t batch;
    uint32_t in_flight[MAX_ROWS];
    size_t n_rows;
    /* owned */
    struct local_group *group;
    uint32_t *blocks; /* [max in flight, batch, per_sequence] */
    /* state */
    struct micro_batch micro[MAX_ROWS];
    int32_t token, position;
    uint32_t n_micro;
    uint64_t step;
    uint32_t slot_gen;
    struct row rows[MAX_ROWS];
};

/* ---- options ---- */

static int take_in_flight(void *context, const char *name, const char *text)
{
    struct bench *b = context;
    return bench_parse_list(text, 1, MAX_ROWS, b->in_flight, MAX_ROWS, &b->n_rows) < 0
               ? cli_usage_error(name, "--in-flight %s: expected up to %d numbers up to %d", text,
                                 MAX_ROWS, MAX_ROWS)
               : 0;
}

/* -1: go on; otherwise an exit code. */
static int parse_args(void *state, int argc, char **argv)
{
    struct bench *b = state;
    *b = (struct bench){
        .target = BENCH_TARGET_INIT, .batch = 8, .in_flight = {1, 2, 3}, .n_rows = 3};
    b->target.engine.pp = 2;
    const struct cli_option own[] = {
        CLI_TAKE("in-flight", take_in_flight, b),
        CLI_U32("batch", &b->batch, 1, MAX_BATCH),
    };
    return bench_target_parse(&b->target, argc, argv, usage, own, ARRAY_LEN(own));
}

/* ---- setting up ---- */

/* Sequences whose context is what the cache is made with: zeros. */
static void set_items(struct bench *b, uint32_t per_sequence)
{
    const struct arch *a = model_dir_arch(b->target.dir);
    b->token = (int32_t)a->tokens.n_image_tokens + 17;
    b->position = (int32_t)b->target.context;
    for (uint32_t i = 0; i != b->n_micro * b->batch; i++)
        b->micro[i / b->batch].items[i % b->batch] =
            (struct plan_item){.slot = i,
                               .start = b->target.context,
                               .n_tokens = 1,
                               .tokens = &b->token,
                               .positions = &b->position,
                               .blocks = b->blocks + (size_t)i * per_sequence,
                               .n_blocks = per_sequence,
                               .output = PLAN_OUTPUT_SAMPLE,
                               .sampling = {.temperature = 1.0f, .top_k = 1}};
}

static int set_up(struct bench *b, struct err *e)
{
    int r = bench_target_open(&b->target, e);
    if (r < 0)
        return r;
    if (b->target.context >= model_dir_arch(b->target.dir)->max_seq)
        return err_set(e, -EINVAL, "--context: expected less than %u tokens, found %u",
                       model_dir_arch(b->target.dir)->max_seq, b->target.context);
    for (size_t i = 0; i != b->n_rows; i++)
        b->n_micro = MAX(b->n_micro, b->in_flight[i]);
    uint32_t per_sequence = b->target.context / PLAN_KV_BLOCK_TOKENS + 1;
    uint32_t n_sequences = b->n_micro * b->batch;
    b->blocks = alloc_array((size_t)n_sequences * per_sequence, sizeof *b->blocks);
    if (!b->blocks)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i != n_sequences * per_sequence; i++)
        b->blocks[i] = i;
    set_items(b, per_sequence);
    struct engine_config config = {.model = b->target.dir,
                                   .n_slots = n_sequences,
                                   .n_kv_blocks = MAX(n_sequences * per_sequence, 2u),
                                   .max_step_tokens = b->batch};
    r = local_engine_config(&b->target.engine, &config, e);
    return r < 0 ? r : local_group_open(&config, &b->group, e);
}

static void tear_down(void *state)
{
    struct bench *b = state;
    local_group_close(b->group);
    bench_target_close(&b->target);
    free(b->blocks);
}

/* ---- measuring ---- */

/* The same tokens as ever, as new lives of the slots. */
static int give(struct bench *b, struct micro_batch *m)
{
    b->slot_gen++;
    for (uint32_t i = 0; i != b->batch; i++)
        m->items[i].slot_gen = b->slot_gen;
    m->plan = (struct plan){.epoch = 1, .step = ++b->step, .items = m->items, .n_items = b->batch};
    return local_group_submit(b->group, &m->plan);
}

static int take_back(struct bench *b, struct micro_batch *m, struct err *e)
{
    const struct step_result *result = NULL;
    int r = local_group_wait(b->group, &result, e);
    if (r < 0)
        return r;
    uint64_t hash = 0;
    for (uint32_t i = 0; i != result->n_items; i++) {
        hash = XXH3_64bits_withSeed(&result->items[i].token, sizeof(int32_t), hash);
        hash = XXH3_64bits_withSeed(&result->items[i].logprob, sizeof(float), hash);
    }
    if (m->hash && m->hash != hash)
        return err_set(e, -EIO, "a step that was repeated chose other tokens");
    m->hash = hash;
    return 0;
}

/* Time that each stage has worked so far, on average over its ranks. */
static void read_work(struct bench *b, double *ret_ns)
{
    for (uint32_t stage = 0; stage != b->target.engine.pp; stage++) {
        ret_ns[stage] = 0;
        for (uint32_t rank = 0; rank != b->target.engine.tp; rank++) {
            struct engine_stats s;
            engine_stats(local_group_engine(b->group, stage * b->target.engine.tp + rank), &s);
            ret_ns[stage] += (double)(s.compute_ns - s.link_wait_ns) / b->target.engine.tp;
        }
    }
}

/* n steps, or as many as fit the time when n is 0; returns with nothing in flight. */
static int run_steps(struct bench *b, uint32_t in_flight, uint64_t n, uint64_t *ret_n,
                     struct err *e)
{
    assert(in_flight > 0);
    int64_t end_ns = clock_now_ns() + (int64_t)(b->target.seconds * 1e9);
    uint64_t given = 0;
    uint64_t taken = 0;
    int r = 0;
    while (r == 0) {
        bool more = n ? given < n : given < MIN_STEPS || clock_now_ns() < end_ns;
        if (more && given - taken < in_flight)
            r = give(b, &b->micro[given++ % in_flight]);
        else if (given != taken)
            r = take_back(b, &b->micro[taken++ % in_flight], e);
        else
            break;
    }
    *ret_n = taken;
    return r;
}

static int measure(struct bench *b, struct row *row, struct err *e)
{
    double before[COMM_MAX_STAGES] = {0};
    double after[COMM_MAX_STAGES] = {0};
    uint64_t n;
    int r = run_steps(b, row->in_flight, (uint64_t)WARM_UP * row->in_flight, &n, e);
    if (r < 0)
        return r;
    read_work(b, before);
    int64_t begin_ns = clock_now_ns();
    r = run_steps(b, row->in_flight, 0, &row->n_steps, e);
    if (r < 0)
        return r;
    row->seconds = (double)(clock_now_ns() - begin_ns) / 1e9;
    read_work(b, after);
    double longest = 0;
    double sum = 0;
    for (uint32_t stage = 0; stage != b->target.engine.pp; stage++) {
        row->work_ms[stage] = (after[stage] - before[stage]) / 1e6 / (double)row->n_steps;
        longest = MAX(longest, row->work_ms[stage]);
        sum += row->work_ms[stage];
    }
    row->period_ms = row->seconds * 1e3 / (double)row->n_steps;
    row->ideal_ms = MAX(longest, sum / row->in_flight);
    return 0;
}

/* ---- output ---- */

static double bubble(const struct bench *b, const struct row *row, double period_ms)
{
    double sum = 0;
    for (uint32_t stage = 0; stage != b->target.engine.pp; stage++)
        sum += row->work_ms[stage];
    return 1 - sum / (period_ms * b->target.engine.pp);
}

static void print_results(struct bench *b, FILE *out)
{
    const struct arch *a = model_dir_arch(b->target.dir);
    fprintf(out, "%s: %u layers; micro-batches of %u sequences, %u tokens each in the cache\n",
            a->name, a->n_layers, b->batch, b->target.context);
    for (uint32_t stage = 0; stage != b->target.engine.pp; stage++) {
        uint32_t begin = 0;
        uint32_t end = 0;
        engine_layers(local_group_engine(b->group, stage * b->target.engine.tp), &begin, &end);
        fprintf(out, "stage %u: layers %u to %u, %u rank%s\n", stage, begin, end - 1,
                b->target.engine.tp, b->target.engine.tp > 1 ? "s" : "");
    }
    fprintf(out, "\nin flight  steps  ms/step  ideal  tokens/s  bubble  ideal  busy of each stage "
                 "(ideal)\n");
    for (size_t i = 0; i != b->n_rows; i++) {
        const struct row *r = &b->rows[i];
        fprintf(out, "%9u %6llu %8.3f %6.3f %9.1f %6.1f%% %5.1f%% ", r->in_flight,
                (unsigned long long)r->n_steps, r->period_ms, r->ideal_ms,
                b->batch / r->period_ms * 1e3, 100 * bubble(b, r, r->period_ms),
                100 * bubble(b, r, r->ideal_ms));
        for (uint32_t stage = 0; stage != b->target.engine.pp; stage++)
            fprintf(out, " %5.1f%% (%.1f%%)", 100 * r->work_ms[stage] / r->period_ms,
                    100 * r->work_ms[stage] / r->ideal_ms);
        fputc('\n', out);
    }
}

static json_t *row_json(const struct bench *b, const struct row *r)
{
    json_t *stages = json_array();
    for (uint32_t stage = 0; stage != b->target.engine.pp; stage++)
        json_array_append_new(stages, json_pack("{s:f, s:f, s:f}", "work_ms", r->work_ms[stage],
                                                "busy", r->work_ms[stage] / r->period_ms,
                                                "busy_ideal", r->work_ms[stage] / r->ideal_ms));
    return json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:o}", "in_flight",
                     (json_int_t)r->in_flight, "steps", (json_int_t)r->n_steps, "step_ms",
                     r->period_ms, "step_ms_ideal", r->ideal_ms, "tokens_per_s",
                     b->batch / r->period_ms * 1e3, "bubble", bubble(b, r, r->period_ms),
                     "bubble_ideal", bubble(b, r, r->ideal_ms), "stages", stages);
}

static json_t *to_json(const struct bench *b)
{
    const struct arch *a = model_dir_arch(b->target.dir);
    json_t *rows = json_array();
    for (size_t i = 0; i != b->n_rows; i++)
        json_array_append_new(rows, row_json(b, &b->rows[i]));
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "bench", "stages", "version",
                     GLMD_VERSION, "model", a->name, "layers", (json_int_t)a->n_layers, "tp",
                     (json_int_t)b->target.engine.tp, "pp", (json_int_t)b->target.engine.pp,
                     "batch", (json_int_t)b->batch, "context", (json_int_t)b->target.context,
                     "rows", rows);
}

static int run(void *state, struct err *e)
{
    struct bench *b = state;
    int r = set_up(b, e);
    for (size_t i = 0; i != b->n_rows && r == 0; i++) {
        b->rows[i].in_flight = b->in_flight[i];
        r = measure(b, &b->rows[i], e);
    }
    if (r < 0)
        return r;
    print_results(b, b->target.json && strcmp(b->target.json, "-") == 0 ? stderr : stdout);
    return b->target.json ? bench_write_json(b->target.json, to_json(b), e) : 0;
}

int bench_stages(int argc, char **argv)
{
    static const struct bench_verb v = {verb, sizeof(struct bench), parse_args, run, tear_down};
    return bench_main(&v, argc, argv);
}
