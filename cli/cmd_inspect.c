/* cmd_inspect.c: `glmd inspect`: what a model directory, or a published checkpoint, holds. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/util.h"
#include "cli/cli.h"
#include "cli/local_engine.h"
#include "cli/options.h"
#include "model/file.h"
#include "model/layout.h"
#include "model/manifest.h"
#include "model/model_dir.h"
#include "model/shard.h"
#include "model/source_sat.h"

static const char usage[] =
    "usage: glmd inspect DIR [--tensors] [--verify] [--known-answer]\n"
    "\n"
    "Shows architecture, scheme, sizes and origin of a model directory, and what each rank of a\n"
    "group would load. For a published checkpoint (a folder with `latest`): what it holds.\n"
    "\n"
    "  --tensors   list every tensor\n"
    "  --verify    read everything again and compare with the checksums; exit code 1 when\n"
    "              something differs\n"
    "  --known-answer\n"
    "              run the fixed generation that ranks run before they report ready (FP32 mode,\n"
    "              all weights in memory): recorded in the manifest the first time, compared\n"
    "              afterwards; exit code 1 when it differs\n"
    "  --help\n";

/* "67.21 GB"; a few texts can be in one call of printf. */
static const char *size_text(uint64_t bytes)
{
    static char texts[8][24];
    static size_t next;
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    char *text = texts[next++ % ARRAY_LEN(texts)];
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1000 && unit + 1 < ARRAY_LEN(units)) {
        value /= 1000;
        unit++;
    }
    snprintf(text, sizeof texts[0], unit ? "%.2f %s" : "%.0f %s", value, units[unit]);
    return text;
}

static void print_arch(const struct arch *a)
{
    printf("model         %s\n", a->name);
    printf("architecture  %u layers, hidden %u, %u heads of %u, inner %u, vocabulary %u, longest "
           "sequence %u, %s context\n",
           a->n_layers, a->hidden, a->n_heads, a->head_dim, a->inner, a->vocab, a->max_seq,
           a->context == ARCH_CONTEXT_BIDIRECTIONAL ? "bidirectional" : "causal");
    uint64_t n = 0;
    for (size_t i = 0; i < shard_n_tensors(a); i++) {
        struct shard_tensor t;
        shard_tensor_at(a, i, &t);
        n += t.rows * t.cols;
    }
    printf("parameters    %llu\n", (unsigned long long)n);
    printf("KV cache      %zu bytes per token (FP16, all ranks)\n", arch_kv_bytes_per_token(a, 2));
}

/* Bytes that one rank loads of a canonical tensor; false when the groups do not allow it. */
static bool rank_bytes(const struct quant_scheme *s, const struct shard_tensor *t, uint32_t tp,
                       uint32_t rank, uint64_t *total)
{
    struct shard_piece pieces[2];
    size_t n = shard_pieces(t, tp, rank, pieces);
    for (size_t i = 0; i < n; i++) {
        if (!quant_applies(s, t)) {
            *total += 2 * pieces[i].n_rows * pieces[i].n_cols;
            continue;
        }
        struct quant_groups g;
        if (quant_piece_groups(s, t, &pieces[i], &g, NULL) < 0)
            return false;
        *total += pieces[i].n_rows *
                  (quant_row_bytes(s->weights, pieces[i].n_cols) + 2 * (uint64_t)g.n_groups);
    }
    return true;
}

/* All ranks of a degree have the same sizes: the first one stands for them. */
static void print_ranks(const struct arch *a, const struct quant_scheme *s)
{
    printf("per rank     ");
    for (uint32_t tp = 1; tp <= 8; tp *= 2) {
        bool possible = arch_check_tp(a, tp, NULL) == 0;
        uint64_t total = 0;
        for (size_t i = 0; i < shard_n_tensors(a) && possible; i++) {
            struct shard_tensor t;
            shard_tensor_at(a, i, &t);
            possible = rank_bytes(s, &t, tp, 0, &total);
        }
        if (possible)
            printf(" TP %u: %s%s", tp, size_text(total), tp < 8 ? "," : "");
        else
            printf(" TP %u: not possible%s", tp, tp < 8 ? "," : "");
    }
    puts("");
}

static void print_tensors_summary(const struct model_dir *d)
{
    static const char *const names[] = {[SHARD_ROLE_LINEAR] = "linears",
                                        [SHARD_ROLE_BIAS] = "biases",
                                        [SHARD_ROLE_NORM] = "norms",
                                        [SHARD_ROLE_EMBEDDING] = "embedding"};
    uint64_t bytes[ARRAY_LEN(names)] = {0}, scale_bytes = 0, total = 0;
    size_t counts[ARRAY_LEN(names)] = {0}, n_scales = 0;
    for (size_t i = 0; i < model_dir_n_tensors(d); i++) {
        const struct st_tensor *t = model_dir_tensor_at(d, i);
        struct shard_tensor canonical;
        total += t->bytes;
        if (shard_find(model_dir_arch(d), t->name, &canonical) < 0) {
            scale_bytes += t->bytes;
            n_scales++;
        } else {
            bytes[canonical.role] += t->bytes;
            counts[canonical.role]++;
        }
    }
    printf("tensors       %zu, %s:", model_dir_n_tensors(d), size_text(total));
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        printf(" %zu %s %s%s", counts[i], names[i], size_text(bytes[i]),
               i + 1 < ARRAY_LEN(names) || n_scales ? "," : "");
    if (n_scales)
        printf(" %zu scales %s", n_scales, size_text(scale_bytes));
    puts("");
}

static void print_origin(const struct model_dir *d)
{
    const struct manifest *m = model_dir_manifest(d);
    printf("source       ");
    const char *key;
    json_t *value;
    json_object_foreach(m->source, key, value)
    {
        if (json_is_string(value))
            printf(" %s=%s", key, json_string_value(value));
        else if (json_is_integer(value))
            printf(" %s=%" JSON_INTEGER_FORMAT, key, json_integer_value(value));
    }
    printf("\nconverter     %s\n", m->converter);
    printf("digest        %s\n", model_dir_digest(d)->hex);
    uint64_t hash;
    if (model_dir_known_answer(d, &hash) == 0)
        printf("known answer  %016llx\n", (unsigned long long)hash);
    else
        printf("known answer  not recorded yet\n");
    const struct manifest_entry *tokenizer = manifest_find(&m->files, LAYOUT_TOKENIZER);
    if (tokenizer)
        printf("tokenizer     %s, %llu bytes\n", LAYOUT_TOKENIZER,
               (unsigned long long)tokenizer->bytes);
    else
        printf("tokenizer     none: token ids only\n");
}

static void print_tensors(const struct model_dir *d)
{
    printf("\n%-58s %-4s %-18s %14s  %-32s  file\n", "tensor", "type", "shape", "bytes",
           "XXH3-128");
    for (size_t i = 0; i < model_dir_n_tensors(d); i++) {
        const struct st_tensor *t = model_dir_tensor_at(d, i);
        const struct manifest_entry *entry =
            manifest_find(&model_dir_manifest(d)->tensors, t->name);
        char shape[64], hex[CHECKSUM_HEX_BYTES];
        size_t at = 0;
        for (uint32_t k = 0; k < t->n_dims; k++)
            at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%llu", k ? " x " : "",
                                   (unsigned long long)t->shape[k]);
        checksum_hex(&entry->sum, hex);
        printf("%-58s %-4s %-18s %14llu  %s  %s\n", t->name, st_dtype_name(t->dtype), shape,
               (unsigned long long)t->bytes, hex, model_dir_file_name(d, t));
    }
}

/* The small files: configuration and tokenizer. Tensor files are checked tensor by tensor. */
static size_t verify_small_files(const struct model_dir *d)
{
    const struct manifest_list *files = &model_dir_manifest(d)->files;
    size_t n_bad = 0;
    for (size_t i = 0; i < files->n; i++) {
        const struct manifest_entry *f = &files->entries[i];
        static const char suffix[] = ".safetensors";
        size_t n = strlen(f->name);
        if (n >= sizeof suffix && strcmp(f->name + n - (sizeof suffix - 1), suffix) == 0)
            continue;
        char *path = file_join(model_dir_path(d), f->name);
        struct checksum sum;
        uint64_t bytes = 0;
        struct err e = ERR_INIT;
        int r = path ? checksum_file(path, &sum, &bytes, &e)
                     : err_set(&e, -ENOMEM, "%s: out of memory", f->name);
        if (r == 0 && (bytes != f->bytes || !checksum_equal(&sum, &f->sum)))
            r = err_set(&e, -EBADMSG, "%s: was changed after the conversion (checksum)", path);
        if (r < 0) {
            log_error("%s", e.message);
            n_bad++;
        }
        free(path);
    }
    return n_bad;
}

/* Every difference is reported. */
static int verify(const struct model_dir *d)
{
    size_t n_bad = verify_small_files(d), n = model_dir_n_tensors(d);
    uint64_t bytes = 0;
    bool terminal = isatty(STDERR_FILENO);
    for (size_t i = 0; i < n; i++) {
        const struct st_tensor *t = model_dir_tensor_at(d, i);
        struct err e = ERR_INIT;
        bytes += t->bytes;
        if (terminal)
            fprintf(stderr, "\rverifying %zu of %zu tensors", i + 1, n);
        if (model_dir_verify_tensor(d, t, &e) < 0) {
            log_error("%s", e.message);
            n_bad++;
        }
    }
    if (terminal)
        fprintf(stderr, "\r%40s\r", "");
    if (n_bad) {
        printf("verified      %zu tensors or files are damaged, of %zu tensors\n", n_bad, n);
        return EXIT_FAILED;
    }
    printf("verified      all %zu tensors, %s\n", n, size_text(bytes));
    return EXIT_OK;
}

/* Runs the known-answer generation; records it, or compares it with what is on record. */
static int check_known_answer(const struct model_dir *d)
{
    struct local_engine_options o = LOCAL_ENGINE_OPTIONS_INIT;
    struct local_engine engine = {0};
    struct err e = ERR_INIT;
    uint64_t hash, recorded;
    int r = local_engine_open(model_dir_path(d), &o, &engine, &e);
    if (r == 0)
        r = local_group_known_answer(engine.group, &hash, &e);
    local_engine_close(&engine);
    if (r == 0 && model_dir_known_answer(d, &recorded) == 0) {
        if (hash != recorded)
            r = err_set(&e, -EBADMSG,
                        "%s: the known answer is %016llx, the manifest says %016llx: damaged "
                        "weights, or a program that computes differently",
                        model_dir_path(d), (unsigned long long)hash, (unsigned long long)recorded);
        else
            printf("known answer  %016llx again\n", (unsigned long long)hash);
    } else if (r == 0) {
        r = model_manifest_set_known_answer(model_dir_path(d), hash, &e);
        if (r == 0)
            printf("known answer  %016llx, recorded\n", (unsigned long long)hash);
    }
    if (r == 0)
        return EXIT_OK;
    log_error("%s", e.message);
    return EXIT_FAILED;
}

static int inspect_model(const char *path, bool list, bool check, bool answer)
{
    struct model_dir *d;
    struct err e = ERR_INIT;
    if (model_dir_open(path, &d, &e) < 0) {
        log_error("%s", e.message);
        return EXIT_FAILED;
    }
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(model_dir_scheme(d), scheme);
    print_arch(model_dir_arch(d));
    printf("weights       %s\n", scheme);
    print_tensors_summary(d);
    print_ranks(model_dir_arch(d), model_dir_scheme(d));
    print_origin(d);
    if (list)
        print_tensors(d);
    int code = check ? verify(d) : EXIT_OK;
    if (answer && code == EXIT_OK)
        code = check_known_answer(d);
    model_dir_close(d);
    return code;
}

static int inspect_checkpoint(const char *path)
{
    struct sat_source *s;
    struct err e = ERR_INIT;
    if (sat_open(path, &s, &e) < 0) {
        log_error("%s", e.message);
        return EXIT_FAILED;
    }
    const struct sat_info *i = sat_info(s);
    char scheme[QUANT_DESCRIBE_BYTES];
    quant_describe(&i->scheme, scheme);
    printf("checkpoint    SwissArmyTransformer, iteration %s, %u shards, %s\n", i->iteration,
           i->n_shards, size_text(i->file_bytes));
    printf("architecture  %u layers, hidden %u, inner %u, vocabulary %u\n", i->n_layers, i->hidden,
           i->inner, i->vocab);
    printf("weights       %s\n", scheme);
    printf("`glmd convert --from %s --out DIR` makes a model directory of it\n", path);
    sat_close(s);
    return EXIT_OK;
}

int cmd_inspect(int argc, char **argv)
{
    bool list = false, check = false, answer = false;
    const struct cli_option own[] = {
        CLI_FLAG("tensors", &list),
        CLI_FLAG("verify", &check),
        CLI_FLAG("known-answer", &answer),
    };
    const struct cli_options table = CLI_OWN(own);
    int code = cli_parse(argc, argv, usage, &table, 1);
    if (code >= 0)
        return code;
    if (optind + 1 != argc) {
        log_error("expected one folder; see glmd inspect --help");
        return EXIT_USAGE;
    }
    const char *path = argv[optind];
    char *latest = file_join(path, "latest"), *manifest = file_join(path, LAYOUT_MANIFEST);
    bool checkpoint =
        latest && manifest && access(latest, F_OK) == 0 && access(manifest, F_OK) != 0;
    free(latest);
    free(manifest);
    return checkpoint ? inspect_checkpoint(path) : inspect_model(path, list, check, answer);
}
