/* tokenizer.c: see tokenizer.h. Opening, encoding and the special tokens; decoding is
 * token_stream.c.
 *
 * The white-space keeping variant appends to the pieces of the file what icetk's later tokenizer
 * appends: eight control pieces (the special tokens), <|tab|>, <|blank_2|> .. <|blank_80|> and 256
 * byte pieces, so that piece id + n_image_tokens = token id holds for them too.
 */
#include "model/tokenizer/tokenizer.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/utf8.h"
#include "base/util.h"
#include "model/file.h"
#include "model/jsonfile.h"
#include "model/tokenizer/tokenizer_internal.h"

enum { MAX_CONFIG_BYTES = 1 << 20, N_SPECIALS = 8 };

/* In the order of their ids. */
static const char *const special_names[N_SPECIALS] = {
    "[MASK]", "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK",
};
static const char eos_name[] = "</s>";

/* ---- special tokens ---- */

static int32_t special_id(const struct arch_tokens *a, size_t i)
{
    const int32_t ids[N_SPECIALS] = {a->mask, a->gmask, a->smask, a->eod,
                                     a->sop,  a->eop,   a->enc,   a->dblock};
    return ids[i];
}

int32_t tokenizer_special_id(const struct tokenizer *t, const char *name)
{
    for (size_t i = 0; i < N_SPECIALS; i++) {
        if (strcmp(name, special_names[i]) == 0)
            return special_id(&t->tokens, i);
    }
    return strcmp(name, eos_name) == 0 ? t->tokens.eos : -1;
}

const char *tokenizer_special_name(const struct tokenizer *t, int32_t id)
{
    if (id < 0)
        return NULL;
    for (size_t i = 0; i < N_SPECIALS; i++) {
        if (id == special_id(&t->tokens, i))
            return special_names[i];
    }
    return id == t->tokens.eos ? eos_name : NULL;
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id)
{
    const char *special = tokenizer_special_name(t, id);
    int64_t piece = tokenizer_piece_index(t, id);
    if (special || piece < 0)
        return special;
    return sp_proto_text(&t->proto, (size_t)piece);
}

bool tokenizer_is_text(const struct tokenizer *t, int32_t id)
{
    int64_t piece = tokenizer_piece_index(t, id);
    return piece >= 0 && !tokenizer_special_name(t, id) &&
           t->proto.pieces[piece].type != SP_PIECE_CONTROL;
}

/* ---- opening ---- */

static int check_sizes(const struct tokenizer *t, const struct arch *a, struct err *e)
{
    const struct arch_tokens *k = &a->tokens;
    if (t->proto.n_pieces + k->n_image_tokens != k->special_base)
        return err_set(e, -EINVAL,
                       "%zu pieces behind %" PRIu32 " image codes, but the special tokens start at "
                       "%" PRIu32 ": tokenizer.model and config.json are not of the same model",
                       t->proto.n_pieces, k->n_image_tokens, k->special_base);
    for (size_t i = 0; i < N_SPECIALS; i++) {
        int32_t id = special_id(k, i);
        if (id != -1 && (id < (int32_t)k->special_base || id >= (int64_t)a->vocab))
            return err_set(e, -EINVAL, "%s has id %" PRId32 ", expected %" PRIu32 " to %" PRIu32,
                           special_names[i], id, k->special_base, a->vocab - 1);
    }
    if (k->eos != -1 && tokenizer_piece_index(t, k->eos) < 0)
        return err_set(e, -EINVAL, "%s has id %" PRId32 ", which is no piece of tokenizer.model",
                       eos_name, k->eos);
    return 0;
}

/* Appends the pieces of the white-space keeping variant. */
static int add_whitespace_pieces(struct tokenizer *t, const struct arch *a, struct err *e)
{
    char text[32];
    int n;
    int r = 0;
    if (t->proto.byte_fallback)
        return err_set(e, -EINVAL,
                       "the model has byte pieces of its own, but the white-space "
                       "keeping variant adds them: set \"variant\" to \"plain\"");
    for (size_t i = 0; i < N_SPECIALS && r == 0; i++) {
        if (special_id(&a->tokens, i) != (int32_t)(a->tokens.special_base + i))
            return err_set(e, -EINVAL, "%s must have id %" PRIu32 " in the white-space variant",
                           special_names[i], (uint32_t)(a->tokens.special_base + i));
        r = sp_proto_add(&t->proto, special_names[i], strlen(special_names[i]), 0, SP_PIECE_CONTROL,
                         e);
    }
    if (r == 0)
        r = sp_proto_add(&t->proto, "<|tab|>", strlen("<|tab|>"), 0, SP_PIECE_USER_DEFINED, e);
    for (int k = 2; k <= TOKENIZER_MAX_BLANK && r == 0; k++) {
        n = snprintf(text, sizeof text, "<|blank_%d|>", k);
        r = sp_proto_add(&t->proto, text, (size_t)n, 0, SP_PIECE_USER_DEFINED, e);
    }
    for (unsigned byte = 0; byte < 256 && r == 0; byte++) {
        n = snprintf(text, sizeof text, "<0x%02X>", byte);
        r = sp_proto_add(&t->proto, text, (size_t)n, 0, SP_PIECE_BYTE, e);
    }
    if (r < 0)
        return r;
    t->proto.byte_fallback = true;
    if (a->tokens.n_image_tokens + t->proto.n_pieces > a->vocab)
        return err_set(e, -EINVAL,
                       "the white-space variant needs %zu token ids, the model has %" PRIu32,
                       a->tokens.n_image_tokens + t->proto.n_pieces, a->vocab);
    return 0;
}

static int load(struct tokenizer *t, const struct buf *file, const struct arch *a, struct err *e)
{
    int r = sp_proto_parse(file->data, file->size, &t->proto, e);
    if (r == 0)
        r = check_sizes(t, a, e);
    if (r == 0 && t->variant == TOKENIZER_WHITESPACE)
        r = add_whitespace_pieces(t, a, e);
    if (r < 0)
        return r;
    struct buf model = {0};
    r = sp_proto_write(&t->proto, &model);
    if (r < 0) {
        err_set(e, r, "out of memory for the tokenizer");
    } else {
        XXH128_hash_t h = XXH3_128bits(model.data, model.size);
        snprintf(t->digest, sizeof t->digest, "%016" PRIx64 "%016" PRIx64, (uint64_t)h.high64,
                 (uint64_t)h.low64);
        r = sp_shim_load(model.data, model.size, &t->sp, e);
    }
    buf_deinit(&model);
    return r;
}

int tokenizer_open_file(const char *file, const struct arch *a, enum tokenizer_variant variant,
                        struct tokenizer **ret, struct err *e)
{
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, -ENOMEM, "out of memory for the tokenizer");
    t->variant = variant;
    t->tokens = a->tokens;
    struct buf data = {0};
    int r = file_read_all(file, SP_MAX_FILE_BYTES, &data, e);
    if (r == 0) {
        r = load(t, &data, a, e);
        if (r < 0)
            err_prefix(e, "%s", file);
    }
    buf_deinit(&data);
    if (r < 0) {
        tokenizer_close(t);
        return r;
    }
    *ret = t;
    return 0;
}

/* "variant" of tokenizer_config.json: "plain" or "whitespace"; no file or no key = plain. */
static int read_variant(const char *path, enum tokenizer_variant *ret, struct err *e)
{
    static const char *const names[] = {
        [TOKENIZER_PLAIN] = "plain",
        [TOKENIZER_WHITESPACE] = "whitespace",
    };
    *ret = TOKENIZER_PLAIN;
    if (access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    json_t *root;
    int r = jsonfile_load(path, MAX_CONFIG_BYTES, &root, e);
    if (r < 0)
        return r;
    if (json_object_get(root, "variant")) {
        size_t variant;
        r = jsonfile_get_choice(root, "variant", names, ARRAY_LEN(names), &variant, e);
        if (r == 0)
            *ret = (enum tokenizer_variant)variant;
        else
            err_prefix(e, "%s", path);
    }
    json_decref(root);
    return r;
}

int tokenizer_open(const char *model_dir, const struct arch *a, struct tokenizer **ret,
                   struct err *e)
{
    char *config = file_join(model_dir, "tokenizer_config.json");
    char *model = file_join(model_dir, "tokenizer.model");
    enum tokenizer_variant variant = TOKENIZER_PLAIN;
    int r =
        config && model ? read_variant(config, &variant, e) : err_set(e, -ENOMEM, "out of memory");
    if (r == 0)
        r = tokenizer_open_file(model, a, variant, ret, e);
    free(config);
    free(model);
    return r;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    sp_shim_free(t->sp);
    sp_proto_deinit(&t->proto);
    free(t);
}

const char *tokenizer_digest(const struct tokenizer *t)
{
    return t->digest;
}

/* ---- encoding ---- */

size_t tokenizer_text_limit(size_t max_tokens)
{
    size_t limit;
    if (!mul_size(max_tokens, 64, &limit) || !add_size(limit, 4096, &limit))
        return TOKENIZER_MAX_TEXT_BYTES;
    return MIN(limit, (size_t)TOKENIZER_MAX_TEXT_BYTES);
}

int tokenizer_check_text(const char *text, size_t size, size_t max_tokens, struct err *e)
{
    size_t limit = tokenizer_text_limit(max_tokens);
    if (size > limit)
        return err_set(e, -E2BIG, "the text has %zu bytes, the limit is %zu (for %zu tokens)", size,
                       limit, max_tokens);
    size_t valid = utf8_check(text, size);
    if (valid < size)
        return err_set(e, -EILSEQ, "the text is not UTF-8: invalid byte at offset %zu", valid);
    return 0;
}

/* A run of blanks: the longest pieces first, as repeated replacement from 80 down to 2 does. */
static int append_blanks(struct buf *b, size_t n)
{
    int r = 0;
    while (n > 1 && r == 0) {
        size_t k = MIN(n, (size_t)TOKENIZER_MAX_BLANK);
        r = buf_printf(b, "<|blank_%zu|>", k);
        n -= k;
    }
    return r == 0 && n ? buf_append_str(b, " ") : r;
}

/* Replaces white space by the text of its pieces. At most 7 bytes for one. */
static int replace_whitespace(const struct tokenizer *t, const char *text, size_t size,
                              struct buf *ret)
{
    bool all = t->variant == TOKENIZER_WHITESPACE;
    int r = 0;
    for (size_t i = 0, end; i < size && r == 0; i = end) {
        char c = text[i];
        end = i + 1;
        if (c == '\n') {
            r = buf_append_str(ret, "<n>");
        } else if (c == '\t' && all) {
            r = buf_append_str(ret, "<|tab|>");
        } else if (c == ' ' && all) {
            while (end < size && text[end] == ' ')
                end++;
            r = append_blanks(ret, end - i);
        } else {
            while (end < size && text[end] != '\n' &&
                   !(all && (text[end] == '\t' || text[end] == ' ')))
                end++;
            r = buf_append(ret, text + i, end - i);
        }
    }
    return r;
}

/* Appends pieces as token ids; -E2BIG beyond max_tokens. */
static int append_pieces(const struct tokenizer *t, int32_t *pieces, size_t n, size_t max_tokens,
                         struct token_list *ret_ids, struct err *e)
{
    if (n > max_tokens)
        return err_set(e, -E2BIG, "the text has %zu tokens, the limit is %zu", n, max_tokens);
    for (size_t i = 0; i < n; i++)
        pieces[i] += (int32_t)t->tokens.n_image_tokens;
    if (token_list_extend(ret_ids, pieces, n) < 0)
        return err_set(e, -ENOMEM, "out of memory for %zu tokens", n);
    return 0;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, bool keep_linebreak,
                     size_t max_tokens, struct token_list *ret_ids, struct err *e)
{
    int r = tokenizer_check_text(text, size, max_tokens, e);
    if (r < 0 || size == 0)
        return r;
    struct buf replaced = {0};
    int32_t *pieces = NULL;
    size_t n = 0;
    if (keep_linebreak || t->variant == TOKENIZER_WHITESPACE) {
        r = replace_whitespace(t, text, size, &replaced);
        if (r < 0)
            err_set(e, r, "out of memory for a text of %zu bytes", size);
        text = replaced.data;
        size = replaced.size;
    }
    if (r == 0)
        r = sp_shim_encode(t->sp, text, size, &pieces, &n, e);
    if (r == 0)
        r = append_pieces(t, pieces, n, max_tokens, ret_ids, e);
    free(pieces);
    buf_deinit(&replaced);
    return r;
}
