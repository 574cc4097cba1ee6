/* bench_daemon.c: `glmd bench daemon`: how much of the engine's speed arrives through coordinator
 * and worker processes. One model, one machine, one run: streams through a coordinator with a
 * spawned rank, and decode steps of the engine in this process, take turns, so that whatever else
 * the machine does falls on both. What counts are ratios of neighbouring measurements and their
 * medians.
 *
 *   round r:  daemon, N streams | engine, N sequences | daemon, 1 stream | engine, 1 sequence
 *
 * Beside each speed stands what the thread that drives the engine did meanwhile: it ran; it could
 * have run but had no processor (what else runs on the machine: the coordinator, the client); or
 * neither: it slept for want of a step, or the host of a virtual machine ran something else. The
 * share it ran is what the daemon's own arrangement leaves to the engine, free of how fast the
 * processor happened to be in that half of a round.
 *
 * The engine repeats a decode step at the context length that the daemon's streams had in the
 * middle of their measurement. Daemon and engine have the same number of threads; nobody computes
 * while the other one is measured.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/bench.h"
#include "cli/bench_cluster.h"
#include "cli/bench_daemon.h"
#include "cli/bench_dataset.h"
#include "cli/bench_load.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/local_engine.h"
#include "cli/options.h"
#include "model/file.h"

static const char verb[] = "bench daemon";

static const char usage[] =
    "usage: glmd bench daemon --like DIR [OPTIONS]\n"
    "\n"
    "Compares streams through a coordinator and a worker process with the engine alone, and many\n"
    "streams with one, on a model with made-up weights.\n"
    "\n"
    "  --like DIR            a model directory: its tokenizer and vocabulary are used\n"
    "  --synthetic NAME      sizes of the model: glm-300m (default), glm-1.6b, glm-tiny, glm-130b\n"
    "  --batch N             streams that are compared with one; default 32\n"
    "  --threads N           of the rank, and of the engine alone; default 1\n"
    "  --activations MODE    fp32, fp16 (default) or a8\n"
    "  --input-len N         tokens of a prompt; default 16\n"
    "  --seconds S           time of each measurement; default 4\n"
    "  --rounds N            default 5\n"
    "  --coordinator-program PATH  default: glmd-coordinator beside this program\n"
    "  --json FILE           results as JSON (- = standard output)\n";

enum { OUTPUT_TOKENS = 1500, TICK_MS = 20, WARM_TOKENS = 4 };

/* The engine's thread at one time. */
struct look {
    int64_t at_ns;
    struct thread_times times;
};

struct daemon_bench {
    /* options */
    const char *like, *synthetic, *program, *json, *activations;
    uint32_t batch, input_len, rounds;
    double seconds;
    struct local_engine_options engine;
    /* owned */
    struct cluster cluster;
    struct dataset prompts;
    struct model_dir *dir;
    struct local_group *group;
    struct plan_item *items;  /* [batch] */
    struct plan_copy *copies; /* [batch * per_sequence] */
    uint32_t *blocks;         /* [batch, per_sequence] */
    int32_t *prompt, *positions;
    struct daemon_round measured[DAEMON_MAX_ROUNDS];
    /* state */
    struct client_target target;
    uint32_t per_sequence;
    uint64_t step;
    uint32_t slot_gen;
    /* of the load that runs */
    uint32_t n_streams;
    int64_t from_ns, to_ns; /* 0 = not yet */
    uint64_t from_tokens, to_tokens;
    struct look from_look, to_look;
    pid_t rank_pid;
};

/* ---- options ---- */

/* -1: go on; otherwise an exit code. */
static int parse_args(void *state, int argc, char **argv)
{
    struct daemon_bench *b = state;
    *b = (struct daemon_bench){.synthetic = "glm-300m",
                               .batch = 32,
                               .input_len = 16,
                               .rounds = 5,
                               .seconds = 4,
                               .engine = LOCAL_ENGINE_OPTIONS_INIT,
                               .cluster = CLUSTER_INIT};
    b->engine.mode = K_MODE_FP16;
    b->engine.n_threads = 1;
    const struct cli_option own[] = {
        CLI_TEXT("like", &b->like),
        CLI_TEXT("synthetic", &b->synthetic),
        CLI_U32("batch", &b->batch, 2, 1024),
        CLI_U32("threads", &b->engine.n_threads, 1, 4096),
        CLI_CHOICE("activations", &b->engine.mode, local_engine_modes),
        CLI_U32("input-len", &b->input_len, 1, 256),
        CLI_DOUBLE("seconds", &b->seconds, 0.1, 600),
        CLI_U32("rounds", &b->rounds, 1, DAEMON_MAX_ROUNDS),
        CLI_TEXT("coordinator-program", &b->program),
        CLI_TEXT("json", &b->json),
    };
    const struct cli_options tables[] = {CLI_OWN(own)};
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    b->activations = local_engine_modes[b->engine.mode];
    return b->like && optind == argc ? -1 : cli_usage_error(verb, "expected --like DIR");
}

/* ---- the daemon ---- */

static int start_daemon(struct daemon_bench *b, struct err *e)
{
    char threads[40], activations[40];
    snprintf(threads, sizeof threads, "worker.threads=%u", b->engine.n_threads);
    snprintf(activations, sizeof activations, "worker.activations=%s", b->activations);
    const char *const sets[] = {threads, activations, "worker.verify=false", NULL};
    const struct cluster_config config = {.like = b->like,
                                          .synthetic = b->synthetic,
                                          .program = b->program,
                                          .device = "cpu",
                                          .ranks = 1,
                                          .slots = b->batch,
                                          .sets = sets};
    int r = cluster_start(&b->cluster, &config, e);
    if (r < 0)
        return r;
    client_target_init(&b->target, verb);
    b->target.coordinator = b->cluster.address;
    struct cluster_numbers numbers;
    if (cluster_numbers(&b->target, &numbers) || !numbers.rank_pid)
        return err_set(e, -EIO, "the coordinator does not say which process its rank is");
    b->rank_pid = numbers.rank_pid;
    const struct dataset_options o = {
        .n = b->batch, .input_len = b->input_len, .output_len = OUTPUT_TOKENS, .seed = 1};
    return dataset_make(&o, &b->target, &b->prompts) ? err_set(e, -EIO, "no prompts") : 0;
}

static int look_at(pid_t pid, struct look *ret)
{
    ret->at_ns = clock_now_ns();
    return process_thread_times(pid, ENGINE_THREAD_NAME, &ret->times);
}

static void set_shares(struct daemon_speed *s, const struct look *from, const struct look *to)
{
    double ns = (double)(to->at_ns - from->at_ns);
    s->run = (double)(to->times.run - from->times.run) / ns;
    s->queued = (double)(to->times.queued - from->times.queued) / ns;
}

/* When the newest token came; 0 while a stream has none. */
static int64_t newest(const struct daemon_bench *b, const struct load_result *load)
{
    int64_t found = 0;
    for (uint32_t i = 0; i != b->n_streams; i++) {
        if (!load->outcomes[i].first_ns)
            return 0;
        found = MAX(found, load->outcomes[i].last_ns);
    }
    return found;
}

/* From the end of one step to that of another: tokens come in bursts. The measurement begins when
 * every stream decodes. */
static int on_tick(void *context, const struct load_result *load)
{
    struct daemon_bench *b = context;
    int64_t now = newest(b, load);
    if (!now || load->n_tokens < (uint64_t)b->n_streams * WARM_TOKENS)
        return 0;
    if (!b->from_ns) {
        b->from_ns = now;
        b->from_tokens = load->n_tokens;
        return look_at(b->rank_pid, &b->from_look);
    }
    if ((double)(now - b->from_ns) < b->seconds * 1e9)
        return 0;
    b->to_ns = now;
    b->to_tokens = load->n_tokens;
    int r = look_at(b->rank_pid, &b->to_look);
    return r < 0 ? r : -ECANCELED; /* enough */
}

static int run_daemon(struct daemon_bench *b, uint32_t n, struct daemon_speed *ret, struct err *e)
{
    struct load_result load = {0};
    b->n_streams = n;
    b->from_ns = b->to_ns = 0;
    const struct load_config config = {.target = &b->target,
                                       .prompts = b->prompts.prompts,
                                       .n_prompts = n,
                                       .max_concurrency = n,
                                       .greedy = true, /* as the engine's items */
                                       .ignore_end = true,
                                       .on_tick = on_tick,
                                       .tick_ns = TICK_MS * NSEC_PER_MSEC,
                                       .context = b};
    int r = load_run(&config, &load, e);
    if (r < 0 && b->to_ns) {
        *e = (struct err)ERR_INIT;
        r = 0;
    } else if (r == 0) {
        r = load.n_errors ? err_set(e, -EIO, "%u requests failed: %s", load.errors[0].n,
                                    load.errors[0].message)
                          : err_set(e, -EIO, "the streams ended before their time");
    }
    load_result_deinit(&load);
    if (r < 0)
        return r;
    ret->tokens_per_s =
        (double)(b->to_tokens - b->from_tokens) * 1e9 / (double)(b->to_ns - b->from_ns);
    ret->context = b->input_len + (double)(b->from_tokens + b->to_tokens) / 2 / n;
    set_shares(ret, &b->from_look, &b->to_look);
    return 0;
}

/* ---- the engine alone ---- */

static int open_engine(struct daemon_bench *b, struct err *e)
{
    char *model = file_join(b->cluster.folder, "model");
    int r = model ? model_dir_open(model, &b->dir, e) : err_set(e, -ENOMEM, "out of memory");
    free(model);
    if (r < 0)
        return r;
    uint32_t longest = MIN(b->input_len + OUTPUT_TOKENS, model_dir_arch(b->dir)->max_seq);
    b->per_sequence = longest / PLAN_KV_BLOCK_TOKENS;
    uint32_t n_blocks = b->batch * b->per_sequence;
    b->items = alloc_array(b->batch, sizeof *b->items);
    b->blocks = alloc_array(n_blocks, sizeof *b->blocks);
    b->copies = alloc_array(n_blocks, sizeof *b->copies);
    b->prompt = alloc_array(longest, sizeof *b->prompt);
    b->positions = alloc_array(longest, sizeof *b->positions);
    if (!b->items || !b->blocks || !b->copies || !b->prompt || !b->positions)
        return err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i != n_blocks; i++)
        b->blocks[i] = i;
    for (uint32_t i = 0; i != longest; i++) {
        b->prompt[i] = b->prompts.prompts[0].tokens[i % b->input_len];
        b->positions[i] = (int32_t)i;
    }
    struct engine_config config = {
        .model = b->dir, .n_slots = b->batch, .n_kv_blocks = n_blocks, .verify = false};
    r = local_engine_config(&b->engine, &config, e);
    return r < 0 ? r : local_group_open(&config, &b->group, e);
}

static int run_step(struct daemon_bench *b, const struct plan_item *items, uint32_t n,
                    uint32_t n_copies, struct err *e)
{
    const struct step_result *result;
    const struct plan p = {.epoch = 1,
                           .step = ++b->step,
                           .copies = b->copies,
                           .n_copies = n_copies,
                           .items = items,
                           .n_items = n};
    return local_group_step(b->group, &p, &result, e);
}

/* Sequence i, from `start` on. */
static struct plan_item item_of(const struct daemon_bench *b, uint32_t i, uint32_t start,
                                uint32_t n)
{
    return (struct plan_item){.slot = i,
                              .slot_gen = b->slot_gen,
                              .start = start,
                              .n_tokens = n,
                              .tokens = b->prompt + start,
                              .positions = b->positions + start,
                              .blocks = b->blocks + (size_t)i * b->per_sequence,
                              .n_blocks = b->per_sequence,
                              .output = PLAN_OUTPUT_SAMPLE,
                              .sampling = {.temperature = 1, .top_k = 1}};
}

/* The token behind the context, in each of n slots: every time a sequence of its own, so that the
 * step can be repeated. */
static int run_decode(struct daemon_bench *b, uint32_t n, uint32_t context, uint32_t n_copies,
                      struct err *e)
{
    b->slot_gen++;
    for (uint32_t i = 0; i != n; i++)
        b->items[i] = item_of(b, i, context, 1);
    return run_step(b, b->items, n, n_copies, e);
}

/* The blocks of sequence 0 for the others: what they hold does not matter, that they are theirs
 * does. */
static uint32_t plan_copies(struct daemon_bench *b, uint32_t n, uint32_t context)
{
    uint32_t n_copies = 0, n_blocks = context / PLAN_KV_BLOCK_TOKENS + 1;
    for (uint32_t i = 1; i != n; i++) {
        for (uint32_t k = 0; k != n_blocks; k++)
            b->copies[n_copies++] =
                (struct plan_copy){b->blocks[k], b->blocks[i * b->per_sequence + k]};
    }
    return n_copies;
}

static int run_engine(struct daemon_bench *b, uint32_t n, double at, struct daemon_speed *ret,
                      struct err *e)
{
    uint32_t last = b->per_sequence * PLAN_KV_BLOCK_TOKENS - 1, n_steps = 0;
    uint32_t context = MIN((uint32_t)at, last);
    b->slot_gen++;
    const struct plan_item whole = item_of(b, 0, 0, context);
    int r = run_step(b, &whole, 1, 0, e);
    if (r == 0) /* warms up, too */
        r = run_decode(b, n, context, plan_copies(b, n, context), e);
    struct look from = {0}, to = {0};
    if (r == 0)
        r = look_at(getpid(), &from);
    int64_t begin = clock_now_ns(), now = begin;
    for (; r == 0 && (double)(now - begin) < b->seconds * 1e9; now = clock_now_ns()) {
        r = run_decode(b, n, context, 0, e);
        n_steps++;
    }
    if (r == 0)
        r = look_at(getpid(), &to);
    if (r < 0)
        return e->code ? r : err_set(e, r, "cannot look at the engine's thread: %s", err_name(r));
    *ret = (struct daemon_speed){.tokens_per_s = (double)n * n_steps * 1e9 / (double)(now - begin),
                                 .context = context};
    set_shares(ret, &from, &to);
    return 0;
}

/* ---- the run ---- */

static int measure(struct daemon_bench *b, FILE *out, struct err *e)
{
    int r = 0;
    fprintf(out, "%5s %14s %14s %8s %14s %14s %8s %8s\n", "round", "daemon tok/s", "engine tok/s",
            "share", "daemon, one", "engine, one", "share", "n : 1");
    fflush(out);
    for (uint32_t i = 0; i != b->rounds && r == 0; i++) {
        struct daemon_round *m = &b->measured[i];
        r = run_daemon(b, b->batch, &m->daemon_many, e);
        if (r == 0)
            r = run_engine(b, b->batch, m->daemon_many.context, &m->engine_many, e);
        if (r == 0)
            r = run_daemon(b, 1, &m->daemon_one, e);
        if (r == 0)
            r = run_engine(b, 1, m->daemon_one.context, &m->engine_one, e);
        if (r < 0)
            break;
        fprintf(out, "%5u %14.1f %14.1f %8.3f %14.1f %14.1f %8.3f %8.2f\n", i + 1,
                m->daemon_many.tokens_per_s, m->engine_many.tokens_per_s,
                m->daemon_many.tokens_per_s / m->engine_many.tokens_per_s,
                m->daemon_one.tokens_per_s, m->engine_one.tokens_per_s,
                m->daemon_one.tokens_per_s / m->engine_one.tokens_per_s,
                m->daemon_many.tokens_per_s / m->daemon_one.tokens_per_s);
        fflush(out);
    }
    return r;
}

static int run(void *state, struct err *e)
{
    struct daemon_bench *b = state;
    FILE *out = bench_report_file(b->json);
    int r = start_daemon(b, e);
    if (r == 0)
        r = open_engine(b, e);
    if (r == 0)
        r = measure(b, out, e);
    if (r < 0)
        return r;
    const struct daemon_result result = {.synthetic = b->synthetic,
                                         .activations = b->activations,
                                         .a8 = b->engine.mode == K_MODE_A8,
                                         .n_threads = b->engine.n_threads,
                                         .batch = b->batch,
                                         .rounds = b->measured,
                                         .n_rounds = b->rounds};
    daemon_report_print(&result, out);
    return b->json ? bench_write_json(b->json, daemon_report_json(&result), e) : 0;
}

static void tear_down(void *state)
{
    struct daemon_bench *b = state;
    cluster_stop(&b->cluster);
    dataset_deinit(&b->prompts);
    local_group_close(b->group);
    model_dir_close(b->dir);
    free(b->items);
    free(b->blocks);
    free(b->copies);
    free(b->prompt);
    free(b->positions);
}

int bench_daemon(int argc, char **argv)
{
    static const struct bench_verb v = {verb, sizeof(struct daemon_bench), parse_args, run,
                                        tear_down};
    return bench_main(&v, argc, argv);
}
