/* test_openai_parse.c: bodies and what becomes of them: every field, every limit, and what the
 * official Python client sends (recorded in openai_python.json). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "openai_rig.h"

struct row {
    const char *body, *expected;
};

static void expect_rows(enum openai_route route, const struct row *rows, size_t n)
{
    for (size_t i = 0; i != n; i++) {
        const char *found = rig_parse(route, rows[i].body);
        if (strcmp(found, rows[i].expected) != 0)
            fail_msg("%s\nexpected: %s\nfound:    %s", rows[i].body, rows[i].expected, found);
    }
}
#define EXPECT_ROWS(route, rows) expect_rows(route, rows, ARRAY_LEN(rows))

/* ---- completions ---- */

static void prompts_are_texts_or_ids(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"prompt\":\"a b\"}", "1 | text=\"a b\" max=16 ids"},
        {"{\"prompt\":[\"a\",\"b\"]}", "2 | text=\"a\" max=16 ids | text=\"b\" max=16 ids"},
        {"{\"prompt\":[5,6]}", "1 | tokens=5,6 max=16 ids"},
        {"{\"prompt\":[[5],[6,7]]}", "2 | tokens=5 max=16 ids | tokens=6,7 max=16 ids"},
        {"{\"prompt\":[\"a\",[6,7]]}", "2 | text=\"a\" max=16 ids | tokens=6,7 max=16 ids"},
        {"{\"prompt\":[[5.0]]}", "1 | tokens=5 max=16 ids"},
        {"{}", "400 prompt: prompt: missing"},
        {"{\"prompt\":null}", "400 prompt: prompt: missing"},
        {"{\"prompt\":\"\"}", "400 prompt: prompt: expected at least one character"},
        {"{\"prompt\":[]}", "400 prompt: prompt: expected at least one token id"},
        {"{\"prompt\":[[]]}", "400 prompt: prompt: expected at least one token id"},
        {"{\"prompt\":[5,\"a\"]}", "400 prompt: prompt: entry 1: expected a token id"},
        {"{\"prompt\":[[5,-1]]}", "400 prompt: prompt: entry 1: expected a token id"},
        {"{\"prompt\":[[5,2147483648]]}", "400 prompt: prompt: entry 1: expected a token id"},
        {"{\"prompt\":[[5,1.5]]}", "400 prompt: prompt: entry 1: expected a token id"},
        {"{\"prompt\":[\"a\",5]}",
         "400 prompt: prompt: expected a string, a list of token ids, or a list of these, found a "
         "number"},
        {"{\"prompt\":{}}",
         "400 prompt: prompt: expected a string, a list of token ids, or a list of these, found an "
         "object"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void a_suffix_makes_a_blank(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"prompt\":\"a \",\"suffix\":\" c\"}", "1 | text=\"a [MASK] c\" max=16 ids"},
        {"{\"prompt\":\"a\",\"suffix\":\"\"}", "1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"\",\"suffix\":\"c\"}", "1 | text=\"[MASK]c\" max=16 ids"},
        {"{\"prompt\":\"\",\"suffix\":\"\"}",
         "400 prompt: prompt: expected at least one character"},
        {"{\"prompt\":\"a [gMASK]\",\"suffix\":\"c\"}",
         "400 suffix: suffix: it puts a blank between prompt and suffix; neither may have one of "
         "its own (POST /v1/fill fills several)"},
        {"{\"prompt\":\"a\",\"suffix\":\"[MASK]\"}",
         "400 suffix: suffix: it puts a blank between prompt and suffix; neither may have one of "
         "its own (POST /v1/fill fills several)"},
        {"{\"prompt\":[1],\"suffix\":\"c\"}",
         "400 suffix: suffix: expected a prompt that is a string"},
        {"{\"prompt\":\"a\",\"suffix\":\"c\",\"echo\":true}",
         "1 echo | text=\"a[MASK]c\" max=16 ids"},
        {"{\"prompt\":\"a\",\"suffix\":\"c\",\"echo\":true,\"logprobs\":1}",
         "400 suffix: suffix: the prompt has no log-probabilities with it"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void echo_and_logprobs_score_the_prompt(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"echo\":true}", "1 echo | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"logprobs\":3}", "1 logprobs top_logprobs=3 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"logprobs\":0,\"max_tokens\":1}", "1 logprobs | text=\"a\" max=1 ids"},
        {"{\"prompt\":[1,2],\"echo\":true,\"logprobs\":2,\"max_tokens\":1,\"temperature\":0}",
         "1 echo t=0 logprobs top_logprobs=2 | tokens=1,2 max=1 ids prompt_logprobs=2"},
        {"{\"prompt\":\"a\",\"echo\":true,\"logprobs\":1,\"max_tokens\":0}",
         "1 echo logprobs top_logprobs=1 | text=\"a\" ids prompt_logprobs=1 prompt_only"},
        {"{\"prompt\":\"a\",\"echo\":true,\"max_tokens\":0}",
         "1 echo | text=\"a\" ids prompt_logprobs=0 prompt_only"},
        {"{\"prompt\":\"a\",\"max_tokens\":0}",
         "400 max_tokens: max_tokens: expected at least 1 without echo"},
        {"{\"prompt\":\"a\",\"logprobs\":21}",
         "400 logprobs: logprobs: expected a whole number from 0 to 20, found 21"},
        {"{\"prompt\":\"a\",\"logprobs\":true}",
         "400 logprobs: logprobs: expected a whole number, found a boolean"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void sampling_has_openais_defaults(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"temperature\":0.5,\"top_p\":0.25,\"top_k\":-1,\"min_p\":0.125}",
         "1 t=0.5 top_p=0.25 min_p=0.125 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"top_p\":0}", "1 top_k=1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"top_p\":1,\"top_k\":0}", "1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"repetition_penalty\":1.5,\"presence_penalty\":-2,"
         "\"frequency_penalty\":2}",
         "1 rep=1.5 pres=-2 freq=2 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"seed\":-1}", "1 seed=-1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"seed\":9223372036854775807}",
         "1 seed=9223372036854775807 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"seed\":9223372036854775808}",
         "400 seed: seed: expected a whole number from -9223372036854775808 to "
         "9223372036854775807, found 9.2233720368547758e+18"},
        {"{\"prompt\":\"a\",\"seed\":0,\"max_tokens\":7.0,\"min_tokens\":3,\"ignore_eos\":true}",
         "1 seed=0 min=3 ignore_end | text=\"a\" max=7 ids"},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"5\":-100,\"17\":2.5}}",
         "1 bias[5]=-100 bias[17]=2.5 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"logit_bias\":{}}", "1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"5\":1,\"-5\":1}}",
         "400 logit_bias: logit_bias: entry 1: expected a token id in quotes and a number from "
         "-100 to 100"},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"99999999999999999999\":1}}",
         "400 logit_bias: logit_bias: entry 0: expected a token id in quotes and a number from "
         "-100 to 100"},
        {"{\"prompt\":\"a\",\"logit_bias\":{\"5\":100.5}}",
         "400 logit_bias: logit_bias: entry 0: expected a token id in quotes and a number from "
         "-100 to 100"},
        {"{\"prompt\":\"a\",\"logit_bias\":[]}",
         "400 logit_bias: logit_bias: expected an object of at most 1024 token ids and numbers"},
        {"{\"prompt\":\"a\",\"temperature\":10.5}",
         "400 temperature: temperature: expected a number from 0 to 10, found 10.5"},
        {"{\"prompt\":\"a\",\"temperature\":\"1\"}",
         "400 temperature: temperature: expected a number, found a string"},
        {"{\"prompt\":\"a\",\"top_p\":-0.5}",
         "400 top_p: top_p: expected a number from 0 to 1, found -0.5"},
        {"{\"prompt\":\"a\",\"max_tokens\":1.5}",
         "400 max_tokens: max_tokens: expected a whole number from 0 to 1048576, found 1.5"},
        {"{\"prompt\":\"a\",\"max_tokens\":-1}",
         "400 max_tokens: max_tokens: expected a whole number from 0 to 1048576, found -1"},
        {"{\"prompt\":\"a\",\"ignore_eos\":1}",
         "400 ignore_eos: ignore_eos: expected true or false, found a number"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void stops_and_choices(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"stop\":\"x\"}", "1 stop=\"x\" | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stop\":[\"x\",\"\",\"y\"],\"include_stop_str_in_output\":true}",
         "1 stop=\"x\" stop=\"y\" include_stop | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stop\":[]}", "1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stop_token_ids\":[3,4]}", "1 stop_ids=3,4 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stop_token_ids\":3}",
         "400 stop_token_ids: stop_token_ids: expected a list of token ids, found a number"},
        {"{\"prompt\":\"a\",\"stop\":5}",
         "400 stop: stop: expected a string, or a list of at most 16"},
        {"{\"prompt\":\"a\",\"stop\":[1]}",
         "400 stop: stop: entry 0: expected a text of at most 256 bytes"},
        {"{\"prompt\":\"a\",\"n\":3,\"best_of\":5}", "1 | text=\"a\" max=16 n=3 best_of=5 ids"},
        {"{\"prompt\":\"a\",\"n\":3,\"best_of\":5,\"temperature\":0}",
         "1 t=0 | text=\"a\" max=16 n=3 ids"},
        {"{\"prompt\":\"a\",\"n\":3,\"best_of\":2}",
         "400 best_of: best_of: expected at least n, 3, found 2"},
        {"{\"prompt\":\"a\",\"n\":3,\"best_of\":5,\"temperature\":0}",
         "1 t=0 | text=\"a\" max=16 n=3 ids"},
        {"{\"prompt\":\"a\",\"n\":3,\"best_of\":2}",
         "400 best_of: best_of: expected at least n, 3, found 2"},
        {"{\"prompt\":\"a\",\"n\":17}", "400 n: n: expected a whole number from 1 to 16, found 17"},
        {"{\"prompt\":\"a\",\"n\":0}", "400 n: n: expected a whole number from 1 to 16, found 0"},
        {"{\"prompt\":\"a\",\"use_beam_search\":true,\"best_of\":4,\"length_penalty\":0.5}",
         "1 beams=4 lp=0.5 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"use_beam_search\":true,\"n\":2}",
         "1 beams=2 | text=\"a\" max=16 n=2 ids"},
        {"{\"prompt\":\"a\",\"num_beams\":8,\"no_repeat_ngram_size\":3}",
         "1 beams=8 ngram=3 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"unidirectional\":true,\"priority\":-5,\"user\":\"u\","
         "\"request_id\":\"r\"}",
         "1 | text=\"a\" max=16 unidirectional ids priority=-5 id=\"r\" user=\"u\""},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void streams_and_unknown_fields(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"stream\":true}", "1 stream | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":true,"
         "\"continuous_usage_stats\":true}}",
         "1 stream usage | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stream_options\":{\"include_usage\":true}}",
         "1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"stream_options\":{\"include_usage\":1}}",
         "400 stream_options: stream_options.include_usage: expected true or false, found a "
         "number"},
        {"{\"prompt\":\"a\",\"stream_options\":true}",
         "400 stream_options: stream_options: expected an object, found a boolean"},
        {"{\"prompt\":\"a\",\"frobnicate\":[1],\"n\\u001bx y\":2,\"Temperature\":3}",
         "1 unknown=3(frobnicate, n?x?y, Temperature) | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"messages\":[]}", "1 unknown=1(messages) | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"skip_special_tokens\":false,\"early_stopping\":\"never\"}",
         "1 | text=\"a\" max=16 ids"},
        {"{\"model\":\"glm\",\"prompt\":\"a\"}", "1 | text=\"a\" max=16 ids"},
        {"{\"model\":\"gpt-4\",\"prompt\":\"a\"}",
         "404 model: model: this server has \"glm\" and no other (GET /v1/models)"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void structured_output_is_refused_by_name(void **state)
{
    (void)state;
    static const char *const refused[] = {
        "structured_outputs", "guided_json",     "guided_regex", "guided_choice",  "guided_grammar",
        "json_schema",        "regex",           "ebnf",         "structural_tag", "bad_words",
        "allowed_token_ids",  "prompt_logprobs",
    };
    for (size_t i = 0; i != ARRAY_LEN(refused); i++) {
        char body[256], expected[256];
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":{\"x\":1}}", refused[i]);
        snprintf(expected, sizeof expected, "400 %s: %s: this server does not have it", refused[i],
                 refused[i]);
        const char *found = rig_parse(OPENAI_COMPLETIONS, body);
        if (strncmp(found, expected, strlen(expected)) != 0)
            fail_msg("%s\nexpected: %s\nfound:    %s", body, expected, found);
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":null}", refused[i]);
        assert_string_equal(rig_parse(OPENAI_COMPLETIONS, body), "1 | text=\"a\" max=16 ids");
    }
    static const struct row rows[] = {
        {"{\"prompt\":\"a\",\"response_format\":{\"type\":\"text\"}}", "1 | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\"}}",
         "400 response_format: response_format: this server has text only; structured output is "
         "not there"},
        {"{\"prompt\":\"a\",\"response_format\":\"text\"}",
         "400 response_format: response_format: this server has text only; structured output is "
         "not there"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

/* ---- chats ---- */

#define CHAT_STOPS " stop=\"\nUser:\" stop=\" User:\" stop=\"User:\""

static void a_chat_is_one_text(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
         "1" CHAT_STOPS " | text=\"User: hi\nAssistant:\" max=500"},
        {"{\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":\"user\","
         "\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},"
         "{\"role\":\"assistant\",\"content\":\"c\"},{\"role\":\"user\",\"content\":\"d\"}],"
         "\"max_tokens\":9,\"max_completion_tokens\":7,\"n\":2,\"stop\":\"#\"}",
         "1 stop=\"#\"" CHAT_STOPS " | text=\"s\n\nUser: a\nb\nAssistant: c\nUser: d\nAssistant:\" "
         "max=7 n=2"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
         "\"content\":\"It is\"}],\"continue_final_message\":true,\"max_tokens\":9}",
         "1" CHAT_STOPS " | text=\"User: a\nAssistant: It is\" max=9"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\","
         "\"content\":\"It is\"}],\"add_generation_prompt\":false,\"max_tokens\":9}",
         "1" CHAT_STOPS " | text=\"User: a\nAssistant: It is\" max=9"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":true,"
         "\"top_logprobs\":4}",
         "1 logprobs top_logprobs=4" CHAT_STOPS " | text=\"User: a\nAssistant:\" max=500"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"logprobs\":false,"
         "\"top_logprobs\":0,\"tools\":[],\"tool_choice\":\"none\",\"modalities\":[\"text\"]}",
         "1" CHAT_STOPS " | text=\"User: a\nAssistant:\" max=500"},
    };
    EXPECT_ROWS(OPENAI_CHAT, rows);
}

static void messages_are_checked(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{}", "400 messages: messages: missing"},
        {"{\"messages\":[]}", "400 messages: messages: expected a list of 1 to 256 messages"},
        {"{\"messages\":\"hi\"}", "400 messages: messages: expected a list of 1 to 256 messages"},
        {"{\"messages\":[\"hi\"]}",
         "400 messages: messages[0]: expected an object, found a string"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}",
         "400 messages: messages[0].role: expected system, developer, user or assistant"},
        {"{\"messages\":[{\"content\":\"x\"}]}",
         "400 messages: messages[0].role: expected system, developer, user or assistant"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":null}]}",
         "400 messages: messages[0].content: expected a string or a list of text parts"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         "400 messages: messages[0].content[0]: expected {\"type\": \"text\", \"text\": ...}: this "
         "server has text only"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"what is [MASK]?\"}]}",
         "400 messages: messages[0].content: it has a mask, which would be filled instead of "
         "answered: use /v1/fill or /v1/completions"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]}]}",
         "400 messages: messages[0].tool_calls: this server has no tools"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"continue_final_message\":true}",
         "400 continue_final_message: messages[0].role: expected assistant: there is nothing to go "
         "on from"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":[{}]}",
         "400 tools: tools: this server does not have it"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tool_choice\":\"required\"}",
         "400 tool_choice: tool_choice: this server does not have it"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"modalities\":[\"audio\"]}",
         "400 modalities: modalities: this server has text only"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":2}",
         "400 top_logprobs: top_logprobs: expected logprobs true with it"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"max_tokens\":0}",
         "400 max_tokens: max_tokens: expected a whole number from 1 to 1048576, found 0"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"use_beam_search\":true}",
         "400 use_beam_search: use_beam_search: this server does not have it: answers of a chat "
         "end by stop texts, which beams do not have"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"stop\":[\"1\",\"2\",\"3\","
         "\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\",\"13\",\"14\"]}",
         "400 stop: stop: expected at most 13 texts in a chat, found 14"},
    };
    EXPECT_ROWS(OPENAI_CHAT, rows);
    struct openai_settings none = rig_settings;
    none.dialogue = NULL;
    static const char body[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}";
    assert_string_equal(rig_parse_with(&none, OPENAI_CHAT, body, sizeof body - 1),
                        "404 -: this model has no conversations");
}

/* ---- the others ---- */

static void fills(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"{\"text\":\"a [MASK] b\"}", "1 top_p:default | fill text=\"a [MASK] b\""},
        {"{\"tokens\":[1,2],\"max_length\":64,\"stream\":true,\"return_token_ids\":true,"
         "\"temperature\":0,\"top_p\":0.5,\"user\":\"u\",\"priority\":1,\"stop\":[\"x\"]}",
         "1 stream t=0 top_p=0.5 stop=\"x\" | fill tokens=1,2 max=64 ids priority=1 user=\"u\""},
        {"{\"text\":\"[sMASK]\",\"num_beams\":4,\"seed\":3}",
         "1 top_p:default seed=3 beams=4 | fill text=\"[sMASK]\""},
        {"{}", "400 text: text: expected a text with blanks, or tokens"},
        {"{\"text\":\"a\",\"tokens\":[1]}",
         "400 text: text: expected a text with blanks, or tokens"},
        {"{\"text\":\"a\",\"guided_json\":{\"a\":1}}",
         "400 guided_json: guided_json: this server does not have it"},
    };
    EXPECT_ROWS(OPENAI_FILL, rows);
}

static void the_published_servers_requests(void **state)
{
    (void)state;
    static const struct row rows[] = {
        /* as its own test programs send them, the older and the newer one */
        {"{\"text\":\"a [MASK]\\nb\\r\\n\",\"out_seq_length\":128,\"topk\":1,\"topp\":0,"
         "\"temperature\":0.9,\"seed\":42}",
         "2 t=0.9 top_k=1 seed=42 | text=\"a [MASK]\" max=128 | text=\"b\" max=128"},
        {"{\"prompt\":[\"a\",\"b\"],\"max_tokens\":64,\"min_tokens\":0,\"top_k\":1,\"top_p\":0,"
         "\"temperature\":1,\"seed\":42,\"sampling_strategy\":\"BaseStrategy\",\"num_beams\":4,"
         "\"length_penalty\":0.9,\"no_repeat_ngram_size\":3,\"regix\":\"\"}",
         "2 top_k=1 seed=42 | text=\"a\" max=64 | text=\"b\" max=64"},
        {"{\"prompt\":[\"a\"],\"max_tokens\":64,\"sampling_strategy\":\"BeamSearchStrategy\","
         "\"num_beams\":4,\"length_penalty\":0.9,\"no_repeat_ngram_size\":3}",
         "1 top_k=5 seed=42 beams=4 lp=0.9 ngram=3 sampled | text=\"a\" max=64 n=4"},
        /* defaults */
        {"{\"text\":\"a\"}", "1 top_k=5 seed=1234 | text=\"a\" max=200"},
        {"{\"prompt\":\"a\"}", "1 top_k=5 seed=42 | text=\"a\" max=64"},
        {"{\"text\":\"a\",\"topk\":0,\"seed\":0,\"out_seq_length\":0,\"num_beams\":2}",
         "1 top_k=5 seed=1234 | text=\"a\" max=200 n=2"},
        {"{\"prompt\":\"a\",\"top_k\":0,\"top_p\":0.7}", "1 top_p=0.7 seed=42 | text=\"a\" max=64"},
        {"{\"prompt\":\"a\",\"top_k\":4,\"top_p\":0.7}", "1 top_k=4 seed=42 | text=\"a\" max=64"},
        {"{\"text\":\"a\",\"min_gen_length\":20}",
         "1 top_k=5 seed=1234 min=20 | text=\"a\" max=200"},
        {"{\"prompt\":\"a\",\"num_beams\":0,\"sampling_strategy\":\"BeamSearchStrategy\"}",
         "1 top_k=5 seed=42 beams=1 lp=0.9 ngram=3 sampled | text=\"a\" max=64"},
        {"{\"text\":\"a\\n\\nb\"}", "400 text: text: line 2 is empty"},
        {"{\"text\":\"\"}", "400 text: text: expected 1 to 128 lines, found 0"},
        {"{}", "400 text: expected either text or prompt"},
        {"{\"prompt\":\"a\",\"regix\":\".*\"}",
         "400 regix: regix: this server does not have it: use the stop texts of /v1/completions"},
        {"{\"prompt\":\"a\",\"sampling_strategy\":\"x\"}",
         "400 sampling_strategy: sampling_strategy: expected BaseStrategy or BeamSearchStrategy"},
        {"{\"prompt\":[1]}", "400 prompt: prompt: entry 0: expected a text"},
    };
    EXPECT_ROWS(OPENAI_LEGACY, rows);
}

static void texts_and_ids(void **state)
{
    (void)state;
    static const struct row tokenize[] = {
        {"{\"prompt\":\"a [MASK]\",\"add_special_tokens\":false}", "0 tokenize=\"a [MASK]\""},
        {"{\"prompt\":\"a\",\"return_token_strs\":true}", "0 token_strs tokenize=\"a\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
         "0 tokenize=\"User: a\nAssistant:\""},
        {"{\"prompt\":[1]}", "400 prompt: prompt: expected a string"},
        {"{\"prompt\":\"a\",\"messages\":[]}",
         "400 messages: messages: expected either prompt or messages"},
    };
    static const struct row detokenize[] = {
        {"{\"tokens\":[1,2,3]}", "0 detokenize=1,2,3"},
        {"{\"tokens\":[]}", "0"},
        {"{}", "400 tokens: tokens: missing"},
    };
    EXPECT_ROWS(OPENAI_TOKENIZE, tokenize);
    EXPECT_ROWS(OPENAI_DETOKENIZE, detokenize);
}

/* ---- unusual bodies, and hostile ones ---- */

static void unusual_json(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"\xef\xbb\xbf{\"prompt\":\"a\"}", "1 | text=\"a\" max=16 ids"},
        {" \t\r\n{ \"prompt\" :\n\"a\" , \"\\u006e\" : 2.0E0 } ", "1 | text=\"a\" max=16 n=2 ids"},
        {"{\"prompt\":\"\\/\\ud83d\\ude00\"}", "1 | text=\"/\xf0\x9f\x98\x80\" max=16 ids"},
        {"{\"prompt\":\"a\",\"metadata\":{\"id\":123456789012345678901234567890}}",
         "1 unknown=1(metadata) | text=\"a\" max=16 ids"},
        {"{\"prompt\":\"a\",\"seed\":18446744073709551615}",
         "400 seed: seed: expected a whole number from -9223372036854775808 to "
         "9223372036854775807, found 1.8446744073709552e+19"},
    };
    EXPECT_ROWS(OPENAI_COMPLETIONS, rows);
}

static void broken_json(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"", "400 -: the body is not valid JSON: line 1, column 0: it ends too early"},
        {"{\"prompt\":\"a\"",
         "400 -: the body is not valid JSON: line 1, column 13: it ends too early"},
        {"[]", "400 -: the body: expected a JSON object, found a list"},
        {"{\"prompt\":\"a\",\"prompt\":\"b\"}",
         "400 -: the body is not valid JSON: line 1, column 22: a name is there twice"},
        {"{\"prompt\":\"a\\u0000\"}",
         "400 -: the body is not valid JSON: line 1, column 19: strings must not contain NUL"},
        {"{\"prompt\":\"\xff\"}",
         "400 -: the body is not valid JSON: line 1, column 11: it is not UTF-8"},
        {"{\"prompt\":\"a\"} x",
         "400 -: the body is not valid JSON: line 1, column 16: something follows the object"},
        {"{\"prompt\":\"secret\",}",
         "400 -: the body is not valid JSON: line 1, column 20: a syntax error"},
        {"{\"temperature\":1e999}",
         "400 -: the body is not valid JSON: line 1, column 20: a number is too large"},
    };
    for (int route = 0; route != OPENAI_N_ROUTES; route++)
        EXPECT_ROWS((enum openai_route)route, rows);
}

static const char *repeat(struct buf *b, const char *begin, const char *what, size_t n,
                          const char *end)
{
    buf_clear(b);
    buf_append_str(b, begin);
    for (size_t i = 0; i != n; i++)
        buf_append_str(b, what);
    buf_append_str(b, end);
    return rig_parse_with(&rig_settings, OPENAI_COMPLETIONS, b->data, b->size);
}

static void size_depth_and_counts_are_bounded(void **state)
{
    (void)state;
    static const char too_large[] = "400 -: the body is too large: expected at most 300000 values, "
                                    "4096 of them lists or objects, 8192 names, nested at most 32 "
                                    "deep";
    struct buf b = {0};
    assert_string_equal(repeat(&b, "{\"x\":", "[", 40, ""), too_large);
    assert_string_equal(repeat(&b, "{\"prompt\":\"a\",\"x\":[", "[],", 3000, "0]}"),
                        "1 unknown=1(x) | text=\"a\" max=16 ids");
    assert_string_equal(repeat(&b, "{\"x\":[", "[],", 4096, "0]}"), too_large);
    assert_string_equal(repeat(&b, "{\"x\":[", "1,", 300000, "0]}"), too_large);
    assert_string_equal(repeat(&b, "{\"x\":{", "\"a\":1,", 8192, "\"b\":1}}"), too_large);
    assert_string_equal(repeat(&b, "{\"prompt\":[", "[1],", 128, "[1]]}"),
                        "400 prompt: prompt: expected at most 128 prompts, found 129");
    assert_string_equal(repeat(&b, "{\"n\":16,\"prompt\":[", "[1],", 16, "[1]]}"),
                        "400 n: n: expected at most 256 choices of all prompts, found 272");
    assert_string_equal(repeat(&b, "{\"prompt\":[", "1,", 1 << 17, "1]}"),
                        "400 prompt: prompt: expected at most 131072 token ids, found 131073");
    assert_string_equal(repeat(&b, "{\"prompt\":\"a\",\"user\":\"", "u", 129, "\"}"),
                        "400 user: user: expected at most 128 bytes, found 129");
    /* brackets inside strings are text */
    assert_null(strstr(repeat(&b, "{\"prompt\":\"", "[{\\\"", 5000, "\"}"), "too large"));
    struct openai_settings s = rig_settings;
    s.max_body_bytes = 10;
    assert_string_equal(rig_parse_with(&s, OPENAI_COMPLETIONS, "{\"prompt\":1", 11),
                        "413 -: the body: expected at most 10 bytes, found 11");
    buf_deinit(&b);
}

static void errors_hold_nothing_of_the_client(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{\"prompt\":\"canary\" canary}",
        "{\"stop\":[\"x\",{\"canary\":1}],\"prompt\":\"canary\"}",
        "{\"prompt\":{\"canary\":\"canary\"}}",
        "{\"prompt\":\"a\",\"logit_bias\":{\"canary\":1}}",
        "{\"prompt\":\"a\",\"response_format\":{\"type\":\"canary\"}}",
        "{\"model\":\"canary\",\"prompt\":\"canary\"}",
    };
    for (size_t i = 0; i != ARRAY_LEN(bodies); i++) {
        const char *found = rig_parse(OPENAI_COMPLETIONS, bodies[i]);
        assert_true(strncmp(found, "40", 2) == 0);
        assert_null(strstr(found, "canary"));
    }
}

static void the_headers_id_goes_first(void **state)
{
    (void)state;
    struct openai_settings s = rig_settings;
    s.request_id = "from-header";
    static const char body[] = "{\"prompt\":\"a\",\"request_id\":\"from-body\"}";
    struct openai_request *q;
    struct openai_error e;
    assert_int_equal(openai_parse(&s, OPENAI_COMPLETIONS, body, sizeof body - 1, &q, &e), 0);
    assert_string_equal(q->request_id, "from-body");
    assert_string_equal(q->generate[0].request_id, "from-header");
    openai_request_free(q);
    openai_request_free(NULL);
}

/* ---- recorded ---- */

static void the_python_clients_bodies(void **state)
{
    (void)state;
    const char *root = getenv("GLMD_SOURCE_DIR");
    char path[4096];
    snprintf(path, sizeof path, "%s/tests/unit/coordinator/openai_python.json", root ? root : ".");
    json_error_t error;
    json_t *all = json_load_file(path, 0, &error);
    if (!all)
        fail_msg("%s: %s", path, error.text);
    const json_t *calls = json_object_get(all, "calls");
    assert_true(json_array_size(calls) >= 10);
    struct openai_settings s = rig_settings;
    s.model = "glm-130b";
    for (size_t i = 0; i != json_array_size(calls); i++) {
        const json_t *c = json_array_get(calls, i);
        const char *route = json_string_value(json_object_get(c, "path"));
        const char *body = json_string_value(json_object_get(c, "body"));
        const char *expected = json_string_value(json_object_get(c, "parsed"));
        bool chat = strcmp(route, "/v1/chat/completions") == 0;
        const char *found =
            rig_parse_with(&s, chat ? OPENAI_CHAT : OPENAI_COMPLETIONS, body, strlen(body));
        if (!expected || strcmp(found, expected) != 0)
            fail_msg("%s\nexpected: %s\nfound:    %s", body, expected ? expected : "-", found);
    }
    json_decref(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_texts_or_ids),
        cmocka_unit_test(a_suffix_makes_a_blank),
        cmocka_unit_test(echo_and_logprobs_score_the_prompt),
        cmocka_unit_test(sampling_has_openais_defaults),
        cmocka_unit_test(stops_and_choices),
        cmocka_unit_test(streams_and_unknown_fields),
        cmocka_unit_test(structured_output_is_refused_by_name),
        cmocka_unit_test(a_chat_is_one_text),
        cmocka_unit_test(messages_are_checked),
        cmocka_unit_test(fills),
        cmocka_unit_test(the_published_servers_requests),
        cmocka_unit_test(texts_and_ids),
        cmocka_unit_test(unusual_json),
        cmocka_unit_test(broken_json),
        cmocka_unit_test(size_depth_and_counts_are_bounded),
        cmocka_unit_test(errors_hold_nothing_of_the_client),
        cmocka_unit_test(the_headers_id_goes_first),
        cmocka_unit_test(the_python_clients_bodies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
