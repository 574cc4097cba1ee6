/* cmd_logits.c: `glmd logits`: runs the engine, without a server, on the sequences of a manifest
 * and writes their logits as safetensors. */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "cli/local_engine.h"
#include "cli/logits_cases.h"
#include "model/file.h"
#include "model/safetensors.h"

static const char usage[] =
    "usage: glmd logits --model DIR --cases MANIFEST.json --out FILE.safetensors [OPTIONS]\n"
    "\n"
    "Runs the model on given token ids and writes an F32 tensor of logits per case.\n"
    "\n"
    "  -m, --model DIR     model directory (see glmd convert)\n"
    "  -c, --cases FILE    {\"cases\": [{\"input_ids\", \"position_ids\"?, \"prefix_length\"?}]} "
    "or\n"
    "                      {\"logits\": [{\"name\", \"tokens\", \"position_ids\", \"allowed\"?,\n"
    "                      \"valid_lengths\"?}]}\n"
    "  -o, --out FILE      caseN.logits [T, V], or NAME.logits [B, T, V]\n"
    "  --decode            the prefix as one step, then token by token: the same bits\n";

struct logits_args {
    const char *model, *cases, *out;
    bool decode;
    struct local_engine_options engine;
};

/* -1: go on; otherwise an exit code. */
static int parse_args(int argc, char **argv, struct logits_args *args)
{
    *args = (struct logits_args){.engine = LOCAL_ENGINE_OPTIONS_INIT};
    const struct cli_option own[] = {
        {.name = "model", .letter = 'm', .kind = CLI_OPTION_TEXT, .value = &args->model},
        {.name = "cases", .letter = 'c', .kind = CLI_OPTION_TEXT, .value = &args->cases},
        {.name = "out", .letter = 'o', .kind = CLI_OPTION_TEXT, .value = &args->out},
        CLI_FLAG("decode", &args->decode),
    };
    struct cli_option engine[LOCAL_ENGINE_N_OPTIONS];
    const struct cli_options tables[] = {CLI_OWN(own), local_engine_options(&args->engine, engine)};
    int code = cli_parse(argc, argv, usage, tables, ARRAY_LEN(tables));
    if (code >= 0)
        return code;
    if (!args->model || !args->cases || !args->out || optind != argc)
        return cli_usage_error(argv[0], "expected --model, --cases and --out");
    return -1;
}

/* Head of the output file: names and shapes of all tensors. */
static int write_header(int fd, const char *path, const struct logits_cases *cases, uint32_t vocab,
                        struct err *e)
{
    struct st_list list = {alloc_array(cases->n, sizeof *list.tensors), cases->n};
    if (!list.tensors)
        return err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i != cases->n; i++) {
        const struct logits_case *c = &cases->cases[i];
        struct st_tensor *t = &list.tensors[i];
        t->name = c->tensor_name; /* borrowed: the list is not deinitialised */
        t->dtype = ST_F32;
        if (c->batched)
            t->shape[t->n_dims++] = c->n_samples;
        t->shape[t->n_dims++] = c->n_rows;
        t->shape[t->n_dims++] = vocab;
    }
    struct buf head = {0};
    uint64_t bytes;
    int r = st_format_header(&list, &head, &bytes);
    if (r < 0)
        err_set(e, r, "%s: %s", path, err_name(r));
    else
        r = file_write(fd, head.data, head.size, path, e);
    buf_deinit(&head);
    free(list.tensors);
    return r;
}

struct output {
    int fd;
    const char *path;
    uint32_t vocab;
    uint64_t n_tokens; /* that were run */
};

/* Rows of a sequence, run as one step or one by one, go to the file in order. */
static int run_sample(struct local_engine *l, const struct logits_sample *s, bool decode,
                      struct output *out, struct err *e)
{
    size_t row_bytes = out->vocab * sizeof(float);
    for (uint32_t done = 0; done != s->n_valid;) {
        uint32_t n = !decode ? s->n_valid : done ? 1 : MAX(s->prefix_len, 1u);
        const float *logits;
        int r = local_engine_logits(l, s->ids + done, s->positions + done, done, n, s->prefix_len,
                                    &logits, e);
        if (r == 0)
            r = file_write(out->fd, logits, n * row_bytes, out->path, e);
        if (r < 0)
            return r;
        done += n;
    }
    out->n_tokens += s->n_valid;
    return 0;
}

/* Rows that were not run are zeros. */
static int write_padding(const struct output *out, uint32_t n_rows, struct err *e)
{
    float *zeros = alloc_array(out->vocab, sizeof *zeros);
    int r = zeros ? 0 : err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; i != n_rows && r == 0; i++)
        r = file_write(out->fd, zeros, out->vocab * sizeof *zeros, out->path, e);
    free(zeros);
    return r;
}

static int run_cases(struct local_engine *l, const struct logits_cases *cases, bool decode,
                     struct output *out, struct err *e)
{
    for (size_t i = 0; i != cases->n; i++) {
        const struct logits_case *c = &cases->cases[i];
        for (uint32_t j = 0; j != c->n_samples; j++) {
            int r = run_sample(l, &c->samples[j], decode, out, e);
            if (r == 0)
                r = write_padding(out, c->n_rows - c->samples[j].n_valid, e);
            if (r < 0) {
                err_prefix(e, "%s", c->tensor_name);
                return r;
            }
        }
    }
    return 0;
}

/* <out>.part, renamed when it is complete. */
static int write_output(const struct logits_args *args, struct local_engine *l,
                        const struct logits_cases *cases, struct err *e)
{
    size_t size = strlen(args->out) + sizeof ".part";
    char *part = malloc(size);
    if (!part)
        return err_set(e, -ENOMEM, "out of memory");
    snprintf(part, size, "%s.part", args->out);
    struct output out = {.fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644),
                         .path = part,
                         .vocab = model_dir_arch(l->dir)->vocab};
    int64_t begin_ns = clock_now_ns();
    int r = out.fd < 0 ? err_set(e, -errno, "%s: %s", part, err_name(-errno)) : 0;
    if (r == 0)
        r = write_header(out.fd, part, cases, out.vocab, e);
    if (r == 0)
        r = run_cases(l, cases, args->decode, &out, e);
    double seconds = (double)(clock_now_ns() - begin_ns) / 1e9;
    if (r == 0) {
        r = file_publish(out.fd, part, args->out, e);
    } else if (out.fd >= 0) {
        close(out.fd);
        unlink(part);
    }
    if (r == 0)
        printf("%zu cases, %" PRIu64 " tokens in %.3f s (%.1f tokens/s), %s\n", cases->n,
               out.n_tokens, seconds, (double)out.n_tokens / seconds,
               engine_describe(local_group_engine(l->group, 0)));
    free(part);
    return r;
}

int cmd_logits(int argc, char **argv)
{
    struct logits_args args;
    int code = parse_args(argc, argv, &args);
    if (code >= 0)
        return code;
    struct err e = ERR_INIT;
    struct local_engine l = {0};
    struct logits_cases cases = {0};
    int r = local_engine_open(args.model, &args.engine, &l, &e);
    if (r == 0) {
        const struct arch *a = model_dir_arch(l.dir);
        r = logits_cases_load(args.cases, a->vocab, a->max_seq, &cases, &e);
    }
    if (r == 0)
        r = write_output(&args, &l, &cases, &e);
    logits_cases_deinit(&cases);
    local_engine_close(&l);
    return r < 0 ? cli_failed("logits", &e) : EXIT_OK;
}
