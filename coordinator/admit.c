/* admit.c: see admit.h. */
#include "coordinator/admit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/util.h"
#include "coordinator/admit_internal.h"

enum {
    DEFAULT_MAX_TOKENS = 256,
    DEFAULT_FILL_LENGTH = 256, /* out_seq_length, as published */
    MAX_USER_BYTES = 128,
    MAX_PRIORITY = 100,
};

/* Text that is worth giving out. "<unk>" decodes to a mark for something unreadable. */
static bool is_default_output(const struct admit *a, int32_t id)
{
    const struct arch_tokens *t = &a->arch->tokens;
    if (id == t->eop || id == t->eos)
        return true;
    const char *piece = tokenizer_piece(a->tokenizer, id);
    return tokenizer_is_text(a->tokenizer, id) && piece && strcmp(piece, "<unk>") != 0;
}

int admit_init(struct admit *a, struct err *e)
{
    a->n_default_forbidden = 0;
    int32_t begin = -1;
    for (int32_t id = 0; id <= (int32_t)a->arch->vocab; id++) {
        bool allowed = id == (int32_t)a->arch->vocab || is_default_output(a, id);
        if (!allowed && begin < 0)
            begin = id;
        if (!allowed || begin < 0)
            continue;
        if (a->n_default_forbidden == PLAN_MAX_RANGES)
            return err_set(e, -E2BIG,
                           "the tokenizer's ids without text form more than %d ranges: this is not "
                           "a tokenizer of the GLM-130B family",
                           PLAN_MAX_RANGES);
        a->default_forbidden[a->n_default_forbidden++] = (struct plan_range){begin, id};
        begin = -1;
    }
    return 0;
}

/* ---- small checks ---- */

static int check_model(const struct admit *a, const char *name, struct err *e)
{
    if (!*name || strcmp(name, a->model) == 0)
        return 0;
    return err_set(e, -ENOENT, "model: unknown; this server has \"%s\" (ListModels)", a->model);
}

int admit_request_id(const char *id, struct err *e)
{
    size_t n = strlen(id);
    if (n >= REQUEST_ID_BYTES)
        return err_set(e, -EINVAL, "request_id: expected at most %d characters, found %zu bytes",
                       REQUEST_ID_BYTES - 1, n);
    for (size_t i = 0; i != n; i++) {
        if (id[i] < 0x20 || id[i] > 0x7e)
            return err_set(e, -EINVAL, "request_id: expected printable ASCII");
    }
    return 0;
}

uint64_t admit_tenant(const char *key)
{
    uint64_t hash = XXH3_64bits(key, strlen(key));
    return hash ? hash : 1; /* 0 is nobody */
}

/* Who asks, and how urgently. */
static int take_origin(const char *request_id, int32_t priority, const char *user,
                       struct request *r, struct err *e)
{
    int code = admit_request_id(request_id, e);
    if (code < 0)
        return code;
    if (priority < -MAX_PRIORITY || priority > MAX_PRIORITY)
        return err_set(e, -EINVAL, "priority: expected -%d to %d, found %d", MAX_PRIORITY,
                       MAX_PRIORITY, priority);
    if (strlen(user) > MAX_USER_BYTES)
        return err_set(e, -EINVAL, "user: expected at most %d bytes, found %zu", MAX_USER_BYTES,
                       strlen(user));
    r->priority = priority;
    r->tenant = *user ? admit_tenant(user) : 0;
    memcpy(r->client_id, request_id, strlen(request_id) + 1);
    return 0;
}

static int check_text(const struct admit *a, const char *text, struct err *e)
{
    size_t n = strlen(text);
    if (n == 0)
        return err_set(e, -EINVAL, "the text is empty: send at least one character");
    if (n > a->max_input_bytes)
        return err_set(e, -EINVAL, "expected a text of at most %zu bytes, found %zu",
                       a->max_input_bytes, n);
    return 0;
}

static int check_ids(const struct admit *a, const struct wire_token_ids *t, struct err *e)
{
    if (t->n_ids == 0)
        return err_set(e, -EINVAL, "the list of tokens is empty: send at least one");
    if (t->n_ids > a->arch->max_seq)
        return err_set(e, -EINVAL, "expected at most %u tokens, found %u", a->arch->max_seq,
                       t->n_ids);
    for (uint32_t i = 0; i != t->n_ids; i++) {
        if (t->ids[i] < 0 || (uint32_t)t->ids[i] >= a->arch->vocab)
            return err_set(e, -EINVAL, "token %u: expected an id from 0 to %u, found %d", i,
                           a->arch->vocab - 1, t->ids[i]);
    }
    return 0;
}

/* Exactly one of text and tokens, within the limits. */
static int check_input(const struct admit *a, const char *text, const struct wire_token_ids *tokens,
                       struct err *e)
{
    if (!text && !tokens)
        return err_set(e, -EINVAL, "expected text or tokens, found neither");
    int code = text ? check_text(a, text, e) : check_ids(a, tokens, e);
    return code < 0 ? err_prefix(e, text ? "text" : "tokens") : 0;
}

/* ---- prompts ---- */

/* The limit that a prompt function names leaves room for masks, sop and an answer: say of what. */
static int over_context(const struct admit *a, const char *text, int r, struct err *e)
{
    if (r == -E2BIG)
        err_prefix(e, "%s: over the context length of %u tokens", text ? "text" : "tokens",
                   a->arch->max_seq);
    return r;
}

/* The lower layers say -E2BIG, -EILSEQ and -EINVAL: for a client all of them are bad input. */
static int bad_input(int r, struct err *e)
{
    if (r >= 0 || r == -ENOMEM || r == -ENOENT)
        return r;
    if (e)
        e->code = -EINVAL;
    return -EINVAL;
}

static int prompt_from_text(const struct admit *a, const char *text, bool unidirectional,
                            struct request *r, struct err *e)
{
    size_t n = strlen(text), max = a->arch->max_seq - 2; /* sop and one new token */
    struct token_list ids = {0};
    int code;
    if (unidirectional) {
        code = prompt_encode_masked(a->tokenizer, a->arch, text, n, false, max - 1, a->max_masks,
                                    &ids, e);
        if (code == 0)
            code =
                prompt_unidirectional(a->arch, ids.ids, ids.n, a->arch->max_seq - 1, &r->prompt, e);
        token_list_deinit(&ids);
        return code;
    }
    code = prompt_encode_text(a->tokenizer, a->arch, text, n, max, a->max_masks, &ids, &r->mask, e);
    if (code == 0)
        code = prompt_next(a->arch, &ids, r->mask, &r->prompt, e);
    token_list_deinit(&ids);
    return code;
}

static int prompt_from_tokens(const struct admit *a, const struct wire_token_ids *t,
                              bool unidirectional, struct request *r, struct err *e)
{
    size_t max = a->arch->max_seq - 1; /* one new token */
    if (unidirectional)
        return prompt_unidirectional(a->arch, t->ids, t->n_ids, max, &r->prompt, e);
    return prompt_from_ids(a->arch, t->ids, t->n_ids, max, &r->prompt, e);
}

static int take_choices(const struct wire_generate_request *w, struct request_params *p,
                        struct err *e)
{
    p->n_choices = w->n ? w->n : 1;
    uint32_t max = p->beam ? p->n_beams : REQUEST_MAX_CHOICES;
    if (p->n_choices > max)
        return err_set(e, -EINVAL, "n: expected at most %u%s, found %u", max,
                       p->beam ? " (beam.num_beams)" : "", p->n_choices);
    if (w->best_of == 0 || w->best_of == p->n_choices)
        return 0;
    if (w->best_of < p->n_choices || w->best_of > REQUEST_MAX_CHOICES)
        return err_set(e, -EINVAL, "best_of: expected n to %d, found %u", REQUEST_MAX_CHOICES,
                       w->best_of);
    if (p->beam || p->top_k == 1)
        return err_set(e, -EINVAL,
                       "best_of: there is one greedy output, and beams have num_beams: set a "
                       "temperature above 0 and no top_k 1");
    p->n_best = p->n_choices;
    p->n_choices = w->best_of;
    return 0;
}

static int take_max_tokens(const struct admit *a, uint32_t wanted, struct request *r, struct err *e)
{
    if (wanted > a->max_tokens)
        return err_set(e, -EINVAL, "max_tokens: expected at most %u, found %u", a->max_tokens,
                       wanted);
    uint32_t n_prompt = (uint32_t)r->prompt.ids.n;
    if (n_prompt >= a->arch->max_seq)
        return err_set(e, -EINVAL,
                       "the prompt has %u tokens; the context length of %u leaves no room for an "
                       "answer",
                       n_prompt, a->arch->max_seq);
    uint32_t max_new = wanted ? wanted : MIN((uint32_t)DEFAULT_MAX_TOKENS, a->max_tokens);
    r->params.max_new = MIN(max_new, a->arch->max_seq - n_prompt);
    return 0;
}

static int finish(int code, struct request *r, struct request **ret, struct err *e)
{
    if (code < 0) {
        request_free(r);
        return bad_input(code, e);
    }
    *ret = r;
    return 0;
}

int admit_generate(const struct admit *a, const struct wire_generate_request *w,
                   struct request **ret, struct err *e)
{
    struct request *r = request_new(REQUEST_GENERATE);
    if (!r)
        return err_set(e, -ENOMEM, "out of memory");
    int code = check_model(a, w->model, e);
    if (code == 0)
        code = take_origin(w->request_id, w->priority, w->user, r, e);
    if (code == 0)
        code = check_input(a, w->text, w->tokens, e);
    if (code == 0 && w->prompt_only)
        code = err_set(e, -EINVAL, "prompt_only: expected prompt_logprobs with it, found none");
    if (code == 0)
        code = admit_sampling(a, w->sampling, &r->params, e);
    if (code == 0)
        code = take_choices(w, &r->params, e);
    if (code == 0)
        code = w->text ? prompt_from_text(a, w->text, w->unidirectional, r, e)
                       : prompt_from_tokens(a, w->tokens, w->unidirectional, r, e);
    code = over_context(a, w->text, code, e);
    if (code == 0)
        code = take_max_tokens(a, w->max_tokens, r, e);
    return finish(code, r, ret, e);
}

/* The first kind of mask in this order is the one that is filled. */
static int fill_from_tokens(const struct admit *a, const struct wire_token_ids *t,
                            struct request *r, struct err *e)
{
    const struct arch_tokens *k = &a->arch->tokens;
    const int32_t ids[] = {k->mask, k->smask, k->gmask};
    static const enum mask_kind kinds[] = {MASK_MASK, MASK_SMASK, MASK_GMASK};
    uint32_t n_masks[3] = {0};
    for (uint32_t i = 0; i != t->n_ids; i++) {
        for (size_t m = 0; m != ARRAY_LEN(ids); m++)
            n_masks[m] += t->ids[i] == ids[m];
        if (t->ids[i] == k->sop)
            return err_set(e, -EINVAL, "token %u is sop: Fill adds it by itself", i);
    }
    uint32_t n = n_masks[0] + n_masks[1] + n_masks[2];
    if (n == 0 || n > a->max_masks)
        return err_set(e, -EINVAL, "expected 1 to %u masks among the tokens, found %u",
                       a->max_masks, n);
    r->mask = kinds[n_masks[0] ? 0 : n_masks[1] ? 1 : 2];
    if (token_list_extend(&r->ids, t->ids, t->n_ids) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    return 0;
}

static int take_max_length(const struct admit *a, uint32_t wanted, struct request *r, struct err *e)
{
    uint32_t max_seq = a->arch->max_seq, n_prompt = (uint32_t)r->prompt.ids.n;
    if (wanted > max_seq)
        return err_set(e, -EINVAL,
                       "max_length: expected at most the context length of %u, found %u", max_seq,
                       wanted);
    r->params.max_length = wanted ? wanted : MIN((uint32_t)DEFAULT_FILL_LENGTH, max_seq);
    if (n_prompt >= r->params.max_length)
        return err_set(e, -EINVAL,
                       "the text has %u tokens; max_length %u leaves no room for an answer, up to "
                       "%u are allowed",
                       n_prompt, r->params.max_length, max_seq);
    if (r->params.max_length - n_prompt > a->max_tokens)
        r->params.max_length = n_prompt + a->max_tokens;
    r->params.max_rounds = a->max_masks;
    return 0;
}

int admit_fill(const struct admit *a, const struct wire_fill_request *w, struct request **ret,
               struct err *e)
{
    struct request *r = request_new(REQUEST_FILL);
    if (!r)
        return err_set(e, -ENOMEM, "out of memory");
    r->params.n_choices = 1;
    int code = check_model(a, w->model, e);
    if (code == 0)
        code = take_origin(w->request_id, w->priority, w->user, r, e);
    if (code == 0)
        code = check_input(a, w->text, w->tokens, e);
    if (code == 0)
        code = admit_sampling(a, w->sampling, &r->params, e);
    r->params.logprobs = false; /* blanks have no place for them */
    r->params.n_top_logprobs = 0;
    if (code == 0)
        code = w->text
                   ? prompt_encode_text(a->tokenizer, a->arch, w->text, strlen(w->text),
                                        a->arch->max_seq - 2, a->max_masks, &r->ids, &r->mask, e)
                   : fill_from_tokens(a, w->tokens, r, e);
    if (code == 0)
        code = prompt_next(a->arch, &r->ids, r->mask, &r->prompt, e);
    if (code == 0)
        code = take_max_length(a, w->max_length, r, e);
    return finish(code, r, ret, e);
}

/* ---- Score ---- */

static int score_context(const struct admit *a, const struct wire_score_request *w,
                         struct request *r, struct err *e)
{
    enum mask_kind kind = w->use_gmask ? MASK_GMASK : MASK_MASK;
    int32_t mask = w->use_gmask ? a->arch->tokens.gmask : a->arch->tokens.mask;
    struct token_list ids = {0};
    int code = w->text ? prompt_encode_masked(a->tokenizer, a->arch, w->text, strlen(w->text),
                                              false, a->arch->max_seq, a->max_masks, &ids, e)
                       : token_list_extend(&ids, w->tokens->ids, w->tokens->n_ids);
    bool found = false;
    for (size_t i = 0; i != ids.n; i++)
        found = found || ids.ids[i] == mask;
    if (code == 0 && !found)
        code = token_list_append(&ids, mask);
    if (code == 0)
        code = prompt_next(a->arch, &ids, kind, &r->prompt, e);
    token_list_deinit(&ids);
    return code;
}

static int score_choices(const struct admit *a, const struct wire_score_request *w,
                         struct request *r, struct err *e)
{
    uint32_t n = w->n_choices ? w->n_choices : w->n_choice_tokens;
    if (n == 0 || n > a->max_choices || (w->n_choices && w->n_choice_tokens))
        return err_set(e, -EINVAL,
                       "expected 1 to %u entries in either choices or choice_tokens, found %u and "
                       "%u",
                       a->max_choices, w->n_choices, w->n_choice_tokens);
    r->choices = alloc_array(n, sizeof *r->choices);
    if (!r->choices)
        return err_set(e, -ENOMEM, "out of memory");
    r->n_choices_scored = n;
    for (uint32_t i = 0; i != n; i++) {
        struct token_list *l = &r->choices[i];
        int code;
        if (w->n_choices) {
            code = check_text(a, w->choices[i], e);
            if (code == 0)
                code = tokenizer_encode(a->tokenizer, w->choices[i], strlen(w->choices[i]), false,
                                        a->arch->max_seq, l, e);
            if (code == 0 && l->n == 0)
                code = err_set(e, -EINVAL, "it has no tokens");
        } else {
            code = check_ids(a, &w->choice_tokens[i], e);
            if (code == 0)
                code = token_list_extend(l, w->choice_tokens[i].ids, w->choice_tokens[i].n_ids);
        }
        if (code < 0)
            return code == -ENOMEM ? err_set(e, code, "out of memory")
                                   : err_prefix(e, "choice %u", i);
        if (r->prompt.ids.n - 1 + l->n > a->arch->max_seq)
            return err_set(e, -EINVAL,
                           "choice %u: expected at most %u tokens, context and choice together, "
                           "found %zu",
                           i, a->arch->max_seq, r->prompt.ids.n - 1 + l->n);
    }
    return 0;
}

int admit_score(const struct admit *a, const struct wire_score_request *w, struct request **ret,
                struct err *e)
{
    struct request *r = request_new(REQUEST_SCORE);
    if (!r)
        return err_set(e, -ENOMEM, "out of memory");
    r->params = (struct request_params){.temperature = 1, .n_choices = 1};
    int code = check_model(a, w->model, e);
    if (code == 0)
        code = take_origin(w->request_id, w->priority, w->user, r, e);
    if (code == 0)
        code = check_input(a, w->text, w->tokens, e);
    if (code == 0)
        code = over_context(a, w->text, score_context(a, w, r, e), e);
    if (code == 0)
        code = score_choices(a, w, r, e);
    return finish(code, r, ret, e);
}

/* ---- log-probabilities of a prompt ---- */

/* [gMASK] sop, and behind it the input as the only choice: every row predicts the token that
 * follows, the row of sop the first one. */
static int echo_input(const struct admit *a, const struct wire_generate_request *w,
                      struct request *r, struct err *e)
{
    size_t max = a->arch->max_seq - 1; /* [gMASK] sop, and all but the last token */
    r->choices = alloc_array(1, sizeof *r->choices);
    if (!r->choices)
        return err_set(e, -ENOMEM, "out of memory");
    r->n_choices_scored = 1;
    struct token_list *l = &r->choices[0];
    int code = w->text ? prompt_encode_masked(a->tokenizer, a->arch, w->text, strlen(w->text),
                                              false, max, a->max_masks, l, e)
                       : token_list_extend(l, w->tokens->ids, w->tokens->n_ids);
    if (code == 0 && (l->n == 0 || l->n > max))
        code =
            err_set(e, -EINVAL, "prompt_logprobs: expected 1 to %zu tokens, found %zu", max, l->n);
    return code == 0 ? prompt_unidirectional(a->arch, NULL, 0, a->arch->max_seq, &r->prompt, e)
                     : code;
}

int admit_echo(const struct admit *a, const struct wire_generate_request *w, struct request **ret,
               struct err *e)
{
    struct request *r = request_new(REQUEST_SCORE);
    if (!r)
        return err_set(e, -ENOMEM, "out of memory");
    r->params = (struct request_params){
        .temperature = 1, .n_choices = 1, .n_top_logprobs = w->prompt_logprobs};
    int code = check_model(a, w->model, e);
    if (code == 0)
        code = take_origin(w->request_id, w->priority, w->user, r, e);
    if (code == 0)
        code = check_input(a, w->text, w->tokens, e);
    if (code == 0 && w->prompt_logprobs > PLAN_MAX_TOP_LOGPROBS)
        code = err_set(e, -EINVAL, "prompt_logprobs: expected at most %d, found %u",
                       PLAN_MAX_TOP_LOGPROBS, w->prompt_logprobs);
    if (code == 0)
        code = over_context(a, w->text, echo_input(a, w, r, e), e);
    return finish(code, r, ret, e);
}

/* ---- text and ids ---- */

int admit_tokenize(const struct admit *a, const struct wire_tokenize_request *w,
                   struct token_list *ret_ids, struct err *e)
{
    int code = check_model(a, w->model, e);
    size_t n = strlen(w->text);
    if (code == 0 && n > a->max_input_bytes)
        code = err_set(e, -EINVAL, "expected a text of at most %zu bytes, found %zu",
                       a->max_input_bytes, n);
    if (code < 0)
        return code;
    /* Any token stands for at least one byte, but for a few at each stretch's start. */
    size_t max = n + 16 + 2 * (size_t)a->max_masks;
    if (w->parse_masks)
        code = prompt_encode_masked(a->tokenizer, a->arch, w->text, n, w->keep_linebreak, max,
                                    a->max_masks, ret_ids, e);
    else
        code = tokenizer_encode(a->tokenizer, w->text, n, w->keep_linebreak, max, ret_ids, e);
    return bad_input(code, e);
}

int admit_detokenize(const struct admit *a, const struct wire_detokenize_request *w,
                     struct buf *ret_text, struct err *e)
{
    int code = check_model(a, w->model, e);
    if (code < 0)
        return code;
    if (w->n_ids > a->max_input_bytes)
        return err_set(e, -EINVAL, "expected at most %zu ids, found %u", a->max_input_bytes,
                       w->n_ids);
    return bad_input(tokenizer_decode(a->tokenizer, w->ids, w->n_ids, ret_text, e), e);
}
