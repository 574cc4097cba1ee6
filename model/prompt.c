/* prompt.c: see prompt.h. */
#include "model/prompt.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/util.h"

static const struct {
    const char *text;
    enum mask_kind kind;
} masks[] = {
    /* in order of preference */
    {"[MASK]", MASK_MASK},
    {"[sMASK]", MASK_SMASK},
    {"[gMASK]", MASK_GMASK},
};

static int32_t mask_id(const struct arch *a, enum mask_kind kind)
{
    switch (kind) {
    case MASK_MASK:
        return a->tokens.mask;
    case MASK_SMASK:
        return a->tokens.smask;
    case MASK_GMASK:
        return a->tokens.gmask;
    case MASK_NONE:
        break;
    }
    return -1;
}

void prompt_deinit(struct prompt *p)
{
    token_list_deinit(&p->ids);
    *p = (struct prompt){0};
}

int32_t prompt_position(const struct prompt *p, uint32_t index)
{
    bool running = p->kind == MASK_GMASK || p->kind == MASK_NONE || index + 1 < p->ids.n;
    return running ? (int32_t)index : p->mask_index;
}

/* ---- text ---- */

/* The next mask at or behind `at`: its place and length; `size` and 0 when there is none. */
static size_t find_mask(const char *text, size_t size, size_t at, size_t *ret_length,
                        enum mask_kind *ret_kind)
{
    *ret_length = 0;
    while (at < size) {
        const char *open = memchr(text + at, '[', size - at);
        if (!open)
            break;
        at = (size_t)(open - text);
        for (size_t i = 0; i < ARRAY_LEN(masks); i++) {
            size_t length = strlen(masks[i].text);
            if (length <= size - at && memcmp(open, masks[i].text, length) == 0) {
                *ret_length = length;
                *ret_kind = masks[i].kind;
                return at;
            }
        }
        at++;
    }
    return size;
}

/* Text -> ids with what was found on the way. */
struct encoded {
    struct token_list ids;
    size_t n_of_kind[MASK_GMASK + 1];
    bool ends_in_mask;
};

static int count_masks(const char *text, size_t size, size_t max_masks, struct err *e)
{
    size_t n = 0, length;
    enum mask_kind kind;
    for (size_t at = 0; (at = find_mask(text, size, at, &length, &kind)) < size; at += length)
        n++;
    if (n > max_masks)
        return err_set(e, -EINVAL, "the text has %zu masks, the limit is %zu", n, max_masks);
    return 0;
}

/* The byte limit of the whole text keeps the list small, so that the exact number of tokens can be
 * told when it exceeds max_tokens. */
static int encode(const struct tokenizer *t, const struct arch *a, const char *text, size_t size,
                  bool keep_linebreak, size_t max_tokens, size_t max_masks, struct encoded *ret,
                  struct err *e)
{
    int r = tokenizer_check_text(text, size, max_tokens, e);
    if (r == 0)
        r = count_masks(text, size, max_masks, e);
    for (size_t at = 0, next, length; at < size && r == 0; at = next + length) {
        enum mask_kind kind;
        next = find_mask(text, size, at, &length, &kind);
        r = tokenizer_encode(t, text + at, next - at, keep_linebreak, SIZE_MAX, &ret->ids, e);
        ret->ends_in_mask = length != 0;
        if (r < 0 || length == 0)
            continue;
        ret->n_of_kind[kind]++;
        if (mask_id(a, kind) < 0)
            return err_set(e, -EINVAL, "this model has no %.*s", (int)length, text + next);
        if (token_list_append(&ret->ids, mask_id(a, kind)) < 0)
            return err_set(e, -ENOMEM, "out of memory for the prompt");
    }
    return r;
}

static int check_count(size_t n, size_t max_tokens, struct err *e)
{
    if (n <= max_tokens)
        return 0;
    return err_set(e, -E2BIG, "the text has %zu tokens, the limit is %zu", n, max_tokens);
}

int prompt_encode_masked(const struct tokenizer *t, const struct arch *a, const char *text,
                         size_t size, bool keep_linebreak, size_t max_tokens, size_t max_masks,
                         struct token_list *ret_ids, struct err *e)
{
    struct encoded c = {0};
    int r = encode(t, a, text, size, keep_linebreak, max_tokens, max_masks, &c, e);
    if (r == 0)
        r = check_count(c.ids.n, max_tokens, e);
    if (r == 0 && token_list_extend(ret_ids, c.ids.ids, c.ids.n) < 0)
        r = err_set(e, -ENOMEM, "out of memory for the prompt");
    token_list_deinit(&c.ids);
    return r;
}

/* Appends [gMASK] and eos where the published code does. */
static int complete(const struct arch *a, struct encoded *c, enum mask_kind *ret_kind,
                    struct err *e)
{
    int r = 0;
    *ret_kind = MASK_GMASK;
    if (c->n_of_kind[MASK_MASK]) {
        *ret_kind = MASK_MASK;
    } else if (c->n_of_kind[MASK_SMASK]) {
        *ret_kind = MASK_SMASK;
    } else if (!c->n_of_kind[MASK_GMASK]) {
        if (c->ids.n == 0)
            return err_set(e, -EINVAL, "the text is empty");
        r = token_list_append(&c->ids, a->tokens.gmask);
        c->ends_in_mask = true;
    }
    if (r == 0 && !c->ends_in_mask)
        r = token_list_append(&c->ids, a->tokens.eos);
    return r < 0 ? err_set(e, r, "out of memory for the prompt") : 0;
}

int prompt_encode_text(const struct tokenizer *t, const struct arch *a, const char *text,
                       size_t size, size_t max_tokens, size_t max_masks, struct token_list *ret_ids,
                       enum mask_kind *ret_kind, struct err *e)
{
    if (a->tokens.gmask < 0 || a->tokens.eos < 0 || a->tokens.sop < 0)
        return err_set(e, -EINVAL, "this model has no [gMASK], sop or eos: it cannot fill blanks");
    struct encoded c = {0};
    enum mask_kind kind = MASK_NONE;
    int r = encode(t, a, text, size, false, max_tokens, max_masks, &c, e);
    if (r == 0)
        r = complete(a, &c, &kind, e);
    if (r == 0)
        r = check_count(c.ids.n, max_tokens, e);
    if (r == 0 && token_list_extend(ret_ids, c.ids.ids, c.ids.n) < 0)
        r = err_set(e, -ENOMEM, "out of memory for the prompt");
    if (r == 0)
        *ret_kind = kind;
    token_list_deinit(&c.ids);
    return r;
}

/* ---- token ids ---- */

/* Index of the first `id`, n when there is none. */
static size_t find_id(const int32_t *ids, size_t n, int32_t id)
{
    size_t i = 0;
    while (i < n && ids[i] != id)
        i++;
    return i;
}

static int start(struct prompt *p, const int32_t *ids, size_t n)
{
    *p = (struct prompt){0};
    return token_list_extend(&p->ids, ids, n);
}

static int fail(struct prompt *p, struct err *e)
{
    prompt_deinit(p);
    return err_set(e, -ENOMEM, "out of memory for the prompt");
}

int prompt_next(const struct arch *a, const struct token_list *ids, enum mask_kind kind,
                struct prompt *ret, struct err *e)
{
    int32_t mask = mask_id(a, kind);
    size_t at = mask < 0 ? ids->n : find_id(ids->ids, ids->n, mask);
    if (at == ids->n)
        return err_set(e, -ENOENT, "no mask is left");
    struct prompt p;
    if (start(&p, ids->ids, ids->n) < 0 || token_list_append(&p.ids, a->tokens.sop) < 0)
        return fail(&p, e);
    p.prefix_len = (uint32_t)ids->n;
    p.mask_index = (int32_t)at;
    p.kind = kind;
    *ret = p;
    return 0;
}

static int check_ids(const struct arch *a, const int32_t *ids, size_t n, size_t n_added,
                     size_t max_tokens, struct err *e)
{
    size_t total;
    if (!add_size(n, n_added, &total) || total > MIN(max_tokens, (size_t)INT32_MAX))
        return err_set(e, -E2BIG, "the prompt has %zu tokens, the limit is %zu", n + n_added,
                       max_tokens);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= a->vocab)
            return err_set(e, -EINVAL,
                           "token %zu of the prompt is %" PRId32 ", expected 0 to %" PRIu32, i,
                           ids[i], a->vocab - 1);
    }
    if (a->tokens.sop < 0 || a->tokens.gmask < 0)
        return err_set(e, -EINVAL, "this model has no [gMASK] or sop: it cannot fill blanks");
    return 0;
}

int prompt_from_ids(const struct arch *a, const int32_t *ids, size_t n, size_t max_tokens,
                    struct prompt *ret, struct err *e)
{
    if (n && a->tokens.sop >= 0 && ids[n - 1] == a->tokens.sop)
        n--;
    if (n == 0)
        return err_set(e, -EINVAL, "the prompt has no tokens");
    enum mask_kind kind = MASK_GMASK;
    size_t at = n;
    for (size_t i = 0; i < ARRAY_LEN(masks) && at == n; i++) {
        int32_t id = mask_id(a, masks[i].kind);
        kind = masks[i].kind;
        at = id < 0 ? n : find_id(ids, n, id);
    }
    bool append_mask = at == n;
    int r = check_ids(a, ids, n, append_mask ? 2 : 1, max_tokens, e);
    if (r < 0)
        return r;
    struct prompt p;
    if (start(&p, ids, n) < 0 || (append_mask && token_list_append(&p.ids, a->tokens.gmask) < 0) ||
        token_list_append(&p.ids, a->tokens.sop) < 0)
        return fail(&p, e);
    p.prefix_len = (uint32_t)(p.ids.n - 1);
    p.mask_index = (int32_t)at;
    p.kind = kind; /* the last one looked for is [gMASK] */
    *ret = p;
    return 0;
}

int prompt_unidirectional(const struct arch *a, const int32_t *ids, size_t n, size_t max_tokens,
                          struct prompt *ret, struct err *e)
{
    int r = check_ids(a, ids, n, 2, max_tokens, e);
    if (r < 0)
        return r;
    struct prompt p;
    if (start(&p, &a->tokens.gmask, 1) < 0 || token_list_append(&p.ids, a->tokens.sop) < 0 ||
        token_list_extend(&p.ids, ids, n) < 0)
        return fail(&p, e);
    p.kind = MASK_GMASK;
    *ret = p;
    return 0;
}

int prompt_apply(const struct token_list *ids, int32_t mask_index, const int32_t *answer, size_t n,
                 struct token_list *ret_ids)
{
    assert(mask_index >= 0 && (size_t)mask_index < ids->n);
    size_t at = (size_t)mask_index;
    struct token_list l = {0};
    if (token_list_extend(&l, ids->ids, at) < 0 || token_list_extend(&l, answer, n) < 0 ||
        token_list_extend(&l, ids->ids + at + 1, ids->n - at - 1) < 0) {
        token_list_deinit(&l);
        return -ENOMEM;
    }
    /* ret_ids may be `ids` itself: the next round replaces this one. */
    token_list_deinit(ret_ids);
    *ret_ids = l;
    return 0;
}
