/* bench_dataset.c: see bench_dataset.h. */
#include "cli/bench_dataset.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli.h"
#include "cli/common.h"
#include "model/file.h"
#include "proto/rpc/wire_inference.h"

enum {
    MAX_FILE_BYTES = 256 << 20,
    MAX_LINES = 1000000,
    MAX_IDS = 4096,
};

static const char sentences[] =
    "The river rises in the hills and runs past seven towns before it reaches the sea. Every "
    "morning the ferry takes letters, bread and passengers to the other side; nobody remembers who "
    "built the first bridge, or why it was never finished. In winter the water is grey and slow, "
    "and children throw stones to see whether the ice will hold. "
    "\xe4\xbb\x8a\xe5\xa4\xa9\xe5\xad\xa6\xe7\x94\x9f\xe4\xbb\xac\xe5\x9c\xa8\xe6\xb2\xb3\xe8\xbe"
    "\xb9\xe8\xaf\xbb\xe4\xb9\xa6\xe3\x80\x82";

void dataset_deinit(struct dataset *d)
{
    for (uint32_t i = 0; i != d->n_texts; i++)
        free(d->texts[i]);
    free(d->texts);
    free(d->tokens);
    free(d->prompts);
    *d = (struct dataset){0};
}

/* ---- random ---- */

static uint32_t random_length(uint32_t mean, double range, uint64_t *chance)
{
    double factor = 1 + range * (2 * load_uniform(chance) - 1);
    double n = (double)mean * factor + 0.5;
    return n < 1 ? 1 : (uint32_t)n;
}

int dataset_random(const struct dataset_options *o, const int32_t *ids, uint32_t n_ids,
                   struct dataset *ret)
{
    uint64_t chance = o->seed;
    size_t total = 0, at = 0;
    ret->prompts = alloc_array(o->n, sizeof *ret->prompts);
    if (!ret->prompts)
        return -ENOMEM;
    for (uint32_t i = 0; i != o->n; i++) {
        ret->prompts[i].n_tokens = random_length(o->input_len, o->range, &chance);
        ret->prompts[i].max_tokens = random_length(o->output_len, o->range, &chance);
        total += ret->prompts[i].n_tokens;
    }
    ret->tokens = alloc_array(total, sizeof *ret->tokens);
    if (!ret->tokens)
        return -ENOMEM;
    for (size_t i = 0; i != total; i++)
        ret->tokens[i] = ids[(uint32_t)(load_uniform(&chance) * n_ids)];
    for (uint32_t i = 0; i != o->n; i++) {
        ret->prompts[i].tokens = ret->tokens + at;
        at += ret->prompts[i].n_tokens;
    }
    ret->n = o->n;
    return 0;
}

/* ---- a file ---- */

static int take_line(const struct dataset_options *o, const char *line, size_t size,
                     uint32_t number, char **ret_text, uint32_t *ret_max_tokens, struct err *e)
{
    json_error_t why;
    json_t *root = json_loadb(line, size, 0, &why);
    const char *text = json_string_value(json_object_get(root, "prompt"));
    json_t *max = json_object_get(root, "max_tokens");
    int r = 0;
    if (!root)
        r = err_set(e, -EINVAL, "%s:%u: %s", o->file, number, why.text);
    else if (!text || !*text)
        r = err_set(e, -EINVAL, "%s:%u: expected an object with a text \"prompt\"", o->file,
                    number);
    else if (max && (!json_is_integer(max) || json_integer_value(max) < 1 ||
                     json_integer_value(max) > 1048576))
        r = err_set(e, -EINVAL, "%s:%u: max_tokens: expected a whole number from 1", o->file,
                    number);
    if (r == 0 && text) {
        *ret_max_tokens = max ? (uint32_t)json_integer_value(max) : o->output_len;
        *ret_text = strdup(text);
        r = *ret_text ? 0 : err_set(e, -ENOMEM, "out of memory");
    }
    json_decref(root);
    return r;
}

/* Every line that is not blank. */
static int take_lines(const struct dataset_options *o, const struct buf *file, struct dataset *d,
                      uint32_t *max_tokens, struct err *e)
{
    const char *at = file->data, *end = at + file->size;
    uint32_t number = 0;
    while (at != end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t size = (size_t)((newline ? newline : end) - at);
        number++;
        if (strspn(at, " \t\r") < size) {
            if (d->n_texts == MAX_LINES)
                return err_set(e, -EINVAL, "%s: expected at most %d lines", o->file, MAX_LINES);
            int r =
                take_line(o, at, size, number, &d->texts[d->n_texts], &max_tokens[d->n_texts], e);
            if (r < 0)
                return r;
            d->n_texts++;
        }
        at += size + (newline != NULL);
    }
    return d->n_texts ? 0 : err_set(e, -EINVAL, "%s: no prompts", o->file);
}

static size_t count_lines(const struct buf *file)
{
    size_t n = 1;
    for (size_t i = 0; i != file->size; i++)
        n += file->data[i] == '\n';
    return n;
}

int dataset_read(const struct dataset_options *o, struct dataset *ret, struct err *e)
{
    struct buf file = {0};
    uint32_t *max_tokens = NULL;
    int r = file_read_all(o->file, MAX_FILE_BYTES, &file, e);
    if (r == 0) {
        size_t n = MIN(count_lines(&file), (size_t)MAX_LINES);
        ret->texts = alloc_array(n, sizeof *ret->texts);
        ret->prompts = alloc_array(o->n, sizeof *ret->prompts);
        max_tokens = alloc_array(n, sizeof *max_tokens);
        if (!ret->texts || !ret->prompts || !max_tokens || buf_append(&file, "", 1) < 0) {
            err_set(e, -ENOMEM, "out of memory");
            r = -ENOMEM;
        } else {
            file.size--; /* the NUL is for strspn */
            r = take_lines(o, &file, ret, max_tokens, e);
            for (uint32_t i = 0; r == 0 && i != o->n; i++)
                ret->prompts[ret->n++] =
                    (struct load_prompt){.text = ret->texts[i % ret->n_texts],
                                         .max_tokens = max_tokens[i % ret->n_texts]};
        }
    }
    free(max_tokens);
    buf_deinit(&file);
    return r;
}

/* ---- both ---- */

struct ids {
    int32_t ids[MAX_IDS];
    uint32_t n;
};

static int on_tokens(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct ids *ids = context;
    struct wire_tokenize_response *m;
    int r = wire_unpack_tokenize_response(data, size, &m, e);
    if (r < 0)
        return r;
    ids->n = MIN(m->n_ids, (uint32_t)MAX_IDS);
    memcpy(ids->ids, m->ids, ids->n * sizeof *ids->ids);
    wire_free_tokenize_response(m);
    return 0;
}

static int fetch_ids(const struct client_target *t, struct ids *ret)
{
    struct buf packed = {0};
    struct err e = ERR_INIT;
    const struct wire_tokenize_request request = {.text = sentences};
    int r = wire_pack_tokenize_request(&request, &packed);
    if (r < 0) {
        err_set(&e, r, "out of memory");
        return cli_failed(t->verb, &e);
    }
    const struct client_call call = {.path = "/glmd.v1.Inference/Tokenize",
                                     .request = &packed,
                                     .on_message = on_tokens,
                                     .context = ret};
    int code = client_run(t, &call);
    buf_deinit(&packed);
    if (code == 0 && !ret->n) {
        err_set(&e, -EIO, "the coordinator's tokenizer knows no words");
        code = cli_failed(t->verb, &e);
    }
    return code;
}

int dataset_make(const struct dataset_options *o, const struct client_target *t,
                 struct dataset *ret)
{
    struct err e = ERR_INIT;
    int r;
    if (o->file) {
        r = dataset_read(o, ret, &e);
    } else {
        struct ids ids = {.n = 0};
        int code = fetch_ids(t, &ids);
        if (code)
            return code;
        r = dataset_random(o, ids.ids, ids.n, ret);
        if (r < 0)
            err_set(&e, r, "out of memory");
    }
    return r < 0 ? cli_failed(t->verb, &e) : 0;
}
