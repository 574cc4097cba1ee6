/* text.c: glmd_generate and glmd_fill: requests, text as it comes, results. See glmd/client.h. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/lib/internal.h"
#include "proto/rpc/wire_inference.h"

enum { MAX_TEXTS = 64 };

/* A result and what it points to. */
struct text_call {
    struct glmd_result result; /* first member: it is what the program gets */
    const struct glmd_request *request;
    struct buf growing[MAX_TEXTS]; /* generate: the choices */
    struct glmd_text texts[MAX_TEXTS];
    struct wire_fill_response *last; /* fill: owned, with the results */
    char *request_id;
};

void glmd_result_free(struct glmd_result *result)
{
    struct text_call *t = (struct text_call *)result;
    if (!t)
        return;
    for (unsigned i = 0; i != MAX_TEXTS; i++)
        buf_deinit(&t->growing[i]);
    wire_free_fill_response(t->last);
    free(t->request_id);
    free(t);
}

/* ---- requests ---- */

static float number(double value)
{
    return (float)value;
}

static struct wire_sampling_parameters sampling_of(const struct glmd_request *q,
                                                   struct wire_beam_parameters *beam)
{
    struct wire_sampling_parameters s = {
        .has_temperature = q->temperature >= 0,
        .temperature = q->temperature >= 0 ? number(q->temperature) : 0,
        .has_top_p = q->top_p >= 0,
        .top_p = q->top_p >= 0 ? number(q->top_p) : 0,
        .top_k = q->top_k,
        .min_p = number(q->min_p),
        .repetition_penalty = number(q->repetition_penalty),
        .presence_penalty = number(q->presence_penalty),
        .frequency_penalty = number(q->frequency_penalty),
        .has_seed = q->seed != NULL,
        .seed = q->seed ? *q->seed : 0,
        .stop = q->stop,
        .n_stop = (uint32_t)q->n_stop,
        .ignore_end = q->ignore_end != 0,
    };
    if (q->beams) {
        beam->num_beams = q->beams;
        s.strategy = WIRE_STRATEGY_BEAM;
        s.beam = beam;
    }
    return s;
}

static int pack(const struct glmd_request *q, bool fill, struct buf *out)
{
    struct wire_beam_parameters beam = {0};
    struct wire_sampling_parameters sampling = sampling_of(q, &beam);
    if (fill) {
        const struct wire_fill_request f = {
            .model = q->model,
            .text = q->text,
            .sampling = &sampling,
            .max_length = q->max_tokens,
            .request_id = q->request_id,
            .priority = q->priority,
        };
        return wire_pack_fill_request(&f, out);
    }
    const struct wire_generate_request g = {
        .model = q->model,
        .text = q->text,
        .sampling = &sampling,
        .max_tokens = q->max_tokens,
        .n = q->n,
        .request_id = q->request_id,
        .priority = q->priority,
    };
    return wire_pack_generate_request(&g, out);
}

/* ---- answers ---- */

static int tell(const struct text_call *t, unsigned index, const char *text, struct err *e)
{
    const struct glmd_request *q = t->request;
    if (!*text || !q->on_text || q->on_text(q->context, index, text) == 0)
        return 0;
    return err_set(e, -ECANCELED, "cancelled by on_text");
}

/* Seed and name come with the first message, the usage with the last. */
static int take_facts(struct text_call *t, bool has_seed, uint64_t seed, const char *request_id,
                      const struct wire_usage *u, struct err *e)
{
    struct glmd_result *r = &t->result;
    if (has_seed)
        r->seed = seed;
    if (*request_id && !t->request_id) {
        t->request_id = text_dup(request_id, strlen(request_id));
        if (!t->request_id)
            return err_set(e, -ENOMEM, "out of memory");
    }
    if (u) {
        r->prompt_tokens = u->prompt_tokens;
        r->completion_tokens = u->completion_tokens;
        r->prefill_seconds = u->prefill_seconds;
        r->decode_seconds = u->decode_seconds;
    }
    return 0;
}

static int take_choice(struct text_call *t, const struct wire_choice_delta *d, struct err *e)
{
    if (d->index >= MAX_TEXTS)
        return err_set(e, -EBADMSG, "the server sent choice %u", d->index);
    if (buf_append_str(&t->growing[d->index], d->text) < 0)
        return err_set(e, -ENOMEM, "out of memory");
    struct glmd_text *x = &t->texts[d->index];
    if (d->finish_reason)
        x->finish = (enum glmd_finish)d->finish_reason;
    if (d->has_score)
        x->score = d->score;
    t->result.n_texts = MAX(t->result.n_texts, (size_t)d->index + 1);
    return tell(t, d->index, d->text, e);
}

static int on_generated(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct text_call *t = context;
    struct wire_generate_response *m;
    int r = wire_unpack_generate_response(data, size, &m, e);
    if (r < 0)
        return r;
    r = take_facts(t, m->has_seed, m->seed, m->request_id, m->usage, e);
    for (uint32_t i = 0; r == 0 && i != m->n_choices; i++)
        r = take_choice(t, &m->choices[i], e);
    wire_free_generate_response(m);
    return r;
}

static int on_filled(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct text_call *t = context;
    struct wire_fill_response *m;
    int r = wire_unpack_fill_response(data, size, &m, e);
    if (r < 0)
        return r;
    r = take_facts(t, m->has_seed, m->seed, m->request_id, m->usage, e);
    for (uint32_t i = 0; r == 0 && i != m->n_blanks; i++)
        r = tell(t, m->blanks[i].index, m->blanks[i].text, e);
    if (r == 0 && m->n_results > MAX_TEXTS)
        r = err_set(e, -EBADMSG, "the server sent %u results", m->n_results);
    if (r == 0 && m->n_results && !t->last)
        t->last = m; /* kept: the result points into it */
    else
        wire_free_fill_response(m);
    return r;
}

/* ---- results ---- */

/* Of a Fill: what its last message says. */
static void set_filled(struct text_call *t, const struct wire_fill_response *last)
{
    struct glmd_result *r = &t->result;
    r->n_texts = last ? last->n_results : 0;
    if (!r->n_texts)
        return;
    r->blanks = last->results[0].blanks;
    r->n_blanks = last->results[0].n_blanks;
    for (size_t i = 0; i != r->n_texts; i++) {
        t->texts[i].text = last->results[i].text;
        t->texts[i].score = last->results[i].score;
    }
}

static void set_texts(struct text_call *t, bool fill)
{
    struct glmd_result *r = &t->result;
    if (fill)
        set_filled(t, t->last);
    for (size_t i = 0; !fill && i != r->n_texts; i++)
        t->texts[i].text = t->growing[i].data ? t->growing[i].data : "";
    r->texts = t->texts;
    r->request_id = t->request_id ? t->request_id : "";
    t->request = NULL;
}

static enum glmd_code run(struct glmd_client *c, const struct glmd_request *request, bool fill,
                          struct glmd_result **ret, struct glmd_error *error)
{
    struct glmd_request q = glmd_request_init(NULL);
    struct buf bytes = {0};
    *ret = NULL;
    memcpy(&q, request, MIN(request->size, sizeof q));
    if (!q.text)
        return lib_error(error, GLMD_INVALID_ARGUMENT, "text: expected one, found none");
    struct text_call *t = calloc(1, sizeof *t);
    if (!t || pack(&q, fill, &bytes) < 0) {
        free(t);
        buf_deinit(&bytes);
        return lib_error(error, GLMD_RESOURCE_EXHAUSTED, "out of memory");
    }
    t->request = &q;
    const struct call call = {
        .path = fill ? "/glmd.v1.Inference/Fill" : "/glmd.v1.Inference/Generate",
        .request = &bytes,
        .on_message = fill ? on_filled : on_generated,
        .context = t,
    };
    enum glmd_code code = lib_call(c, &call, error);
    buf_deinit(&bytes);
    if (code != GLMD_OK) {
        glmd_result_free(&t->result);
        return code;
    }
    set_texts(t, fill);
    *ret = &t->result;
    return code;
}

enum glmd_code glmd_generate(struct glmd_client *c, const struct glmd_request *request,
                             struct glmd_result **ret, struct glmd_error *error)
{
    return run(c, request, false, ret, error);
}

enum glmd_code glmd_fill(struct glmd_client *c, const struct glmd_request *request,
                         struct glmd_result **ret, struct glmd_error *error)
{
    return run(c, request, true, ret, error);
}
