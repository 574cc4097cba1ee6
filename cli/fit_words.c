/* fit_words.c: what fit.c finds, in sentences: why a layout, why not, and what would help. */
#include "cli/fit.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

static double gib(uint64_t bytes)
{
    return (double)bytes / (1 << 30);
}

/* ---- why this layout ---- */

/* The largest degree within a host that leaves devices idle, or 0. */
static uint32_t larger_degree(const struct fit_choices *c)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < c->n; i++) {
        const struct fit_choice *o = &c->choice[i];
        if (o->fits && !o->crosses_hosts && o->tp > MAX(best, c->best.tp))
            best = o->tp;
    }
    return best;
}

/* Appends to a text of FIT_TEXT_BYTES, as much as has room. */
__attribute__((format(printf, 2, 3))) static void add(char *text, const char *format, ...)
{
    size_t n = strlen(text);
    va_list list;
    va_start(list, format);
    vsnprintf(text + n, FIT_TEXT_BYTES - n, format, list);
    va_end(list);
}

static void add_stages(char *text, const struct fit_layout *l)
{
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t i = 0; i != l->pp; i++) {
        least = MIN(least, l->stage_layers[i]);
        most = MAX(most, l->stage_layers[i]);
    }
    if (least == most)
        add(text, ", stages of %u layer%s", most, most == 1 ? "" : "s");
    else
        add(text, ", stages of %u to %u layers%s", least, most,
            l->even ? "" : " in proportion to memory");
}

void fit_why(const struct fit_request *q, const struct fit_choices *c, char ret[FIT_TEXT_BYTES])
{
    const struct fit_layout *l = &c->best;
    uint32_t used = l->tp * l->pp, n = q->devices->n, larger = larger_degree(c);
    ret[0] = '\0';
    if (q->tp || q->pp)
        add(ret, "as asked; ");
    if (used == 1)
        add(ret, "one device holds the whole model");
    else if (l->crosses_hosts)
        add(ret, "tensor parallelism crosses hosts, over the network");
    else if (l->pp == 1)
        add(ret,
            "tensor parallelism within the host, each device reads 1/%u of the weights for a "
            "token",
            l->tp);
    else if (l->tp == 1)
        add(ret, "one device per stage");
    else
        add(ret, "tensor parallelism within a host, pipeline stages in between");
    if (l->pp > 1)
        add_stages(ret, l);
    uint64_t unused = 0;
    for (uint32_t i = 0; i != used; i++)
        unused += l->ranks[i].free;
    if (unused > q->devices->device[0].bytes / 4)
        add(ret, "; %.1f GiB of the larger devices stay unused", gib(unused));
    if (used < n)
        add(ret, "; %u of %u devices stay idle", n - used, n);
    if (larger && !q->tp && !q->pp)
        add(ret, "; tp %u fits too, with fewer devices", larger);
}

/* ---- what would help ---- */

__attribute__((format(printf, 2, 3))) static void add_help(struct fit_advice *a, const char *format,
                                                           ...)
{
    if (a->n_help == FIT_MAX_HELP)
        return;
    va_list list;
    va_start(list, format);
    vsnprintf(a->help[a->n_help++], FIT_TEXT_BYTES, format, list);
    va_end(list);
}

/* Whether the request would fit; *ret_best is what was found. */
static bool would_fit(const struct fit_request *q, struct fit_layout *ret_best)
{
    struct fit_choices c;
    if (fit_choose(q, &c, NULL) < 0)
        return false;
    *ret_best = c.best;
    return c.best.fits;
}

static void fewer_tokens(const struct fit_request *q, const struct fit_layout *l,
                         struct fit_advice *a)
{
    uint64_t per_sequence = (l->n_blocks / q->concurrency) * PLAN_KV_BLOCK_TOKENS;
    if (l->n_blocks < 2) /* an engine's fewest */
        return;
    if (per_sequence && per_sequence < q->context)
        add_help(a, "--context %" PRIu64 ": that is what %u sequence%s have room for", per_sequence,
                 q->concurrency, q->concurrency == 1 ? "" : "s");
    if (q->concurrency > 1 && l->sequences && l->sequences < q->concurrency)
        add_help(a, "--concurrency %u: so many sequences of %u tokens have room", l->sequences,
                 q->context);
}

static void smaller_things(const struct fit_request *q, struct fit_advice *a)
{
    struct fit_request other = *q;
    struct fit_layout l;
    uint32_t step = MAX(q->context, q->n_slots);
    if (step < (q->max_step_tokens ? q->max_step_tokens : q->arch->max_seq)) {
        other.max_step_tokens = step;
        if (would_fit(&other, &l))
            add_help(a,
                     "--step-tokens %u (worker.max_step_tokens): less scratch, room for %" PRIu64
                     " "
                     "tokens",
                     step, fit_tokens(l.n_blocks));
    }
    other = *q;
    other.kv_type = K_KV_I8;
    if (k_kv_resolve(q->kv_type, q->mode) != K_KV_I8 && would_fit(&other, &l))
        add_help(a, "--kv-cache int8: room for %" PRIu64 " tokens, %u sequences of %u",
                 fit_tokens(l.n_blocks), l.sequences, q->context);
    struct quant_scheme int4 = {.weights = QUANT_INT4, .group = QUANT_GROUP_ROW};
    other = *q;
    other.scheme = &int4;
    if (q->scheme->weights != QUANT_INT4 && would_fit(&other, &l))
        add_help(a, "INT4 weights (glmd convert --weights int4): room for %" PRIu64 " tokens",
                 fit_tokens(l.n_blocks));
}

/* More devices like the last one, on its host. */
static void more_devices(const struct fit_request *q, struct fit_advice *a)
{
    struct fit_devices d = *q->devices;
    struct fit_request other = *q;
    struct fit_layout l;
    other.devices = &d;
    other.tp = other.pp = 0;
    while (d.n < FIT_MAX_DEVICES) {
        d.device[d.n] = d.device[d.n - 1];
        d.device[d.n++].index++;
        if (!would_fit(&other, &l))
            continue;
        uint32_t more = d.n - q->devices->n;
        add_help(a, "%u more device%s of %.1f GiB (tp %u x pp %u): room for %" PRIu64 " tokens",
                 more, more == 1 ? "" : "s", gib(d.device[d.n - 1].bytes), l.tp, l.pp,
                 fit_tokens(l.n_blocks));
        return;
    }
}

void fit_advise(const struct fit_request *q, const struct fit_choices *c, struct fit_advice *ret)
{
    const struct fit_layout *l = &c->best;
    const struct fit_rank *worst = &l->ranks[0];
    *ret = (struct fit_advice){0};
    for (uint32_t i = 1; i != l->tp * l->pp; i++) {
        const struct fit_rank *r = &l->ranks[i];
        if (r->missing > worst->missing ||
            (r->missing == worst->missing && r->n_blocks < worst->n_blocks))
            worst = r;
    }
    const struct fit_device *d = &q->devices->device[worst->device];
    if (worst->missing)
        snprintf(ret->reason, sizeof ret->reason,
                 "rank %u: weights and scratch take %.3f GiB, the device has %.3f GiB behind the "
                 "reserve: %.3f GiB are missing",
                 worst->stage * l->tp + worst->tp_rank, gib(worst->on_device),
                 gib(d->bytes - worst->reserve), gib(worst->missing));
    else
        snprintf(ret->reason, sizeof ret->reason,
                 "the KV cache has room for %" PRIu64
                 " tokens, %u sequence%s of %u need%s %" PRIu64,
                 fit_tokens(l->n_blocks), q->concurrency, q->concurrency == 1 ? "" : "s",
                 q->context, q->concurrency == 1 ? "s" : "", fit_tokens(l->needed_blocks));
    fewer_tokens(q, l, ret);
    smaller_things(q, ret);
    if (q->tp || q->pp) {
        struct fit_request free_choice = *q;
        struct fit_layout other;
        free_choice.tp = free_choice.pp = 0;
        if (would_fit(&free_choice, &other))
            add_help(ret, "another layout: tp %u x pp %u has room for %" PRIu64 " tokens", other.tp,
                     other.pp, fit_tokens(other.n_blocks));
    }
    more_devices(q, ret);
}
