/* admit_sampling.c: how tokens are chosen: every field checked against its limits. See admit.h. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/util.h"
#include "coordinator/admit_internal.h"

enum {
    DEFAULT_BEAMS = 4,
    MAX_NGRAM = 1024,
    MAX_TOP_K = 1 << 20,
    MAX_STOP_IDS = 64,
};
/* JSON's readers are sure of so many bits of a number, and who was told a seed may ask for it. */
#define MAX_DRAWN_SEED ((UINT64_C(1) << 53) - 1)

static const float default_top_p = 0.7f;

static int check_number(const char *name, double v, double min, double max, struct err *e)
{
    if (isfinite(v) && v >= min && v <= max)
        return 0;
    return err_set(e, -EINVAL, "%s: expected a number from %g to %g, found %g", name, min, max, v);
}

static int take_bias(const struct admit *a, const struct wire_sampling_parameters *w,
                     struct request_params *p, struct err *e)
{
    if (w->n_logit_bias > PLAN_MAX_BIAS)
        return err_set(e, -EINVAL, "logit_bias: expected at most %d entries, found %u",
                       PLAN_MAX_BIAS, w->n_logit_bias);
    for (uint32_t i = 0; i != w->n_logit_bias; i++) {
        const struct plan_bias *b = &w->logit_bias[i];
        if (b->token < 0 || (uint32_t)b->token >= a->arch->vocab)
            return err_set(e, -EINVAL, "logit_bias: expected token ids from 0 to %u, found %d",
                           a->arch->vocab - 1, b->token);
        int r = check_number("logit_bias.bias", (double)b->bias, -100, 100, e);
        if (r < 0)
            return r;
    }
    if (w->n_logit_bias == 0)
        return 0;
    p->bias = alloc_array(w->n_logit_bias, sizeof *p->bias);
    if (!p->bias)
        return err_set(e, -ENOMEM, "out of memory");
    memcpy(p->bias, w->logit_bias, w->n_logit_bias * sizeof *p->bias);
    p->n_bias = w->n_logit_bias;
    return 0;
}

static int compare_ranges(const void *x, const void *y)
{
    const struct plan_range *a = x, *b = y;
    return (a->begin > b->begin) - (a->begin < b->begin);
}

static int take_forbidden(const struct admit *a, const struct wire_id_ranges *w,
                          struct request_params *p, struct err *e)
{
    const struct plan_range *ranges = w ? w->ranges : a->default_forbidden;
    uint32_t n = w ? w->n_ranges : a->n_default_forbidden;
    if (n > PLAN_MAX_RANGES)
        return err_set(e, -EINVAL, "invalid_ids: expected at most %d ranges, found %u",
                       PLAN_MAX_RANGES, n);
    for (uint32_t i = 0; i != n; i++) {
        if (ranges[i].begin < 0 || ranges[i].end < ranges[i].begin ||
            (uint32_t)ranges[i].end > a->arch->vocab)
            return err_set(e, -EINVAL,
                           "invalid_ids: expected ranges with 0 <= begin <= end <= %u, found "
                           "begin %d, end %d",
                           a->arch->vocab, ranges[i].begin, ranges[i].end);
    }
    p->forbidden = alloc_array(n, sizeof *p->forbidden);
    if (!p->forbidden)
        return err_set(e, -ENOMEM, "out of memory");
    if (n)
        memcpy(p->forbidden, ranges, n * sizeof *p->forbidden);
    p->n_forbidden = n;
    if (n) /* the request's own copy: their order is free */
        qsort(p->forbidden, n, sizeof *p->forbidden, compare_ranges);
    return 0;
}

static int take_beam(const struct wire_sampling_parameters *w, struct request_params *p,
                     struct err *e)
{
    static const struct wire_beam_parameters none;
    const struct wire_beam_parameters *b = w->beam ? w->beam : &none;
    p->beam = true;
    p->n_beams = b->num_beams ? b->num_beams : DEFAULT_BEAMS;
    p->length_penalty = b->has_length_penalty ? b->length_penalty : 1;
    p->no_repeat_ngram = b->no_repeat_ngram_size;
    p->beam_sampled = b->sampled;
    p->consider_end = b->has_consider_end ? b->consider_end : true;
    if (p->n_beams > BEAM_MAX)
        return err_set(e, -EINVAL, "beam.num_beams: expected at most %d, found %u", BEAM_MAX,
                       p->n_beams);
    if (p->no_repeat_ngram > MAX_NGRAM)
        return err_set(e, -EINVAL, "beam.no_repeat_ngram_size: expected at most %d, found %u",
                       MAX_NGRAM, p->no_repeat_ngram);
    if (w->logprobs || w->top_logprobs)
        return err_set(e, -EINVAL, "logprobs: they are there for sampling only, not for beams");
    if (w->n_stop)
        return err_set(e, -EINVAL,
                       "stop: stop texts are there for sampling only, not for beams; "
                       "stop_token_ids end beams, too");
    uint32_t max_ids = BEAM_MAX_END_TOKENS - 2; /* eop and eos */
    if (w->n_stop_token_ids > max_ids || (w->n_stop_token_ids && w->ignore_end))
        return err_set(e, -EINVAL,
                       "stop_token_ids: expected at most %u ids with beams, and not ignore_end, "
                       "found %u",
                       max_ids, w->n_stop_token_ids);
    if (w->min_p != 0)
        return err_set(e, -EINVAL, "min_p: it is there for sampling only, not for beams");
    /* Beams rank the model's own probabilities: nothing is scaled or cut, as published. */
    p->temperature = 1;
    p->top_k = 0;
    p->top_p = 0;
    return check_number("beam.length_penalty", p->length_penalty, -10, 10, e);
}

static int take_seed(const struct wire_sampling_parameters *w, struct request_params *p,
                     struct err *e)
{
    p->seed = w->seed;
    if (w->has_seed)
        return 0;
    if (random_bytes(&p->seed, sizeof p->seed) < 0)
        return err_set(e, -EIO, "no random numbers from the system");
    p->seed &= MAX_DRAWN_SEED;
    return 0;
}

static int take_stop_texts(const struct wire_sampling_parameters *w, struct request_params *p,
                           struct err *e)
{
    if (w->n_stop > STOP_MAX_TEXTS)
        return err_set(e, -EINVAL, "stop: expected at most %d texts, found %u", STOP_MAX_TEXTS,
                       w->n_stop);
    for (uint32_t i = 0; i != w->n_stop; i++) {
        size_t n = strlen(w->stop[i]);
        if (n < 1 || n > STOP_MAX_BYTES)
            return err_set(e, -EINVAL, "stop: text %u: expected 1 to %d bytes, found %zu", i,
                           STOP_MAX_BYTES, n);
    }
    p->include_stop = w->include_stop;
    if (w->n_stop && stop_set_new(w->stop, w->n_stop, &p->stops) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    return 0;
}

static bool is_forbidden(const struct request_params *p, int32_t id)
{
    for (uint32_t i = 0; i != p->n_forbidden; i++) {
        if (id >= p->forbidden[i].begin && id < p->forbidden[i].end)
            return true;
    }
    return false;
}

/* After take_forbidden: an id that cannot come ends nothing, which somebody should know. */
static int take_stop_ids(const struct admit *a, const struct wire_sampling_parameters *w,
                         struct request_params *p, struct err *e)
{
    uint32_t n = w->n_stop_token_ids;
    if (n > MAX_STOP_IDS)
        return err_set(e, -EINVAL, "stop_token_ids: expected at most %d ids, found %u",
                       MAX_STOP_IDS, n);
    for (uint32_t i = 0; i != n; i++) {
        int32_t id = w->stop_token_ids[i];
        if (id < 0 || (uint32_t)id >= a->arch->vocab)
            return err_set(e, -EINVAL, "stop_token_ids: expected ids from 0 to %u, found %d",
                           a->arch->vocab - 1, id);
        if (is_forbidden(p, id))
            return err_set(e, -EINVAL, "stop_token_ids: %d is forbidden and can never come%s", id,
                           w->invalid_ids ? ""
                                          : ": it is no text (gRPC: invalid_ids can allow it)");
    }
    if (n == 0)
        return 0;
    p->stop_ids = alloc_array(n, sizeof *p->stop_ids);
    if (!p->stop_ids)
        return err_set(e, -ENOMEM, "out of memory");
    memcpy(p->stop_ids, w->stop_token_ids, n * sizeof *p->stop_ids);
    p->n_stop_ids = n;
    return 0;
}

static int take_penalties(const struct wire_sampling_parameters *w, struct request_params *p,
                          struct err *e)
{
    p->min_p = w->min_p;
    p->repetition_penalty = w->repetition_penalty != 0 ? w->repetition_penalty : 1;
    p->presence_penalty = w->presence_penalty;
    p->frequency_penalty = w->frequency_penalty;
    int r = check_number("min_p", (double)p->min_p, 0, 1, e);
    if (r == 0) /* 0.01 as a float is a little less than 0.01 */
        r = check_number("repetition_penalty", (double)p->repetition_penalty, (double)0.01f, 100,
                         e);
    if (r == 0)
        r = check_number("presence_penalty", (double)p->presence_penalty, -2, 2, e);
    if (r == 0)
        r = check_number("frequency_penalty", (double)p->frequency_penalty, -2, 2, e);
    return r;
}

/* Whether the scheduler keeps an end from being the first token (sched_item.c). */
static bool is_banned_end(const struct admit *a, const struct request_params *p, int32_t id)
{
    bool is_stop_id = false;
    for (uint32_t i = 0; i != p->n_stop_ids; i++)
        is_stop_id = is_stop_id || p->stop_ids[i] == id;
    bool is_end = id == a->arch->tokens.eop || id == a->arch->tokens.eos;
    return p->min_tokens ? is_end || is_stop_id : p->ignore_end && is_end && !is_stop_id;
}

/* At any place of an output something must be left to choose, where ends may not come, too. Looks
 * at few ids more than there are ends. */
static int check_something_left(const struct admit *a, const struct request_params *p,
                                struct err *e)
{
    bool any = false;
    int32_t id = 0, vocab = (int32_t)a->arch->vocab;
    for (uint32_t i = 0;;) {
        for (; i != p->n_forbidden && p->forbidden[i].begin <= id; i++)
            id = MAX(id, p->forbidden[i].end);
        if (id >= vocab)
            break;
        if (!is_banned_end(a, p, id))
            return 0;
        any = true;
        id++;
    }
    return err_set(e, -EINVAL,
                   any ? "invalid_ids: only ends are left, which min_tokens or ignore_end "
                         "forbid; leave at least one other token"
                       : "invalid_ids: every token is forbidden; leave at least one");
}

/* The parameters that are one number. */
static int take_numbers(const struct admit *a, const struct wire_sampling_parameters *w,
                        struct request_params *p, struct err *e)
{
    p->temperature = w->has_temperature ? w->temperature : 1;
    p->top_k = w->top_k;
    p->top_p = w->has_top_p ? w->top_p : default_top_p;
    p->min_tokens = w->min_tokens;
    p->ignore_end = w->ignore_end;
    p->n_top_logprobs = w->top_logprobs;
    p->logprobs = w->logprobs || w->top_logprobs;
    int r = check_number("temperature", (double)p->temperature, 0, 10, e);
    if (r == 0)
        r = check_number("top_p", (double)p->top_p, 0, 1, e);
    if (r == 0)
        r = take_penalties(w, p, e);
    if (r == 0 && p->top_k > MAX_TOP_K)
        r = err_set(e, -EINVAL, "top_k: expected at most %d, found %u", MAX_TOP_K, p->top_k);
    if (r == 0 && p->n_top_logprobs > PLAN_MAX_TOP_LOGPROBS)
        r = err_set(e, -EINVAL, "top_logprobs: expected at most %d, found %u",
                    PLAN_MAX_TOP_LOGPROBS, p->n_top_logprobs);
    if (r == 0 && p->min_tokens > a->max_tokens)
        r = err_set(e, -EINVAL, "min_tokens: expected at most %u, found %u", a->max_tokens,
                    p->min_tokens);
    return r;
}

int admit_sampling(const struct admit *a, const struct wire_sampling_parameters *w,
                   struct request_params *p, struct err *e)
{
    static const struct wire_sampling_parameters none;
    if (!w)
        w = &none;
    int r = take_numbers(a, w, p, e);
    if (r == 0)
        r = take_seed(w, p, e);
    if (r == 0)
        r = take_bias(a, w, p, e);
    if (r == 0)
        r = take_forbidden(a, w->invalid_ids, p, e);
    if (r == 0)
        r = take_stop_texts(w, p, e);
    if (r == 0)
        r = take_stop_ids(a, w, p, e);
    if (r == 0)
        r = check_something_left(a, p, e);
    if (r < 0)
        return r;
    if (p->temperature < 1e-4f) { /* the limit of sampling at a vanishing temperature */
        p->temperature = 1;
        p->top_k = 1;
    }
    return w->strategy == WIRE_STRATEGY_BEAM ? take_beam(w, p, e) : 0;
}
