/* test_kserve.c: what requests of the Open Inference Protocol ask for, and what answers hold. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/kserve.h"

static const int64_t one[] = {1}, pair[] = {1, 1}, two[] = {2};

/* 1 begins a word. */
static const char *piece_of(const void *context, int32_t id)
{
    (void)context;
    return id == 1 ? "\xe2\x96\x81x" : "x";
}

static struct wire_bytes bytes(const char *text)
{
    return (struct wire_bytes){strlen(text), (const uint8_t *)text};
}

static const struct wire_bytes river = {9, (const uint8_t *)"The river"};
static const struct wire_kserve_contents river_contents = {.bytes_contents = &river,
                                                           .n_bytes_contents = 1};
static const struct wire_kserve_tensor river_tensor = {.name = "text_input",
                                                       .datatype = "BYTES",
                                                       .shape = one,
                                                       .n_shape = 1,
                                                       .contents = &river_contents};

/* A request of one text and these parameters. */
static struct wire_kserve_infer_request request(const struct wire_kserve_entry *parameters,
                                                uint32_t n)
{
    return (struct wire_kserve_infer_request){
        .model_name = "glm",
        .model_version = "",
        .id = "7",
        .parameters = parameters,
        .n_parameters = n,
        .inputs = &river_tensor,
        .n_inputs = 1,
    };
}

static void read_ok(const struct wire_kserve_infer_request *w, struct kserve_request *q)
{
    struct err e = ERR_INIT;
    if (kserve_read(w, q, &e) < 0)
        fail_msg("%s", e.message);
}

static void expect_bad(const struct wire_kserve_infer_request *w, int code, const char *message)
{
    struct kserve_request q;
    struct err e = ERR_INIT;
    int r = kserve_read(w, &q, &e);
    if (r != code || e.code != code || strncmp(e.message, message, strlen(message)) != 0)
        fail_msg("expected %d \"%s...\", found %d \"%s\"", code, message, r, e.message);
    kserve_request_deinit(&q);
}

static void expect_bad_parameter(const char *key, struct wire_kserve_parameter value,
                                 const char *message)
{
    const struct wire_kserve_entry entry = {key, &value};
    const struct wire_kserve_infer_request w = request(&entry, 1);
    expect_bad(&w, -EINVAL, message);
}

#define TEXT(x)   ((struct wire_kserve_parameter){.has_string_param = true, .string_param = x})
#define INT(x)    ((struct wire_kserve_parameter){.has_int64_param = true, .int64_param = x})
#define UINT(x)   ((struct wire_kserve_parameter){.has_uint64_param = true, .uint64_param = x})
#define NUMBER(x) ((struct wire_kserve_parameter){.has_double_param = true, .double_param = x})
#define BOOL(x)   ((struct wire_kserve_parameter){.has_bool_param = true, .bool_param = x})

static void parameters_of_every_kind(void **state)
{
    (void)state;
    const struct wire_kserve_parameter values[] = {
        NUMBER(0.5), TEXT("0.25"), INT(-1),   INT(12),        UINT(UINT64_MAX), TEXT("end"),
        BOOL(true),  TEXT("True"), TEXT("2"), TEXT("[3, 4]"), UINT(1500000)};
    const struct wire_kserve_entry entries[] = {
        {"temperature", &values[0]}, {"top_p", &values[1]},
        {"top_k", &values[2]},       {"max_tokens", &values[3]},
        {"seed", &values[4]},        {"stop", &values[5]},
        {"ignore_eos", &values[6]},  {"include_stop_str_in_output", &values[7]},
        {"n", &values[8]},           {"stop_token_ids", &values[9]},
        {"timeout", &values[10]},    {"triton_enable_empty_final_response", &values[6]},
    };
    const struct wire_kserve_infer_request w = request(entries, ARRAY_LEN(entries));
    struct kserve_request q;
    read_ok(&w, &q);
    const struct wire_sampling_parameters *s = q.generate.sampling;
    assert_ptr_equal(s, &q.sampling);
    assert_string_equal(q.generate.text, "The river");
    assert_string_equal(q.generate.model, "glm");
    assert_string_equal(q.generate.request_id, "7");
    assert_true(s->has_temperature && s->temperature == 0.5f);
    assert_true(s->has_top_p && s->top_p == 0.25f);
    assert_int_equal(s->top_k, 0);
    assert_int_equal(q.generate.max_tokens, 12);
    assert_true(s->has_seed && s->seed == UINT64_MAX);
    assert_int_equal(s->n_stop, 1);
    assert_string_equal(s->stop[0], "end");
    assert_true(s->ignore_end && s->include_stop);
    assert_int_equal(q.generate.n, 2);
    assert_int_equal(s->n_stop_token_ids, 2);
    assert_int_equal(s->stop_token_ids[1], 4);
    assert_int_equal(q.timeout_us, 1500000);
    assert_true(q.echo && !q.stream && !q.raw);
    assert_true(q.outputs[KSERVE_TEXT] && !q.outputs[KSERVE_FINISH_REASON]);
    kserve_request_deinit(&q);
}

static void sampling_parameters_as_json(void **state)
{
    (void)state;
    static const char json[] = "{\"temperature\": \"0.1\", \"top_p\": 0.95, \"max_tokens\": 9,"
                               " \"stop\": [\"a\", \"[\"], \"seed\": null, \"ignore_eos\": true}";
    struct buf raw_text = {0}, raw_json = {0};
    uint32_t length = 9, json_length = sizeof json - 1;
    buf_append(&raw_text, &length, 4);
    buf_append(&raw_text, "The river", 9);
    buf_append(&raw_json, &json_length, 4);
    buf_append(&raw_json, json, json_length);
    const struct wire_kserve_tensor inputs[] = {
        {.name = "text_input", .datatype = "BYTES", .shape = pair, .n_shape = 2},
        {.name = "sampling_parameters", .datatype = "BYTES", .shape = one, .n_shape = 1},
        {.name = "stream", .datatype = "BOOL", .shape = one, .n_shape = 1},
    };
    const struct wire_bytes raw[] = {{raw_text.size, (uint8_t *)raw_text.data},
                                     {raw_json.size, (uint8_t *)raw_json.data},
                                     {1, (const uint8_t *)"\1"}};
    struct wire_kserve_infer_request w = request(NULL, 0);
    w.inputs = inputs;
    w.n_inputs = 3;
    w.raw_input_contents = raw;
    w.n_raw_input_contents = 3;
    struct kserve_request q;
    read_ok(&w, &q);
    assert_string_equal(q.generate.text, "The river");
    assert_true(q.sampling.temperature == 0.1f && q.sampling.top_p == 0.95f);
    assert_int_equal(q.generate.max_tokens, 9);
    assert_int_equal(q.sampling.n_stop, 2);
    assert_string_equal(q.sampling.stop[1], "[");
    assert_false(q.sampling.has_seed);
    assert_true(q.sampling.ignore_end && q.stream && q.raw && !q.echo);
    kserve_request_deinit(&q);
    w.n_raw_input_contents = 2;
    expect_bad(&w, -EINVAL, "raw_input_contents: expected one for each of 3 inputs, found 2");
    buf_deinit(&raw_text);
    buf_deinit(&raw_json);
}

static void bad_parameters_are_named(void **state)
{
    (void)state;
    expect_bad_parameter("temprature", NUMBER(1), "parameters: \"temprature\" is not one");
    expect_bad_parameter("temperature", TEXT("warm"), "temperature: expected a number");
    expect_bad_parameter("temperature", BOOL(true), "temperature: expected a number");
    expect_bad_parameter("max_tokens", INT(-1), "max_tokens: expected a whole number");
    expect_bad_parameter("max_tokens", NUMBER(1.5), "max_tokens: expected a whole number");
    expect_bad_parameter("max_tokens", UINT(UINT64_C(1) << 32), "max_tokens: expected at most");
    expect_bad_parameter("seed", TEXT("1e300"), "seed: expected a whole number");
    expect_bad_parameter("stop", INT(3), "stop: expected a text or a list");
    expect_bad_parameter("stop", TEXT("[1]"), "stop: expected a list of texts");
    expect_bad_parameter("stop_token_ids", TEXT("[\"a\"]"), "stop_token_ids: expected a list");
    expect_bad_parameter("stop_token_ids", TEXT("[-1]"), "stop_token_ids: expected a list");
    expect_bad_parameter("ignore_eos", INT(1), "ignore_eos: expected true or false");
    expect_bad_parameter("timeout", UINT(UINT64_MAX), "timeout: expected microseconds");
    expect_bad_parameter("n", (struct wire_kserve_parameter){0}, "parameters: one has no value");
    const struct wire_kserve_parameter yes = BOOL(true), no = BOOL(false);
    const struct wire_kserve_entry both[] = {{"stream", &yes}, {"exclude_input_in_output", &no}};
    const struct wire_kserve_infer_request w = request(both, 2);
    expect_bad(&w, -EINVAL, "exclude_input_in_output: ");
}

static void bad_tensors_are_named(void **state)
{
    (void)state;
    struct wire_kserve_infer_request w = request(NULL, 0);
    struct wire_kserve_tensor t = river_tensor;
    w.inputs = &t;
    t.name = "prompt";
    expect_bad(&w, -EINVAL, "inputs: there is no such tensor");
    t = river_tensor;
    t.datatype = "FP32";
    expect_bad(&w, -EINVAL, "text_input: expected datatype BYTES");
    t = river_tensor;
    t.shape = two;
    expect_bad(&w, -EINVAL, "text_input: expected shape");
    t.n_shape = 0;
    expect_bad(&w, -EINVAL, "text_input: expected shape");
    t = river_tensor;
    t.contents = NULL;
    expect_bad(&w, -EINVAL, "text_input: expected one element");
    const struct wire_bytes not_utf8 = {2, (const uint8_t *)"\xff\xff"};
    const struct wire_kserve_contents contents = {.bytes_contents = &not_utf8,
                                                  .n_bytes_contents = 1};
    t.contents = &contents;
    expect_bad(&w, -EINVAL, "text_input: expected UTF-8");
    t = river_tensor;
    struct wire_bytes raw = {3, (const uint8_t *)"\1\0\0"};
    w.raw_input_contents = &raw;
    w.n_raw_input_contents = 1;
    expect_bad(&w, -EINVAL, "text_input: expected contents or raw");
    t.contents = NULL;
    expect_bad(&w, -EINVAL, "text_input: expected one element, its length");
    raw = (struct wire_bytes){6, (const uint8_t *)"\1\0\0\0ab"};
    expect_bad(&w, -EINVAL, "text_input: expected one element, its length");
    w = request(NULL, 0);
    w.n_inputs = 0;
    expect_bad(&w, -EINVAL, "text_input: expected this tensor, found none");
    const struct wire_kserve_output output = {.name = "logits"};
    w = request(NULL, 0);
    w.outputs = &output;
    w.n_outputs = 1;
    expect_bad(&w, -EINVAL, "outputs: there is no such tensor");
    w = request(NULL, 0);
    w.model_version = "2";
    expect_bad(&w, -ENOENT, "model_version: ");
}

/* ---- answers ---- */

static struct wire_kserve_stream_response *pack(struct kserve_answer *a, struct buf *out)
{
    struct wire_kserve_stream_response *s;
    struct err e = ERR_INIT;
    buf_clear(out);
    assert_int_equal(kserve_pack(a, "glm", true, out), 0);
    assert_int_equal(wire_unpack_kserve_stream_response((uint8_t *)out->data, out->size, &s, &e),
                     0);
    assert_string_equal(s->error_message, "");
    assert_string_equal(s->infer_response->model_name, "glm");
    assert_string_equal(s->infer_response->id, "the id");
    return s;
}

static void expect_text(struct wire_bytes found, const char *expected)
{
    assert_int_equal(found.size, strlen(expected));
    assert_memory_equal(found.data, expected, found.size);
}

static void streamed_answers_tell_what_is_new(void **state)
{
    (void)state;
    static const int32_t ids[] = {1, 2};
    struct kserve_request q = {.stream = true, .generate = {.n = 2, .text = "x"}};
    memset(q.outputs, true, sizeof q.outputs);
    struct kserve_answer a;
    struct buf out = {0};
    assert_int_equal(kserve_answer_init(&a, &q, "the id", piece_of, NULL), 0);
    const struct wire_token_logprob logprob = {.logprob = -0.5f};
    const struct wire_choice_delta first = {.index = 1,
                                            .text = "ab",
                                            .tokens = ids,
                                            .n_tokens = 1,
                                            .logprobs = &logprob,
                                            .n_logprobs = 1};
    assert_int_equal(kserve_take(&a, &(struct wire_generate_response){.has_seed = true}), 0);
    assert_int_equal(
        kserve_take(&a, &(struct wire_generate_response){.choices = &first, .n_choices = 1}), 1);
    struct wire_kserve_stream_response *s = pack(&a, &out);
    const struct wire_kserve_tensor *t = s->infer_response->outputs;
    assert_int_equal(s->infer_response->n_outputs, KSERVE_N_OUTPUTS);
    assert_string_equal(t[KSERVE_TEXT].name, "text_output");
    assert_int_equal(t[KSERVE_TEXT].shape[0], 2);
    expect_text(t[KSERVE_TEXT].contents->bytes_contents[0], "");
    expect_text(t[KSERVE_TEXT].contents->bytes_contents[1], "ab");
    assert_true(t[KSERVE_LOGPROB].contents->fp32_contents[1] == -0.5f);
    assert_int_equal(t[KSERVE_OUTPUT_TOKENS].contents->uint_contents[1], 1);
    assert_false(s->infer_response->parameters[0].value->bool_param);
    wire_free_kserve_stream_response(s);

    const struct wire_choice_delta second = {
        .index = 1, .text = "c", .tokens = ids, .n_tokens = 2, .finish_reason = WIRE_FINISH_LENGTH};
    const struct wire_usage usage = {.prompt_tokens = 5};
    assert_int_equal(kserve_take(&a, &(struct wire_generate_response){.choices = &second,
                                                                      .n_choices = 1,
                                                                      .usage = &usage}),
                     1);
    s = pack(&a, &out);
    t = s->infer_response->outputs;
    expect_text(t[KSERVE_TEXT].contents->bytes_contents[1], "c");
    expect_text(t[KSERVE_FINISH_REASON].contents->bytes_contents[1], "length");
    assert_int_equal(t[KSERVE_INPUT_TOKENS].contents->uint_contents[0], 5);
    assert_int_equal(t[KSERVE_OUTPUT_TOKENS].contents->uint_contents[1], 2);
    assert_string_equal(s->infer_response->parameters[0].key, "triton_final_response");
    assert_true(s->infer_response->parameters[0].value->bool_param);
    wire_free_kserve_stream_response(s);
    kserve_answer_deinit(&a);
    buf_deinit(&out);
}

/* "The river" + "flows": the detokenizer leaves the blank of a first word out. */
static void words_go_on_behind_the_prompt(void **state)
{
    (void)state;
    static const struct {
        const char *prompt;
        int32_t token;
        const char *text, *whole;
    } rows[] = {
        {"The river", 1, "flows", "The river flows"},
        {"The river", 2, "s", "The rivers"},
        {"The river ", 1, "flows", "The river flows"},
        {"The river", 1, ",", "The river,"},
        {"天地", 1, "flows", "天地flows"},
        {"The [MASK] is", 1, "river", "The [MASK] isriver"},
    };
    for (size_t i = 0; i != 2 * ARRAY_LEN(rows); i++) {
        bool stream = i % 2;
        struct kserve_request q = {
            .echo = !stream, .stream = stream, .text = (char *)rows[i / 2].prompt};
        const size_t n_prompt = strlen(rows[i / 2].prompt);
        const struct wire_choice_delta deltas[] = {
            {.text = rows[i / 2].text},
            {.tokens = &rows[i / 2].token, .n_tokens = 1},
            {.text = "!", .finish_reason = WIRE_FINISH_STOP},
        };
        const struct wire_usage usage = {0};
        struct kserve_answer a;
        struct buf out = {0}, found = {0};
        q.outputs[KSERVE_TEXT] = true;
        assert_int_equal(kserve_answer_init(&a, &q, "the id", piece_of, NULL), 0);
        for (size_t k = 0; k != ARRAY_LEN(deltas); k++) {
            bool last = k + 1 == ARRAY_LEN(deltas);
            const struct wire_generate_response w = {
                .choices = &deltas[k], .n_choices = 1, .usage = last ? &usage : NULL};
            assert_int_equal(kserve_take(&a, &w), stream || last);
            if (!stream && !last)
                continue;
            struct wire_kserve_stream_response *s = pack(&a, &out);
            struct wire_bytes text = s->infer_response->outputs[0].contents->bytes_contents[0];
            assert_int_equal(buf_append(&found, text.data, text.size), 0);
            wire_free_kserve_stream_response(s);
        }
        char expected[64];
        snprintf(expected, sizeof expected, "%s!", rows[i / 2].whole + (stream ? n_prompt : 0));
        expect_text((struct wire_bytes){found.size, (uint8_t *)found.data}, expected);
        kserve_answer_deinit(&a);
        buf_deinit(&out);
        buf_deinit(&found);
    }
}

static void whole_answers_repeat_their_input_and_may_be_raw(void **state)
{
    (void)state;
    struct kserve_request q = {.echo = true, .raw = true, .text = (char *)"The "};
    q.outputs[KSERVE_TEXT] = q.outputs[KSERVE_INPUT_TOKENS] = true;
    struct kserve_answer a;
    struct buf out = {0};
    assert_int_equal(kserve_answer_init(&a, &q, "the id", piece_of, NULL), 0);
    const struct wire_choice_delta delta = {.text = "river"};
    const struct wire_usage usage = {.prompt_tokens = 258};
    assert_int_equal(
        kserve_take(&a, &(struct wire_generate_response){.choices = &delta, .n_choices = 1}), 0);
    assert_int_equal(kserve_take(&a, &(struct wire_generate_response){.usage = &usage}), 1);
    struct wire_kserve_stream_response *s = pack(&a, &out);
    const struct wire_kserve_infer_response *r = s->infer_response;
    assert_int_equal(r->n_outputs, 2);
    assert_null(r->outputs[0].contents);
    assert_int_equal(r->n_raw_output_contents, 2);
    assert_int_equal(r->raw_output_contents[0].size, 13);
    assert_memory_equal(r->raw_output_contents[0].data, "\x09\0\0\0The river", 13);
    assert_int_equal(r->raw_output_contents[1].size, 4);
    assert_memory_equal(r->raw_output_contents[1].data, "\x02\x01\0\0", 4);
    wire_free_kserve_stream_response(s);
    kserve_answer_deinit(&a);
    buf_deinit(&out);
    expect_text(bytes("The "), q.text); /* left as it was */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_of_every_kind),
        cmocka_unit_test(sampling_parameters_as_json),
        cmocka_unit_test(bad_parameters_are_named),
        cmocka_unit_test(bad_tensors_are_named),
        cmocka_unit_test(streamed_answers_tell_what_is_new),
        cmocka_unit_test(words_go_on_behind_the_prompt),
        cmocka_unit_test(whole_answers_repeat_their_input_and_may_be_raw),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
