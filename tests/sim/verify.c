/* verify.c: whether an answer is right, and whether an error is one that may be. See clients.h.
 *
 * Tokens that came before an error must still be the right ones. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "clients.h"
#include "coordinator/sched.h"
#include "coordinator/stream.h"
#include "reference.h"

#define WRONG(q, ...) world_fail(&(q)->sim->world, "request " __VA_ARGS__)

/* ---- collecting ---- */

static void must(struct sim_request *q, bool ok, const char *what)
{
    if (!ok)
        WRONG(q, "%u: %s", q->number, what);
}

static void add_logprobs(struct sim_logprob **list, uint32_t *n_list,
                         const struct wire_token_logprob *added, uint32_t n)
{
    *list = realloc(*list, (*n_list + n + 1) * sizeof **list);
    assert(*list);
    for (uint32_t i = 0; i != n; i++) {
        const struct wire_token_logprob *w = &added[i];
        struct sim_logprob *l = &(*list)[(*n_list)++];
        *l = (struct sim_logprob){.token = w->token, .logprob = w->logprob, .n_top = w->n_top};
        for (uint32_t k = 0; k != MIN(w->n_top, (uint32_t)PLAN_MAX_TOP_LOGPROBS); k++)
            l->top[k] = (struct result_logprob){w->top[k].token, w->top[k].logprob};
    }
}

static void take_first(struct sim_request *q, bool has_seed, uint64_t seed, const char *request_id)
{
    char expected[32];
    snprintf(expected, sizeof expected, "request-%u", q->number);
    bool first = q->n_messages == 1;
    bool generates = q->fresh != NULL;
    must(q, has_seed == (first && generates) && (strcmp(request_id, first ? expected : "") == 0),
         "seed and request_id belong into the first message");
    if (first && generates)
        must(q, !q->has_seed || seed == q->seed, "another seed than asked for");
    if (first && generates)
        q->seed = seed;
    q->seed_known = true;
}

static void take_usage(struct sim_request *q, const struct wire_usage *usage)
{
    if (!usage)
        return;
    q->has_usage = true;
    q->usage = *usage;
}

static void take_generate(struct sim_request *q, const struct wire_generate_response *w)
{
    take_first(q, w->has_seed, w->seed, w->request_id);
    take_usage(q, w->usage);
    if (w->n_prompt_logprobs)
        must(q, q->echo && q->n_choice_messages == 0, "log-probabilities of the prompt come first");
    add_logprobs(&q->prompt_logprobs, &q->n_prompt_logprobs, w->prompt_logprobs,
                 w->n_prompt_logprobs);
    q->n_choice_messages += w->n_choices != 0;
    for (uint32_t i = 0; i != w->n_choices; i++) {
        const struct wire_choice_delta *d = &w->choices[i];
        must(q, d->index < MIN(q->n_parts, (uint32_t)SIM_MAX_PARTS), "a choice nobody asked for");
        struct sim_part *p = &q->parts[d->index];
        must(q, !p->finish, "something behind the end of a choice");
        token_list_extend(&p->tokens, d->tokens, d->n_tokens);
        buf_append_str(&p->text, d->text);
        add_logprobs(&p->logprobs, &p->n_logprobs, d->logprobs, d->n_logprobs);
        p->finish = d->finish_reason;
        p->stop_token = d->has_stop_token ? d->stop_token : -1;
        snprintf(p->stop, sizeof p->stop, "%s", d->stop);
        p->score = d->score;
    }
}

static void take_fill(struct sim_request *q, const struct wire_fill_response *w)
{
    take_first(q, w->has_seed, w->seed, w->request_id);
    take_usage(q, w->usage);
    for (uint32_t i = 0; i != w->n_blanks; i++) {
        const struct wire_blank_delta *d = &w->blanks[i];
        must(q, d->index < SIM_MAX_PARTS, "a blank that is not there");
        struct sim_part *p = &q->parts[d->index];
        must(q, !p->finish, "something behind the end of a blank");
        token_list_extend(&p->tokens, d->tokens, d->n_tokens);
        buf_append_str(&p->text, d->text);
        p->finish = d->finish_reason;
        p->stop_token = d->has_stop_token ? d->stop_token : -1;
        snprintf(p->stop, sizeof p->stop, "%s", d->stop);
    }
}

void sim_request_message(struct sim_request *q, const uint8_t *data, size_t size)
{
    struct err e = ERR_INIT;
    must(q, !q->has_usage, "a message behind the last one");
    if (q->kind == REQUEST_GENERATE) {
        struct wire_generate_response *w;
        must(q, wire_unpack_generate_response(data, size, &w, &e) == 0, "an unreadable message");
        take_generate(q, w);
        wire_free_generate_response(w);
    } else if (q->kind == REQUEST_FILL) {
        struct wire_fill_response *w;
        must(q, wire_unpack_fill_response(data, size, &w, &e) == 0, "an unreadable message");
        take_fill(q, w);
        wire_free_fill_response(q->fill);
        q->fill = w;
    } else {
        must(q, !q->score, "a second message to a Score");
        must(q, wire_unpack_score_response(data, size, &q->score, &e) == 0,
             "an unreadable message");
        take_usage(q, q->score->usage);
    }
}

void sim_request_free_answer(struct sim_request *q)
{
    for (uint32_t i = 0; i != SIM_MAX_PARTS; i++) {
        token_list_deinit(&q->parts[i].tokens);
        buf_deinit(&q->parts[i].text);
        free(q->parts[i].logprobs);
        q->parts[i].logprobs = NULL;
    }
    free(q->prompt_logprobs);
    q->prompt_logprobs = NULL;
    wire_free_fill_response(q->fill);
    wire_free_score_response(q->score);
    q->fill = NULL;
    q->score = NULL;
}

/* ---- right answers ---- */

static enum wire_finish_reason wire_finish(enum finish f)
{
    return f == FINISH_STOP ? WIRE_FINISH_STOP : WIRE_FINISH_LENGTH;
}

static char *decode(const struct sim_request *q, const int32_t *ids, size_t n)
{
    struct buf text = {0};
    if (stream_decode(q->sim->model->tokenizer, ids, n, &text) < 0)
        abort();
    return text.data;
}

static void check_tokens(struct sim_request *q, uint32_t part, const struct token_list *found,
                         const struct token_list *expected, bool whole)
{
    size_t n = MIN(found->n, expected->n);
    for (size_t i = 0; i != n; i++) {
        if (found->ids[i] != expected->ids[i])
            WRONG(q, "%u, part %u: token %zu should be %d, is %d", q->number, part, i,
                  expected->ids[i], found->ids[i]);
    }
    if (found->n > expected->n || (whole && found->n != expected->n))
        WRONG(q, "%u, part %u: expected %zu tokens, found %zu", q->number, part, expected->n,
              found->n);
}

static void check_text(struct sim_request *q, uint32_t part, const struct buf *found,
                       const struct token_list *expected, bool whole)
{
    char *text = decode(q, expected->ids, expected->n);
    size_t n = found->size, n_text = strlen(text);
    if (n > n_text || (n && memcmp(found->data, text, n) != 0) || (whole && n != n_text))
        WRONG(q, "%u, part %u: expected the text \"%s\", found \"%s\"", q->number, part, text,
              found->data ? found->data : "");
    free(text);
}

/* What a stop text has left. */
static void check_cut_text(struct sim_request *q, uint32_t part, const struct buf *found,
                           const struct buf *expected, bool whole)
{
    size_t n = found->size;
    if (n > expected->size || (n && memcmp(found->data, expected->data, n) != 0) ||
        (whole && n != expected->size))
        WRONG(q, "%u, part %u: expected \"%s\" in front of the stop text, found \"%s\"", q->number,
              part, expected->data, found->data ? found->data : "");
}

static bool is_right_logprob(const struct sim_request *q, const struct sim_logprob *l,
                             int32_t token, const struct ref_output *o, uint32_t i, uint32_t n_top)
{
    struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
    uint32_t n = fake_top(&q->sim->fake, o->states[i], n_top, top);
    bool ok = l->token == token && l->logprob == o->logprobs[i] && l->n_top == n;
    for (uint32_t k = 0; ok && k != n; k++)
        ok = l->top[k].token == top[k].token && l->top[k].logprob == top[k].logprob;
    return ok;
}

static void check_logprobs(struct sim_request *q, uint32_t part, const struct sim_part *p,
                           const struct ref_output *o, bool whole)
{
    if (!q->wants_logprobs)
        return;
    must(q, p->n_logprobs <= o->tokens.n && (!whole || p->n_logprobs == o->tokens.n),
         "the number of log-probabilities");
    for (uint32_t i = 0; i != p->n_logprobs; i++) {
        if (!is_right_logprob(q, &p->logprobs[i], o->tokens.ids[i], o, i,
                              q->fresh->params.n_top_logprobs))
            WRONG(q, "%u, part %u: log-probability %u", q->number, part, i);
    }
}

static void check_part(struct sim_request *q, uint32_t part, const struct ref_output *o, bool whole)
{
    const struct sim_part *p = &q->parts[part];
    bool ended = p->finish != WIRE_FINISH_UNSPECIFIED;
    must(q, ended || !whole, "a part has no end");
    if (ended && p->finish != wire_finish(o->finish))
        WRONG(q, "%u, part %u: expected end %d behind %zu tokens, found %d behind %zu", q->number,
              part, (int)wire_finish(o->finish), o->tokens.n, (int)p->finish, p->tokens.n);
    if (ended && p->stop_token != o->end_token)
        WRONG(q, "%u, part %u: expected to end with token %d, found %d", q->number, part,
              o->end_token, p->stop_token);
    bool stopped = o->stop >= 0;
    if (ended && strcmp(p->stop, stopped ? q->stops[o->stop] : "") != 0)
        WRONG(q, "%u, part %u: found the stop text \"%s\"", q->number, part, p->stop);
    if (q->return_ids)
        check_tokens(q, part, &p->tokens, &o->tokens,
                     ended && (!stopped || q->kind == REQUEST_FILL));
    if (stopped)
        check_cut_text(q, part, &p->text, &o->text, ended);
    else
        check_text(q, part, &p->text, &o->tokens, ended);
    if (!q->fresh->params.beam)
        check_logprobs(q, part, p, o, ended && !stopped);
}

static void verify_generate(struct sim_request *q, const struct reference *ref, bool whole)
{
    const struct ref_round *round = &ref->rounds[0];
    bool scored = q->fresh->params.beam || q->fresh->params.n_best;
    uint32_t n = MIN(q->n_parts, round->n_outputs);
    for (uint32_t i = 0; i != n; i++) {
        check_part(q, i, &round->outputs[i], whole);
        if (scored && whole)
            must(q, q->parts[i].score == round->outputs[i].score, "another score");
    }
    for (uint32_t i = n; i < q->n_parts; i++)
        must(q, !q->parts[i].finish, "a beam that is not there");
}

static void verify_fill_calls(struct sim_request *q, const struct reference *ref)
{
    const struct wire_fill_response *w = q->fill;
    must(q, w->n_calls == (q->return_ids ? ref->n_rounds : 0), "the number of calls");
    for (uint32_t k = 0; k != w->n_calls; k++) {
        const struct ref_round *round = &ref->rounds[k];
        const struct wire_fill_call *c = &w->calls[k];
        must(q,
             c->n_input == round->prompt.n && c->n_outputs == round->n_outputs &&
                 memcmp(c->input, round->prompt.ids, c->n_input * sizeof *c->input) == 0,
             "the input of a call");
        for (uint32_t i = 0; i != c->n_outputs; i++) {
            const struct ref_output *o = &round->outputs[i];
            const struct wire_token_ids *t = &c->outputs[i];
            bool end = o->end_token >= 0;
            must(q, t->n_ids == c->n_input + o->tokens.n + end, "the length of a call's output");
            must(q,
                 o->tokens.n == 0 ||
                     memcmp(t->ids + c->n_input, o->tokens.ids, o->tokens.n * sizeof *t->ids) == 0,
                 "the output of a call");
            must(q, !end || t->ids[t->n_ids - 1] == o->end_token, "the end token of a call");
        }
    }
}

static void verify_fill(struct sim_request *q, const struct reference *ref, bool whole)
{
    for (uint32_t k = 0; k != SIM_MAX_PARTS; k++) {
        const struct sim_part *p = &q->parts[k];
        if (k < ref->n_rounds)
            check_part(q, k, &ref->rounds[k].outputs[0], whole);
        else
            must(q, !p->tokens.n && !p->text.size && !p->finish, "a blank that is not there");
    }
    if (!whole)
        return;
    const struct wire_fill_response *w = q->fill;
    const struct ref_round *last = &ref->rounds[ref->n_rounds - 1];
    must(q, w->n_results == last->n_outputs, "the number of results");
    for (uint32_t i = 0; i != w->n_results; i++) {
        must(q, w->results[i].n_blanks == ref->n_rounds, "the number of blanks");
        must(q, !q->fresh->params.beam || w->results[i].score == last->outputs[i].score,
             "another score");
        const struct token_list *answer = &last->outputs[i].tokens;
        char *text = decode(q, answer->ids, answer->n);
        must(q, strcmp(w->results[i].blanks[ref->n_rounds - 1], text) == 0,
             "the text of the last blank");
        free(text);
    }
    verify_fill_calls(q, ref);
}

static void verify_score(struct sim_request *q, const struct reference *ref)
{
    const struct ref_round *round = &ref->rounds[0];
    const struct wire_score_response *w = q->score;
    must(q, w && w->n_choices == round->n_outputs, "the number of scores");
    for (uint32_t i = 0; i != w->n_choices; i++) {
        const struct ref_output *o = &round->outputs[i];
        const struct wire_choice_score *c = &w->choices[i];
        size_t n = q->fresh->choices[i].n;
        must(q,
             c->n_token_logprobs == n &&
                 memcmp(c->token_logprobs, o->logprobs, n * sizeof *o->logprobs) == 0,
             "log-probabilities of a choice");
        if (c->logprob != o->score)
            WRONG(q, "%u, choice %u: expected %.9g, found %.9g", q->number, i, o->score,
                  c->logprob);
    }
}

static void check_usage(struct sim_request *q, size_t n_prompt, uint64_t n_completion)
{
    must(q, q->has_usage, "no usage");
    size_t n_scored = q->echo ? q->echo->choices[0].n : 0;
    if (q->usage.prompt_tokens != n_prompt || q->usage.completion_tokens != n_completion ||
        q->usage.scored_tokens != n_scored)
        WRONG(q, "%u: usage: expected %zu + %llu tokens and %zu scored ones, found %u + %u and %u",
              q->number, n_prompt, (unsigned long long)n_completion, n_scored,
              q->usage.prompt_tokens, q->usage.completion_tokens, q->usage.scored_tokens);
    q->sim->n_tokens += n_completion;
}

/* The log-probabilities of a prompt; all of them when the output has begun. */
static void verify_echo(struct sim_request *q, bool whole)
{
    struct reference ref;
    reference_make(q->sim->admit.arch, q->sim->model->tokenizer, &q->sim->fake, q->echo,
                   (struct ref_stops){0}, &ref);
    const struct ref_output *o = &ref.rounds[0].outputs[0];
    const struct token_list *tokens = &q->echo->choices[0];
    must(q,
         q->n_prompt_logprobs == tokens->n ||
             (!whole && !q->n_choice_messages && q->n_prompt_logprobs < tokens->n),
         "the number of the prompt's log-probabilities");
    for (uint32_t i = 0; i != q->n_prompt_logprobs; i++) {
        if (!is_right_logprob(q, &q->prompt_logprobs[i], tokens->ids[i], o, i,
                              q->echo->params.n_top_logprobs))
            WRONG(q, "%u: log-probability %u of the prompt", q->number, i);
    }
    reference_deinit(&ref);
    if (whole && !q->fresh)
        check_usage(q, q->echo->prompt.ids.n, 0);
}

static const struct token_list *find_blank(void *context, uint32_t blank)
{
    const struct sim_request *q = context;
    return blank < SIM_MAX_PARTS && q->parts[blank].finish ? &q->parts[blank].tokens : NULL;
}

static void verify_answer(struct sim_request *q, bool whole)
{
    if (!whole && q->n_messages == 0)
        return;
    if (q->echo)
        verify_echo(q, whole);
    if (!q->fresh || (q->kind != REQUEST_SCORE && !q->seed_known))
        return;
    struct reference ref;
    if (q->kind != REQUEST_SCORE)
        q->fresh->params.seed = q->seed;
    const struct ref_stops stops = {q->stops, q->n_stops, find_blank, q};
    reference_make(q->sim->admit.arch, q->sim->model->tokenizer, &q->sim->fake, q->fresh, stops,
                   &ref);
    must(q, !ref.wrong, ref.wrong);
    must(q, !ref.is_open || !whole, "a blank has no end");
    if (q->kind == REQUEST_GENERATE)
        verify_generate(q, &ref, whole);
    else if (q->kind == REQUEST_FILL)
        verify_fill(q, &ref, whole);
    else if (whole)
        verify_score(q, &ref);
    if (whole)
        check_usage(q, ref.rounds[0].prompt.n, ref.n_completion_tokens);
    reference_deinit(&ref);
}

/* ---- errors that may be ---- */

/* Only the client's own one: nothing in a run takes as long as the server's default. */
static bool deadline_passed(const struct sim_request *q)
{
    int64_t margin = MIN(q->deadline_ns / 10, 50 * NSEC_PER_MSEC);
    return q->deadline_ns && q->sim->world.now_ns >= q->sent_ns + q->deadline_ns - margin;
}

static bool was_unreachable(const struct sim_request *q, const char *message)
{
    const struct sim *s = q->sim;
    if (strstr(message, "no group of workers was ready before the deadline"))
        return s->no_group_ns >= q->sent_ns && deadline_passed(q);
    return s->away_ns >= q->sent_ns || s->last_net_fault_ns >= q->sent_ns;
}

static bool was_exhausted(const struct sim_request *q, const char *message)
{
    const struct sim *s = q->sim;
    if (strstr(message, "requests wait)"))
        return s->last_full_ns >= q->sent_ns;
    if (strstr(message, "the queue is full (prompts of"))
        return s->config.coordinator.limits.max_queue_tokens != 0;
    if (strstr(message, "the queue is too long"))
        return s->config.coordinator.limits.max_wait != 0;
    if (strstr(message, "not read in time"))
        return q->paused || s->last_net_fault_ns >= q->sent_ns;
    if (strstr(message, "limit of calls"))
        return s->last_full_ns >= q->sent_ns;
    return false;
}

static bool may_fail(const struct sim_request *q, enum rpc_status status, const char *message,
                     int64_t retry_ns)
{
    if (sim_keys_may_refuse(q, status, message, retry_ns))
        return true;
    switch (status) {
    case RPC_CANCELLED:
        return q->cancelled || q->aborted;
    case RPC_DEADLINE_EXCEEDED:
        return deadline_passed(q);
    case RPC_UNAVAILABLE:
        return was_unreachable(q, message);
    case RPC_ABORTED: /* the same with a part of the stream told */
        return q->n_messages > 0 && was_unreachable(q, message);
    case RPC_RESOURCE_EXHAUSTED:
        return was_exhausted(q, message);
    case RPC_INTERNAL: /* it may be what kills the groups */
        return strstr(message, "was lost") &&
               sim_count_losses(q->sim, q->sent_ns) >= SCHED_MAX_LOSSES;
    case RPC_INVALID_ARGUMENT:
        return !q->fits_all;
    default:
        return false;
    }
}

void sim_request_verify(struct sim_request *q, enum rpc_status status, const char *message,
                        int64_t retry_ns)
{
    struct sim *s = q->sim;
    if (status == RPC_OK) {
        must(q, q->fits_some, "answered, although it cannot be run");
        s->n_ok++;
    } else {
        if (!may_fail(q, status, message, retry_ns))
            WRONG(q, "%u failed without a cause: %s: %s, retry after %lld ms", q->number,
                  rpc_status_name(status), message, (long long)(retry_ns / NSEC_PER_MSEC));
        s->n_errors++;
        s->n_refused += status == RPC_INVALID_ARGUMENT;
        s->n_cancelled += status == RPC_CANCELLED;
    }
    verify_answer(q, status == RPC_OK);
    sim_keys_answered(q, status);
}
