/* fuzz_kserve.c: requests of the Open Inference Protocol: refused with a reason, or something that
 * admission can look at: texts that are there and are UTF-8, lists within their bounds. */
#include <assert.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/kserve.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *text)
{
    assert(text && utf8_check(text, strlen(text)) == strlen(text));
}

static void check(const struct kserve_request *q)
{
    const struct wire_sampling_parameters *s = q->generate.sampling;
    assert(s == &q->sampling && q->generate.text == q->text);
    check_text(q->text);
    check_text(q->generate.model);
    check_text(q->generate.request_id);
    assert(s->n_stop <= KSERVE_MAX_STOPS && s->n_stop_token_ids <= KSERVE_MAX_STOP_IDS);
    for (uint32_t i = 0; i != s->n_stop; i++)
        check_text(s->stop[i]);
    for (uint32_t i = 0; i != s->n_stop_token_ids; i++)
        assert(s->stop_token_ids[i] >= 0);
    assert(!(q->echo && q->stream));
}

static const char *piece_of(const void *context, int32_t id)
{
    (void)context;
    return id % 2 ? "\xe2\x96\x81x" : "x";
}

static void answer(const struct kserve_request *q)
{
    struct kserve_answer a;
    struct buf out = {0};
    if (kserve_answer_init(&a, q, q->generate.request_id, piece_of, NULL) < 0)
        return;
    static const int32_t token = 1;
    const struct wire_choice_delta delta = {
        .index = a.n_choices - 1, .text = "x", .tokens = &token, .n_tokens = 1};
    const struct wire_usage usage = {.prompt_tokens = 1};
    int r = kserve_take(
        &a, &(struct wire_generate_response){.choices = &delta, .n_choices = 1, .usage = &usage});
    assert(r == 1 && kserve_pack(&a, "glm", q->stream, &out) == 0);
    kserve_answer_deinit(&a);
    buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_kserve_infer_request *w;
    struct kserve_request q;
    struct err e = ERR_INIT;
    if (wire_unpack_kserve_infer_request(data, size, &w, &e) < 0)
        return 0;
    int r = kserve_read(w, &q, &e);
    assert(r == 0 || (r == e.code && e.message[0]));
    assert(utf8_check(e.message, strlen(e.message)) == strlen(e.message));
    if (r == 0) {
        check(&q);
        answer(&q);
    }
    kserve_request_deinit(&q);
    wire_free_kserve_infer_request(w);
    return 0;
}
