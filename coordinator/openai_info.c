/* openai_info.c: answers without a call: models, tokens, version. See openai.h. */
#include "coordinator/json_out.h"
#include "coordinator/openai.h"

/* ---- models ---- */

static void model(struct json_out *o, const struct wire_model_info *m, int64_t created)
{
    json_raw(o, "{\"id\":");
    json_text(o, m->id);
    json_raw(o, ",\"object\":\"model\",\"created\":");
    json_i64(o, created);
    json_raw(o, ",\"owned_by\":\"glmd\",\"root\":");
    json_text(o, m->id);
    json_raw(o, ",\"parent\":null,\"max_model_len\":");
    json_u64(o, m->context_length);
    json_raw(o, ",\"architecture\":");
    json_text_or_null(o, m->architecture);
    json_raw(o, ",\"weights\":");
    json_text_or_null(o, m->weights);
    json_raw(o, ",\"digest\":");
    json_text_or_null(o, m->digest);
    json_raw(o, "}");
}

int openai_model_encode(const struct wire_model_info *m, int64_t created, struct buf *out)
{
    struct json_out o = {out, 0};
    model(&o, m, created);
    return o.error;
}

int openai_models_encode(const struct wire_model_info *models, uint32_t n, int64_t created,
                         struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i != n; i++) {
        if (i)
            json_raw(&o, ",");
        model(&o, &models[i], created);
    }
    json_raw(&o, "]}");
    return o.error;
}

/* ---- tokens ---- */

int openai_tokenize_encode(const struct openai_request *q, const struct wire_tokenize_response *w,
                           uint32_t context_length, struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, "{\"count\":");
    json_u64(&o, w->n_ids);
    json_raw(&o, ",\"max_model_len\":");
    json_u64(&o, context_length);
    json_raw(&o, ",\"tokens\":");
    json_ids(&o, w->ids, w->n_ids);
    json_raw(&o, ",\"token_strs\":");
    if (q->token_strs) {
        json_raw(&o, "[");
        for (uint32_t i = 0; i != w->n_pieces; i++) {
            if (i)
                json_raw(&o, ",");
            json_text(&o, w->pieces[i] ? w->pieces[i] : "");
        }
        json_raw(&o, "]}");
    } else {
        json_raw(&o, "null}");
    }
    return o.error;
}

int openai_detokenize_encode(const struct wire_detokenize_response *w, struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, "{\"prompt\":");
    json_text(&o, w->text ? w->text : "");
    json_raw(&o, "}");
    return o.error;
}

int openai_tokenizer_encode(const char *eos, uint32_t context_length, struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, "{\"tokenizer_class\":\"icetk\",\"model_max_length\":");
    json_u64(&o, context_length);
    json_raw(&o, ",\"eos_token\":");
    json_text(&o, eos);
    json_raw(&o, ",\"bos_token\":null,\"pad_token\":null,\"chat_template\":null}");
    return o.error;
}

int openai_version_encode(const char *version, struct buf *out)
{
    struct json_out o = {out, 0};
    json_raw(&o, "{\"version\":");
    json_text(&o, version);
    json_raw(&o, "}");
    return o.error;
}
