/* bench_target.c: see bench_target.h. */
#include "cli/bench_target.h"

#include <errno.h>
#include <getopt.h>

#include "cli/cli.h"
#include "cli/common.h"
#include "model/synthetic.h"

const char bench_target_usage[] =
    "  --model DIR         model directory\n"
    "  --synthetic NAME    made-up weights in memory: glm-130b, glm-1.6b, glm-300m or glm-tiny\n"
    "  --layers N          so many layers of it (4 of glm-130b fit a small machine)\n"
    "  --weights TYPE      of a synthetic model: int4 (default), int8 or fp16\n"
    "  --group GROUP       of a synthetic model: row (default), 32, 64 or 128\n"
    "  --head TYPE         of a synthetic model: fp16 (default) or int8\n"
    "  --context N         tokens in the cache while decoding; default 128\n"
    "  --seconds S         time for each row; default 3\n"
    "  --json FILE         results as JSON (- = standard output)\n";

int bench_target_option(const char *verb, int c, const char *text, struct bench_target *t)
{
    struct err e = ERR_INIT;
    switch (c) {
    case 'm':
        t->model = text;
        return 0;
    case BENCH_OPT_SYNTHETIC:
        t->synthetic = text;
        return 0;
    case BENCH_OPT_LAYERS:
        return cli_option_u32(verb, "--layers", text, 1, 1024, &t->layers);
    case BENCH_OPT_WEIGHTS:
        return quant_weights_parse(text, &t->scheme.weights) < 0
                   ? cli_usage_error(verb, "--weights %s: expected int4, int8 or fp16", text)
                   : 0;
    case BENCH_OPT_GROUP:
        return quant_group_parse(text, &t->scheme, &e) < 0
                   ? cli_usage_error(verb, "--group: %s", e.message)
                   : 0;
    case BENCH_OPT_HEAD:
        return quant_head_parse(text, &t->scheme, &e) < 0 ? cli_usage_error(verb, "--%s", e.message)
                                                          : 0;
    case BENCH_OPT_CONTEXT:
        return cli_option_u32(verb, "--context", text, 1, 65535, &t->context);
    case BENCH_OPT_SECONDS:
        return cli_option_double(verb, "--seconds", text, 0, 3600, &t->seconds);
    case BENCH_OPT_JSON:
        t->json = text;
        return 0;
    case '?':
        return EXIT_USAGE;
    default:
        return local_engine_option(c, text, &t->engine, &e) < 0
                   ? cli_usage_error(verb, "%s", e.message)
                   : 0;
    }
}

int bench_target_check(const char *verb, const struct bench_target *t, int argc)
{
    if (optind != argc || !t->model == !t->synthetic)
        return cli_usage_error(verb, "expected --model DIR or --synthetic NAME");
    return 0;
}

int bench_target_open(struct bench_target *t, struct err *e)
{
    if (t->model)
        return model_dir_open(t->model, &t->dir, e);
    struct arch a;
    if (synthetic_arch(t->synthetic, t->layers, &a) < 0)
        return err_set(e, -EINVAL, "--synthetic %s: expected %s", t->synthetic, synthetic_names);
    if (t->scheme.weights == QUANT_FP16)
        t->scheme.group = QUANT_GROUP_ROW;
    return model_dir_synthetic(&a, &t->scheme, 1, &t->dir, e);
}

void bench_target_close(struct bench_target *t)
{
    model_dir_close(t->dir);
    t->dir = NULL;
}
