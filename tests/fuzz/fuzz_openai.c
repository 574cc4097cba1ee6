/* fuzz_openai.c: bodies of the HTTP API from outside. What is understood must be safe for the next
 * room (strings that are there, counts in their limits), and the reply to it, with whatever texts
 * and tokens come, must be JSON. The first byte is the route, the second one what is replied. */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "coordinator/openai.h"
#include "model/dialogue.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(x)                                                                                 \
    do {                                                                                           \
        if (!(x))                                                                                  \
            abort();                                                                               \
    } while (0)

/* ---- what a request may be ---- */

static void check_text(const char *text)
{
    REQUIRE(text && utf8_check(text, strlen(text)) == strlen(text));
}

static void check_sampling(const struct wire_sampling_parameters *s)
{
    REQUIRE(s->temperature >= 0 && s->temperature <= 10 && s->top_p >= 0 && s->top_p <= 1);
    REQUIRE(s->n_logit_bias <= PLAN_MAX_BIAS && s->n_stop <= STOP_MAX_TEXTS);
    REQUIRE(s->top_logprobs <= 20 && s->n_stop_token_ids <= 64);
    for (uint32_t i = 0; i != s->n_stop; i++)
        check_text(s->stop[i]);
    for (uint32_t i = 0; i != s->n_stop_token_ids; i++)
        REQUIRE(s->stop_token_ids[i] >= 0);
}

static void check_request(const struct openai_request *q)
{
    REQUIRE(!!q->generate + !!q->fill + !!q->tokenize + !!q->detokenize == 1);
    REQUIRE(q->n_choices >= 1 && q->n_prompts <= OPENAI_MAX_PROMPTS);
    REQUIRE(q->n_prompts * q->n_choices <= OPENAI_MAX_CHOICES);
    REQUIRE(strlen(q->unknown) < OPENAI_UNKNOWN_BYTES);
    for (uint32_t i = 0; q->generate && i != q->n_prompts; i++) {
        const struct wire_generate_request *w = &q->generate[i];
        REQUIRE(!w->text != !w->tokens);
        if (w->text) {
            check_text(w->text);
            REQUIRE(*w->text);
        } else {
            REQUIRE(w->tokens->n_ids);
        }
        check_text(w->request_id);
        check_text(w->user);
        check_sampling(w->sampling);
        REQUIRE(!w->prompt_only || w->has_prompt_logprobs);
    }
    if (q->fill)
        check_sampling(q->fill->sampling);
    if (q->tokenize)
        check_text(q->tokenize->text);
}

/* ---- replies ---- */

static uint32_t random_state;
static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 1664525 + 1013904223;
    return (random_state >> 8) % n;
}

static const char *piece(const void *context, int32_t id)
{
    static const char *const pieces[] = {"\xe2\x96\x81the", "<0xE4>",       "\"", "<n>",
                                         "\xe2\x96\x81",    "\xe4\xba\xba", "\\", ""};
    (void)context;
    return id >= 0 && id < 8 ? pieces[id] : NULL;
}

static int decode(const void *context, const int32_t *ids, size_t n, struct buf *ret)
{
    (void)context;
    (void)ids;
    return n ? buf_append_str(ret, "a\xe4\xba\xba ") : 0;
}

static void check_json(const char *text, size_t size)
{
    json_t *v = json_loadb(text, size, JSON_ALLOW_NUL, NULL);
    REQUIRE(v && json_is_object(v));
    json_decref(v);
}

/* Events of a stream, each in one line; only the last may be [DONE]. */
static void check_events(const struct buf *out)
{
    const char *at = out->data;
    while (at && *at) {
        const char *end = strstr(at, "\n\n");
        REQUIRE(end && strncmp(at, "data: ", 6) == 0 && !memchr(at, '\n', (size_t)(end - at)));
        if (strncmp(at, "data: [DONE]", 12) == 0)
            REQUIRE(!end[2]);
        else
            check_json(at + 6, (size_t)(end - at) - 6);
        at = end + 2;
    }
}

static const char *const texts[] = {"", "x", " \"\n\x01", "\xe4\xba\xba", "Par"};

static void logprobs_of(struct wire_token_logprob *l, const struct wire_top_logprob *top,
                        uint32_t n)
{
    for (uint32_t i = 0; i != n; i++)
        l[i] = (struct wire_token_logprob){(int32_t)random_below(9), -1.5f, top, random_below(3)};
}

/* Each choice that has not ended may get something. */
static int tell(struct openai_reply *r, uint32_t prompt, uint32_t n_choices, bool *ended, bool last,
                struct buf *out)
{
    static const struct wire_top_logprob top[] = {{1, -0.5f, ""}, {8, -3, ""}};
    struct wire_choice_delta deltas[16];
    struct wire_token_logprob logprobs[16][3], of_prompt[2];
    int32_t ids[16][3];
    const struct wire_usage usage = {.prompt_tokens = 3, .completion_tokens = 4};
    uint32_t n = 0;
    for (uint32_t k = 0; k != n_choices && n != 16; k++) {
        if (ended[k] || (!last && random_below(3) == 0))
            continue;
        uint32_t n_tokens = random_below(4);
        logprobs_of(logprobs[n], top, n_tokens);
        for (uint32_t i = 0; i != n_tokens; i++)
            ids[n][i] = logprobs[n][i].token;
        ended[k] = last || random_below(6) == 0;
        deltas[n] = (struct wire_choice_delta){
            .index = k,
            .text = texts[random_below(5)],
            .tokens = ids[n],
            .n_tokens = n_tokens,
            .logprobs = logprobs[n],
            .n_logprobs = n_tokens,
            .finish_reason = !ended[k]         ? WIRE_FINISH_UNSPECIFIED
                             : random_below(2) ? WIRE_FINISH_STOP
                                               : WIRE_FINISH_LENGTH,
            .stop = random_below(2) ? "x\"" : "",
            .has_stop_token = random_below(2),
            .stop_token = 9,
        };
        n++;
    }
    logprobs_of(of_prompt, top, 2);
    const struct wire_generate_response w = {
        .choices = deltas,
        .n_choices = n,
        .prompt_logprobs = of_prompt,
        .n_prompt_logprobs = random_below(3),
        .usage = last ? &usage : NULL,
        .has_seed = true,
        .seed = random_state,
    };
    return openai_reply_message(r, prompt, &(struct stream_message){.generate = &w}, out);
}

static int tell_fill(struct openai_reply *r, struct buf *out)
{
    const struct wire_usage usage = {.prompt_tokens = 3, .completion_tokens = 4};
    const char *const blanks[] = {"x"};
    const struct wire_filled_text result = {.text = "a x", .blanks = blanks, .n_blanks = 1};
    int code = 0;
    for (uint32_t i = 0; i != 3 && code == 0; i++) {
        const struct wire_blank_delta d = {
            .index = random_below(3), .text = texts[random_below(5)], .finish_reason = i % 3};
        const struct wire_fill_response w = {.blanks = &d,
                                             .n_blanks = 1,
                                             .results = &result,
                                             .n_results = i == 2,
                                             .usage = i == 2 ? &usage : NULL};
        code = openai_reply_message(r, 0, &(struct stream_message){.fill = &w}, out);
    }
    return code;
}

static void reply_to(const struct openai_request *q)
{
    const struct openai_identity identity = {
        .id = "1",
        .model = "m\"",
        .created = 1,
        .tokens = {.piece = piece, .decode = decode},
    };
    struct openai_reply *r;
    struct buf out = {0};
    bool ended[OPENAI_MAX_CHOICES] = {false};
    REQUIRE(openai_reply_new(q, &identity, &r) == 0);
    uint32_t n = q->n_prompts < 3 ? q->n_prompts : 3, choices = q->n_choices;
    choices = choices < 16 ? choices : 16;
    for (uint32_t round = 0; q->generate && round != 4; round++) {
        for (uint32_t p = 0; p != n; p++)
            REQUIRE(tell(r, p, choices, ended + p * choices, round == 3, &out) == 0);
    }
    if (q->fill)
        REQUIRE(tell_fill(r, &out) == 0);
    REQUIRE(openai_reply_finish(r, &out) == 0);
    if (q->stream)
        check_events(&out);
    else
        check_json(out.data, out.size);
    openai_reply_free(r);
    buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct openai_settings settings = {.dialogue = &dialogue_default};
    if (size < 2)
        return 0;
    struct openai_request *q;
    struct openai_error e;
    random_state = data[1];
    int r = openai_parse(&settings, data[0] % OPENAI_N_ROUTES, (const char *)data + 2, size - 2, &q,
                         &e);
    if (r < 0) {
        struct buf out = {0};
        REQUIRE(e.status >= 400 && e.status < 600 && e.type && *e.message);
        REQUIRE(openai_error_encode(&e, &out) == 0);
        check_json(out.data, out.size);
        buf_deinit(&out);
        return 0;
    }
    check_request(q);
    if (q->generate || q->fill)
        reply_to(q);
    openai_request_free(q);
    return 0;
}
