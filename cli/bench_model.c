/* bench_model.c: `glmd bench model`: writes a model directory with made-up weights, of the size of
 * a real one, for measuring servers. Vocabulary and tokenizer come from another directory. */
#include "cli/bench_model.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/bench.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/scheme_options.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/layout.h"
#include "model/model_dir.h"
#include "model/synthetic.h"
#include "model/writer.h"

static const char verb[] = "bench model";

static const char usage[] =
    "usage: glmd bench model --synthetic NAME --like DIR --out DIR [OPTIONS]\n"
    "\n"
    "Writes a model directory whose weights are random: of the size and speed of a real model, "
    "but\n"
    "what it says makes no sense. Tokenizer, vocabulary and context length are those of --like.\n"
    "\n"
    "  --synthetic NAME    glm-130b, glm-1.6b, glm-300m or glm-tiny\n"
    "  --layers N          so many layers of it\n"
    "  --like DIR          a model directory with a tokenizer\n"
    "  --out DIR           the new model directory\n"
    "  --weights TYPE      int4 (default), int8 or fp16\n"
    "  --group GROUP       row (default), 32, 64 or 128\n"
    "  --head TYPE         fp16 (default) or int8\n"
    "  --seed N            another seed, other weights; default 1\n";

enum {
    CHUNK_BYTES = 4 << 20,
    MAX_TOKENIZER_BYTES = 64 << 20,
};

#define MAX_FILE_BYTES (UINT64_C(4) << 30)

int bench_model_adopt(struct arch *a, const char *like, struct err *e)
{
    struct arch other;
    char *path = file_join(like, LAYOUT_CONFIG);
    json_t *config = NULL;
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int r = jsonfile_load(path, LAYOUT_MAX_CONFIG_BYTES, &config, e);
    if (r == 0 && (r = arch_from_json(config, &other, e)) < 0)
        err_prefix(e, "%s", path);
    json_decref(config);
    free(path);
    if (r < 0)
        return r;
    a->vocab = other.vocab;
    a->max_seq = other.max_seq;
    a->tokens = other.tokens;
    return 0;
}

/* ---- writing ---- */

static int add_config(struct writer *w, const struct arch *a, const struct quant_scheme *scheme,
                      struct err *e)
{
    json_t *config = json_object();
    int r = -ENOMEM;
    if (config && arch_to_json(a, config) == 0 && quant_to_json(scheme, config) == 0 &&
        json_object_set_new(config, "torch_dtype", json_string("float16")) == 0)
        r = writer_add_json(w, LAYOUT_CONFIG, config, e);
    else
        err_set(e, r, "out of memory");
    json_decref(config);
    return r;
}

static int add_tokenizer(struct writer *w, const char *like, struct err *e)
{
    struct buf data = {0};
    char *path = file_join(like, LAYOUT_TOKENIZER);
    json_t *config = json_pack("{s:s}", "variant", "plain");
    int r = path && config ? file_read_all(path, MAX_TOKENIZER_BYTES, &data, e)
                           : err_set(e, -ENOMEM, "out of memory");
    if (r == 0)
        r = writer_add_file(w, LAYOUT_TOKENIZER, data.data, data.size, e);
    if (r == 0)
        r = writer_add_json(w, LAYOUT_TOKENIZER_CONFIG, config, e);
    json_decref(config);
    buf_deinit(&data);
    free(path);
    return r;
}

static int add_tensors(struct writer *w, const struct arch *a, const struct quant_scheme *scheme,
                       uint64_t seed, struct err *e)
{
    struct st_list list;
    if (layout_tensors(a, scheme, &list) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    void *chunk = malloc(CHUNK_BYTES);
    int r = chunk ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i != list.n && r == 0; i++) {
        const struct st_tensor *t = &list.tensors[i];
        uint64_t bytes = st_rows(t) * st_cols(t) * st_dtype_bytes(t->dtype);
        for (uint64_t at = 0; at != bytes && r == 0 && !writer_has(w, i);) {
            size_t n = MIN(bytes - at, (uint64_t)CHUNK_BYTES);
            synthetic_fill(t, scheme->weights, seed, at, n, chunk);
            r = writer_append(w, chunk, n, e);
            at += n;
        }
    }
    free(chunk);
    st_list_deinit(&list);
    return r;
}

static int finish(struct writer *w, const struct arch *a, uint64_t seed, struct err *e)
{
    json_t *source = json_pack("{s:s, s:s, s:I}", "format", "synthetic", "shape", a->name, "seed",
                               (json_int_t)seed);
    int r = source ? writer_finish(w, source, e) : err_set(e, -ENOMEM, "out of memory");
    json_decref(source);
    return r;
}

int bench_model_write(const struct arch *a, const struct quant_scheme *scheme, uint64_t seed,
                      const char *like, const char *out, struct err *e)
{
    struct st_list tensors;
    struct writer *w = NULL;
    char conversion[192], weights[QUANT_DESCRIBE_BYTES];
    int r = arch_check(a, e);
    if (r == 0)
        r = quant_check(scheme, a, e);
    if (r < 0)
        return r;
    quant_describe(scheme, weights);
    snprintf(conversion, sizeof conversion, "synthetic %s, %u layers, %s, seed %" PRIu64, a->name,
             a->n_layers, weights, seed);
    if (layout_tensors(a, scheme, &tensors) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    const struct writer_options options = {
        .path = out, .max_file_bytes = MAX_FILE_BYTES, .conversion = conversion};
    r = writer_open(&options, &tensors, &w, e);
    if (r == 0 && !writer_is_complete(w)) {
        r = add_tensors(w, a, scheme, seed, e);
        if (r == 0)
            r = add_config(w, a, scheme, e);
        if (r == 0)
            r = add_tokenizer(w, like, e);
        if (r == 0)
            r = finish(w, a, seed, e);
    }
    writer_close(w);
    return r;
}

/* ---- the command ---- */

struct args {
    const char *synthetic, *like, *out;
    uint32_t layers, seed;
    struct quant_scheme scheme;
};

int bench_model(int argc, char **argv)
{
    struct args a = {.seed = 1, .scheme = {.weights = QUANT_INT4}};
    struct arch arch;
    struct err e = ERR_INIT;
    const struct cli_option own[] = {
        CLI_TEXT("synthetic", &a.synthetic),
        CLI_U32("layers", &a.layers, 1, 1024),
        CLI_TEXT("like", &a.like),
        CLI_TEXT("out", &a.out),
        CLI_U32("seed", &a.seed, 0, UINT32_MAX),
    };
    struct cli_option scheme[SCHEME_N_OPTIONS];
    const struct cli_options tables[] = {CLI_OWN(own), scheme_options(&a.scheme, scheme)};
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    if (!a.synthetic || !a.like || !a.out || optind != argc)
        return cli_usage_error(verb, "expected --synthetic, --like and --out");
    if (synthetic_arch(a.synthetic, a.layers, &arch) < 0)
        return cli_usage_error(verb, "--synthetic %s: expected %s", a.synthetic, synthetic_names);
    if (a.scheme.weights == QUANT_FP16)
        a.scheme.group = QUANT_GROUP_ROW;
    int r = bench_model_adopt(&arch, a.like, &e);
    if (r == 0)
        r = bench_model_write(&arch, &a.scheme, a.seed, a.like, a.out, &e);
    if (r < 0)
        return cli_failed(verb, &e);
    printf("%s: %s, %u layers, %.3g parameters\n", a.out, arch.name, arch.n_layers,
           (double)synthetic_n_parameters(&arch));
    return EXIT_OK;
}
