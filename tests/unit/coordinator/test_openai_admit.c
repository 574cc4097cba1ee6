/* test_openai_admit.c: what the codec lets through is what admission takes: the limits of the two
 * are the same, and an admission message comes back with its field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "admit_rig.h"
#include "base/util.h"
#include "coordinator/openai_internal.h"
#include "openai_rig.h"

static int set_up(void **state)
{
    (void)state;
    return admit_set_up_limit(1 << 20); /* a setting; the codec's limit is above any */
}

/* Parses and admits. "" when both take it, else the error as the client sees it. */
static const char *offer(enum openai_route route, const char *body)
{
    static char message[600];
    struct openai_request *q;
    struct openai_error error;
    struct request *r = NULL;
    struct err e = ERR_INIT;
    message[0] = '\0';
    int code = openai_parse(&rig_settings, route, body, strlen(body), &q, &error);
    if (code == 0) {
        if (q->fill)
            code = admit_fill(&admit, q->fill, &r, &e);
        else if (!q->generate[0].prompt_only)
            code = admit_generate(&admit, &q->generate[0], &r, &e);
        request_free(r);
        r = NULL;
        if (code == 0 && q->generate && q->generate[0].has_prompt_logprobs)
            code = admit_echo(&admit, &q->generate[0], &r, &e);
        request_free(r);
        if (code < 0) {
            openai_error_from_rpc(&error, RPC_INVALID_ARGUMENT, e.message, 0);
            openai_error_rename(&error, q);
        }
        openai_request_free(q);
    }
    if (code < 0)
        snprintf(message, sizeof message, "%d %s: %s", error.status, error.param, error.message);
    return message;
}

static const char *const inputs[] = {
    [OPENAI_COMPLETIONS] = "\"prompt\":\"The river\"",
    [OPENAI_CHAT] = "\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]",
    [OPENAI_FILL] = "\"text\":\"The [MASK] river\",\"max_tokens\":1",
    [OPENAI_LEGACY] = "\"text\":\"The river\"",
};

/* What a field needs beside it. */
static const char *company(const char *name, double value)
{
    if (strcmp(name, "best_of") == 0)
        return ",\"temperature\":1";
    if (strcmp(name, "top_logprobs") == 0)
        return ",\"logprobs\":true";
    if (strcmp(name, "num_beams") == 0)
        return ",\"sampling_strategy\":\"BeamSearchStrategy\"";
    if (strcmp(name, "max_tokens") == 0 && value == 0)
        return ",\"echo\":true";
    return "";
}

/* The whole text's length is the model's context: not a limit of the codec's. */
static bool is_context(const char *name)
{
    return strcmp(name, "max_length") == 0;
}

static void limits_are_admissions(void **state)
{
    (void)state;
    size_t n = 0;
    for (size_t i = 0; i != openai_n_fields; i++) {
        const struct openai_field *f = &openai_fields[i];
        if ((f->type != OPENAI_INT && f->type != OPENAI_NUMBER) || is_context(f->name))
            continue;
        for (int route = OPENAI_COMPLETIONS; route <= OPENAI_LEGACY; route++) {
            for (int end = 0; f->routes >> route & 1 && end != 2; end++, n++) {
                char body[256];
                double value = end ? MIN(f->max, 0x1p62) : MAX(f->min, -0x1p62);
                snprintf(body, sizeof body, "{%s%s,\"%s\":%.17g}", inputs[route],
                         company(f->name, value), f->name, value);
                const char *found = offer((enum openai_route)route, body);
                if (*found && !strstr(found, "a whole number from"))
                    fail_msg("%s: %s", body, found);
            }
        }
    }
    assert_true(n > 100);
}

static void admissions_words_name_the_field(void **state)
{
    (void)state;
    static const struct {
        enum openai_route route;
        const char *body, *expected;
    } rows[] = {
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\",\"stop_token_ids\":[9999999]}",
         "400 stop_token_ids: stop_token_ids: expected ids from 0 to "},
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\",\"logit_bias\":{\"9999999\":1}}",
         "400 logit_bias: logit_bias: expected token ids from 0 to "},
        {OPENAI_COMPLETIONS, "{\"prompt\":[9999999]}",
         "400 prompt: prompt: token 0: expected an id from 0 to "},
        {OPENAI_LEGACY, "{\"prompt\":\"LONG\"}", "400 prompt: prompt: expected a text of at most "},
        {OPENAI_LEGACY, "{\"text\":\"LONG\"}", "400 text: text: expected a text of at most "},
        {OPENAI_FILL, "{\"text\":\"LONG\"}", "400 text: text: expected a text of at most "},
        {OPENAI_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"LONG\"}]}",
         "400 messages: messages: expected a text of at most "},
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\",\"num_beams\":2,\"stop\":\"x\"}",
         "400 stop: stop: "},
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\",\"best_of\":16,\"n\":16}", ""},
        {OPENAI_COMPLETIONS, "{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1,\"max_tokens\":0}",
         ""},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        struct buf body = {0};
        const char *at = strstr(rows[i].body, "LONG");
        size_t n = at ? (size_t)(at - rows[i].body) : strlen(rows[i].body);
        buf_append(&body, rows[i].body, n);
        for (size_t k = 0; at && k != admit.max_input_bytes; k++)
            buf_append(&body, "ab", 2);
        buf_append_str(&body, at ? at + 4 : "");
        const char *found = offer(rows[i].route, body.data);
        if (strncmp(found, rows[i].expected, strlen(rows[i].expected)) != 0 ||
            !*found != !*rows[i].expected)
            fail_msg("%s\nexpected: %s...\nfound:    %s", rows[i].body, rows[i].expected, found);
        buf_deinit(&body);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limits_are_admissions),
        cmocka_unit_test(admissions_words_name_the_field),
    };
    return cmocka_run_group_tests(tests, set_up, golden_tear_down);
}
