/* reference.c: see reference.h. */
#include "reference.h"

#include <stdlib.h>
#include <string.h>

#include "base/util.h"

enum { MAX_STOP_IDS = 64 };

struct job {
    const struct arch *arch;
    const struct fake_config *config;
    const struct request *request;
    const struct tokenizer *tokenizer;
    struct ref_stops stops;
    struct reference *ret;
};

static void *must_alloc(size_t n, size_t size)
{
    void *p = alloc_array(n, size);
    if (!p)
        abort();
    return p;
}

static void must_append(struct token_list *l, const int32_t *ids, size_t n)
{
    if (token_list_extend(l, ids, n) < 0)
        abort();
}

/* The whole prompt. */
static struct fake_context begin(const struct job *j, const struct prompt *p)
{
    struct fake_context x;
    uint32_t n_prefix = j->arch->context == ARCH_CONTEXT_CAUSAL ? 0 : p->prefix_len;
    int32_t *positions = must_alloc(p->ids.n, sizeof *positions);
    for (uint32_t i = 0; i != p->ids.n; i++)
        positions[i] = prompt_position(p, i);
    fake_context_init(&x, j->config, p->ids.ids, positions, n_prefix);
    for (uint32_t i = n_prefix; i != p->ids.n; i++)
        fake_context_add(&x, p->ids.ids[i], positions[i]);
    free(positions);
    return x;
}

static bool is_end(const struct arch *a, int32_t token)
{
    return token == a->tokens.eop || token == a->tokens.eos;
}

static bool is_stop(const struct request *r, int32_t token)
{
    for (uint32_t i = 0; i != r->params.n_stop_ids; i++) {
        if (r->params.stop_ids[i] == token)
            return true;
    }
    return false;
}

static struct plan_sampling sampling(const struct request *r, uint32_t round, uint32_t choice,
                                     uint32_t index)
{
    const struct request_params *p = &r->params;
    return (struct plan_sampling){
        .temperature = p->temperature,
        .top_k = p->top_k,
        .top_p = p->top_p,
        .min_p = p->min_p,
        .repetition_penalty = p->repetition_penalty,
        .presence_penalty = p->presence_penalty,
        .frequency_penalty = p->frequency_penalty,
        .seed = p->seed,
        .request = round,
        .choice = choice,
        .output_index = index,
        .bias = p->bias,
        .n_bias = p->n_bias,
        .forbidden = p->forbidden,
        .n_forbidden = p->n_forbidden,
    };
}

/* What must not be chosen as token `index`. */
static uint32_t bans(const struct job *j, size_t index, int32_t *ret)
{
    const struct request_params *p = &j->request->params;
    const int32_t end_tokens[2] = {j->arch->tokens.eop, j->arch->tokens.eos};
    bool early = index < p->min_tokens;
    uint32_t n = 0;
    for (size_t i = 0; i != 2; i++) {
        if (early || (p->ignore_end && !is_stop(j->request, end_tokens[i])))
            ret[n++] = end_tokens[i];
    }
    for (uint32_t i = 0; early && i != p->n_stop_ids; i++)
        ret[n++] = p->stop_ids[i];
    return n;
}

/* ---- stop texts, one token at a time ---- */

struct stopper {
    struct token_stream *decoder;
    size_t n_searched;
    size_t *ends; /* [max_new]: bytes of text up to each token */
};

/* The stop text that is complete first at a byte behind those that were searched; of several the
 * longest. */
static int find_stop(const struct job *j, struct stopper *x, const struct buf *text,
                     size_t *ret_end)
{
    for (; x->n_searched < text->size; x->n_searched++) {
        size_t end = x->n_searched + 1;
        int best = -1;
        for (uint32_t i = 0; i != j->stops.n; i++) {
            size_t n = strlen(j->stops.texts[i]);
            if (n <= end && memcmp(text->data + end - n, j->stops.texts[i], n) == 0 &&
                (best < 0 || n > strlen(j->stops.texts[best])))
                best = (int)i;
        }
        *ret_end = end;
        if (best >= 0)
            return best;
    }
    return -1;
}

/* Whether the output, one token longer or at its end, stops. */
static bool stops_here(struct job *j, struct stopper *x, struct ref_output *o, bool grown, bool end)
{
    struct err e = ERR_INIT;
    size_t at;
    if (!j->stops.n)
        return false;
    if (!x->decoder && token_stream_new(j->tokenizer, &x->decoder) < 0)
        abort();
    int32_t last = grown ? o->tokens.ids[o->tokens.n - 1] : -1;
    if (grown && tokenizer_piece(j->tokenizer, last) &&
        token_stream_push(x->decoder, last, &o->text, &e) < 0)
        abort();
    if (end && token_stream_flush(x->decoder, &o->text, &e) < 0)
        abort();
    if (o->tokens.n)
        x->ends[o->tokens.n - 1] = o->text.size;
    if (o->tokens.n < j->request->params.min_tokens)
        x->n_searched = o->text.size; /* whatever is complete by now does not count */
    o->stop = find_stop(j, x, &o->text, &at);
    if (o->stop < 0)
        return false;
    if (!j->request->params.include_stop)
        at -= strlen(j->stops.texts[o->stop]);
    o->text.size = at;
    o->text.data[at] = '\0';
    o->end_token = -1;
    o->finish = FINISH_STOP;
    return true;
}

/* ---- tokens of a blank that a stop text has cut ---- */

static void decode(const struct job *j, const int32_t *ids, size_t n, struct buf *text)
{
    struct token_stream *d;
    struct err e = ERR_INIT;
    if (token_stream_new(j->tokenizer, &d) < 0)
        abort();
    for (size_t i = 0; i != n; i++) {
        if (tokenizer_piece(j->tokenizer, ids[i]) && token_stream_push(d, ids[i], text, &e) < 0)
            abort();
    }
    if (token_stream_flush(d, text, &e) < 0)
        abort();
    token_stream_free(d);
}

static bool says(const struct job *j, const struct token_list *tokens, const struct buf *text)
{
    struct buf found = {0};
    decode(j, tokens->ids, tokens->n, &found);
    bool same =
        found.size == text->size && (!text->size || !memcmp(found.data, text->data, text->size));
    buf_deinit(&found);
    return same;
}

/* Whether the tokenizer's plain encoding of what is behind the first n tokens, with or without its
 * first space, completes the text. */
static bool can_complete(const struct job *j, const struct token_list *tokens, size_t n,
                         size_t n_bytes, const struct buf *text)
{
    bool found = false;
    for (size_t skip = 0; skip != 2 && !found && n_bytes + skip < text->size; skip++) {
        if (skip && text->data[n_bytes] != ' ')
            break;
        struct token_list tried = {0};
        struct err e = ERR_INIT;
        must_append(&tried, tokens->ids, n);
        if (tokenizer_encode(j->tokenizer, text->data + n_bytes + skip, text->size - n_bytes - skip,
                             true, SIZE_MAX, &tried, &e) < 0)
            abort();
        found = says(j, &tried, text);
        token_list_deinit(&tried);
    }
    return found;
}

static bool begins_with(const struct token_list *l, const struct token_list *tokens, size_t n)
{
    return l->n >= n && (!n || memcmp(l->ids, tokens->ids, n * sizeof *l->ids) == 0);
}

/* The tokens that lie wholly in the text stay, and all together say the text; only where encoding
 * cannot do that, the rest has none. */
static void take_blank_tokens(struct job *j, const struct stopper *x, uint32_t round,
                              struct ref_output *o)
{
    const struct token_list *found = j->stops.blank_tokens(j->stops.context, round);
    j->ret->is_open = !found;
    if (!found)
        return;
    size_t n = 0, n_whole = 0;
    for (; n_whole != o->tokens.n && x->ends[n_whole] <= o->text.size; n_whole++) {
        if (x->ends[n_whole] > (n_whole ? x->ends[n_whole - 1] : 0))
            n = n_whole + 1; /* those behind it have no text */
    }
    if (!begins_with(found, &o->tokens, n))
        j->ret->wrong = "a cut blank does not begin with its own tokens";
    else if (!says(j, found, &o->text) &&
             (found->n > n_whole || !begins_with(&o->tokens, found, found->n) ||
              can_complete(j, &o->tokens, n, n ? x->ends[n - 1] : 0, &o->text)))
        j->ret->wrong = "the tokens of a cut blank do not say its text";
    o->tokens.n = 0;
    must_append(&o->tokens, found->ids, found->n);
}

static void run_sample(struct job *j, const struct prompt *p, uint32_t round, uint32_t choice,
                       size_t max_new, struct ref_output *o)
{
    const struct request *r = j->request;
    const struct arch *a = j->arch;
    int32_t banned[2 + MAX_STOP_IDS];
    struct token_list history = {0};
    must_append(&history, p->ids.ids, p->ids.n);
    struct fake_context x = begin(j, p);
    struct stopper stopper = {.ends = must_alloc(max_new, sizeof *stopper.ends)};
    o->end_token = o->stop = -1;
    o->finish = FINISH_LENGTH;
    o->logprobs = must_alloc(max_new, sizeof *o->logprobs);
    o->states = must_alloc(max_new, sizeof *o->states);
    while (o->tokens.n < max_new) {
        struct plan_sampling s = sampling(r, round, choice, (uint32_t)o->tokens.n);
        s.banned = banned;
        s.n_banned = bans(j, o->tokens.n, banned);
        s.history = history.ids;
        s.n_history = (uint32_t)history.n;
        s.n_history_prompt = (uint32_t)p->ids.n;
        uint64_t state = fake_context_state(&x);
        int32_t token = fake_choose(j->config, state, &s, -1);
        j->ret->n_completion_tokens++;
        o->logprob_sum += (double)fake_token_logprob(j->config, state, token);
        o->n_sampled++;
        if ((is_end(a, token) && !r->params.ignore_end) || is_stop(r, token)) {
            o->end_token = token;
            o->finish = FINISH_STOP;
            stops_here(j, &stopper, o, false, true);
            break;
        }
        size_t n = o->tokens.n;
        o->logprobs[n] = fake_token_logprob(j->config, state, token);
        o->states[n] = state;
        fake_context_add(&x, token, prompt_position(p, (uint32_t)(p->ids.n + n)));
        must_append(&o->tokens, &token, 1);
        must_append(&history, &token, 1);
        if (stops_here(j, &stopper, o, true, o->tokens.n == max_new))
            break;
    }
    if (o->stop >= 0 && r->kind == REQUEST_FILL)
        take_blank_tokens(j, &stopper, round, o);
    token_stream_free(stopper.decoder);
    free(stopper.ends);
    token_list_deinit(&history);
}

/* ---- beams ---- */

static bool ranks_before(const struct beam_candidate *a, const struct beam_candidate *b)
{
    if (a->score != b->score)
        return a->score > b->score;
    return a->beam != b->beam ? a->beam < b->beam : a->token < b->token;
}

/* The `width` best of all beams, best first. */
static uint32_t best_candidates(struct job *j, const struct prompt *p, uint32_t round,
                                uint32_t step, const struct beam_search *search,
                                struct beam_candidate *best)
{
    const struct request *r = j->request;
    const struct plan_beam_group g = {.width = beam_search_width(search),
                                      .deterministic = !r->params.beam_sampled,
                                      .seed = r->params.seed,
                                      .request = round,
                                      .output_index = step};
    uint32_t n = 0;
    struct fake_context prompt = begin(j, p);
    for (uint32_t i = 0; i != beam_search_n_live(search); i++) {
        size_t n_tokens;
        const int32_t *tokens = beam_search_tokens(search, i, &n_tokens);
        struct fake_context x = prompt;
        for (size_t k = 0; k != n_tokens; k++)
            fake_context_add(&x, tokens[k], prompt_position(p, (uint32_t)(p->ids.n + k)));
        int32_t banned[PLAN_MAX_BANNED];
        struct plan_sampling s = sampling(r, round, i, step);
        s.n_banned = (uint32_t)beam_search_bans(search, i, banned, PLAN_MAX_BANNED);
        s.banned = banned;
        struct result_logprob offers[PLAN_MAX_BEAM_WIDTH];
        uint32_t n_offers = fake_offers(j->config, fake_context_state(&x), &g, &s, offers);
        for (uint32_t k = 0; k != n_offers; k++) {
            struct beam_candidate c = {i, offers[k].token,
                                       beam_search_score(search, i) + offers[k].logprob};
            uint32_t at = n < g.width ? n++ : n;
            for (; at && ranks_before(&c, &best[at - 1]); at--) {
                if (at != g.width)
                    best[at] = best[at - 1];
            }
            if (at != g.width)
                best[at] = c;
        }
    }
    return n;
}

static void take_results(struct job *j, const struct beam_search *search, struct ref_round *round)
{
    for (uint32_t i = 0; i != round->n_outputs; i++) {
        struct ref_output *o = &round->outputs[i];
        const struct beam_hypothesis *h = beam_search_result(search, i);
        size_t n = h->n;
        bool ended =
            n && (is_end(j->arch, h->tokens[n - 1]) || is_stop(j->request, h->tokens[n - 1]));
        o->end_token = ended ? h->tokens[--n] : -1;
        o->finish = o->end_token >= 0 ? FINISH_STOP : FINISH_LENGTH;
        o->score = h->key;
        o->stop = -1;
        must_append(&o->tokens, h->tokens, n);
    }
}

static void run_beams(struct job *j, const struct prompt *p, uint32_t round_number, size_t max_new,
                      struct ref_round *round)
{
    const struct request_params *params = &j->request->params;
    int32_t end_tokens[BEAM_MAX_END_TOKENS] = {j->arch->tokens.eop, j->arch->tokens.eos};
    uint32_t n_ends = 2;
    for (uint32_t i = 0; i != params->n_stop_ids; i++) {
        if (!is_end(j->arch, params->stop_ids[i]))
            end_tokens[n_ends++] = params->stop_ids[i];
    }
    const struct beam_params bp = {
        .n_beams = params->n_beams,
        .length_penalty = params->length_penalty,
        .no_repeat_ngram = params->no_repeat_ngram,
        .min_new_tokens = params->ignore_end ? UINT32_MAX : params->min_tokens,
        .consider_end = params->consider_end,
        .end_tokens = end_tokens,
        .n_end_tokens = n_ends,
        .prompt = p->ids.ids,
    };
    struct beam_search *search;
    if (beam_search_new(&bp, p->ids.n, &search) < 0)
        abort();
    bool done = false;
    for (uint32_t step = 0; step != max_new && !done; step++) {
        struct beam_candidate c[PLAN_MAX_BEAM_WIDTH];
        uint32_t parent[BEAM_MAX];
        uint32_t n = best_candidates(j, p, round_number, step, search, c);
        if (beam_search_advance(search, c, n, parent, &done) < 0)
            abort();
        j->ret->n_completion_tokens++;
    }
    if (beam_search_finish(search) < 0)
        abort();
    round->n_outputs = (uint32_t)MIN(beam_search_n_results(search), (size_t)round->n_outputs);
    take_results(j, search, round);
    beam_search_free(search);
}

/* ---- rounds ---- */

static struct ref_round *add_round(struct job *j, const struct prompt *p, uint32_t n_outputs)
{
    struct reference *ref = j->ret;
    ref->rounds = realloc(ref->rounds, (ref->n_rounds + 1) * sizeof *ref->rounds);
    if (!ref->rounds)
        abort();
    struct ref_round *round = &ref->rounds[ref->n_rounds++];
    *round = (struct ref_round){.n_outputs = n_outputs};
    must_append(&round->prompt, p->ids.ids, p->ids.n);
    round->outputs = must_alloc(n_outputs, sizeof *round->outputs);
    return round;
}

/* best_of: the outputs by their means, best first; equal ones in their order. */
static void order_by_mean(struct ref_round *round)
{
    for (uint32_t i = 1; i < round->n_outputs; i++) {
        struct ref_output o = round->outputs[i];
        uint32_t at = i;
        for (; at && o.score > round->outputs[at - 1].score; at--)
            round->outputs[at] = round->outputs[at - 1];
        round->outputs[at] = o;
    }
}

static struct ref_round *run_round(struct job *j, const struct prompt *p, uint32_t number,
                                   size_t max_new)
{
    const struct request_params *params = &j->request->params;
    uint32_t n = params->beam ? params->n_beams : params->n_choices;
    struct ref_round *round = add_round(j, p, max_new ? n : 1);
    if (max_new == 0)
        round->outputs[0] =
            (struct ref_output){.end_token = -1, .stop = -1, .finish = FINISH_LENGTH};
    else if (params->beam)
        run_beams(j, p, number, max_new, round);
    else
        for (uint32_t i = 0; i != n; i++)
            run_sample(j, p, number, i, max_new, &round->outputs[i]);
    if (params->n_best) {
        for (uint32_t i = 0; i != n; i++)
            round->outputs[i].score = round->outputs[i].logprob_sum / round->outputs[i].n_sampled;
        order_by_mean(round);
    }
    return round;
}

static void run_fill(struct job *j)
{
    const struct request *r = j->request;
    struct token_list ids = {0};
    must_append(&ids, r->ids.ids, r->ids.n);
    struct prompt p;
    for (uint32_t k = 0; k != r->params.max_rounds && !j->ret->is_open; k++) {
        if (prompt_next(j->arch, &ids, r->mask, &p, NULL) < 0)
            break;
        size_t max_new = r->params.max_length > p.ids.n ? r->params.max_length - p.ids.n : 0;
        const struct ref_output *best = &run_round(j, &p, k, max_new)->outputs[0];
        if (prompt_apply(&ids, p.mask_index, best->tokens.ids, best->tokens.n, &ids) < 0)
            abort();
        prompt_deinit(&p);
    }
    token_list_deinit(&ids);
}

static void run_score(struct job *j)
{
    const struct request *r = j->request;
    const struct prompt *p = &r->prompt;
    struct ref_round *round = add_round(j, p, r->n_choices_scored);
    for (uint32_t i = 0; i != r->n_choices_scored; i++) {
        const struct token_list *c = &r->choices[i];
        struct ref_output *o = &round->outputs[i];
        struct fake_context x = begin(j, p);
        o->logprobs = must_alloc(c->n, sizeof *o->logprobs);
        o->states = must_alloc(c->n, sizeof *o->states);
        o->finish = FINISH_STOP;
        o->end_token = -1;
        for (size_t k = 0; k != c->n; k++) {
            o->states[k] = fake_context_state(&x);
            o->logprobs[k] = fake_token_logprob(j->config, o->states[k], c->ids[k]);
            o->score += (double)o->logprobs[k];
            fake_context_add(&x, c->ids[k], prompt_position(p, (uint32_t)(p->ids.n + k)));
        }
        j->ret->n_completion_tokens += c->n;
    }
}

void reference_make(const struct arch *a, const struct tokenizer *t, const struct fake_config *c,
                    const struct request *fresh, struct ref_stops stops, struct reference *ret)
{
    *ret = (struct reference){0};
    struct job j = {
        .arch = a, .tokenizer = t, .config = c, .request = fresh, .stops = stops, .ret = ret};
    if (fresh->kind == REQUEST_FILL)
        run_fill(&j);
    else if (fresh->kind == REQUEST_SCORE)
        run_score(&j);
    else
        run_round(&j, &fresh->prompt, 0, fresh->params.max_new);
}

void reference_deinit(struct reference *r)
{
    for (uint32_t k = 0; k != r->n_rounds; k++) {
        struct ref_round *round = &r->rounds[k];
        for (uint32_t i = 0; i != round->n_outputs; i++) {
            token_list_deinit(&round->outputs[i].tokens);
            buf_deinit(&round->outputs[i].text);
            free(round->outputs[i].logprobs);
            free(round->outputs[i].states);
        }
        token_list_deinit(&round->prompt);
        free(round->outputs);
    }
    free(r->rounds);
    *r = (struct reference){0};
}
