/* options.c: see options.h. */
#include "worker/options.h"

#include <assert.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "worker/engine/fake.h"

static const char usage[] =
    "glmd-worker " GLMD_VERSION ": one rank of a model\n\n"
    "usage: glmd-worker --config FILE --rank R [OPTIONS]\n"
    "       glmd-worker --coordinator HOST:PORT --model DIR --rank R --tp N [OPTIONS]\n\n"
    "  --config FILE          configuration file; flags override it\n"
    "  --rank R               number of this rank, from 0\n"
    "  --device DEVICE        cpu, cuda:N, or fake[:KEY=VALUE,...]: no model, made-up tokens\n"
    "                         (step_us, prefill_us, decode_us, end, seed; docs/performance.md)\n"
    "  --coordinator ADDRESS  HOST:PORT or unix:/PATH to dial\n"
    "  --model DIR            model directory\n"
    "  --group NAME           group that this rank belongs to\n"
    "  --tp N                 tensor-parallel ranks of a stage\n"
    "  --pp N                 pipeline stages of the group; rank = stage * TP + rank within it\n"
    "  --activations MODE     fp32, fp16 or a8\n"
    "  --kv-cache TYPE        auto, fp16 or int8: keys and values\n"
    "  --threads N            CPU threads; 0 = all CPUs allowed\n"
    "  --slots N              sequences at once\n"
    "  --kv-bytes SIZE        memory for keys and values, as 4GiB; 0 = room for all slots\n"
    "  --memory-utilization P percent of a GPU's memory that may be taken\n"
    "  --max-step-tokens N    most tokens in a step; 0 = the context length\n"
    "  --no-verify            do not check the checksums of the weights\n"
    "  --listen ADDRESS       where peers on other hosts reach this rank\n"
    "  --health-listen ADDRESS  gRPC health service; \"\" = none\n"
    "  --cluster NAME         name of the installation\n"
    "  --log-level LEVEL      error, warn, info or debug\n"
    "  --set KEY=VALUE        any key of the configuration file (glmd config show)\n"
    "  --spawned              end when the parent process ends\n"
    "  --help, --version\n\n"
    "Exit codes: 0 stopped or drained, 64 configuration, 65 weights, 69 address not available,\n"
    "70 internal, 71 device, 77 another process took over this rank.\n";

enum {
    OPT_CONFIG = 256,
    OPT_RANK,
    OPT_DEVICE,
    OPT_NO_VERIFY,
    OPT_SET,
    OPT_SPAWNED,
    OPT_HELP,
    OPT_VERSION,
    OPT_PATHS /* OPT_PATHS + i: paths[i] */
};

static const char *const paths[] = {
    "worker.coordinator",
    "model.dir",
    "group.tensor_parallel",
    "worker.activations",
    "worker.threads",
    "worker.slots",
    "worker.kv_bytes",
    "worker.max_step_tokens",
    "worker.listen",
    "worker.health_listen",
    "cluster.name",
    "log.level",
    "group.name",
    "group.pipeline_parallel",
    "worker.kv_cache",
    "worker.memory_utilization",
};

static const struct option long_options[] = {
    {"config", required_argument, NULL, OPT_CONFIG},
    {"rank", required_argument, NULL, OPT_RANK},
    {"device", required_argument, NULL, OPT_DEVICE},
    {"no-verify", no_argument, NULL, OPT_NO_VERIFY},
    {"set", required_argument, NULL, OPT_SET},
    {"spawned", no_argument, NULL, OPT_SPAWNED},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {"coordinator", required_argument, NULL, OPT_PATHS + 0},
    {"model", required_argument, NULL, OPT_PATHS + 1},
    {"tp", required_argument, NULL, OPT_PATHS + 2},
    {"activations", required_argument, NULL, OPT_PATHS + 3},
    {"threads", required_argument, NULL, OPT_PATHS + 4},
    {"slots", required_argument, NULL, OPT_PATHS + 5},
    {"kv-bytes", required_argument, NULL, OPT_PATHS + 6},
    {"max-step-tokens", required_argument, NULL, OPT_PATHS + 7},
    {"listen", required_argument, NULL, OPT_PATHS + 8},
    {"health-listen", required_argument, NULL, OPT_PATHS + 9},
    {"cluster", required_argument, NULL, OPT_PATHS + 10},
    {"log-level", required_argument, NULL, OPT_PATHS + 11},
    {"group", required_argument, NULL, OPT_PATHS + 12},
    {"pp", required_argument, NULL, OPT_PATHS + 13},
    {"kv-cache", required_argument, NULL, OPT_PATHS + 14},
    {"memory-utilization", required_argument, NULL, OPT_PATHS + 15},
    {0},
};

struct parse {
    struct worker_options *o;
    const char *config_file; /* argv */
    long rank;               /* -1 = not given */
    FILE *out;
    struct err e;
};

static int parse_rank(struct parse *p, const char *text)
{
    char *end;
    assert(text);
    errno = 0;
    p->rank = strtol(text, &end, 10);
    if (errno || *end || end == text || p->rank < 0 || p->rank > UINT16_MAX)
        return err_set(&p->e, -EINVAL, "--rank: expected a number from 0, found \"%s\"", text);
    return 0;
}

static int apply_path(struct parse *p, int index)
{
    char flag[64];
    const char *name = "";
    for (const struct option *l = long_options; l->name; l++)
        if (l->val == OPT_PATHS + index)
            name = l->name;
    snprintf(flag, sizeof flag, "--%s", name);
    return config_set(&p->o->config, paths[index], optarg, flag, &p->e);
}

/* The file first, whatever its place: flags override it. */
static int find_file(struct parse *p, int argc, char **argv, enum options_result *ret)
{
    opterr = 0;
    optind = 0; /* glibc: start over */
    for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (c == OPT_CONFIG) {
            p->config_file = optarg;
        } else if (c == OPT_HELP || c == OPT_VERSION) {
            fputs(c == OPT_HELP ? usage : "glmd-worker " GLMD_VERSION "\n", p->out);
            *ret = OPTIONS_EXIT_OK;
            return 1;
        } else if (c == '?') {
            return err_set(&p->e, -EINVAL,
                           "%s: unknown option or missing value; --help lists the options",
                           argv[optind - 1]);
        }
    }
    if (optind < argc)
        return err_set(&p->e, -EINVAL, "%s: expected options only; --help lists them",
                       argv[optind]);
    return 0;
}

static int apply_flags(struct parse *p, int argc, char **argv)
{
    int r = 0;
    optind = 0;
    for (int c; !r && (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (c >= OPT_PATHS)
            r = apply_path(p, c - OPT_PATHS);
        else if (c == OPT_RANK)
            r = parse_rank(p, optarg);
        else if (c == OPT_DEVICE)
            p->o->device = optarg;
        else if (c == OPT_NO_VERIFY)
            r = config_set(&p->o->config, "worker.verify", "false", "--no-verify", &p->e);
        else if (c == OPT_SET)
            r = config_set_pair(&p->o->config, optarg, &p->e);
        else if (c == OPT_SPAWNED)
            p->o->spawned = true;
    }
    return r;
}

static int check(struct parse *p)
{
    struct worker_options *o = p->o;
    int r = config_check(&o->config, &p->e);
    if (r == 0)
        r = config_check_worker(&o->config, &p->e);
    if (r)
        return r;
    if (p->rank < 0)
        return err_set(&p->e, -EINVAL, "--rank is missing: which rank is this?");
    if ((uint64_t)p->rank >= config_group_ranks(&o->config))
        return err_set(&p->e, -EINVAL,
                       "--rank %ld: expected below %u (--tp x --pp, or group.tensor_parallel x "
                       "group.pipeline_parallel)",
                       p->rank, config_group_ranks(&o->config));
    o->rank = (uint32_t)p->rank;
    if (!*o->config.model.dir)
        return err_set(&p->e, -EINVAL, "no model: give --model DIR or model.dir");
    if (!o->device)
        o->device = config_device(&o->config, o->rank);
    struct fake_params ignored;
    return fake_is_device(o->device) ? fake_parse(o->device, &ignored, &p->e) : 0;
}

enum options_result options_parse(struct worker_options *o, int argc, char **argv, FILE *out,
                                  FILE *error_out)
{
    *o = (struct worker_options){0};
    struct parse p = {.o = o, .rank = -1, .out = out};
    enum options_result result = OPTIONS_EXIT_USAGE;
    int r = config_init(&o->config);
    if (!r)
        r = find_file(&p, argc, argv, &result);
    if (!r && p.config_file)
        r = config_load(&o->config, p.config_file, &p.e);
    if (!r)
        r = apply_flags(&p, argc, argv);
    if (!r)
        r = check(&p);
    if (!r)
        return OPTIONS_RUN;
    if (r < 0)
        fprintf(error_out, "glmd-worker: %s\n", p.e.code ? p.e.message : err_name(r));
    return result;
}

void options_deinit(struct worker_options *o)
{
    config_deinit(&o->config);
}
