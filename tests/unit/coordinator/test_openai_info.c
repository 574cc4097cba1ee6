/* test_openai_info.c: errors, models, tokens and the version, byte for byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai.h"

static void expect(struct buf *b, const char *text)
{
    assert_non_null(b->data);
    assert_string_equal(b->data, text);
    buf_deinit(b);
}

static void an_error_has_openais_shape(void **state)
{
    (void)state;
    struct openai_error e;
    struct buf b = {0};
    openai_error_set(&e, 400, "temperature", "expected at most %d, found \"%s\"", 10, "x");
    assert_int_equal(openai_error_encode(&e, &b), 0);
    expect(&b, "{\"error\":{\"message\":\"expected at most 10, found \\\"x\\\"\",\"type\":"
               "\"invalid_request_error\",\"param\":\"temperature\",\"code\":null}}");
    openai_error_set(&e, 404, NULL, "no such page");
    assert_int_equal(openai_error_encode(&e, &b), 0);
    expect(&b, "{\"error\":{\"message\":\"no such page\",\"type\":\"not_found_error\","
               "\"param\":null,\"code\":\"not_found\"}}");
    openai_error_set(&e, 418, NULL, "short and stout");
    assert_string_equal(e.type, "invalid_request_error");
    openai_error_set(&e, 507, NULL, "full");
    assert_string_equal(e.type, "server_error");
}

static void statuses_follow_the_table(void **state)
{
    (void)state;
    static const struct {
        enum rpc_status rpc;
        int http;
        const char *type, *code;
    } rows[] = {
        {RPC_INVALID_ARGUMENT, 400, "invalid_request_error", NULL},
        {RPC_UNAUTHENTICATED, 401, "authentication_error", "invalid_api_key"},
        {RPC_PERMISSION_DENIED, 403, "permission_error", "permission_denied"},
        {RPC_NOT_FOUND, 404, "not_found_error", "not_found"},
        {RPC_ALREADY_EXISTS, 409, "invalid_request_error", "conflict"},
        {RPC_RESOURCE_EXHAUSTED, 429, "rate_limit_error", "rate_limit_exceeded"},
        {RPC_CANCELLED, 499, "server_error", "cancelled"},
        {RPC_INTERNAL, 500, "server_error", "internal_error"},
        {RPC_UNIMPLEMENTED, 501, "server_error", "not_implemented"},
        {RPC_UNAVAILABLE, 503, "server_error", "service_unavailable"},
        {RPC_ABORTED, 503, "server_error", "service_unavailable"},
        {RPC_DEADLINE_EXCEEDED, 504, "server_error", "deadline_exceeded"},
        {(enum rpc_status)77, 500, "server_error", "internal_error"},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        struct openai_error e;
        openai_error_from_rpc(&e, rows[i].rpc, "", 1500);
        if (e.status != rows[i].http)
            fail_msg("gRPC status %d: expected %d, found %d", rows[i].rpc, rows[i].http, e.status);
        assert_string_equal(e.type, rows[i].type);
        assert_string_equal(e.code ? e.code : "", rows[i].code ? rows[i].code : "");
        assert_int_equal(e.retry_after_ns, 1500);
        assert_string_equal(e.message, "the request failed");
        assert_string_equal(e.param, "");
    }
}

static void admission_names_the_field(void **state)
{
    (void)state;
    static const struct {
        const char *message, *param, *code;
    } rows[] = {
        {"temperature: expected a number from 0 to 10, found 11", "temperature", ""},
        {"beam.num_beams: expected at most 64, found 65", "num_beams", ""},
        {"the text is empty: send at least one character", "", ""},
        {"token 3: expected an id from 0 to 9, found 12", "", ""},
        {"over the context length of 2048 tokens: expected at most 2046 tokens, found 3000", "",
         "context_length_exceeded"},
        {"the prompt has 2048 tokens; the context length of 2048 leaves no room for an answer", "",
         "context_length_exceeded"},
    };
    for (size_t i = 0; i != ARRAY_LEN(rows); i++) {
        struct openai_error e;
        openai_error_from_rpc(&e, RPC_INVALID_ARGUMENT, rows[i].message, 0);
        assert_string_equal(e.message, rows[i].message);
        assert_string_equal(e.param, rows[i].param);
        assert_string_equal(e.code ? e.code : "", rows[i].code);
    }
}

static void models_tokens_and_version(void **state)
{
    (void)state;
    const struct wire_model_info m = {
        .id = "glm-130b", .architecture = "glm", .context_length = 2048, .weights = "int4"};
    static const char one[] =
        "{\"id\":\"glm-130b\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"glmd\","
        "\"root\":\"glm-130b\",\"parent\":null,\"max_model_len\":2048,\"architecture\":\"glm\","
        "\"weights\":\"int4\",\"digest\":null}";
    struct buf b = {0};
    assert_int_equal(openai_model_encode(&m, 1700000000, &b), 0);
    expect(&b, one);
    assert_int_equal(openai_models_encode(&m, 1, 1700000000, &b), 0);
    char list[512];
    snprintf(list, sizeof list, "{\"object\":\"list\",\"data\":[%s]}", one);
    expect(&b, list);
    struct openai_request q = {.route = OPENAI_TOKENIZE};
    const struct wire_tokenize_response w = {
        .ids = (const int32_t[]){5, 6},
        .n_ids = 2,
        .pieces = (const char *const[]){"\xe2\x96\x81the", NULL},
        .n_pieces = 2,
    };
    assert_int_equal(openai_tokenize_encode(&q, &w, 2048, &b), 0);
    expect(&b, "{\"count\":2,\"max_model_len\":2048,\"tokens\":[5,6],\"token_strs\":null}");
    q.token_strs = true;
    assert_int_equal(openai_tokenize_encode(&q, &w, 2048, &b), 0);
    expect(&b, "{\"count\":2,\"max_model_len\":2048,\"tokens\":[5,6],"
               "\"token_strs\":[\"\xe2\x96\x81the\",\"\"]}");
    const struct wire_detokenize_response d = {.text = "a \"b\""};
    assert_int_equal(openai_detokenize_encode(&d, &b), 0);
    expect(&b, "{\"prompt\":\"a \\\"b\\\"\"}");
    assert_int_equal(openai_tokenizer_encode("</s>", 2048, &b), 0);
    expect(&b, "{\"tokenizer_class\":\"icetk\",\"model_max_length\":2048,\"eos_token\":\"</s>\","
               "\"bos_token\":null,\"pad_token\":null,\"chat_template\":null}");
    assert_int_equal(openai_version_encode("0.1.0", &b), 0);
    expect(&b, "{\"version\":\"0.1.0\"}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_has_openais_shape),
        cmocka_unit_test(statuses_follow_the_table),
        cmocka_unit_test(admission_names_the_field),
        cmocka_unit_test(models_tokens_and_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
