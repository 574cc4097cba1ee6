/* dispatch.c: see dispatch.h. */
#include "coordinator/dispatch.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/util.h"

/* A step may take 8 times what its tokens took so far. Nothing is known about a first long prompt:
 * it gets the limit once more for every 32 tokens. */
enum { SLACK = 8, UNKNOWN_TOKENS = 32 };

int dispatch_init(struct dispatch *d, uint32_t tp_size, uint32_t n_stages)
{
    assert(tp_size && n_stages && tp_size * n_stages <= DISPATCH_MAX_RANKS);
    *d = (struct dispatch){.tp_size = tp_size,
                           .n_stages = n_stages,
                           .n_ranks = tp_size * n_stages,
                           .capacity = n_stages + 1};
    d->steps = alloc_array(d->capacity, sizeof *d->steps);
    return d->steps ? 0 : -ENOMEM;
}

void dispatch_deinit(struct dispatch *d)
{
    if (d->steps)
        dispatch_reset(d);
    free(d->steps);
    d->steps = NULL;
}

static struct dispatch_step *at(const struct dispatch *d, uint32_t i)
{
    return &d->steps[(d->first + i) % d->capacity];
}

void dispatch_reset(struct dispatch *d)
{
    for (uint32_t i = 0; i != d->n; i++)
        wire_free_worker_message(at(d, i)->result);
    d->first = d->n = 0;
}

bool dispatch_has_room(const struct dispatch *d)
{
    return d->n != d->capacity;
}

static void set_deadline(const struct dispatch *d, struct dispatch_step *s, int64_t limit_ns,
                         int64_t now_ns)
{
    int64_t extra = d->ns_per_token > 0 ? (int64_t)(SLACK * d->ns_per_token * (double)s->n_tokens)
                                        : limit_ns * (int64_t)(s->n_tokens / UNKNOWN_TOKENS);
    s->deadline_ns = now_ns + limit_ns + extra;
}

void dispatch_sent(struct dispatch *d, uint64_t step, uint32_t n_tokens, int64_t limit_ns,
                   int64_t now_ns)
{
    assert(dispatch_has_room(d));
    struct dispatch_step *s = at(d, d->n++);
    *s = (struct dispatch_step){.step = step, .n_tokens = n_tokens, .sent_ns = now_ns};
    if (d->n == 1)
        set_deadline(d, s, limit_ns, now_ns);
}

const struct dispatch_step *dispatch_oldest(const struct dispatch *d)
{
    return d->n ? at(d, 0) : NULL;
}

/* The step that the rank should answer next; NULL when it owes none. */
static struct dispatch_step *next_of(const struct dispatch *d, uint32_t rank)
{
    for (uint32_t i = 0; i != d->n; i++) {
        if (!at(d, i)->answered[rank])
            return at(d, i);
    }
    return NULL;
}

static int check_agreement(const struct dispatch *d, const struct dispatch_step *s, struct err *e)
{
    for (uint32_t i = 0; i != d->n_ranks; i++) {
        uint32_t first = i - i % d->tp_size; /* of its stage */
        if (s->hash[i] != s->hash[first])
            return err_set(e, -EBADMSG,
                           "ranks disagree about step %llu: rank %u has state %016llx, rank %u has "
                           "%016llx",
                           (unsigned long long)s->step, first, (unsigned long long)s->hash[first],
                           i, (unsigned long long)s->hash[i]);
    }
    return 0;
}

int dispatch_answer(struct dispatch *d, uint32_t rank, struct wire_worker_message *m, struct err *e)
{
    assert(rank < d->n_ranks);
    struct dispatch_step *s = next_of(d, rank);
    if (!s || s->step != m->step_done->step) {
        int r =
            s ? err_set(e, -EPROTO, "rank %u answered step %llu, and it was step %llu's turn", rank,
                        (unsigned long long)m->step_done->step, (unsigned long long)s->step)
              : err_set(e, -EPROTO, "rank %u answered step %llu, and it owes no answer", rank,
                        (unsigned long long)m->step_done->step);
        wire_free_worker_message(m);
        return r;
    }
    s->answered[rank] = true;
    s->hash[rank] = m->step_done->state_hash;
    s->n_answers++;
    if (rank == d->n_ranks - d->tp_size)
        s->result = m;
    else
        wire_free_worker_message(m);
    if (s->n_answers < d->n_ranks)
        return 0;
    assert(s == at(d, 0)); /* ranks answer in order */
    int r = check_agreement(d, s, e);
    return r < 0 ? r : 1;
}

struct wire_worker_message *dispatch_take(struct dispatch *d, int64_t limit_ns, int64_t now_ns)
{
    struct dispatch_step *s = at(d, 0);
    assert(d->n && s->n_answers == d->n_ranks && s->result);
    double per_token = (double)(now_ns - s->sent_ns) / (double)MAX(s->n_tokens, 1u);
    d->ns_per_token = MAX(per_token, 0.99 * d->ns_per_token);
    struct wire_worker_message *m = s->result;
    s->result = NULL;
    d->first = (d->first + 1) % d->capacity;
    d->n--;
    if (d->n)
        set_deadline(d, at(d, 0), limit_ns, now_ns);
    return m;
}
