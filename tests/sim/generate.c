/* generate.c: random requests of every kind, with every option. See clients.h.
 *
 * What newer generators add is drawn from a stream of its own, so that older seeds stay what they
 * were (sim.h). */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "clients.h"

enum { MAX_BIAS = 3, MAX_STOP_IDS = 4, MAX_SCORED = 12, MAX_IDS = 512 };

/* Everything that a message points to while it is being packed. */
struct draft {
    struct sim_request *q;
    struct rng *rng;
    struct rng *more; /* of the second generator; NULL = the first one */
    const struct arch *arch;
    int32_t ids[MAX_IDS];
    struct wire_token_ids tokens;
    struct plan_bias bias[MAX_BIAS];
    int32_t stop_ids[MAX_STOP_IDS];
    struct wire_id_ranges ranges;
    struct plan_range range;
    struct wire_beam_parameters beam;
    struct wire_sampling_parameters sampling;
    const char *scored_texts[MAX_SCORED];
    int32_t scored_ids[MAX_SCORED][64];
    struct wire_token_ids scored[MAX_SCORED];
    char request_id[32];
};

static int32_t text_token(const struct arch *a, struct rng *r)
{
    const struct arch_tokens *t = &a->tokens;
    return (int32_t)(t->n_image_tokens + 20 +
                     rng_below(r, t->special_base - t->n_image_tokens - 20));
}

static uint32_t fill_ids(const struct draft *d, struct rng *r, int32_t *ids, uint32_t n)
{
    for (uint32_t i = 0; i != n; i++)
        ids[i] = text_token(d->arch, r);
    return n;
}

/* A prompt of n tokens, or one that came before: as it was, or with another end. */
static uint32_t prompt_ids(struct draft *d, uint32_t n)
{
    struct sim *s = d->q->sim;
    uint32_t at = rng_below(d->rng, SIM_PROMPTS);
    uint32_t n_old = s->prompts[at].n;
    n = MIN(n, (uint32_t)SIM_PROMPT_TOKENS);
    if (n_old && rng_chance(d->rng, 55)) {
        memcpy(d->ids, s->prompts[at].ids, n_old * sizeof *d->ids);
        if (rng_chance(d->rng, 70))
            return n_old;
        uint32_t n_kept = rng_below(d->rng, n_old + 1);
        return n_kept + fill_ids(d, d->rng, d->ids + n_kept, 1 + rng_below(d->rng, 20));
    }
    fill_ids(d, d->rng, d->ids, n);
    s->prompts[at].n = n;
    memcpy(s->prompts[at].ids, d->ids, n * sizeof *d->ids);
    return n;
}

/* For options that the first generator does not know. */
static bool also(struct draft *d, uint32_t percent)
{
    return d->more && rng_chance(d->more, percent);
}

/* One of a few long prompts, whole or its beginning with another end; 0 = not this time. */
static uint32_t familiar_ids(struct draft *d, bool *ret_unidirectional)
{
    struct sim *s = d->q->sim;
    if (!s->plan.familiar || !also(d, 80))
        return 0;
    uint32_t at = rng_below(d->more, SIM_FAMILIAR), n = s->familiar[at].n;
    if (n == 0) {
        n = s->familiar[at].n = 2 * PLAN_KV_BLOCK_TOKENS + rng_below(d->more, 120);
        fill_ids(d, d->more, s->familiar[at].ids, n);
    }
    *ret_unidirectional = at % 2 == 1;
    memcpy(d->ids, s->familiar[at].ids, n * sizeof *d->ids);
    if (rng_chance(d->more, 60))
        return n;
    uint32_t n_kept = n / 2 + rng_below(d->more, n / 2);
    return n_kept + fill_ids(d, d->more, d->ids + n_kept, 1 + rng_below(d->more, 20));
}

/* Mostly short, sometimes as long as the run allows. */
static uint32_t some_length(struct draft *d, uint32_t max)
{
    uint32_t percent = d->q->sim->plan.chatty ? 20 : 70;
    uint32_t limit = rng_chance(d->rng, percent) ? MAX(max / 6, 1u) : max;
    return 1 + rng_below(d->rng, limit);
}

static const char *some_text(struct rng *r)
{
    static const char *const texts[] = {
        "The capital of France is [MASK], on the river [MASK].",
        "Once upon a time there was",
        "人工智能的未来是",
        "One, two, three, [gMASK]",
        "A sentence with [sMASK] inside.",
        "naïve café — 你好，世界 🙂",
    };
    return texts[rng_below(r, ARRAY_LEN(texts))];
}

/* A few tenants, one of them with most of the requests. */
static const char *some_user(struct draft *d)
{
    static const char *const users[] = {"", "", "", "a", "b", "c"};
    struct sim_request *q = d->q;
    q->user = rng_chance(d->rng, 60) ? "crowd" : users[rng_below(d->rng, ARRAY_LEN(users))];
    return q->user;
}

/* Keys count instead of users; an empty one is none. */
static const char *some_key(struct draft *d)
{
    static const char *const keys[] = {"Bearer one", "Bearer two", "crowd", ""};
    uint32_t n = d->q->sim->plan.n_keys;
    return n && also(d, 70) ? keys[rng_below(d->more, n)] : NULL;
}

static int32_t some_priority(struct draft *d)
{
    d->q->priority = rng_chance(d->rng, 75) ? 0 : (int32_t)rng_below(d->rng, 201) - 100;
    return d->q->priority;
}

static void draft_beam(struct draft *d)
{
    struct rng *r = d->rng;
    d->sampling.strategy = WIRE_STRATEGY_BEAM;
    d->beam = (struct wire_beam_parameters){
        .num_beams = 1 + rng_below(r, 5),
        .has_length_penalty = rng_chance(r, 50),
        .length_penalty = (double)rng_below(r, 5) / 2,
        .no_repeat_ngram_size = rng_chance(r, 40) ? 2 + rng_below(r, 3) : 0,
        .sampled = rng_chance(r, 30),
        .has_consider_end = rng_chance(r, 50),
        .consider_end = rng_chance(r, 50),
    };
    d->sampling.beam = &d->beam;
}

static void draft_bias(struct draft *d)
{
    uint32_t n = 1 + rng_below(d->rng, MAX_BIAS);
    for (uint32_t i = 0; i != n; i++)
        d->bias[i] =
            (struct plan_bias){text_token(d->arch, d->rng), (float)rng_below(d->rng, 9) - 4};
    if (!d->q->sim->plan.chatty &&
        rng_chance(d->rng, 60)) /* an end token that is wanted: short answers */
        d->bias[0] = (struct plan_bias){d->arch->tokens.eop, 4};
    d->sampling.logit_bias = d->bias;
    d->sampling.n_logit_bias = n;
}

static void draft_penalties(struct draft *d)
{
    struct rng *r = d->rng;
    struct wire_sampling_parameters *s = &d->sampling;
    s->min_p = rng_chance(r, 50) ? (float)rng_below(r, 10) / 20 : 0;
    s->repetition_penalty = rng_chance(r, 50) ? (float)(5 + rng_below(r, 10)) / 10 : 0;
    s->presence_penalty = rng_chance(r, 30) ? (float)rng_below(r, 9) / 2 - 2 : 0;
    s->frequency_penalty = rng_chance(r, 30) ? (float)rng_below(r, 9) / 2 - 2 : 0;
}

/* Ids that come: of random ones none ever does. */
static void draft_more_stop_ids(struct draft *d)
{
    struct wire_sampling_parameters *s = &d->sampling;
    if (s->strategy == WIRE_STRATEGY_BEAM && also(d, 25)) {
        s->n_stop_token_ids = fill_ids(d, d->more, d->stop_ids, 1 + rng_below(d->more, 3));
        if (rng_chance(d->more, 50))
            d->stop_ids[0] = d->arch->tokens.eos;
        s->stop_token_ids = d->stop_ids;
    } else if (s->strategy != WIRE_STRATEGY_BEAM && s->n_logit_bias && d->bias[0].bias > 0 &&
               also(d, 30)) {
        s->n_stop_token_ids = MAX(s->n_stop_token_ids, 1u);
        d->stop_ids[s->n_stop_token_ids - 1] = d->bias[0].token;
        s->stop_token_ids = d->stop_ids;
    }
}

static void draft_sampling(struct draft *d, bool beams_allowed)
{
    struct rng *r = d->rng;
    struct wire_sampling_parameters *s = &d->sampling;
    *s = (struct wire_sampling_parameters){
        .has_temperature = rng_chance(r, 50),
        .temperature = (float)rng_below(r, 20) / 10,
        .top_k = rng_chance(r, 30) ? 1 + rng_below(r, 40) : 0,
        .has_top_p = rng_chance(r, 50),
        .top_p = (float)rng_below(r, 11) / 10,
        .has_seed = rng_chance(r, 85),
        .seed = rng_next(r),
        .min_tokens = rng_chance(r, 20) ? rng_below(r, 10) : 0,
        .ignore_end = rng_chance(r, 15),
    };
    if (rng_chance(r, 40))
        draft_bias(d);
    if (rng_chance(r, 25))
        draft_penalties(d);
    if (rng_chance(r, 15)) {
        d->range = (struct plan_range){0, (int32_t)d->arch->tokens.n_image_tokens};
        d->ranges = (struct wire_id_ranges){&d->range, 1};
        s->invalid_ids = &d->ranges;
    }
    if (beams_allowed && rng_chance(r, 20)) {
        draft_beam(d);
    } else if (rng_chance(r, 15)) {
        s->n_stop_token_ids = fill_ids(d, r, d->stop_ids, 1 + rng_below(r, MAX_STOP_IDS));
        if (rng_chance(r, 30))
            d->stop_ids[0] = d->arch->tokens.eos;
        s->stop_token_ids = d->stop_ids;
    } else if (rng_chance(r, 20)) {
        s->logprobs = true;
        s->top_logprobs = rng_below(r, 6);
    }
    draft_more_stop_ids(d);
    d->q->has_seed = s->has_seed;
    d->q->seed_known = s->has_seed;
    d->q->seed = s->seed;
    d->q->wants_logprobs = s->logprobs;
}

/* Short ones, because the model says nothing that makes sense. */
static void draft_stops(struct draft *d, struct rng *r)
{
    static const char *const texts[] = {"e", " t", "in", "the", "。", "的", "er ", "s", "zz", "他"};
    struct sim_request *q = d->q;
    q->n_stops = 1 + rng_below(r, SIM_MAX_STOPS);
    for (uint32_t i = 0; i != q->n_stops; i++)
        q->stops[i] = texts[rng_below(r, ARRAY_LEN(texts))];
    d->sampling.stop = q->stops;
    d->sampling.n_stop = q->n_stops;
    d->sampling.include_stop = rng_chance(r, 40);
    if (!d->more)
        d->sampling.min_tokens = 0;
}

static void draft_request_id(struct draft *d)
{
    snprintf(d->request_id, sizeof d->request_id, "request-%u", d->q->number);
}

static void keep_request(struct sim_request *q, int code, struct request *r)
{
    q->admitted = code == 0;
    q->fresh = code == 0 ? r : NULL;
}

/* Log-probabilities of the prompt, perhaps nothing but them. */
static void draft_echo(struct draft *d, struct wire_generate_request *w)
{
    if (!also(d, 15))
        return;
    w->has_prompt_logprobs = true;
    w->prompt_logprobs = rng_below(d->more, 7);
    w->prompt_only = rng_chance(d->more, 30);
}

/* As the front reads it: what is scored, then what runs. */
static void admit_both(struct sim_request *q, const struct wire_generate_request *w)
{
    struct err e = ERR_INIT;
    struct request *fresh = NULL, *echo = NULL;
    int code = w->has_prompt_logprobs ? admit_echo(&q->sim->admit, w, &echo, &e) : 0;
    if (code == 0 && !(echo && w->prompt_only))
        code = admit_generate(&q->sim->admit, w, &fresh, &e);
    if (code < 0) {
        request_free(echo);
        echo = NULL;
    }
    keep_request(q, code, fresh);
    q->echo = echo;
}

/* Any number of samples, also ones that admission refuses. */
static void draft_best_of(struct draft *d, struct wire_generate_request *w)
{
    if (d->sampling.strategy == WIRE_STRATEGY_BEAM || !also(d, 12))
        return;
    w->n = rng_below(d->more, 4);
    w->best_of = rng_chance(d->more, 75) ? MAX(w->n, 1u) + rng_below(d->more, 4)
                                         : rng_below(d->more, REQUEST_MAX_CHOICES + 2);
}

static void make_generate(struct draft *d)
{
    struct sim_request *q = d->q;
    struct rng *r = d->rng;
    struct wire_generate_request w = {.model = "", .request_id = d->request_id, .user = ""};
    draft_sampling(d, true);
    if (d->sampling.strategy != WIRE_STRATEGY_BEAM && rng_chance(r, 20))
        draft_stops(d, r);
    w.user = some_user(d);
    w.priority = some_priority(d);
    w.sampling = &d->sampling;
    w.max_tokens = some_length(d, q->sim->plan.max_new);
    w.n = rng_chance(r, 20) ? 1 + rng_below(r, 5) : 0;
    if (d->sampling.strategy == WIRE_STRATEGY_BEAM)
        w.n = rng_below(r, d->beam.num_beams + 1);
    else if (d->sampling.top_k != 1 && d->sampling.has_temperature &&
             d->sampling.temperature >= 0.1f && rng_chance(r, 15))
        w.best_of = MAX(w.n, 1u) + rng_below(r, 4);
    draft_best_of(d, &w);
    draft_echo(d, &w);
    w.unidirectional = rng_chance(r, 25);
    w.return_token_ids = rng_chance(r, 85);
    if (rng_chance(r, 12)) {
        w.text = some_text(r);
    } else {
        uint32_t n = prompt_ids(d, some_length(d, q->sim->plan.max_prompt));
        if (rng_chance(r, 40))
            d->ids[n / 2] = d->arch->tokens.mask;
        uint32_t n_familiar = familiar_ids(d, &w.unidirectional);
        n = n_familiar ? n_familiar : n;
        d->tokens = (struct wire_token_ids){d->ids, n};
        w.tokens = &d->tokens;
    }
    if (rng_chance(r, 3))
        w.max_tokens = 1000000; /* refused */
    q->return_ids = w.return_token_ids;
    admit_both(q, &w);
    if (q->fresh)
        q->n_parts = q->fresh->params.n_best ? q->fresh->params.n_best : q->fresh->params.n_choices;
    if (wire_pack_generate_request(&w, &q->packed) < 0)
        abort();
}

static void make_fill(struct draft *d)
{
    struct sim_request *q = d->q;
    struct rng *r = d->rng;
    struct wire_fill_request w = {.model = "", .request_id = d->request_id, .user = ""};
    draft_sampling(d, true);
    d->sampling.logprobs = false;
    d->sampling.top_logprobs = 0;
    q->wants_logprobs = false;
    w.user = some_user(d);
    w.priority = some_priority(d);
    w.sampling = &d->sampling;
    w.return_token_ids = rng_chance(r, 85);
    if (d->sampling.strategy != WIRE_STRATEGY_BEAM && also(d, 30)) {
        draft_stops(d, d->more);
        w.return_token_ids = true; /* the reference goes on from them */
    }
    if (rng_chance(r, 15)) {
        w.text = "The capital of [MASK] is [MASK], on the river [MASK].";
    } else {
        const struct arch_tokens *t = &d->arch->tokens;
        const int32_t masks[] = {t->mask, t->smask, t->gmask};
        int32_t mask = masks[rng_below(r, 3)];
        uint32_t n = 0, n_masks = 1 + rng_below(r, 4);
        for (uint32_t i = 0; i != n_masks; i++) {
            n +=
                fill_ids(d, r, d->ids + n, rng_below(r, MIN(q->sim->plan.max_prompt / 4, 60u) + 1));
            d->ids[n++] = mask;
        }
        n += fill_ids(d, r, d->ids + n, rng_below(r, 10));
        d->tokens = (struct wire_token_ids){d->ids, n};
        w.tokens = &d->tokens;
        w.max_length = n + 1 + some_length(d, q->sim->plan.max_new);
    }
    q->return_ids = w.return_token_ids;
    struct err e = ERR_INIT;
    struct request *fresh = NULL;
    int code = admit_fill(&q->sim->admit, &w, &fresh, &e);
    keep_request(q, code, fresh);
    q->n_parts = SIM_MAX_PARTS;
    if (wire_pack_fill_request(&w, &q->packed) < 0)
        abort();
}

static void make_score(struct draft *d)
{
    struct sim_request *q = d->q;
    struct rng *r = d->rng;
    struct wire_score_request w = {.model = "", .request_id = d->request_id, .user = ""};
    w.user = some_user(d);
    w.priority = some_priority(d);
    uint32_t n = prompt_ids(d, some_length(d, q->sim->plan.max_prompt));
    bool ignored;
    uint32_t n_familiar = familiar_ids(d, &ignored);
    d->tokens = (struct wire_token_ids){d->ids, n_familiar ? n_familiar : n};
    w.tokens = &d->tokens;
    w.use_gmask = rng_chance(r, 50);
    w.n_choice_tokens = 1 + rng_below(r, MAX_SCORED);
    for (uint32_t i = 0; i != w.n_choice_tokens; i++)
        d->scored[i] = (struct wire_token_ids){
            d->scored_ids[i], fill_ids(d, r, d->scored_ids[i], 1 + rng_below(r, 30))};
    w.choice_tokens = d->scored;
    if (also(d, 20)) {
        for (uint32_t i = 0; i != w.n_choice_tokens; i++)
            d->scored_texts[i] = some_text(d->more);
        w.choices = d->scored_texts;
        w.n_choices = w.n_choice_tokens;
        w.n_choice_tokens = 0;
    }
    if (also(d, 20)) {
        w.text = some_text(d->more);
        w.tokens = NULL;
    }
    struct err e = ERR_INIT;
    struct request *fresh = NULL;
    int code = admit_score(&q->sim->admit, &w, &fresh, &e);
    keep_request(q, code, fresh);
    if (wire_pack_score_request(&w, &q->packed) < 0)
        abort();
}

/* What the scheduler checks: whether a group can ever run the request. */
static bool fits(const struct request *r, bool causal, const struct plan_limits *l)
{
    uint32_t n_slots = request_slots(r, l->n_slots), total = request_max_tokens(r);
    uint32_t piece = r->prompt.prefix_len ? (uint32_t)r->prompt.ids.n : 1;
    if (r->kind == REQUEST_FILL)
        piece = total;
    if (causal)
        piece = 1;
    return n_slots <= l->n_slots && total <= l->max_seq && piece <= l->max_tokens &&
           request_blocks(r, n_slots) <= l->n_blocks &&
           r->params.n_top_logprobs <= l->n_top_logprobs;
}

static void check_fits(struct sim_request *q)
{
    const struct sim_plan *p = &q->sim->plan;
    const struct request *requests[] = {q->echo, q->fresh};
    q->fits_some = q->fits_all = q->admitted;
    for (size_t k = 0; k != ARRAY_LEN(requests); k++) {
        bool some = !requests[k], all = true;
        for (uint32_t i = 0; requests[k] && i != p->n_groups; i++) {
            bool ok = fits(requests[k], p->causal, &q->sim->groups[i].limits);
            some = some || ok;
            all = all && ok;
        }
        q->fits_some = q->fits_some && some;
        q->fits_all = q->fits_all && all;
    }
}

static void draw_behaviour(struct sim_request *q, struct rng *r)
{
    if (rng_chance(r, 25))
        q->deadline_ns = rng_between(r, 20 * NSEC_PER_MSEC, 20 * NSEC_PER_SEC);
    if (rng_chance(r, 12))
        q->cancel_ns = rng_between(r, NSEC_PER_MSEC, 3 * NSEC_PER_SEC);
    if (rng_chance(r, 5))
        q->cancel_message = 1 + rng_below(r, 8);
    if (rng_chance(r, q->sim->plan.chatty ? 50 : 10)) {
        q->pause_message = 1 + rng_below(r, 6);
        q->pause_ns = rng_between(r, NSEC_PER_MSEC, 10 * NSEC_PER_SEC);
    }
}

void sim_request_make(struct sim_request *q)
{
    struct draft *d = calloc(1, sizeof *d);
    assert(d);
    struct rng *r = &q->sim->world.work;
    d->q = q;
    d->rng = r;
    d->more = q->sim->plan.generator > SIM_GENERATOR_FIRST ? &q->sim->world.options : NULL;
    d->arch = q->sim->admit.arch;
    draft_request_id(d);
    uint32_t kind = rng_below(r, 10);
    q->kind = kind < 6 ? REQUEST_GENERATE : kind < 8 ? REQUEST_FILL : REQUEST_SCORE;
    if (q->kind == REQUEST_GENERATE)
        make_generate(d);
    else if (q->kind == REQUEST_FILL)
        make_fill(d);
    else
        make_score(d);
    q->key = some_key(d);
    sim_keys_choose(q);
    check_fits(q);
    draw_behaviour(q, r);
    free(d);
}
