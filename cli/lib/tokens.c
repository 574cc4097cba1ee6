/* tokens.c: calls with one answer: scores, tokens, the model. See glmd/client.h. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/lib/internal.h"
#include "proto/rpc/wire_inference.h"
#include "proto/rpc/wire_kserve.h"

/* The one message of an answer, as it came. */
static int keep(void *context, const uint8_t *data, size_t size, struct err *e)
{
    struct buf *answer = context;
    return buf_append(answer, data, size) < 0 ? err_set(e, -ENOMEM, "out of memory") : 0;
}

/* `packed`: what packing the request returned. */
static enum glmd_code ask(struct glmd_client *c, const char *path, int packed, struct buf *request,
                          struct buf *ret_answer, struct glmd_error *error)
{
    const struct call call = {
        .path = path, .request = request, .on_message = keep, .context = ret_answer};
    enum glmd_code code = packed < 0 ? lib_error(error, GLMD_RESOURCE_EXHAUSTED, "out of memory")
                                     : lib_call(c, &call, error);
    buf_deinit(request);
    return code;
}

/* ---- scores ---- */

static enum glmd_code take_scores(const struct buf *answer, size_t n, double *ret_logprobs,
                                  size_t *ret_best, struct glmd_error *error)
{
    struct wire_score_response *m;
    struct err e = ERR_INIT;
    int r = wire_unpack_score_response((const uint8_t *)answer->data, answer->size, &m, &e);
    if (r < 0)
        return lib_failure(error, &e);
    if (m->n_choices != n || m->best >= n)
        r = err_set(&e, -EBADMSG, "the server scored %u of %zu choices", m->n_choices, n);
    for (size_t i = 0; r == 0 && i != n; i++)
        ret_logprobs[i] = m->choices[i].logprob;
    if (r == 0 && ret_best)
        *ret_best = m->best;
    wire_free_score_response(m);
    return r < 0 ? lib_failure(error, &e) : GLMD_OK;
}

enum glmd_code glmd_score(struct glmd_client *c, const char *text, const char *const *choices,
                          size_t n, double *ret_logprobs, size_t *ret_best,
                          struct glmd_error *error)
{
    const struct wire_score_request q = {
        .text = text, .choices = choices, .n_choices = (uint32_t)n};
    struct buf request = {0}, answer = {0};
    int r = wire_pack_score_request(&q, &request);
    enum glmd_code code = ask(c, "/glmd.v1.Inference/Score", r, &request, &answer, error);
    if (code == GLMD_OK)
        code = take_scores(&answer, n, ret_logprobs, ret_best, error);
    buf_deinit(&answer);
    return code;
}

/* ---- tokens ---- */

enum glmd_code glmd_tokenize(struct glmd_client *c, const char *text, int32_t **ret_ids,
                             size_t *ret_n, struct glmd_error *error)
{
    const struct wire_tokenize_request q = {.text = text};
    struct buf request = {0}, answer = {0};
    struct wire_tokenize_response *m;
    struct err e = ERR_INIT;
    int r = wire_pack_tokenize_request(&q, &request);
    *ret_ids = NULL;
    enum glmd_code code = ask(c, "/glmd.v1.Inference/Tokenize", r, &request, &answer, error);
    if (code != GLMD_OK) {
        buf_deinit(&answer);
        return code;
    }
    r = wire_unpack_tokenize_response((const uint8_t *)answer.data, answer.size, &m, &e);
    buf_deinit(&answer);
    if (r < 0)
        return lib_failure(error, &e);
    *ret_n = m->n_ids;
    *ret_ids = alloc_array(m->n_ids, sizeof **ret_ids);
    if (*ret_ids && m->n_ids)
        memcpy(*ret_ids, m->ids, m->n_ids * sizeof *m->ids);
    wire_free_tokenize_response(m);
    return *ret_ids ? GLMD_OK : lib_error(error, GLMD_RESOURCE_EXHAUSTED, "out of memory");
}

enum glmd_code glmd_detokenize(struct glmd_client *c, const int32_t *ids, size_t n, char **ret_text,
                               struct glmd_error *error)
{
    const struct wire_detokenize_request q = {.ids = ids, .n_ids = (uint32_t)n};
    struct buf request = {0}, answer = {0};
    struct wire_detokenize_response *m;
    struct err e = ERR_INIT;
    int r = wire_pack_detokenize_request(&q, &request);
    *ret_text = NULL;
    enum glmd_code code = ask(c, "/glmd.v1.Inference/Detokenize", r, &request, &answer, error);
    if (code != GLMD_OK) {
        buf_deinit(&answer);
        return code;
    }
    r = wire_unpack_detokenize_response((const uint8_t *)answer.data, answer.size, &m, &e);
    buf_deinit(&answer);
    if (r < 0)
        return lib_failure(error, &e);
    *ret_text = text_dup(m->text, strlen(m->text));
    wire_free_detokenize_response(m);
    return *ret_text ? GLMD_OK : lib_error(error, GLMD_RESOURCE_EXHAUSTED, "out of memory");
}

/* ---- models ---- */

/* One piece of memory: the struct, then its texts. */
static struct glmd_model *copy_model(const struct wire_model_info *w)
{
    const char *const texts[] = {w->id, w->architecture, w->weights, w->digest};
    size_t size = sizeof(struct glmd_model);
    for (size_t i = 0; i != ARRAY_LEN(texts); i++)
        size += strlen(texts[i]) + 1;
    struct glmd_model *m = malloc(size);
    if (!m)
        return NULL;
    const char *copies[ARRAY_LEN(texts)];
    char *at = (char *)(m + 1);
    for (size_t i = 0; i != ARRAY_LEN(texts); i++) {
        copies[i] = at;
        at = stpcpy(at, texts[i]) + 1;
    }
    *m = (struct glmd_model){
        .id = copies[0],
        .architecture = copies[1],
        .weights = copies[2],
        .digest = copies[3],
        .context_length = w->context_length,
        .vocab_size = w->vocab_size,
        .layers = w->layers,
        .hidden_size = w->hidden_size,
    };
    return m;
}

enum glmd_code glmd_model(struct glmd_client *c, struct glmd_model **ret, struct glmd_error *error)
{
    struct buf request = {0}, answer = {0};
    struct wire_list_models_response *m;
    struct err e = ERR_INIT;
    *ret = NULL;
    enum glmd_code code = ask(c, "/glmd.v1.Inference/ListModels", 0, &request, &answer, error);
    if (code != GLMD_OK) {
        buf_deinit(&answer);
        return code;
    }
    int r = wire_unpack_list_models_response((const uint8_t *)answer.data, answer.size, &m, &e);
    buf_deinit(&answer);
    if (r == 0 && m->n_models == 0)
        r = err_set(&e, -EBADMSG, "the server has no model");
    else if (r == 0 && !(*ret = copy_model(&m->models[0])))
        r = err_set(&e, -ENOMEM, "out of memory");
    wire_free_list_models_response(m);
    return r < 0 ? lib_failure(error, &e) : GLMD_OK;
}

enum glmd_code glmd_ready(struct glmd_client *c, int *ret_ready, struct glmd_error *error)
{
    struct buf request = {0}, answer = {0};
    struct wire_kserve_ready *m;
    struct err e = ERR_INIT;
    *ret_ready = 0;
    enum glmd_code code =
        ask(c, "/inference.GRPCInferenceService/ServerReady", 0, &request, &answer, error);
    if (code == GLMD_OK) {
        if (wire_unpack_kserve_ready_response((const uint8_t *)answer.data, answer.size, &m, &e) <
            0) {
            code = lib_failure(error, &e);
        } else {
            *ret_ready = m->ready;
            wire_free_kserve_ready_response(m);
        }
    }
    buf_deinit(&answer);
    return code;
}
