/* dispatch.c: see dispatch.h. */
#include "coordinator/dispatch.h"

#include <assert.h>
#include <errno.h>

#include "base/util.h"

/* A step may take 8 times what its tokens took so far. Nothing is known about a first long prompt:
 * it gets the limit once more for every 32 tokens. */
enum { SLACK = 8, UNKNOWN_TOKENS = 32 };

void dispatch_reset(struct dispatch *d, uint32_t n_ranks)
{
    assert(n_ranks <= DISPATCH_MAX_RANKS);
    for (size_t i = 0; i != SCHED_MAX_IN_FLIGHT; i++) {
        wire_free_worker_message(d->steps[i].result);
        d->steps[i] = (struct dispatch_step){0};
    }
    d->first = d->n = 0;
    d->n_ranks = n_ranks;
}

void dispatch_sent(struct dispatch *d, uint64_t step, uint32_t n_tokens, int64_t limit_ns,
                   int64_t now_ns)
{
    assert(d->n < SCHED_MAX_IN_FLIGHT);
    struct dispatch_step *s = &d->steps[(d->first + d->n++) % SCHED_MAX_IN_FLIGHT];
    int64_t extra = d->ns_per_token > 0 ? (int64_t)(SLACK * d->ns_per_token * (double)n_tokens)
                                        : limit_ns * (int64_t)(n_tokens / UNKNOWN_TOKENS);
    *s = (struct dispatch_step){
        .step = step,
        .n_tokens = n_tokens,
        .sent_ns = now_ns,
        /* behind another step it waits for that one first */
        .deadline_ns = now_ns + (limit_ns + extra) * (int64_t)d->n,
    };
}

const struct dispatch_step *dispatch_oldest(const struct dispatch *d)
{
    return d->n ? &d->steps[d->first] : NULL;
}

static struct dispatch_step *find(struct dispatch *d, uint64_t step)
{
    for (uint32_t i = 0; i != d->n; i++) {
        struct dispatch_step *s = &d->steps[(d->first + i) % SCHED_MAX_IN_FLIGHT];
        if (s->step == step)
            return s;
    }
    return NULL;
}

static int check_agreement(const struct dispatch *d, const struct dispatch_step *s, struct err *e)
{
    for (uint32_t i = 1; i != d->n_ranks; i++) {
        if (s->hash[i] != s->hash[0])
            return err_set(e, -EBADMSG,
                           "ranks disagree about step %llu: rank 0 has state %016llx, rank %u has "
                           "%016llx",
                           (unsigned long long)s->step, (unsigned long long)s->hash[0], i,
                           (unsigned long long)s->hash[i]);
    }
    return 0;
}

int dispatch_answer(struct dispatch *d, uint32_t rank, struct wire_worker_message *m, struct err *e)
{
    assert(rank < d->n_ranks);
    struct dispatch_step *s = find(d, m->step_done->step);
    if (!s || s->answered[rank]) {
        int r =
            err_set(e, -EPROTO, "rank %u answered step %llu, which %s", rank,
                    (unsigned long long)m->step_done->step, s ? "it had answered" : "is not out");
        wire_free_worker_message(m);
        return r;
    }
    s->answered[rank] = true;
    s->hash[rank] = m->step_done->state_hash;
    s->n_answers++;
    if (rank == 0)
        s->result = m;
    else
        wire_free_worker_message(m);
    if (s != &d->steps[d->first] || s->n_answers < d->n_ranks)
        return 0;
    int r = check_agreement(d, s, e);
    return r < 0 ? r : 1;
}

struct wire_worker_message *dispatch_take(struct dispatch *d, int64_t now_ns)
{
    struct dispatch_step *s = &d->steps[d->first];
    assert(d->n && s->n_answers == d->n_ranks && s->result);
    double per_token = (double)(now_ns - s->sent_ns) / (double)MAX(s->n_tokens, 1u);
    d->ns_per_token = MAX(per_token, 0.99 * d->ns_per_token);
    struct wire_worker_message *m = s->result;
    s->result = NULL;
    d->first = (d->first + 1) % SCHED_MAX_IN_FLIGHT;
    d->n--;
    return m;
}
