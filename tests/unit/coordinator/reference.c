/* reference.c: see reference.h. */
#include "reference.h"

#include <stdlib.h>
#include <string.h>

#include "fake_engine.h"

static void describe(struct buf *text, const int32_t *tokens, size_t n, int32_t end_token,
                     enum finish finish, double score)
{
    buf_printf(text, "[");
    for (size_t i = 0; i != n; i++)
        buf_printf(text, " %d", tokens[i]);
    buf_printf(text, " ] end %d finish %d score %.6g\n", end_token, (int)finish, score);
}

void reference_describe(const struct request *r, struct buf *text)
{
    for (uint32_t k = 0; k != r->n_rounds; k++) {
        const struct fill_round *f = &r->rounds[k];
        buf_printf(text, "round %u prompt %zu\n", k, f->input.n);
        for (uint32_t i = 0; i != f->n_outputs; i++)
            describe(text, f->outputs[i].ids, f->outputs[i].n, f->end_tokens[i], f->finishes[i],
                     f->scores[i]);
    }
    if (r->kind == REQUEST_FILL)
        return;
    for (uint32_t i = 0; i != r->n_outputs; i++) {
        const struct output *o = &r->outputs[i];
        if (r->kind == REQUEST_SCORE)
            buf_printf(text, "score %.6g\n", o->score);
        else
            describe(text, o->tokens.ids, o->tokens.n, o->end_token, o->finish, o->score);
    }
}

static uint64_t hash_sequence(const struct prompt *p, const int32_t *tokens, size_t n)
{
    uint64_t hash = FAKE_HASH_SEED;
    for (size_t i = 0; i != p->ids.n; i++)
        hash = fake_hash(hash, p->ids.ids[i], prompt_position(p, (uint32_t)i));
    for (size_t i = 0; i != n; i++)
        hash = fake_hash(hash, tokens[i], prompt_position(p, (uint32_t)(p->ids.n + i)));
    return hash;
}

static bool is_end(const struct arch *a, int32_t token)
{
    return token == a->tokens.eop || token == a->tokens.eos;
}

static struct plan_sampling sampling(const struct request *r, uint32_t round, uint32_t choice,
                                     uint32_t index)
{
    const struct request_params *p = &r->params;
    return (struct plan_sampling){
        .top_k = p->top_k,
        .seed = p->seed,
        .request = round,
        .choice = choice,
        .output_index = index,
        .bias = p->bias,
        .n_bias = p->n_bias,
        .forbidden = p->forbidden,
        .n_forbidden = p->n_forbidden,
        .repetition_penalty = p->repetition_penalty,
        .presence_penalty = p->presence_penalty,
        .frequency_penalty = p->frequency_penalty,
    };
}

bool reference_is_stop_text(const struct request *r, int32_t token)
{
    return r->watch && token % 16 == 5;
}

/* End tokens and stop ids that are not allowed yet. */
static uint32_t bans(const struct arch *a, const struct request *r, size_t n_done, int32_t *ret)
{
    const struct request_params *p = &r->params;
    const int32_t ends[2] = {a->tokens.eop, a->tokens.eos};
    bool early = n_done < p->min_tokens;
    uint32_t n = 0;
    for (uint32_t i = 0; i != 2; i++) {
        if (early || (p->ignore_end && !request_is_stop_id(r, ends[i])))
            ret[n++] = ends[i];
    }
    for (uint32_t i = 0; early && i != p->n_stop_ids; i++)
        ret[n++] = p->stop_ids[i];
    return n;
}

/* One sampled output; `ret` gets its tokens. */
static void run_sample(const struct arch *a, const struct request *r, const struct prompt *p,
                       uint32_t round, uint32_t choice, size_t max_new, struct token_list *ret,
                       struct buf *text)
{
    int32_t banned[2 + 8];
    int32_t end = -1;
    struct token_list history = {0};
    bool stopped = false;
    token_list_extend(&history, p->ids.ids, p->ids.n);
    while (ret->n < max_new && end < 0 && !stopped) {
        struct plan_sampling s = sampling(r, round, choice, (uint32_t)ret->n);
        s.banned = banned;
        s.n_banned = bans(a, r, ret->n, banned);
        s.history = history.ids;
        s.n_history = (uint32_t)history.n;
        s.n_history_prompt = (uint32_t)p->ids.n;
        uint64_t hash = fake_penalize(hash_sequence(p, ret->ids, ret->n), &s, -1);
        int32_t token = fake_sample(hash, &s, a->vocab);
        token_list_append(&history, token);
        if ((is_end(a, token) && !r->params.ignore_end) || request_is_stop_id(r, token))
            end = token;
        else if (reference_is_stop_text(r, token))
            stopped = true;
        else
            token_list_append(ret, token);
    }
    token_list_deinit(&history);
    describe(text, ret->ids, ret->n, end, end >= 0 || stopped ? FINISH_STOP : FINISH_LENGTH, 0);
}

static uint32_t best_candidates(const struct arch *a, const struct request *r,
                                const struct prompt *p, uint32_t round, uint32_t step,
                                const struct beam_search *search, struct beam_candidate *ret)
{
    static struct result_candidate all[2 * PLAN_MAX_BEAM_WIDTH];
    uint32_t n = 0, width = beam_search_width(search);
    for (uint32_t i = 0; i != beam_search_n_live(search); i++) {
        size_t n_tokens;
        const int32_t *tokens = beam_search_tokens(search, i, &n_tokens);
        int32_t banned[PLAN_MAX_BANNED];
        struct plan_sampling s = sampling(r, round, i, step);
        s.n_banned = (uint32_t)beam_search_bans(search, i, banned, PLAN_MAX_BANNED);
        s.banned = banned;
        fake_candidates(hash_sequence(p, tokens, n_tokens), beam_search_score(search, i), &s,
                        a->vocab, width, i, all + n);
        n += width;
        fake_sort_candidates(all, n);
        n = n < width ? n : width;
    }
    for (uint32_t i = 0; i != n; i++)
        ret[i] = (struct beam_candidate){all[i].item, all[i].token, all[i].score};
    return n;
}

/* A beam search; `ret` gets the best output. */
static void run_beams(const struct arch *a, const struct request *r, const struct prompt *p,
                      uint32_t round, size_t max_new, struct token_list *ret, struct buf *text)
{
    int32_t end_tokens[2 + 8] = {a->tokens.eop, a->tokens.eos};
    uint32_t n_end_tokens = 2;
    for (uint32_t i = 0; i != r->params.n_stop_ids; i++) {
        if (!is_end(a, r->params.stop_ids[i]))
            end_tokens[n_end_tokens++] = r->params.stop_ids[i];
    }
    struct beam_params bp = {
        .n_beams = r->params.n_beams,
        .length_penalty = r->params.length_penalty,
        .no_repeat_ngram = r->params.no_repeat_ngram,
        .min_new_tokens = r->params.ignore_end ? UINT32_MAX : r->params.min_tokens,
        .consider_end = r->params.consider_end,
        .end_tokens = end_tokens,
        .n_end_tokens = n_end_tokens,
        .prompt = p->ids.ids,
    };
    struct beam_search *search;
    if (beam_search_new(&bp, p->ids.n, &search) < 0)
        abort();
    bool done = false;
    for (uint32_t step = 0; step != max_new && !done; step++) {
        struct beam_candidate c[PLAN_MAX_BEAM_WIDTH];
        uint32_t parent[BEAM_MAX];
        uint32_t n = best_candidates(a, r, p, round, step, search, c);
        if (beam_search_advance(search, c, n, parent, &done) < 0)
            abort();
    }
    beam_search_finish(search);
    for (size_t i = 0; i != beam_search_n_results(search); i++) {
        const struct beam_hypothesis *h = beam_search_result(search, i);
        size_t n = h->n;
        int32_t last = n ? h->tokens[n - 1] : -1;
        int32_t end = is_end(a, last) || request_is_stop_id(r, last) ? h->tokens[--n] : -1;
        if (i == 0)
            token_list_extend(ret, h->tokens, n);
        describe(text, h->tokens, n, end, end >= 0 ? FINISH_STOP : FINISH_LENGTH, h->key);
    }
    beam_search_free(search);
}

static void run_round(const struct arch *a, const struct request *r, const struct prompt *p,
                      uint32_t round, size_t max_new, struct token_list *ret_best, struct buf *text)
{
    if (max_new == 0) {
        describe(text, NULL, 0, -1, FINISH_LENGTH, 0);
    } else if (r->params.beam) {
        run_beams(a, r, p, round, max_new, ret_best, text);
    } else {
        for (uint32_t i = 0; i != r->params.n_choices; i++) {
            struct token_list l = {0};
            run_sample(a, r, p, round, i, max_new, &l, text);
            if (i == 0)
                token_list_extend(ret_best, l.ids, l.n);
            token_list_deinit(&l);
        }
    }
}

static void run_fill(const struct arch *a, const struct request *r, struct buf *text)
{
    struct token_list ids = {0};
    token_list_extend(&ids, r->ids.ids, r->ids.n);
    struct prompt p;
    for (uint32_t round = 0; round != r->params.max_rounds; round++) {
        if (prompt_next(a, &ids, r->mask, &p, NULL) < 0)
            break;
        struct token_list best = {0};
        size_t max_new = r->params.max_length > p.ids.n ? r->params.max_length - p.ids.n : 0;
        buf_printf(text, "round %u prompt %zu\n", round, p.ids.n);
        run_round(a, r, &p, round, max_new, &best, text);
        prompt_apply(&ids, p.mask_index, best.ids, best.n, &ids);
        token_list_deinit(&best);
        prompt_deinit(&p);
    }
    token_list_deinit(&ids);
}

static void run_score(const struct request *r, struct buf *text)
{
    for (uint32_t i = 0; i != r->n_choices_scored; i++) {
        const struct token_list *c = &r->choices[i];
        double sum = 0;
        for (size_t k = 0; k != c->n; k++)
            sum += (double)fake_logprob(hash_sequence(&r->prompt, c->ids, k), c->ids[k]);
        buf_printf(text, "score %.6g\n", sum);
    }
}

void reference_run(const struct arch *a, const struct request *fresh, struct buf *text)
{
    struct token_list best = {0};
    if (fresh->kind == REQUEST_FILL)
        run_fill(a, fresh, text);
    else if (fresh->kind == REQUEST_SCORE)
        run_score(fresh, text);
    else
        run_round(a, fresh, &fresh->prompt, 0, fresh->params.max_new, &best, text);
    token_list_deinit(&best);
}
