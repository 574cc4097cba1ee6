/* sampler_beam.c: the candidates of a beam group (see sampler.h).
 *
 * The best W of all rows are held in a heap with the worst in front; a row is compared with the
 * worst one as a whole, so that almost every token costs one comparison. Draws without replacement
 * are the same search over score + Gumbel noise (Vieira 2014, "Gumbel-max trick and weighted
 * reservoir sampling"): the noise of a token depends on its beam and id alone, and its logarithms
 * are computed only where it could still matter.
 */
#include <assert.h>
#include <stdbool.h>

#include "base/util.h"
#include "worker/engine/sampler_impl.h"

static bool better(const struct sampler_held *a, const struct sampler_held *b, bool by_score)
{
    double x = by_score ? a->score : a->rank;
    double y = by_score ? b->score : b->rank;
    if (x != y)
        return x > y;
    return a->item != b->item ? a->item < b->item : a->token < b->token;
}

static void swap_held(struct sampler_held *a, struct sampler_held *b)
{
    struct sampler_held c = *a;
    *a = *b;
    *b = c;
}

/* Restores the heap below `at`: the parent is worse than its children. */
static void sift_down(struct sampler_held *h, uint32_t n, uint32_t at, bool by_score)
{
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= n)
            return;
        if (child + 1 < n && better(&h[child], &h[child + 1], by_score))
            child++;
        if (better(&h[child], &h[at], by_score))
            return;
        swap_held(&h[child], &h[at]);
        at = child;
    }
}

static void hold(struct sampler *s, struct sampler_held candidate)
{
    struct sampler_held *h = s->held;
    if (s->n_held == s->group.width) {
        if (!better(&candidate, &h[0], false))
            return;
        h[0] = candidate;
        sift_down(h, s->n_held, 0, false);
        return;
    }
    uint32_t at = s->n_held++;
    h[at] = candidate;
    while (at && better(&h[(at - 1) / 2], &h[at], false)) {
        swap_held(&h[(at - 1) / 2], &h[at]);
        at = (at - 1) / 2;
    }
}

void sampler_beam_begin(struct sampler *s, const struct plan_beam_group *group)
{
    assert(group->width >= 1 && group->width <= PLAN_MAX_BEAM_WIDTH);
    s->group = *group;
    s->n_beams = 0;
    s->n_held = 0;
}

/* What the noise of one beam's tokens is drawn with: a key of its own, from the search's counter.
 * Choices of a request (plan_sampling) use counters with a choice below 2^31, beams the others. */
static struct philox beam_key(const struct sampler *s, uint32_t beam)
{
    struct philox counter = {{(uint32_t)s->group.request, (uint32_t)(s->group.request >> 32),
                              0x80000000 | beam, s->group.output_index}};
    return philox4x32(s->group.seed, counter);
}

/* Uniform in (0, 1) for each of four tokens. */
static void uniforms(struct philox key, uint32_t first_token, double ret[4])
{
    struct philox counter = {{first_token / 4, key.word[2], key.word[3], 0}};
    struct philox p = philox4x32((uint64_t)key.word[1] << 32 | key.word[0], counter);
    for (int i = 0; i != 4; i++)
        ret[i] = ((double)p.word[i] + 0.5) * 0x1p-32;
}

/* Score + noise can exceed `least` only if u > exp(-t), t = exp(score - least); 1 - t is below
 * that, and t is taken a little too large so that rounding never decides. */
static bool cannot_matter(double u, double distance)
{
    return distance < 0.0 && u <= 1.0 - 1.0001 * (double)det_expf((float)distance);
}

static void draw_row(struct sampler *s, const float *row, uint32_t item, double base)
{
    /* The beam's number in its group: where the group is in the plan must not matter. */
    struct philox key = beam_key(s, s->n_beams++);
    double least = -__builtin_inf();
    double u[4];
    for (uint32_t i = 0; i != s->vocab; i++) {
        if (i % 4 == 0)
            uniforms(key, i, u);
        double score = (double)row[i] + base;
        if (cannot_matter(u[i % 4], score - least))
            continue;
        double noise = -det_log(-det_log(u[i % 4])); /* Gumbel */
        hold(s, (struct sampler_held){score + noise, score, item, (int32_t)i});
        if (s->n_held == s->group.width)
            least = s->held[0].rank;
    }
}

static void search_row(struct sampler *s, const float *row, uint32_t item, double base)
{
    double least = -__builtin_inf(); /* no logit below can be held */
    for (uint32_t i = 0; i != s->vocab; i++) {
        if ((double)row[i] < least)
            continue;
        double score = (double)row[i] + base;
        hold(s, (struct sampler_held){score, score, item, (int32_t)i});
        if (s->n_held == s->group.width)
            least = s->held[0].rank - base - 1e-9; /* well below any rounding of the difference */
    }
}

void sampler_beam_row(struct sampler *s, float *row, uint32_t item, float beam_score,
                      const struct plan_sampling *p)
{
    sampler_add_bias(row, p);
    sampler_prepare(s, row, p, -1, 1.0f); /* beams are not planned ahead of their tokens */
    float max = sampler_maximum(s->values, s->vocab);
    uint64_t sum = sampler_weigh(s->values, s->vocab, max, NULL);
    /* score = value of the token + base */
    double base = (double)beam_score - sampling_log_sum(max, sum);
    if (s->group.deterministic)
        search_row(s, s->values, item, base);
    else
        draw_row(s, s->values, item, base);
}

uint32_t sampler_beam_finish(struct sampler *s, struct result_candidate *ret_candidates)
{
    /* Heap sort: the worst goes to the back, so that the best ends up in front. */
    struct sampler_held *h = s->held;
    uint32_t n = s->n_held;
    for (uint32_t i = n / 2; i--;)
        sift_down(h, n, i, true);
    for (uint32_t left = n; left > 1; left--) {
        swap_held(&h[0], &h[left - 1]);
        sift_down(h, left - 1, 0, true);
    }
    for (uint32_t i = 0; i != n; i++)
        ret_candidates[i] = (struct result_candidate){h[i].item, h[i].token, (float)h[i].score};
    s->n_held = 0;
    return n;
}
