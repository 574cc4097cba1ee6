/* test_openai_reply.c: messages of calls as streams and as bodies, byte for byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "openai_rig.h"

#define TEXT_HEAD                                                                                  \
    "{\"id\":\"cmpl-7\",\"object\":\"text_completion\",\"created\":1700000000,\"model\":\"glm\","  \
    "\"system_fingerprint\":\"fp\""
#define CHAT_HEAD(object)                                                                          \
    "{\"id\":\"chatcmpl-7\",\"object\":\"" object                                                  \
    "\",\"created\":1700000000,\"model\":\"glm\",\"system_fingerprint\":\"fp\""
#define FILL_HEAD(object)                                                                          \
    "{\"id\":\"fill-7\",\"object\":\"" object                                                      \
    "\",\"created\":1700000000,\"model\":\"glm\",\"system_fingerprint\":\"fp\""

/* ---- a reply under test ---- */

struct rig {
    struct openai_request *q;
    struct openai_reply *reply;
    struct buf out;
};

static void rig_open(struct rig *g, enum openai_route route, const char *body)
{
    struct openai_error e;
    *g = (struct rig){0};
    if (openai_parse(&rig_settings, route, body, strlen(body), &g->q, &e) < 0)
        fail_msg("%s: %s", body, e.message);
    assert_int_equal(openai_reply_new(g->q, rig_identity(), &g->reply), 0);
}

static void rig_close(struct rig *g)
{
    openai_reply_free(g->reply);
    openai_request_free(g->q);
    buf_deinit(&g->out);
}

static void generate(struct rig *g, uint32_t prompt, const struct wire_generate_response *w)
{
    const struct stream_message m = {.generate = w};
    assert_int_equal(openai_reply_message(g->reply, prompt, &m, &g->out), 0);
}

/* One delta of choice k. */
static void delta(struct rig *g, uint32_t prompt, struct wire_choice_delta d)
{
    generate(g, prompt, &(struct wire_generate_response){.choices = &d, .n_choices = 1});
}

static void usage(struct rig *g, uint32_t prompt, uint32_t n_prompt, uint32_t n_new)
{
    const struct wire_usage u = {.prompt_tokens = n_prompt,
                                 .completion_tokens = n_new,
                                 .cached_tokens = n_prompt == 4 ? 3 : 0};
    generate(g, prompt, &(struct wire_generate_response){.usage = &u});
}

static void expect(struct rig *g, const char *expected)
{
    const char *found = g->out.data ? g->out.data : "";
    if (strcmp(found, expected) != 0)
        fail_msg("\nexpected: %s\nfound:    %s", expected, found);
    buf_clear(&g->out);
}

static void finish(struct rig *g)
{
    assert_int_equal(openai_reply_finish(g->reply, &g->out), 0);
}

#define IDS(...)                                                                                   \
    .tokens = (const int32_t[]){__VA_ARGS__},                                                      \
    .n_tokens = sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)
#define LOGPROBS(...)                                                                              \
    .logprobs = (const struct wire_token_logprob[]){__VA_ARGS__},                                  \
    .n_logprobs = sizeof((const struct wire_token_logprob[]){__VA_ARGS__}) /                       \
                  sizeof(struct wire_token_logprob)

/* ---- completions ---- */

static void a_completion_streams(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"It \",\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    assert_string_equal(openai_reply_content_type(g.reply), "text/event-stream");
    generate(&g, 0,
             &(struct wire_generate_response){.has_seed = true, .seed = 5, .request_id = "r"});
    expect(&g, "");
    delta(&g, 0, (struct wire_choice_delta){.text = "is \"so\"\n", IDS(1)});
    expect(&g, "data: " TEXT_HEAD
               ",\"choices\":[{\"index\":0,\"text\":\"is \\\"so\\\"\\n\",\"logprobs\":null,"
               "\"finish_reason\":null,\"stop_reason\":null}],\"usage\":null}\n\n");
    delta(&g, 0, (struct wire_choice_delta){.text = "", IDS(2)});
    expect(&g, "");
    delta(&g, 0,
          (struct wire_choice_delta){.text = "好",
                                     .finish_reason = WIRE_FINISH_STOP,
                                     .has_stop_token = true,
                                     .stop_token = 99});
    expect(&g, "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\"好\",\"logprobs\":null,"
               "\"finish_reason\":\"stop\",\"stop_reason\":null,\"seed\":5}],\"usage\":null}\n\n");
    usage(&g, 0, 4, 3);
    expect(&g, "");
    finish(&g);
    expect(&g, "data: " TEXT_HEAD ",\"choices\":[],\"usage\":{\"prompt_tokens\":4,"
               "\"completion_tokens\":3,\"total_tokens\":7,\"prompt_tokens_details\":{\"cached_"
               "tokens\":3}}}\n\ndata: [DONE]\n\n");
    rig_close(&g);
}

static void prompts_and_choices_are_numbered(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":[\"a \",\"b \"],\"n\":2,\"stop\":\"x\","
             "\"stop_token_ids\":[9]}");
    assert_string_equal(openai_reply_content_type(g.reply), "application/json");
    usage(&g, 1, 2, 0); /* calls end in any order */
    delta(&g, 1,
          (struct wire_choice_delta){.index = 1, .text = "4", .finish_reason = WIRE_FINISH_LENGTH});
    delta(&g, 0, (struct wire_choice_delta){.text = "1a", IDS(1)});
    delta(&g, 0,
          (struct wire_choice_delta){
              .index = 1, .text = "2", .stop = "x", .finish_reason = WIRE_FINISH_STOP});
    delta(&g, 1,
          (struct wire_choice_delta){.text = "3",
                                     .finish_reason = WIRE_FINISH_STOP,
                                     .has_stop_token = true,
                                     .stop_token = 9});
    delta(&g, 0, (struct wire_choice_delta){.text = "1b", .finish_reason = WIRE_FINISH_LENGTH});
    usage(&g, 0, 1, 6);
    expect(&g, "");
    finish(&g);
    expect(&g, TEXT_HEAD
           ",\"choices\":["
           "{\"index\":0,\"text\":\"1a1b\",\"logprobs\":null,\"finish_reason\":\"length\","
           "\"stop_reason\":null},"
           "{\"index\":1,\"text\":\"2\",\"logprobs\":null,\"finish_reason\":\"stop\","
           "\"stop_reason\":\"x\"},"
           "{\"index\":2,\"text\":\"3\",\"logprobs\":null,\"finish_reason\":\"stop\","
           "\"stop_reason\":9},"
           "{\"index\":3,\"text\":\"4\",\"logprobs\":null,\"finish_reason\":\"length\","
           "\"stop_reason\":null}],"
           "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":6,\"total_tokens\":9,\"prompt_"
           "tokens_details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
}

/* The text that comes back for a prompt and a first token with this text. */
static void expect_joined(const char *prompt, int32_t token, const char *text, const char *expected)
{
    struct rig g;
    char body[128], whole[256];
    snprintf(body, sizeof body, "{\"prompt\":\"%s\"}", prompt);
    rig_open(&g, OPENAI_COMPLETIONS, body);
    delta(&g, 0, (struct wire_choice_delta){.text = "", IDS(token)});
    delta(&g, 0, (struct wire_choice_delta){.text = text, IDS(2)});
    finish(&g);
    snprintf(whole, sizeof whole, "\"text\":\"%s\",", expected);
    if (!strstr(g.out.data, whole))
        fail_msg("\"%s\" and \"%s\": expected %s in %s", prompt, text, whole, g.out.data);
    rig_close(&g);
}

static void a_word_behind_a_word_has_its_blank(void **state)
{
    (void)state;
    expect_joined("The capital is", 0, "Paris", " Paris");
    expect_joined("The capital is ", 0, "Paris", "Paris");
    expect_joined("The capital is\\n", 0, "Paris", "Paris");
    expect_joined("go", 11, "ing", "ing");        /* no word mark */
    expect_joined("The capital is", 1, ".", "."); /* nothing in front of a full stop */
    expect_joined("caf\xc3\xa9", 0, "Paris", " Paris");
    expect_joined("x", 0, "\xc3\xa9t\xc3\xa9", " \xc3\xa9t\xc3\xa9");
    expect_joined("\xe2\x80\x9c", 0, "Paris", "Paris"); /* an opening quotation mark */
    expect_joined("首都是", 0, "Paris", "Paris");       /* Chinese has no blanks */
    expect_joined("The capital is", 4, "人", "人");
    expect_joined("It is [MASK]", 0, "Paris", "Paris"); /* a blank is filled, nothing goes on */
    expect_joined("x", -1, "y", "y");                   /* no piece */
}

static void a_suffix_is_not_echoed(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"It is\",\"suffix\":\" now\",\"echo\":true,\"stream\":true}");
    delta(&g, 0, (struct wire_choice_delta){.text = "Paris", IDS(0)});
    expect(&g, "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\"It is Paris\","
               "\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}]}\n\n");
    rig_close(&g);
}

static void text_in_front_of_its_token_waits(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS, "{\"prompt\":\"is\",\"stream\":true}");
    delta(&g, 0, (struct wire_choice_delta){.text = "Par"});
    expect(&g, "");
    delta(&g, 0, (struct wire_choice_delta){.text = "is", IDS(0)});
    expect(&g,
           "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\" Paris\",\"logprobs\":null,"
           "\"finish_reason\":null,\"stop_reason\":null}]}\n\n");
    delta(&g, 0, (struct wire_choice_delta){.text = ".", .finish_reason = WIRE_FINISH_LENGTH});
    expect(&g, "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\".\",\"logprobs\":null,"
               "\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n");
    finish(&g);
    expect(&g, "data: [DONE]\n\n");
    rig_close(&g);
}

static void tokens_have_logprobs_and_places(void **state)
{
    (void)state;
    struct rig g;
    static const struct wire_top_logprob top[] = {{1, -0.25f, "is"}, {5, -1.5f, "?"}};
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"It\",\"logprobs\":2,\"return_token_ids\":true}");
    delta(&g, 0,
          (struct wire_choice_delta){
              .text = "is人", IDS(1, 3), LOGPROBS({1, -0.25f, top, 2}, {3, -2, top, 2})});
    delta(&g, 0,
          (struct wire_choice_delta){.text = "\t",
                                     IDS(6),
                                     LOGPROBS({6, -INFINITY, NULL, 0}),
                                     .finish_reason = WIRE_FINISH_LENGTH});
    finish(&g);
    expect(&g,
           TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\" is人\\t\",\"logprobs\":{"
                     "\"tokens\":[\" is\",\"人\",\"\\t\"],\"token_logprobs\":[-0.25,-2,-9999],"
                     "\"top_logprobs\":[{\" is\":-0.25,\"bytes:\\\\xe4\":-1.5},"
                     "{\" is\":-0.25,\"bytes:\\\\xe4\":-1.5,\"人\":-2},{\"\\t\":-9999}],"
                     "\"text_offset\":[0,3,4]},\"finish_reason\":\"length\",\"stop_reason\":null,"
                     "\"token_ids\":[1,3,6],\"prompt_token_ids\":null}],"
                     "\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"It \",\"logprobs\":0,\"return_tokens_as_token_ids\":true}");
    delta(
        &g, 0,
        (struct wire_choice_delta){.text = "is   x",
                                   IDS(1, 10, 50),
                                   LOGPROBS({1, -1, NULL, 0}, {10, -2, NULL, 0}, {50, -3, NULL, 0}),
                                   .finish_reason = WIRE_FINISH_LENGTH});
    finish(&g);
    expect(&g,
           TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\"is   x\",\"logprobs\":{"
                     "\"tokens\":[\"token_id:1\",\"token_id:10\",\"token_id:50\"],"
                     "\"token_logprobs\":[-1,-2,-3],\"top_logprobs\":null,\"text_offset\":[0,2,5]},"
                     "\"finish_reason\":\"length\",\"stop_reason\":null}],"
                     "\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0,\"total_tokens\":0,"
                     "\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
}

/* What an evaluation harness reads: the prompt's tokens, the first without a log-probability, then
 * one that was generated. */
static void an_echo_scores_the_prompt(void **state)
{
    (void)state;
    static const struct wire_top_logprob top[] = {{2, -0.5f, "."}};
    static const struct wire_token_logprob prompt[] = {
        {1, -3, top, 1}, {0, -1, top, 1}, {2, -0.5f, top, 1}};
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"is  Paris.\",\"echo\":true,\"logprobs\":1,\"max_tokens\":1}");
    generate(&g, 0,
             &(struct wire_generate_response){.prompt_logprobs = prompt, .n_prompt_logprobs = 2});
    generate(
        &g, 0,
        &(struct wire_generate_response){.prompt_logprobs = prompt + 2, .n_prompt_logprobs = 1});
    delta(
        &g, 0,
        (struct wire_choice_delta){
            .text = "is", IDS(1), LOGPROBS({1, -4, top, 1}), .finish_reason = WIRE_FINISH_LENGTH});
    usage(&g, 0, 5, 1);
    finish(&g);
    expect(
        &g, TEXT_HEAD
        ",\"choices\":[{\"index\":0,\"text\":\"is  Paris. is\",\"logprobs\":{"
        "\"tokens\":[\" is\",\" Paris\",\".\",\" is\"],"
        "\"token_logprobs\":[null,-1,-0.5,-4],"
        "\"top_logprobs\":[null,{\".\":-0.5,\" Paris\":-1},{\".\":-0.5},{\".\":-0.5,\" is\":-4}],"
        "\"text_offset\":[0,4,9,10]},\"finish_reason\":\"length\",\"stop_reason\":null}],"
        "\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\"total_tokens\":6,\"prompt_tokens_"
        "details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
}

/* The normaliser joins blanks, and masks stand between stretches with word marks of their own. */
static void places_follow_the_prompts_text(void **state)
{
    (void)state;
    static const struct wire_token_logprob prompt[] = {
        {0, -1, NULL, 0}, {1, -1, NULL, 0}, {8, -1, NULL, 0},  {1, -1, NULL, 0},
        {4, -1, NULL, 0}, {3, -1, NULL, 0}, {11, -1, NULL, 0}, {2, -1, NULL, 0}};
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"Paris  is [gMASK] is\\n人 ＩＮＧ.\",\"echo\":true,\"logprobs\":0,"
             "\"max_tokens\":0}");
    generate(&g, 0,
             &(struct wire_generate_response){.prompt_logprobs = prompt, .n_prompt_logprobs = 8});
    finish(&g);
    /* Paris, two blanks and "is", a blank and the mask, " is", a word mark alone, 人, three
     * full-width letters that were normalised to "ing", the full stop */
    static const char expected[] = "\"text_offset\":[0,7,10,17,20,21,23,26]";
    if (!strstr(g.out.data, expected))
        fail_msg("expected %s in %s", expected, g.out.data);
    rig_close(&g);
}

static void a_prompt_alone_is_scored(void **state)
{
    (void)state;
    static const struct wire_token_logprob prompt[] = {{1, -3, NULL, 0}, {2, -0.5f, NULL, 0}};
    static const struct wire_usage u = {.prompt_tokens = 2};
    const struct wire_generate_response w = {
        .prompt_logprobs = prompt, .n_prompt_logprobs = 2, .usage = &u};
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":[1,2],\"echo\":true,\"logprobs\":0,\"max_tokens\":0}");
    generate(&g, 0, &w);
    finish(&g);
    expect(&g, TEXT_HEAD
           ",\"choices\":[{\"index\":0,\"text\":\"<1><2>\",\"logprobs\":{"
           "\"tokens\":[\" is\",\".\"],\"token_logprobs\":[null,-0.5],\"top_logprobs\":null,"
           "\"text_offset\":[0,2]},\"finish_reason\":\"length\",\"stop_reason\":null}],"
           "\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":0,\"total_tokens\":2,\"prompt_"
           "tokens_details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":\"is.\",\"echo\":true,\"max_tokens\":0,\"stream\":true,\"n\":2}");
    generate(&g, 0, &w);
    expect(&g, "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\"is.\",\"logprobs\":null,"
               "\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n"
               "data: " TEXT_HEAD ",\"choices\":[{\"index\":1,\"text\":\"is.\",\"logprobs\":null,"
               "\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n");
    rig_close(&g);
}

static void a_streams_echo_comes_once(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS,
             "{\"prompt\":[2,2],\"echo\":true,\"stream\":true,\"return_token_ids\":true}");
    delta(&g, 0, (struct wire_choice_delta){.text = "a", IDS(1)});
    expect(&g,
           "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\"<2><2>a\",\"logprobs\":null,"
           "\"finish_reason\":null,\"stop_reason\":null,\"token_ids\":[1],"
           "\"prompt_token_ids\":[2,2]}]}\n\n");
    delta(&g, 0, (struct wire_choice_delta){.text = "b", IDS(11, 2)});
    expect(&g, "data: " TEXT_HEAD ",\"choices\":[{\"index\":0,\"text\":\"b\",\"logprobs\":null,"
               "\"finish_reason\":null,\"stop_reason\":null,\"token_ids\":[11,2]}]}\n\n");
    rig_close(&g);
}

/* ---- chats ---- */

#define HI "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void a_chat_streams(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_CHAT, "{" HI ",\"stream\":true}");
    delta(&g, 0, (struct wire_choice_delta){.text = "He"});
    expect(
        &g,
        "data: " CHAT_HEAD(
            "chat.completion.chunk") ",\"choices\":[{\"index\":0,\"delta\":{"
                                     "\"role\":\"assistant\",\"content\":\"He\"},\"logprobs\":null,"
                                     "\"finish_reason\":null,\"stop_reason\":null}]}\n\n");
    delta(&g, 0,
          (struct wire_choice_delta){
              .text = "llo.", .stop = "User:", .finish_reason = WIRE_FINISH_STOP});
    expect(&g, "data: " CHAT_HEAD("chat.completion.chunk") ",\"choices\":[{\"index\":0,\"delta\":{"
                                                           "\"content\":\"llo.\"},\"logprobs\":"
                                                           "null,\"finish_reason\":\"stop\","
                                                           "\"stop_reason\":\"User:\"}]}\n\n");
    finish(&g);
    expect(&g, "data: [DONE]\n\n");
    rig_close(&g);
}

static void a_chat_has_tokens_with_bytes(void **state)
{
    (void)state;
    static const struct wire_top_logprob top[] = {{5, -0.5f, ""}};
    struct rig g;
    rig_open(&g, OPENAI_CHAT,
             "{" HI ",\"logprobs\":true,\"top_logprobs\":1,\"return_token_ids\":true}");
    delta(&g, 0,
          (struct wire_choice_delta){.text = "人",
                                     IDS(3),
                                     LOGPROBS({3, -0.125f, top, 1}),
                                     .finish_reason = WIRE_FINISH_LENGTH});
    usage(&g, 0, 9, 1);
    finish(&g);
    expect(&g, CHAT_HEAD("chat.completion") ",\"choices\":[{\"index\":0,\"message\":{\"role\":"
                                            "\"assistant\",\"content\":\"人\","
                                            "\"refusal\":null},\"logprobs\":{\"content\":[{"
                                            "\"token\":\"人\",\"logprob\":-0.125,"
                                            "\"bytes\":[228,186,186],\"top_logprobs\":[{\"token\":"
                                            "\"bytes:\\\\xe4\","
                                            "\"logprob\":-0.5,\"bytes\":[228]}]}],\"refusal\":null}"
                                            ",\"finish_reason\":\"length\","
                                            "\"stop_reason\":null,\"token_ids\":[3]}],\"usage\":{"
                                            "\"prompt_tokens\":9,"
                                            "\"completion_tokens\":1,\"total_tokens\":10,\"prompt_"
                                            "tokens_details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
}

/* ---- fills and the published server's ---- */

static void fill(struct rig *g, const struct wire_fill_response *w)
{
    assert_int_equal(
        openai_reply_message(g->reply, 0, &(struct stream_message){.fill = w}, &g->out), 0);
}

static const struct wire_filled_text filled = {.text = "a x b y",
                                               .blanks = (const char *const[]){"x", "y"},
                                               .n_blanks = 2,
                                               .tokens = (const int32_t[]){1, 2},
                                               .n_tokens = 2,
                                               .has_score = true,
                                               .score = -0.5};

static void feed_fill(struct rig *g)
{
    static const struct wire_usage u = {.prompt_tokens = 5, .completion_tokens = 2};
    const struct wire_blank_delta first = {.index = 0, .text = "x", IDS(3)};
    const struct wire_blank_delta both[] = {
        {.index = 0, .text = "", .finish_reason = WIRE_FINISH_STOP, .stop = "\n"},
        {.index = 1, .text = "y", IDS(4), .finish_reason = WIRE_FINISH_LENGTH}};
    const struct wire_token_ids output = {(const int32_t[]){7, 3}, 2};
    const struct wire_fill_call call = {
        .input = (const int32_t[]){7}, .n_input = 1, .outputs = &output, .n_outputs = 1};
    fill(g, &(struct wire_fill_response){
                .blanks = &first, .n_blanks = 1, .has_seed = true, .seed = UINT64_MAX});
    fill(g, &(struct wire_fill_response){.blanks = both, .n_blanks = 2});
    fill(g, &(struct wire_fill_response){
                .results = &filled, .n_results = 1, .calls = &call, .n_calls = 1, .usage = &u});
    finish(g);
}

static void blanks_stream(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_FILL, "{\"text\":\"a [MASK] b [MASK]\",\"stream\":true}");
    feed_fill(&g);
    expect(
        &g,
        "data: " FILL_HEAD(
            "fill.chunk") ",\"blanks\":[{\"index\":0,\"text\":\"x\","
                          "\"finish_reason\":null,\"stop_reason\":null}]}\n\n"
                          "data: " FILL_HEAD(
                              "fill.chunk") ",\"blanks\":[{\"index\":0,\"text\":\"\","
                                            "\"finish_reason\":\"stop\",\"stop_reason\":\"\\n\"},{"
                                            "\"index\":1,\"text\":\"y\","
                                            "\"finish_reason\":\"length\",\"stop_reason\":null}]}"
                                            "\n\n"
                                            "data: " FILL_HEAD(
                                                "fill.chunk") ",\"blanks\":[],\"results\":[{"
                                                              "\"text\":\"a x b y\","
                                                              "\"blanks\":[\"x\",\"y\"],\"score\":-"
                                                              "0.5}],\"seed\":-1,\"usage\":{"
                                                              "\"prompt_tokens\":5,\"completion_"
                                                              "tokens\":2,\"total_tokens\":7,"
                                                              "\"prompt_tokens_details\":{\"cached_"
                                                              "tokens\":0}}}\n\n"
                                                              "data: [DONE]\n\n");
    rig_close(&g);
}

static void blanks_are_gathered(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_FILL, "{\"text\":\"a [MASK] b [MASK]\",\"return_token_ids\":true}");
    feed_fill(&g);
    expect(
        &g,
        FILL_HEAD(
            "fill") ",\"blanks\":[{\"index\":0,\"text\":\"x\",\"finish_reason\":"
                    "\"stop\",\"stop_reason\":\"\\n\",\"token_ids\":[3]},{\"index\":1,\"text\":"
                    "\"y\","
                    "\"finish_reason\":\"length\",\"stop_reason\":null,\"token_ids\":[4]}],"
                    "\"results\":[{\"text\":\"a x b y\",\"blanks\":[\"x\",\"y\"],\"score\":-0.5,"
                    "\"token_ids\":[1,2]}],\"calls\":[{\"input\":[7],\"outputs\":[[7,3]]}],"
                    "\"seed\":-1,"
                    "\"text\":\"a x b y\",\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,"
                    "\"total_tokens\":7,\"prompt_tokens_details\":{\"cached_tokens\":0}}}");
    rig_close(&g);
}

static void the_published_server_answers_with_lists(void **state)
{
    (void)state;
    static const char *const bodies[] = {
        "{\"text\":\"a\\nb\",\"num_beams\":2,\"sampling_strategy\":\"BeamSearchStrategy\"}",
        "{\"prompt\":[\"a\",\"b\"],\"num_beams\":2,\"sampling_strategy\":\"BeamSearchStrategy\"}"};
    static const char *const expected[] = {"{\"text\":[\"1\",\"2\",\"3\",\"\"]}",
                                           "{\"text\":[[\"1\",\"2\"],[\"3\",\"\"]]}"};
    for (size_t i = 0; i != ARRAY_LEN(bodies); i++) {
        struct rig g;
        rig_open(&g, OPENAI_LEGACY, bodies[i]);
        delta(&g, 0, (struct wire_choice_delta){.text = "1"});
        delta(&g, 1, (struct wire_choice_delta){.text = "3"});
        delta(&g, 0, (struct wire_choice_delta){.index = 1, .text = "2"});
        finish(&g);
        expect(&g, expected[i]);
        rig_close(&g);
    }
}

/* ---- ends ---- */

static void failures_have_the_streams_shape(void **state)
{
    (void)state;
    struct openai_error e;
    struct rig g;
    openai_error_from_rpc(&e, RPC_UNAVAILABLE, "the group went away", 0);
    rig_open(&g, OPENAI_CHAT, "{" HI ",\"stream\":true}");
    delta(&g, 0, (struct wire_choice_delta){.text = "He"});
    buf_clear(&g.out);
    assert_int_equal(openai_reply_fail(g.reply, &e, &g.out), 0);
    expect(&g, "data: {\"error\":{\"message\":\"the group went away\",\"type\":\"server_error\","
               "\"param\":null,\"code\":\"service_unavailable\"}}\n\n");
    rig_close(&g);
    rig_open(&g, OPENAI_CHAT, "{" HI "}");
    delta(&g, 0, (struct wire_choice_delta){.text = "He"});
    assert_int_equal(openai_reply_fail(g.reply, &e, &g.out), 0);
    expect(&g, "{\"error\":{\"message\":\"the group went away\",\"type\":\"server_error\","
               "\"param\":null,\"code\":\"service_unavailable\"}}");
    rig_close(&g);
}

static void what_is_gathered_is_bounded(void **state)
{
    (void)state;
    struct openai_identity i = *rig_identity();
    i.max_bytes = 100;
    static const char *const bodies[] = {"{\"prompt\":\"a \"}",
                                         "{\"prompt\":\"a \",\"stream\":true}"};
    static const int expected[] = {-EFBIG, 0};
    for (size_t k = 0; k != ARRAY_LEN(bodies); k++) {
        struct rig g;
        rig_open(&g, OPENAI_COMPLETIONS, bodies[k]);
        openai_reply_free(g.reply);
        assert_int_equal(openai_reply_new(g.q, &i, &g.reply), 0);
        int code = 0;
        for (int n = 0; n != 11; n++) {
            assert_int_equal(code, 0);
            const struct wire_choice_delta d = {.text = "0123456789"};
            const struct wire_generate_response w = {.choices = &d, .n_choices = 1};
            code =
                openai_reply_message(g.reply, 0, &(struct stream_message){.generate = &w}, &g.out);
        }
        assert_int_equal(code, expected[k]);
        rig_close(&g);
    }
}

static void messages_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct rig g;
    rig_open(&g, OPENAI_COMPLETIONS, "{\"prompt\":\"a\"}");
    const struct wire_choice_delta far = {.index = 1, .text = "x"};
    const struct wire_generate_response w = {.choices = &far, .n_choices = 1};
    assert_int_equal(
        openai_reply_message(g.reply, 0, &(struct stream_message){.generate = &w}, &g.out),
        -EINVAL);
    assert_int_equal(
        openai_reply_message(
            g.reply, 0, &(struct stream_message){.fill = &(struct wire_fill_response){0}}, &g.out),
        -EINVAL);
    openai_reply_free(NULL);
    rig_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_completion_streams),
        cmocka_unit_test(prompts_and_choices_are_numbered),
        cmocka_unit_test(a_word_behind_a_word_has_its_blank),
        cmocka_unit_test(a_suffix_is_not_echoed),
        cmocka_unit_test(text_in_front_of_its_token_waits),
        cmocka_unit_test(tokens_have_logprobs_and_places),
        cmocka_unit_test(an_echo_scores_the_prompt),
        cmocka_unit_test(places_follow_the_prompts_text),
        cmocka_unit_test(a_prompt_alone_is_scored),
        cmocka_unit_test(a_streams_echo_comes_once),
        cmocka_unit_test(a_chat_streams),
        cmocka_unit_test(a_chat_has_tokens_with_bytes),
        cmocka_unit_test(blanks_stream),
        cmocka_unit_test(blanks_are_gathered),
        cmocka_unit_test(the_published_server_answers_with_lists),
        cmocka_unit_test(failures_have_the_streams_shape),
        cmocka_unit_test(what_is_gathered_is_bounded),
        cmocka_unit_test(messages_that_do_not_fit_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
