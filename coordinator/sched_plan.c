/* sched_plan.c: what goes into the next step of a group; see sched.h for the policy. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/sched_internal.h"

/* ---- what a request could run ---- */

/* A decode is the next token of a sequence that has a cache; everything else is a prefill: prompt,
 * context, Score choice, the outputs of a request that was requeued. */
static bool is_decode(const struct sched_group *g, const struct request *r, const struct seq *q)
{
    return q->n_cached > 0 && seq_pending(g, r, q) == 1;
}

/* All live beams go on together. */
static bool beams_decode(const struct sched_group *g, const struct request *r)
{
    uint32_t n_live = r->phase == REQUEST_RUN ? beam_search_n_live(r->search) : 0;
    for (uint32_t i = 0; i != n_live; i++) {
        if (!is_decode(g, r, &r->seqs[i]))
            return false;
    }
    return n_live > 0;
}

static bool has_decodes(const struct request *r)
{
    return !r->paused && r->phase == REQUEST_RUN && r->kind != REQUEST_SCORE;
}

static uint32_t decode_tokens(const struct sched_group *g)
{
    uint32_t n = 0;
    for (const struct request *r = g->running.first; r; r = r->next) {
        if (!has_decodes(r) || (r->params.beam && !beams_decode(g, r)))
            continue;
        for (uint32_t i = 0; i != r->n_seqs; i++)
            n += is_decode(g, r, &r->seqs[i]);
    }
    return n;
}

/* Score: an idle sequence and a choice for it. */
static bool next_choice(struct request *r, uint32_t *ret_seq)
{
    while (r->next_choice != r->n_outputs && r->outputs[r->next_choice].finish != FINISH_NONE)
        r->next_choice++;
    for (uint32_t i = 0; r->next_choice != r->n_outputs && i != r->n_seqs; i++) {
        *ret_seq = i;
        if (!r->seqs[i].live)
            return true;
    }
    return false;
}

/* Tokens that the oldest waiting prefill needs at least in a step. */
static uint32_t first_prefill(const struct sched_group *g)
{
    if (g->sliced)
        return g->n_sliced;
    for (struct request *r = g->running.first; r; r = r->next) {
        if (r->paused)
            continue;
        for (uint32_t i = 0; i != r->n_seqs; i++) {
            const struct seq *q = &r->seqs[i];
            if (!has_decodes(r) || !is_decode(g, r, q)) {
                uint32_t n = prefill_indivisible(g, r, q);
                if (n)
                    return n;
            }
        }
        uint32_t seq;
        if (r->kind == REQUEST_SCORE && r->phase == REQUEST_RUN && next_choice(r, &seq))
            return 1;
    }
    return 0;
}

/* ---- requests into the plan ---- */

/* All live beams of a search, as one group. */
static bool add_beams(struct sched *s, struct sched_group *g, struct step_record *rec,
                      struct request *r)
{
    uint32_t index = rec->n_groups, n_live = beam_search_n_live(r->search);
    struct plan_beam_group *group = &g->beam_groups[index];
    *group = (struct plan_beam_group){
        .width = beam_search_width(r->search),
        .deterministic = !r->params.beam_sampled,
        .seed = r->params.seed,
        .request = r->round,
        .output_index = r->beam_step,
    };
    rec->groups[index] = (struct step_group){
        .request = r, .first_item = rec->n_items, .n_items = n_live, .width = group->width};
    rec->n_groups++;
    for (uint32_t i = 0; i != n_live; i++) {
        uint32_t idx = rec->n_items;
        if (!plan_add_item(s, g, rec, r, i, seq_pending(g, r, &r->seqs[i])))
            return false;
        g->items[idx].beam_group = index;
        g->items[idx].beam_score = beam_search_score(r->search, i);
    }
    return true;
}

static bool add_beam_prefill(struct sched *s, struct sched_group *g, struct step_record *rec,
                             struct request *r)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i != r->n_seqs; i++)
        n += seq_pending(g, r, &r->seqs[i]);
    if (n && r->phase == REQUEST_RUN && g->sliced != r && prefill_fits(g, n)) {
        prefill_pay(g, (uint32_t)n, g->limits.n_layers);
        return add_beams(s, g, rec, r);
    }
    bool ok = true;
    for (uint32_t i = 0; ok && i != r->n_seqs; i++)
        ok = prefill_add(s, g, rec, r, i);
    return ok;
}

/* Score: what is pending of the choices that run, then idle sequences take the next ones. */
static bool add_choices(struct sched *s, struct sched_group *g, struct step_record *rec,
                        struct request *r)
{
    bool ok = true;
    for (uint32_t i = 0; ok && i != r->n_seqs; i++)
        ok = prefill_add(s, g, rec, r, i);
    uint32_t seq;
    while (ok && prefill_goes_on(g) && rec->n_items < g->max_items && next_choice(r, &seq)) {
        struct seq *q = &r->seqs[seq];
        q->output = r->next_choice++;
        q->live = true;
        q->n_cached = r->n_context;
        seq_take_slot(g, q);
        if (block_table_fork(&g->blocks, &r->lease, &q->table, &r->context, r->n_context,
                             &r->copies[r->n_copies]))
            r->n_copies++;
        ok = prefill_add(s, g, rec, r, seq);
    }
    return ok;
}

static bool add_prefill(struct sched *s, struct sched_group *g, struct step_record *rec,
                        struct request *r)
{
    if (r->kind == REQUEST_SCORE && r->phase == REQUEST_RUN)
        return add_choices(s, g, rec, r);
    if (r->params.beam)
        return beams_decode(g, r) || add_beam_prefill(s, g, rec, r);
    bool ok = true;
    for (uint32_t i = 0; ok && i != r->n_seqs && rec->n_items < g->max_items; i++) {
        if (!is_decode(g, r, &r->seqs[i]) || !has_decodes(r))
            ok = prefill_add(s, g, rec, r, i);
    }
    return ok;
}

static bool add_decode(struct sched *s, struct sched_group *g, struct step_record *rec,
                       struct request *r)
{
    if (r->params.beam)
        return !beams_decode(g, r) || add_beams(s, g, rec, r);
    bool ok = true;
    for (uint32_t i = 0; ok && i != r->n_seqs && rec->n_items < g->max_items; i++) {
        if (is_decode(g, r, &r->seqs[i]))
            ok = plan_add_item(s, g, rec, r, i, 1);
    }
    return ok;
}

/* What a plan holds so far, to take back what a request that fails has put in. */
struct mark {
    uint32_t n_items, n_groups, n_tokens, n_copies;
};

static struct mark mark_of(const struct sched_group *g, const struct step_record *rec)
{
    return (struct mark){rec->n_items, rec->n_groups, g->n_tokens, g->n_copies};
}

/* Without memory the request ends, not the step; its blocks go with it. */
static void take_back(struct sched *s, struct sched_group *g, struct step_record *rec,
                      struct request *r, struct mark m)
{
    rec->n_items = m.n_items;
    rec->n_groups = m.n_groups;
    g->n_tokens = m.n_tokens;
    g->n_copies = m.n_copies;
    sched_end(s, r, RPC_RESOURCE_EXHAUSTED, "the coordinator is out of memory");
}

/* With several stages a step gets its share of the sequences, so that all stages have one. */
static uint32_t max_items(const struct sched_group *g)
{
    if (g->n_stages == 1)
        return g->limits.n_slots;
    uint32_t n_live = 0;
    for (const struct request *r = g->running.first; r; r = r->next) {
        for (uint32_t i = 0; !r->paused && i != r->n_seqs; i++)
            n_live += r->seqs[i].live;
    }
    return MAX((n_live + g->n_stages - 1) / g->n_stages, 1u);
}

/* Nobody reads what a paused request says: its slices would only keep others waiting. The layers
 * that have run count for nothing, and the slot's next item is another generation's. */
static void restart_prefill(struct sched_group *g, struct request *r)
{
    struct seq *q = &r->seqs[g->sliced_seq];
    prefill_drop_slice(g, r);
    seq_drop_slot(g, q);
    seq_take_slot(g, q);
}

static void add_decodes(struct sched *s, struct sched_group *g, struct step_record *rec)
{
    for (struct request *r = g->running.first, *next; r && rec->n_items < g->max_items; r = next) {
        next = r->next;
        struct mark m = mark_of(g, rec);
        if (has_decodes(r) && !add_decode(s, g, rec, r))
            take_back(s, g, rec, r, m);
    }
}

/* In the order in which they started: nobody overtakes one that does not fit. The sliced prompt is
 * the oldest; while it is under way, it is the only one. */
static void add_prefills(struct sched *s, struct sched_group *g, struct step_record *rec)
{
    for (struct request *r = g->running.first, *next; r && rec->n_items < g->max_items; r = next) {
        next = r->next;
        if (r->paused)
            continue;
        if (g->prefill_full || g->sliced || g->n_tokens == g->limits.max_tokens)
            break;
        struct mark m = mark_of(g, rec);
        if (!add_prefill(s, g, rec, r))
            take_back(s, g, rec, r, m);
    }
    struct request *r = g->sliced;
    if (r && r->paused)
        restart_prefill(g, r);
    if (!g->sliced || rec->n_items == g->limits.n_slots)
        return;
    struct mark m = mark_of(g, rec);
    if (!prefill_add_slice(s, g, rec))
        take_back(s, g, rec, r, m);
}

/* Counts what the plan holds and gives its items their lists. */
static void count_items(struct sched_group *g, struct step_record *rec)
{
    uint32_t n_prefill = 0;
    rec->n_decode = 0;
    rec->n_work = 0;
    for (uint32_t i = 0; i != rec->n_items; i++) {
        struct plan_item *it = &g->items[i];
        enum step_role role = rec->items[i].role;
        if (it->sampling.n_banned)
            it->sampling.banned = g->banned + g->banned_at[i];
        if (it->sampling.n_history)
            it->sampling.history = g->history + g->history_at[i];
        uint32_t n_layers =
            it->sliced ? g->plan.layer_end - g->plan.layer_begin : g->limits.n_layers;
        if (it->start > 0 && it->n_tokens == 1 && (role == STEP_SAMPLE || role == STEP_BEAM)) {
            rec->n_decode++;
        } else {
            rec->n_work += (uint64_t)it->n_tokens * n_layers;
            n_prefill += role == STEP_SLICE ? 0 : it->n_tokens;
        }
    }
    g->n_prefill_tokens += n_prefill;
    g->n_decode_tokens += rec->n_decode;
}

static void complete_plan(struct sched_group *g, struct step_record *rec, int64_t now_ns)
{
    count_items(g, rec);
    rec->planned_ns = now_ns;
    rec->step = ++g->step;
    g->n_steps++;
    g->n_in_flight++;
    g->plan = (struct plan){
        .epoch = g->epoch,
        .step = rec->step,
        .copies = g->copies,
        .n_copies = g->n_copies,
        .items = g->items,
        .n_items = rec->n_items,
        .groups = g->beam_groups,
        .n_groups = rec->n_groups,
        .layer_begin = g->plan.layer_begin,
        .layer_end = g->plan.layer_end,
    };
    struct err e = ERR_INIT;
    int r = plan_validate(&g->plan, &g->limits, &e);
    assert(r == 0); /* what this file builds, ranks accept */
    (void)r;
}

bool sched_plan(struct sched *s, uint32_t group, int64_t now_ns, const struct plan **ret_plan)
{
    if (!sched_attached(s, group) ||
        s->groups[group]->n_in_flight == s->groups[group]->max_in_flight)
        return false;
    struct sched_group *g = s->groups[group];
    if (s->deadline_ns && s->deadline_ns <= now_ns)
        sched_expire(s, now_ns);
    sched_admit(s, now_ns);
    struct step_record *rec = &g->records[(g->first_record + g->n_in_flight) % g->max_in_flight];
    rec->n_items = rec->n_groups = 0;
    g->n_tokens = g->n_copies = g->n_banned = g->n_history = 0;
    g->plan.layer_begin = g->plan.layer_end = 0;
    g->max_items = max_items(g);
    prefill_begin(s, g);
    bool exclusive =
        !g->last_exclusive && first_prefill(g) > g->limits.max_tokens - decode_tokens(g);
    if (!exclusive)
        add_decodes(s, g, rec);
    add_prefills(s, g, rec);
    if (exclusive && rec->n_items == 0)
        add_decodes(s, g, rec);
    g->last_exclusive = exclusive && rec->n_items;
    if (rec->n_items == 0)
        return false;
    complete_plan(g, rec, now_ns);
    *ret_plan = &g->plan;
    return true;
}
