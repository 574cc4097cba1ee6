/* kserve_answer.c: what is answered. See kserve.h. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/kserve.h"

int kserve_answer_init(struct kserve_answer *a, const struct kserve_request *r, const char *id,
                       const char *(*piece)(const void *context, int32_t id), const void *context)
{
    bool due = text_join_due(r->text);
    uint32_t n = r->generate.n ? r->generate.n : 1;
    *a = (struct kserve_answer){
        .id = text_dup(id, strlen(id)),
        .prompt = r->echo ? text_dup(r->text, strlen(r->text)) : NULL,
        .piece = piece,
        .piece_context = context,
        .stream = r->stream,
        .raw = r->raw,
        .choices = alloc_array(MIN(n, (uint32_t)REQUEST_MAX_CHOICES), sizeof *a->choices),
        .n_choices = MIN(n, (uint32_t)REQUEST_MAX_CHOICES), /* more are refused by admission */
    };
    memcpy(a->outputs, r->outputs, sizeof a->outputs);
    bool ok = a->id && a->choices && (a->prompt || !r->echo);
    for (uint32_t i = 0; ok && i != a->n_choices; i++) {
        a->choices[i].finish = "";
        a->choices[i].join.due = due;
        ok = buf_append_str(&a->choices[i].text, a->prompt ? a->prompt : "") == 0;
    }
    if (ok)
        return 0;
    kserve_answer_deinit(a);
    return -ENOMEM;
}

void kserve_answer_deinit(struct kserve_answer *a)
{
    free(a->id);
    free(a->prompt);
    for (uint32_t i = 0; a->choices && i != a->n_choices; i++)
        buf_deinit(&a->choices[i].text);
    free(a->choices);
    *a = (struct kserve_answer){0};
}

/* ---- messages in ---- */

/* The blank between prompt and output, where one is due, as soon as that is known. */
static int join(struct kserve_answer *a, struct kserve_choice *c, const struct wire_choice_delta *d)
{
    size_t begin = a->prompt ? strlen(a->prompt) : 0;
    bool was = c->join.settled, ended = d->finish_reason != WIRE_FINISH_UNSPECIFIED;
    const char *text = c->text.size > begin ? c->text.data + begin : NULL;
    text_join_take(&c->join, d->tokens, d->n_tokens, text, ended, a->piece, a->piece_context);
    if (was || !c->join.blank)
        return 0;
    int r = buf_append(&c->text, " ", 1);
    if (r == 0) {
        memmove(c->text.data + begin + 1, c->text.data + begin, c->text.size - begin - 1);
        c->text.data[begin] = ' ';
    }
    return r;
}

static const char *finish_name(enum wire_finish_reason reason)
{
    return reason == WIRE_FINISH_STOP ? "stop" : reason == WIRE_FINISH_LENGTH ? "length" : "";
}

int kserve_take(struct kserve_answer *a, const struct wire_generate_response *m)
{
    for (uint32_t i = 0; i != m->n_choices; i++) {
        const struct wire_choice_delta *d = &m->choices[i];
        assert(d->index < a->n_choices);
        struct kserve_choice *c = &a->choices[d->index];
        if ((d->text && buf_append_str(&c->text, d->text) < 0) || join(a, c, d) < 0)
            return -ENOMEM;
        for (uint32_t k = 0; k != d->n_logprobs; k++)
            c->logprob += (double)d->logprobs[k].logprob;
        c->n_tokens += d->n_tokens;
        if (d->finish_reason != WIRE_FINISH_UNSPECIFIED)
            c->finish = finish_name(d->finish_reason);
    }
    if (m->usage) {
        a->n_prompt_tokens = m->usage->prompt_tokens;
        a->last = true;
    }
    return a->last || (a->stream && m->n_choices != 0);
}

/* ---- tensors out ---- */

/* Everything that an answer points to. */
struct pack {
    const struct kserve_answer *a;
    int64_t shape[1], one[1];
    struct wire_kserve_contents contents[KSERVE_N_OUTPUTS];
    struct wire_kserve_tensor tensors[KSERVE_N_OUTPUTS];
    struct wire_bytes texts[REQUEST_MAX_CHOICES], reasons[REQUEST_MAX_CHOICES];
    float logprobs[REQUEST_MAX_CHOICES];
    uint32_t counts[REQUEST_MAX_CHOICES], n_input[1];
    struct buf raw[KSERVE_N_OUTPUTS]; /* owned */
    struct wire_bytes raw_bytes[KSERVE_N_OUTPUTS];
    uint32_t n;
};

static int raw_texts(const struct wire_bytes *texts, uint32_t n, struct buf *out)
{
    int r = 0;
    for (uint32_t i = 0; r == 0 && i != n; i++) {
        uint32_t length = (uint32_t)texts[i].size; /* little-endian, as we are */
        r = buf_append(out, &length, sizeof length);
        if (r == 0 && length)
            r = buf_append(out, texts[i].data, length);
    }
    return r;
}

/* The contents again, as raw bytes. */
static int fill_raw(const struct wire_kserve_contents *c, struct buf *out)
{
    if (c->n_bytes_contents)
        return raw_texts(c->bytes_contents, c->n_bytes_contents, out);
    if (c->n_fp32_contents)
        return buf_append(out, c->fp32_contents, c->n_fp32_contents * sizeof(float));
    return buf_append(out, c->uint_contents, c->n_uint_contents * sizeof(uint32_t));
}

static void fill_contents(struct pack *p, enum kserve_output o, struct wire_kserve_contents *c)
{
    uint32_t n = p->a->n_choices;
    switch (o) {
    case KSERVE_TEXT:
        c->bytes_contents = p->texts;
        c->n_bytes_contents = n;
        break;
    case KSERVE_FINISH_REASON:
        c->bytes_contents = p->reasons;
        c->n_bytes_contents = n;
        break;
    case KSERVE_LOGPROB:
        c->fp32_contents = p->logprobs;
        c->n_fp32_contents = n;
        break;
    case KSERVE_INPUT_TOKENS:
        c->uint_contents = p->n_input;
        c->n_uint_contents = 1;
        break;
    case KSERVE_OUTPUT_TOKENS:
        c->uint_contents = p->counts;
        c->n_uint_contents = n;
        break;
    case KSERVE_N_OUTPUTS:
        break;
    }
}

static int add_tensor(struct pack *p, enum kserve_output o)
{
    struct wire_kserve_contents *c = &p->contents[p->n];
    fill_contents(p, o, c);
    p->tensors[p->n] = (struct wire_kserve_tensor){
        .name = kserve_outputs[o].name,
        .datatype = kserve_outputs[o].datatype,
        .shape = o == KSERVE_INPUT_TOKENS ? p->one : p->shape,
        .n_shape = 1,
        .contents = p->a->raw ? NULL : c,
    };
    int r = p->a->raw ? fill_raw(c, &p->raw[p->n]) : 0;
    p->raw_bytes[p->n] = (struct wire_bytes){p->raw[p->n].size, (uint8_t *)p->raw[p->n].data};
    p->n++;
    return r;
}

static int fill_tensors(struct pack *p)
{
    const struct kserve_answer *a = p->a;
    for (uint32_t i = 0; i != a->n_choices; i++) {
        const struct kserve_choice *c = &a->choices[i];
        size_t told = c->join.settled || a->last ? c->text.size : 0;
        p->texts[i] = (struct wire_bytes){told, (uint8_t *)c->text.data};
        p->reasons[i] = (struct wire_bytes){strlen(c->finish), (const uint8_t *)c->finish};
        p->logprobs[i] = (float)c->logprob;
        p->counts[i] = c->n_tokens;
    }
    p->shape[0] = a->n_choices;
    p->one[0] = 1;
    p->n_input[0] = a->n_prompt_tokens;
    int r = 0;
    for (int o = 0; r == 0 && o != KSERVE_N_OUTPUTS; o++) {
        if (a->outputs[o])
            r = add_tensor(p, (enum kserve_output)o);
    }
    return r;
}

/* What has been told is not told again. */
static void forget(struct kserve_answer *a)
{
    for (uint32_t i = 0; i != a->n_choices; i++) {
        if (a->choices[i].join.settled)
            buf_clear(&a->choices[i].text);
        a->choices[i].n_tokens = 0;
    }
}

int kserve_pack(struct kserve_answer *a, const char *model, bool in_stream, struct buf *out)
{
    struct pack p = {.a = a};
    const struct wire_kserve_parameter last = {.has_bool_param = true, .bool_param = a->last};
    const struct wire_kserve_entry entry = {"triton_final_response", &last};
    int r = fill_tensors(&p);
    const struct wire_kserve_infer_response response = {
        .model_name = model,
        .model_version = "1",
        .id = a->id,
        .parameters = &entry,
        .n_parameters = in_stream ? 1 : 0,
        .outputs = p.tensors,
        .n_outputs = p.n,
        .raw_output_contents = p.raw_bytes,
        .n_raw_output_contents = a->raw ? p.n : 0,
    };
    if (r == 0 && in_stream)
        r = wire_pack_kserve_stream_response(
            &(struct wire_kserve_stream_response){.infer_response = &response}, out);
    else if (r == 0)
        r = wire_pack_kserve_infer_response(&response, out);
    for (uint32_t i = 0; i != p.n; i++)
        buf_deinit(&p.raw[i]);
    forget(a);
    return r;
}

int kserve_pack_error(const char *id, const char *message, struct buf *out)
{
    const struct wire_kserve_infer_response response = {.id = id};
    return wire_pack_kserve_stream_response(
        &(struct wire_kserve_stream_response){message, &response}, out);
}
