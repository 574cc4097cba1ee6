/* check_metrics.c: what the coordinator counts and remembers agrees with itself, whatever happens.
 */
#include "base/util.h"
#include "coordinator/coordinator.h"
#include "coordinator/front.h"
#include "sim.h"

static uint64_t total(const uint64_t *counts, size_t n)
{
    uint64_t sum = 0;
    for (size_t i = 0; i != n; i++)
        sum += counts[i];
    return sum;
}

static uint64_t observed(const struct coordinator_metrics *m, enum metrics_kept kept)
{
    return metrics_histogram_count(&m->kept[kept]);
}

/* Every request that arrived was refused, has ended once, or is here. */
static void check_requests(struct sim *s, const struct coordinator *c)
{
    const struct coordinator_metrics *m = &c->metrics;
    uint64_t finished = total(m->finished, METRICS_ENDS);
    uint64_t rejected = total(m->rejected, METRICS_REJECTS), here = front_n_calls(c);
    if (c->counters.total != finished + rejected + here)
        world_fail(&s->world,
                   "%llu requests arrived, but %llu have ended, %llu were refused, %llu are here",
                   (unsigned long long)c->counters.total, (unsigned long long)finished,
                   (unsigned long long)rejected, (unsigned long long)here);
    if (rejected != c->counters.rejected)
        world_fail(&s->world, "%llu requests were refused, %llu for a reason",
                   (unsigned long long)c->counters.rejected, (unsigned long long)rejected);
    if (observed(m, KEPT_E2E) != finished)
        world_fail(&s->world, "%llu requests have ended, %llu took time",
                   (unsigned long long)finished, (unsigned long long)observed(m, KEPT_E2E));
}

static void check_tokens(struct sim *s, const struct coordinator_metrics *m)
{
    uint64_t first = observed(m, KEPT_TTFT), next = observed(m, KEPT_ITL);
    if (first + next > m->generation_tokens)
        world_fail(&s->world, "%llu tokens, %llu first ones and %llu others",
                   (unsigned long long)m->generation_tokens, (unsigned long long)first,
                   (unsigned long long)next);
    for (int i = 0; i != N_KEPT; i++) {
        if (m->kept[i].sum < 0)
            world_fail(&s->world, "histogram %d: a sum of %g", i, m->kept[i].sum);
    }
}

/* A cancelled request costs nothing once the steps are done that were out. */
static void check_cancels(struct sim *s, const struct coordinator *c)
{
    for (uint32_t i = 0; i != c->metrics.n_cancels; i++) {
        const struct metrics_cancel *x = &c->metrics.cancels[i];
        if (x->n_steps > sched_n_in_flight(c->sched, x->group))
            world_fail(&s->world, "a cancelled request waits for %u steps of group %u, %u are out",
                       x->n_steps, x->group, sched_n_in_flight(c->sched, x->group));
    }
}

void sim_check_metrics(struct sim *s, const struct coordinator *c)
{
    check_requests(s, c);
    check_tokens(s, &c->metrics);
    check_cancels(s, c);
}
