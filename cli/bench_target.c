/* bench_target.c: see bench_target.h. */
#include "cli/bench_target.h"

#include <errno.h>
#include <getopt.h>

#include "base/util.h"
#include "cli/common.h"
#include "cli/scheme_options.h"
#include "model/synthetic.h"

int bench_target_parse(struct bench_target *t, int argc, char **argv, const char *usage,
                       const struct cli_option *own, size_t n_own)
{
    static const char help[] =
        "  -m, --model DIR     model directory\n"
        "  --synthetic NAME    made-up weights in memory: glm-130b, glm-1.6b, glm-300m or "
        "glm-tiny\n"
        "  --layers N          so many layers of it (4 of glm-130b fit a small machine)\n"
        "  --weights TYPE      of a synthetic model: int4 (default), int8 or fp16\n"
        "  --group GROUP       of a synthetic model: row (default), 32, 64 or 128\n"
        "  --head TYPE         of a synthetic model: fp16 (default) or int8\n"
        "  --context N         tokens in the cache while decoding; default 128\n"
        "  --seconds S         time for each row; default 3\n"
        "  --json FILE         results as JSON (- = standard output)\n";
    const struct cli_option common[] = {
        {.name = "model", .letter = 'm', .kind = CLI_OPTION_TEXT, .value = &t->model},
        CLI_TEXT("synthetic", &t->synthetic),
        CLI_U32("layers", &t->layers, 1, 1024),
        CLI_U32("context", &t->context, 1, 65535),
        CLI_DOUBLE("seconds", &t->seconds, 0, 3600),
        CLI_TEXT("json", &t->json),
    };
    struct cli_option scheme[SCHEME_N_OPTIONS], engine[LOCAL_ENGINE_N_OPTIONS];
    const struct cli_options tables[] = {
        {own, n_own, NULL},
        {common, ARRAY_LEN(common), help},
        scheme_options(&t->scheme, scheme),
        local_engine_options(&t->engine, engine),
    };
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code < 0 && (optind != argc || !t->model == !t->synthetic))
        return cli_usage_error(argv[0], "expected --model DIR or --synthetic NAME");
    return code;
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
