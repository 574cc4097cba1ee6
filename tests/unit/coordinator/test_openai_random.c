/* test_openai_random.c: whatever way an output comes in pieces, the stream's events put together
 * say what the one body says; and requests survive being written in another order. Prints what a
 * delta costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "openai_rig.h"
#include "tests/support/random.h"

/* ---- outputs in pieces ---- */

enum { MAX_TOKENS = 12, N_CHOICES = 2 };

/* The text of each id of the rig's vocabulary, as a detokenizer would give it. */
static const char *const words[] = {"Paris", " is", ".", "人", "", "x", "\t", "\n"};

struct generated {
    int32_t ids[MAX_TOKENS];
    struct wire_token_logprob logprobs[MAX_TOKENS];
    uint32_t n;
    enum wire_finish_reason finish;
};

static void make_output(struct generated *o)
{
    static const struct wire_top_logprob top[] = {{1, -0.5f, ""}, {3, -2.5f, ""}};
    o->n = random_below(MAX_TOKENS);
    o->finish = random_below(2) ? WIRE_FINISH_STOP : WIRE_FINISH_LENGTH;
    for (uint32_t i = 0; i != o->n; i++) {
        o->ids[i] = (int32_t)random_below(ARRAY_LEN(words));
        o->logprobs[i] =
            (struct wire_token_logprob){o->ids[i], -(float)random_below(1000) / 64, top, 2};
    }
}

struct session {
    struct openai_request *q;
    struct openai_reply *r;
    struct buf out;
};

static void session_open(struct session *s, enum openai_route route, const char *body)
{
    struct openai_error e;
    *s = (struct session){0};
    if (openai_parse(&rig_settings, route, body, strlen(body), &s->q, &e) < 0)
        fail_msg("%s: %s", body, e.message);
    assert_int_equal(openai_reply_new(s->q, rig_identity(), &s->r), 0);
}

static void session_close(struct session *s)
{
    openai_reply_free(s->r);
    openai_request_free(s->q);
    buf_deinit(&s->out);
}

/* Tokens [from, to) of output k; the text may be ahead of them by one that is told later. */
static void tell(struct session *s, uint32_t k, const struct generated *o, uint32_t from,
                 uint32_t to)
{
    struct buf text = {0};
    for (uint32_t i = from; i != to; i++)
        buf_append_str(&text, words[o->ids[i]]);
    const struct wire_choice_delta d = {
        .index = k,
        .text = text.data ? text.data : "",
        .tokens = o->ids + from,
        .n_tokens = to - from,
        .logprobs = o->logprobs + from,
        .n_logprobs = to - from,
        .finish_reason = to == o->n ? o->finish : WIRE_FINISH_UNSPECIFIED,
    };
    const struct wire_generate_response w = {.choices = &d, .n_choices = 1};
    assert_int_equal(
        openai_reply_message(s->r, 0, &(struct stream_message){.generate = &w}, &s->out), 0);
    buf_deinit(&text);
}

static void tell_all(struct session *s, const struct generated *o, bool at_once)
{
    static const struct wire_usage usage = {.prompt_tokens = 3, .completion_tokens = 7};
    uint32_t told[N_CHOICES] = {0};
    bool ended[N_CHOICES] = {false};
    while (!ended[0] || !ended[1]) {
        uint32_t k = random_below(N_CHOICES);
        uint32_t n = at_once ? o[k].n : random_below(3);
        if (ended[k])
            continue;
        n = MIN(n, o[k].n - told[k]);
        tell(s, k, &o[k], told[k], told[k] + n);
        told[k] += n;
        ended[k] = told[k] == o[k].n;
    }
    const struct wire_generate_response last = {.usage = &usage};
    assert_int_equal(
        openai_reply_message(s->r, 0, &(struct stream_message){.generate = &last}, &s->out), 0);
    assert_int_equal(openai_reply_finish(s->r, &s->out), 0);
}

/* ---- putting a stream together, as clients do ---- */

static void append_text(json_t *object, const char *key, const char *more)
{
    const char *have = json_string_value(json_object_get(object, key));
    struct buf b = {0};
    buf_append_str(&b, have ? have : "");
    buf_append_str(&b, more);
    json_object_set_new(object, key, json_string(b.data));
    buf_deinit(&b);
}

/* Lists of `more` behind those of `all`. */
static void extend_lists(json_t *all, const json_t *more)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)more, key, v)
    {
        json_t *have = json_object_get(all, key);
        if (json_is_array(have) && json_is_array(v))
            assert_int_equal(json_array_extend(have, v), 0);
        else
            json_object_set(all, key, v);
    }
}

/* One choice of an event into the whole: texts and lists grow, the rest is replaced. */
static void merge_choice(json_t *all, const json_t *choice)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)choice, key, v)
    {
        json_t *have = json_object_get(all, key);
        if (strcmp(key, "text") == 0)
            append_text(all, "text", json_string_value(v));
        else if (strcmp(key, "delta") == 0)
            append_text(all, "text", json_string_value(json_object_get(v, "content")));
        else if (json_is_object(have) && json_is_object(v))
            extend_lists(have, v);
        else if (json_is_array(have) && json_is_array(v))
            assert_int_equal(json_array_extend(have, v), 0);
        else
            json_object_set(all, key, v);
    }
}

static json_t *merge_stream(const struct buf *out)
{
    json_t *choices = json_pack("[{}, {}]");
    for (const char *at = out->data; strncmp(at, "data: [DONE]", 12) != 0;) {
        const char *end = strstr(at, "\n\n");
        assert_non_null(end);
        json_t *event = json_loadb(at + 6, (size_t)(end - at) - 6, 0, NULL);
        assert_non_null(event);
        const json_t *list = json_object_get(event, "choices");
        for (size_t i = 0; i != json_array_size(list); i++) {
            const json_t *c = json_array_get(list, i);
            size_t k = (size_t)json_integer_value(json_object_get(c, "index"));
            merge_choice(json_array_get(choices, k), c);
        }
        json_decref(event);
        at = end + 2;
    }
    return choices;
}

/* A gathered body's choices, with chats' messages as texts. */
static json_t *whole_choices(const struct buf *out)
{
    json_t *body = json_loadb(out->data, out->size, 0, NULL);
    assert_non_null(body);
    json_t *choices = json_incref(json_object_get(body, "choices"));
    for (size_t i = 0; i != json_array_size(choices); i++) {
        json_t *c = json_array_get(choices, i);
        json_t *message = json_object_get(c, "message");
        if (message) {
            json_object_set(c, "text", json_object_get(message, "content"));
            json_object_del(c, "message");
        }
    }
    json_decref(body);
    return choices;
}

static void a_stream_says_what_the_body_says(void **state)
{
    (void)state;
    static const struct {
        enum openai_route route;
        const char *fields;
    } rows[] = {
        {OPENAI_COMPLETIONS, "\"prompt\":\"so\""},
        {OPENAI_COMPLETIONS, "\"prompt\":\"so\",\"logprobs\":2,\"return_token_ids\":true"},
        {OPENAI_COMPLETIONS, "\"prompt\":\"so \",\"logprobs\":2,\"echo\":true"},
        {OPENAI_COMPLETIONS, "\"prompt\":[1,2],\"echo\":true,\"return_token_ids\":true"},
        {OPENAI_CHAT, "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":true,"
                      "\"top_logprobs\":2,\"return_token_ids\":true"},
    };
    for (int round = 0; round != 1500; round++) {
        size_t row = random_below(ARRAY_LEN(rows));
        struct generated outputs[N_CHOICES];
        struct session stream, whole;
        char body[256];
        for (int k = 0; k != N_CHOICES; k++)
            make_output(&outputs[k]);
        snprintf(body, sizeof body, "{%s,\"n\":2,\"stream\":true}", rows[row].fields);
        session_open(&stream, rows[row].route, body);
        snprintf(body, sizeof body, "{%s,\"n\":2}", rows[row].fields);
        session_open(&whole, rows[row].route, body);
        tell_all(&stream, outputs, false);
        tell_all(&whole, outputs, true);
        json_t *merged = merge_stream(&stream.out), *expected = whole_choices(&whole.out);
        if (!json_equal(merged, expected))
            fail_msg("round %d: %s\nstream: %s\nmerged: %s\nwhole:  %s", round, body,
                     stream.out.data, json_dumps(merged, 0), whole.out.data);
        json_decref(merged);
        json_decref(expected);
        session_close(&stream);
        session_close(&whole);
    }
}

/* ---- requests ---- */

static void the_order_of_fields_does_not_matter(void **state)
{
    (void)state;
    static const char *const fields[] = {
        "\"prompt\":[\"a\",[1,2]]",
        "\"n\":2",
        "\"best_of\":3",
        "\"echo\":true",
        "\"logprobs\":3",
        "\"stop\":[\"x\",\"y\"]",
        "\"seed\":-9",
        "\"top_p\":0.5",
        "\"logit_bias\":{\"1\":2}",
        "\"user\":\"u\"",
        "\"stream\":true",
        "\"stream_options\":{\"include_usage\":true}",
        "\"max_tokens\":5",
        "\"priority\":-2",
    };
    char expected[2048] = "";
    for (int round = 0; round != 500; round++) {
        size_t order[ARRAY_LEN(fields)] = {0};
        struct buf b = {0};
        for (size_t i = 0; i != ARRAY_LEN(fields); i++) {
            size_t k = random_below((uint32_t)i + 1);
            order[i] = order[k];
            order[k] = i;
        }
        buf_append_str(&b, "{ ");
        for (size_t i = 0; i != ARRAY_LEN(fields); i++)
            buf_printf(&b, "%s%*s%s", i ? "," : "", (int)random_below(3), "", fields[order[i]]);
        buf_append_str(&b, "}");
        const char *found = rig_parse(OPENAI_COMPLETIONS, b.data);
        if (round == 0)
            snprintf(expected, sizeof expected, "%s", found);
        assert_true(found[0] == '2');
        assert_string_equal(found, expected);
        buf_deinit(&b);
    }
}

/* Any one byte changed gives a request or an error, and both are whole. */
static void damaged_bodies_are_answered(void **state)
{
    (void)state;
    static const char body[] =
        "{\"prompt\":[\"a\",[1,2]],\"n\":2,\"stop\":[\"x\"],\"logit_bias\":{\"5\":1.5},\"seed\":3}";
    for (size_t i = 0; i != sizeof body - 1; i++) {
        for (int c = 1; c < 256; c += 3) {
            char copy[sizeof body];
            memcpy(copy, body, sizeof body);
            copy[i] = (char)c;
            const char *found =
                rig_parse_with(&rig_settings, OPENAI_COMPLETIONS, copy, sizeof body - 1);
            assert_true(*found >= '1' && *found <= '4');
        }
    }
}

/* ---- what it costs ---- */

static double microseconds_per_delta(const char *body)
{
    enum { N = 20000 };
    static const struct wire_top_logprob top[] = {{1, -0.5f, ""}, {3, -2.5f, ""}};
    static const struct wire_token_logprob lp = {1, -0.123f, top, 2};
    static const int32_t id = 1;
    const struct wire_choice_delta d = {
        .text = " word", .tokens = &id, .n_tokens = 1, .logprobs = &lp, .n_logprobs = 1};
    const struct wire_generate_response w = {.choices = &d, .n_choices = 1};
    struct session s;
    session_open(&s, OPENAI_COMPLETIONS, body);
    int64_t begin = clock_now_ns();
    for (int i = 0; i != N; i++) {
        buf_clear(&s.out);
        openai_reply_message(s.r, 0, &(struct stream_message){.generate = &w}, &s.out);
    }
    double us = (double)(clock_now_ns() - begin) / 1e3 / N;
    session_close(&s);
    return us;
}

static void a_delta_costs_microseconds(void **state)
{
    (void)state;
    double plain = microseconds_per_delta("{\"prompt\":\"a\",\"stream\":true}");
    double full = microseconds_per_delta("{\"prompt\":\"a\",\"stream\":true,\"logprobs\":2}");
    print_message("an event of one token: %.2f us, with log-probabilities %.2f us\n", plain, full);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_says_what_the_body_says),
        cmocka_unit_test(the_order_of_fields_does_not_matter),
        cmocka_unit_test(damaged_bodies_are_answered),
        cmocka_unit_test(a_delta_costs_microseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
