/* cmd_compare.c: `glmd compare A B`: how far the outputs of two models are apart on a text: what
 * quantization, another activation mode, KV cache or conversion costs. One model is open at a time:
 * A's logits wait in an unnamed temporary file. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/local_engine.h"
#include "model/file.h"
#include "model/tokenizer/tokenizer.h"

enum { MAX_TEXT_BYTES = 64 << 20, DEFAULT_TOKENS = 512, WINDOW = 256 };

static const char usage[] =
    "usage: glmd compare A B [OPTIONS]\n"
    "\n"
    "Scores a text with two model directories and prints how often their best next token is the\n"
    "same, the Kullback-Leibler divergence of B's distribution from A's, and both perplexities.\n"
    "\n"
    "  --text FILE         UTF-8 text; default: a short built-in one, English and Chinese\n"
    "  --tokens N          use at most N tokens of it; default 512\n"
    "  --context N         of each 256 tokens, the first N see each other, as a prompt's do, and "
    "the\n"
    "                      others are scored; default 0: all are scored\n"
    "  --activations-b M   activation mode of B, if not the same as A's\n"
    "  --kv-cache-b TYPE   KV cache of B, if not the same as A's\n"
    "  --json              print an object\n";

static const char default_text[] =
    "The river rises in the mountains and reaches the sea after six hundred kilometres. On its way "
    "it passes three large cities and many small towns. For centuries people have used it to move "
    "wood, stone and grain, and most of the mills on its banks were built before the railway came. "
    "Today the water is clean again, and in summer children swim near the old bridge.\n"
    "In a small laboratory two students measured how quickly the temperature of the water changed "
    "when the wind turned. They wrote down the result every ten minutes, and in the evening they "
    "compared it with the values of the year before. The difference was smaller than expected.\n"
    "这条河发源于山区，流经六百公里后注入大海。沿途经过三座大城市和许多小镇。几百年来，人们"
    "用它运送木材、石头和粮食，岸边的大多数磨坊都建在铁路出现之前。如今河水又变得清澈，夏天"
    "孩子们在老桥附近游泳。\n"
    "在一个小实验室里，两名学生测量了风向改变时水温变化的速度。他们每十分钟记录一次结果，晚上"
    "再与前一年的数值进行比较。差别比预想的要小。\n";

struct compare_args {
    const char *models[2];
    const char *text; /* NULL = default */
    uint32_t max_tokens, context;
    bool json;
    struct local_engine_options engines[2];
};

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct compare_args *args)
{
    *args = (struct compare_args){.max_tokens = DEFAULT_TOKENS};
    struct local_engine_options common = LOCAL_ENGINE_OPTIONS_INIT;
    struct local_engine_options other = LOCAL_ENGINE_OPTIONS_INIT;
    bool other_mode = false;
    bool other_kv = false;
    struct cli_option own[] = {
        CLI_TEXT("text", &args->text),
        CLI_U32("tokens", &args->max_tokens, 1, 1 << 20),
        CLI_U32("context", &args->context, 0, WINDOW - 1),
        CLI_CHOICE("activations-b", &other.mode, local_engine_modes),
        CLI_CHOICE("kv-cache-b", &other.kv_type, local_engine_kv_types),
        CLI_FLAG("json", &args->json),
    };
    own[3].given = &other_mode;
    own[4].given = &other_kv;
    struct cli_option engine[LOCAL_ENGINE_N_OPTIONS];
    const struct cli_options tables[] = {CLI_OWN(own), local_engine_options(&common, engine)};
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    if (argc - optind != 2)
        return cli_usage_error("compare", "expected two model directories");
    for (int i = 0; i != 2; i++) {
        args->models[i] = argv[optind + i];
        args->engines[i] = common;
    }
    if (other_mode)
        args->engines[1].mode = other.mode;
    if (other_kv)
        args->engines[1].kv_type = other.kv_type;
    return -1;
}

/* ---- the text ---- */

static int read_tokens(const struct compare_args *args, struct token_list *ret,
                       struct arch *ret_arch, struct err *e)
{
    struct buf text = {0};
    struct tokenizer *tokenizers[2] = {NULL, NULL};
    struct arch archs[2];
    int r = 0;
    for (int i = 0; i != 2 && r == 0; i++)
        r = cli_open_tokenizer(args->models[i], &archs[i], &tokenizers[i], e);
    if (r == 0 && (archs[0].vocab != archs[1].vocab ||
                   strcmp(tokenizer_digest(tokenizers[0]), tokenizer_digest(tokenizers[1])) != 0))
        r = err_set(e, -EINVAL,
                    "%s and %s have different vocabularies: their outputs cannot be compared",
                    args->models[0], args->models[1]);
    if (r == 0)
        r = args->text ? file_read_all(args->text, MAX_TEXT_BYTES, &text, e)
                       : buf_append_str(&text, default_text);
    if (r == 0)
        r = tokenizer_encode(tokenizers[0], text.data, text.size, false, SIZE_MAX, ret, e);
    if (r == 0 && ret->n == 0)
        r = err_set(e, -EINVAL, "the text has no tokens");
    if (r == 0)
        *ret_arch = archs[0];
    ret->n = MIN(ret->n, (size_t)args->max_tokens);
    tokenizer_close(tokenizers[0]);
    tokenizer_close(tokenizers[1]);
    buf_deinit(&text);
    return r;
}

/* ---- statistics ---- */

struct statistics {
    uint64_t n_rows;
    uint64_t n_same; /* best tokens */
    double kl_sum, kl_max;
    double loss[2]; /* sums of negative log-probabilities */
};

static double log_sum_exp(const float *row, uint32_t vocab)
{
    double max = -INFINITY;
    double sum = 0.0;
    for (uint32_t i = 0; i != vocab; i++)
        max = fmax(max, (double)row[i]);
    for (uint32_t i = 0; i != vocab; i++)
        sum += exp((double)row[i] - max);
    return max + log(sum);
}

static uint32_t best(const float *row, uint32_t vocab)
{
    uint32_t b = 0;
    for (uint32_t i = 1; i != vocab; i++)
        b = row[i] > row[b] ? i : b;
    return b;
}

static void add_row(struct statistics *s, const float *a, const float *b, uint32_t vocab,
                    int32_t target)
{
    double lse_a = log_sum_exp(a, vocab);
    double lse_b = log_sum_exp(b, vocab);
    double kl = 0.0;
    for (uint32_t i = 0; i != vocab; i++) {
        double log_a = (double)a[i] - lse_a;
        kl += exp(log_a) * (log_a - ((double)b[i] - lse_b));
    }
    s->n_rows++;
    s->n_same += best(a, vocab) == best(b, vocab);
    s->kl_sum += kl;
    s->kl_max = fmax(s->kl_max, kl);
    s->loss[0] += lse_a - (double)a[target];
    s->loss[1] += lse_b - (double)b[target];
}

/* ---- running ---- */

/* Called with the logits [n, V] that predict text tokens [first, first + n). */
typedef int (*take_logits)(void *context, const float *logits, size_t first, uint32_t n,
                           struct err *e);

/* A window of n text tokens: `n_context` of them, [gMASK], sop, and the others but the last.
 * Returns the number of ids, n + 1. */
static uint32_t make_window(const struct arch_tokens *special, const int32_t *text, uint32_t n,
                            uint32_t n_context, int32_t *ids)
{
    uint32_t at = 0;
    for (; at != n_context; at++)
        ids[at] = text[at];
    ids[at] = special->gmask;
    ids[at + 1] = special->sop;
    for (; at + 1 < n; at++)
        ids[at + 2] = text[at];
    return n + 1;
}

/* Every text token that is in no window's context is predicted once. */
static int run_model(const char *model, const struct local_engine_options *o,
                     const struct token_list *text, uint32_t n_context, take_logits take,
                     void *context, struct err *e)
{
    struct local_engine l = {0};
    int r = local_engine_open(model, o, &l, e);
    if (r < 0)
        return r;
    const struct arch *a = model_dir_arch(l.dir);
    uint32_t window = MIN((uint32_t)WINDOW, a->max_seq - 1);
    int32_t ids[WINDOW + 1];
    int32_t positions[WINDOW + 1];
    for (uint32_t i = 0; i != WINDOW + 1; i++)
        positions[i] = (int32_t)i;
    if (text->n <= n_context || window <= n_context)
        r = err_set(e, -EINVAL, "--context %u: expected fewer tokens than a window has, %zu",
                    n_context, MIN(text->n, (size_t)window));
    for (size_t first = 0; first + n_context < text->n && r == 0; first += window) {
        uint32_t n = (uint32_t)MIN((size_t)window, text->n - first);
        uint32_t n_ids = make_window(&a->tokens, text->ids + first, n, n_context, ids);
        const float *logits;
        r = local_engine_logits(&l, ids, positions, 0, n_ids, n_context ? n_context + 1 : 0,
                                &logits, e);
        if (r == 0) /* sop's row predicts the token behind the context */
            r = take(context, logits + (size_t)(n_context + 1) * a->vocab, first + n_context,
                     n - n_context, e);
    }
    local_engine_close(&l);
    return r;
}

struct comparison {
    FILE *file; /* A's logits */
    uint32_t vocab;
    const struct token_list *text;
    float *row; /* [vocab] one of A's */
    struct statistics statistics;
};

static int keep_logits(void *context, const float *logits, size_t first, uint32_t n, struct err *e)
{
    struct comparison *c = context;
    (void)first;
    if (fwrite(logits, sizeof *logits * c->vocab, n, c->file) != n)
        return err_set(e, -EIO, "temporary file: %s", err_name(-errno));
    return 0;
}

static int compare_logits(void *context, const float *logits, size_t first, uint32_t n,
                          struct err *e)
{
    struct comparison *c = context;
    for (uint32_t i = 0; i != n; i++) {
        if (fread(c->row, sizeof *c->row, c->vocab, c->file) != c->vocab)
            return err_set(e, -EIO, "temporary file: cannot be read back");
        add_row(&c->statistics, c->row, logits + (size_t)i * c->vocab, c->vocab,
                c->text->ids[first + i]);
    }
    return 0;
}

static int run_both(const struct compare_args *args, struct comparison *c, struct err *e)
{
    c->row = alloc_array(c->vocab, sizeof *c->row);
    c->file = tmpfile();
    int r = 0;
    if (!c->row)
        r = err_set(e, -ENOMEM, "out of memory");
    else if (!c->file)
        r = err_set(e, -errno, "cannot create a temporary file: %s", err_name(-errno));
    if (r == 0)
        r = run_model(args->models[0], &args->engines[0], c->text, args->context, keep_logits, c,
                      e);
    if (r == 0 && (fflush(c->file) != 0 || fseek(c->file, 0, SEEK_SET) != 0))
        r = err_set(e, -EIO, "temporary file: %s", err_name(-errno));
    if (r == 0)
        r = run_model(args->models[1], &args->engines[1], c->text, args->context, compare_logits, c,
                      e);
    if (c->file)
        fclose(c->file);
    free(c->row);
    return r;
}

static int print_result(const struct compare_args *args, const struct statistics *s)
{
    double n = (double)s->n_rows;
    double agreement = (double)s->n_same / n;
    double ppl[2] = {exp(s->loss[0] / n), exp(s->loss[1] / n)};
    if (args->json)
        return cli_print_json(
            "compare", json_pack("{s:I,s:f,s:f,s:f,s:f,s:f}", "tokens", (json_int_t)s->n_rows,
                                 "top1_agreement", agreement, "kl_mean", s->kl_sum / n, "kl_max",
                                 s->kl_max, "perplexity_a", ppl[0], "perplexity_b", ppl[1]));
    printf("tokens           %llu\n"
           "top-1 agreement  %.4f\n"
           "KL(A || B)       mean %.6g, max %.6g nats\n"
           "perplexity A     %.6g\n"
           "perplexity B     %.6g\n",
           (unsigned long long)s->n_rows, agreement, s->kl_sum / n, s->kl_max, ppl[0], ppl[1]);
    return EXIT_OK;
}

int cmd_compare(int argc, char **argv)
{
    struct compare_args args;
    int code = parse_args(argc, argv, &args);
    if (code >= 0)
        return code;
    struct err e = ERR_INIT;
    struct token_list text = {0};
    struct arch arch;
    struct comparison c = {.text = &text};
    int r = read_tokens(&args, &text, &arch, &e);
    if (r == 0) {
        c.vocab = arch.vocab;
        r = run_both(&args, &c, &e);
    }
    token_list_deinit(&text);
    return r < 0 ? cli_failed("compare", &e) : print_result(&args, &c.statistics);
}
