/* test_dialogue.c: conversations as text, and what a model directory may state about them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "model/dialogue.h"

static void expect_render(const struct dialogue *d, const struct dialogue_turn *turns, size_t n,
                          bool go_on, const char *expected)
{
    struct buf text = {0};
    assert_int_equal(dialogue_render(d, turns, n, go_on, &text), 0);
    assert_string_equal(text.data, expected);
    buf_deinit(&text);
}

static void a_conversation_is_one_text(void **state)
{
    (void)state;
    const struct dialogue_turn turns[] = {
        {DIALOGUE_SYSTEM, "Be brief."}, {DIALOGUE_USER, "你好"},
        {DIALOGUE_ASSISTANT, "Hello."}, {DIALOGUE_USER, "Where is {content}?"},
        {DIALOGUE_ASSISTANT, "It is"},
    };
    expect_render(&dialogue_default, turns, 1, false, "Be brief.\n\nAssistant:");
    expect_render(&dialogue_default, turns, 4, false,
                  "Be brief.\n\nUser: 你好\nAssistant: Hello.\nUser: Where is {content}?\n"
                  "Assistant:");
    expect_render(&dialogue_default, turns, 5, true,
                  "Be brief.\n\nUser: 你好\nAssistant: Hello.\nUser: Where is {content}?\n"
                  "Assistant: It is");
    expect_render(&dialogue_default, turns, 0, true, "Assistant:");
    struct buf small = {.limit = 20};
    assert_int_equal(dialogue_render(&dialogue_default, turns, 5, false, &small), -EFBIG);
    buf_deinit(&small);
}

/* Reads a dialogue from text; the message of the refusal, or "". */
static const char *read_text(const char *text, struct dialogue *ret)
{
    static struct err e;
    e = (struct err)ERR_INIT;
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(object);
    int r = dialogue_from_json(object, ret, &e);
    json_decref(object);
    assert_int_equal(r, e.code);
    return e.message;
}

static void a_model_may_have_its_own(void **state)
{
    (void)state;
    struct dialogue d;
    assert_string_equal(read_text("{\"begin\": \"[Round 1]\\n\", \"system\": \"{content}\\n\","
                                  " \"user\": \"问：{content}\\n\", \"assistant\":"
                                  " \"答：{content}\\n\", \"answer\": \"答：\","
                                  " \"stop\": [\"问：\"]}",
                                  &d),
                        "");
    expect_render(&d, &(struct dialogue_turn){DIALOGUE_USER, "几点？"}, 1, false,
                  "[Round 1]\n问：几点？\n答：");
    assert_int_equal(d.n_stops, 1);
    assert_string_equal(d.stops[0], "问：");
}

static void the_default_survives_a_round_trip(void **state)
{
    (void)state;
    struct dialogue d;
    json_t *object = dialogue_to_json(&dialogue_default);
    assert_non_null(object);
    assert_int_equal(dialogue_from_json(object, &d, NULL), 0);
    json_decref(object);
    assert_memory_equal(&d, &dialogue_default, sizeof d);
}

static void what_makes_no_sense_is_refused(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"[]", "expected an object"},
        {"{}", "system: missing; expected a string"},
        {"{\"system\": \"x\"}", "system: expected a text with \"{content}\" once"},
        {"{\"system\": \"{content}{content}\"}", "system: expected a text with \"{content}\" once"},
        {"{\"systen\": \"\"}",
         "\"systen\": expected begin, system, user, assistant, answer and stop"},
        {"{\"begin\": 1}", "begin: expected a string, found a number"},
        {"{\"system\": \"{content}\", \"user\": \"{content}\", \"assistant\": \"{content}\","
         " \"answer\": \"\", \"stop\": [\"\"]}",
         "stop: entry 0: expected a text of 1 to 63 bytes"},
        {"{\"system\": \"{content}\", \"user\": \"{content}\", \"assistant\": \"{content}\","
         " \"answer\": \"\", \"stop\": [1,2,3,4,5,6,7,8,9]}",
         "stop: expected a list of at most 8 texts"},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        struct dialogue d;
        assert_string_equal(read_text(rows[i][0], &d), rows[i][1]);
    }
    char text[1200], filler[DIALOGUE_TEXT_BYTES];
    memset(filler, 'x', sizeof filler);
    filler[sizeof filler - 1] = '\0';
    struct dialogue d;
    snprintf(text, sizeof text, "{\"begin\": \"%s\"}", filler);
    assert_string_equal(read_text(text, &d), "system: missing; expected a string");
    snprintf(text, sizeof text, "{\"begin\": \"%sx\"}", filler);
    assert_string_equal(read_text(text, &d), "begin: expected at most 511 bytes, found 512");
}

static void a_directory_states_it(void **state)
{
    (void)state;
    char dir[] = "/tmp/glmd-dialogue-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/generation_config.json", dir);
    struct dialogue d;
    struct err e = ERR_INIT;
    assert_int_equal(dialogue_load(dir, &d, &e), 0); /* no file */
    assert_memory_equal(&d, &dialogue_default, sizeof d);
    static const struct {
        const char *text;
        int code;
    } rows[] = {{"{\"top_k\": 0}", 0},
                {"{\"dialogue\": {\"answer\": \"\"}}", -EINVAL},
                {"{\"dialogue\": \"x\"}", -EINVAL},
                {"{\"dialogue\"", -EBADMSG}};
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fputs(rows[i].text, f);
        fclose(f);
        e = (struct err)ERR_INIT;
        int r = dialogue_load(dir, &d, &e);
        if (r != rows[i].code)
            fail_msg("%s: expected %d, found %d: %s", rows[i].text, rows[i].code, r, e.message);
        if (r < 0)
            assert_non_null(strstr(e.message, path));
    }
    unlink(path);
    rmdir(dir);
}

static void the_demo_model_states_the_default(void **state)
{
    (void)state;
    const char *root = getenv("GLMD_SOURCE_DIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/deploy/demo/model", root ? root : ".");
    struct dialogue d;
    struct err e = ERR_INIT;
    if (dialogue_load(path, &d, &e) < 0)
        fail_msg("%s", e.message);
    assert_memory_equal(&d, &dialogue_default, sizeof d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_conversation_is_one_text),
        cmocka_unit_test(a_model_may_have_its_own),
        cmocka_unit_test(the_default_survives_a_round_trip),
        cmocka_unit_test(what_makes_no_sense_is_refused),
        cmocka_unit_test(a_directory_states_it),
        cmocka_unit_test(the_demo_model_states_the_default),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
