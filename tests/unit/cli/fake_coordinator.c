/* fake_coordinator.c: see fake_coordinator.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "tests/unit/cli/fake_coordinator.h"

enum { MAX_ARGS = 32 };

static struct fake_coordinator *fake_of(const struct rpc_call *c)
{
    return rpc_user(c);
}

/* ---- answers ---- */

#define SEND(call, type, ...)                                                                      \
    do {                                                                                           \
        struct buf bytes_ = {0};                                                                   \
        assert_int_equal(wire_pack_##type(&(const struct wire_##type){__VA_ARGS__}, &bytes_), 0);  \
        assert_int_equal(rpc_send(call, bytes_.data, bytes_.size), 0);                             \
        buf_deinit(&bytes_);                                                                       \
    } while (0)

static const struct wire_usage usage = {
    .prompt_tokens = 5,
    .completion_tokens = 9,
    .prefill_seconds = 0.5,
    .decode_seconds = 2,
};

/* true: the request has been dealt with. */
static bool special(struct rpc_call *c, const char *text)
{
    if (strcmp(text, "refuse") == 0) {
        rpc_finish(c, RPC_INVALID_ARGUMENT, "the text has 9 tokens, the limit is 8");
        return true;
    }
    return false;
}

static void on_generate(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct fake_coordinator *f = fake_of(c);
    wire_free_generate_request(f->generate);
    assert_int_equal(wire_unpack_generate_request(data, size, &f->generate, NULL), 0);
    if (special(c, f->generate->text))
        return;
    if (f->generate->has_prompt_logprobs) {
        static const struct wire_top_logprob top = {.token = 7, .logprob = -0.5f, .text = "x"};
        static const struct wire_token_logprob prompt[] = {
            {.token = 9, .logprob = -1.5f, .top = &top, .n_top = 1},
            {.token = 7, .logprob = -0.5f}};
        bool only = f->generate->prompt_only;
        SEND(c, generate_response, .prompt_logprobs = prompt, .n_prompt_logprobs = 2,
             .usage = only ? &usage : NULL);
        if (only) {
            rpc_finish(c, RPC_OK, "");
            return;
        }
    }
    static const int32_t tokens[] = {100, 101};
    struct wire_choice_delta first[] = {
        {.index = 0, .text = "Gr\xc3\xbc", .tokens = tokens, .n_tokens = 1},
        {.index = 1, .text = "zwei", .tokens = tokens + 1, .n_tokens = 1},
    };
    uint32_t n = f->generate->n > 1 ? 2 : 1;
    SEND(c, generate_response, .choices = first, .n_choices = n, .has_seed = true, .seed = 77);
    if (strcmp(f->generate->text, "forever") == 0)
        return; /* the client will cancel */
    struct wire_choice_delta last[] = {
        {.index = 0,
         .text = "\xc3\x9f\x1b[0m",
         .finish_reason = WIRE_FINISH_STOP,
         .stop = f->generate->sampling->n_stop ? f->generate->sampling->stop[0] : "",
         .has_stop_token = !f->generate->sampling->n_stop,
         .stop_token = 517},
        {.index = 1,
         .text = "",
         .finish_reason = WIRE_FINISH_LENGTH,
         .has_score = true,
         .score = -1.25},
    };
    SEND(c, generate_response, .choices = last, .n_choices = n, .usage = &usage);
    rpc_finish(c, RPC_OK, "");
}

static void on_fill(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct fake_coordinator *f = fake_of(c);
    wire_free_fill_request(f->fill);
    assert_int_equal(wire_unpack_fill_request(data, size, &f->fill, NULL), 0);
    if (special(c, f->fill->text))
        return;
    static const struct wire_blank_delta blanks[] = {{.index = 0, .text = "cat"}};
    static const char *const texts[] = {"cat"};
    static const int32_t ids[] = {1, 2, 3};
    static const struct wire_token_ids outputs[] = {{ids, 3}};
    static const struct wire_fill_call calls[] = {
        {.input = ids, .n_input = 2, .outputs = outputs, .n_outputs = 1}};
    static const struct wire_filled_text results[] = {
        {.text = "the cat sat", .blanks = texts, .n_blanks = 1, .has_score = true, .score = -0.5},
        {.text = "the dog sat", .blanks = texts, .n_blanks = 1, .has_score = true, .score = -1.5},
    };
    SEND(c, fill_response, .blanks = blanks, .n_blanks = 1);
    SEND(c, fill_response, .results = results, .n_results = 2, .calls = calls, .n_calls = 1,
         .usage = &usage);
    rpc_finish(c, RPC_OK, "");
}

static void on_score(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct fake_coordinator *f = fake_of(c);
    wire_free_score_request(f->score);
    assert_int_equal(wire_unpack_score_request(data, size, &f->score, NULL), 0);
    static const float logprobs[] = {-1, -2};
    static const struct wire_choice_score choices[] = {
        {.logprob = -3, .token_logprobs = logprobs, .n_token_logprobs = 2},
        {.logprob = -1, .token_logprobs = logprobs, .n_token_logprobs = 1},
    };
    /* one choice too few for a request of three */
    SEND(c, score_response, .choices = choices, .n_choices = 2, .best = 1);
    rpc_finish(c, RPC_OK, "");
}

static void on_status(struct rpc_call *c, const uint8_t *data, size_t size)
{
    struct fake_coordinator *f = fake_of(c);
    struct wire_status_request *request;
    assert_int_equal(wire_unpack_status_request(data, size, &request, NULL), 0);
    wire_free_status_request(request);
    const struct wire_rank_status ranks[] = {
        {.rank = 0,
         .state = WIRE_RANK_READY,
         .host = "alpha",
         .device = "cpu",
         .weights_bytes = UINT64_C(3) << 30,
         .step = 12,
         .step_age_ms = 1500},
        {.rank = 1,
         .state = f->degraded ? WIRE_RANK_LOADING : WIRE_RANK_READY,
         .host = "beta",
         .device = "cpu",
         .loaded_bytes = 1,
         .total_bytes = 4,
         .last_error = f->degraded ? "connection lost" : ""},
    };
    const struct wire_group_status groups[] = {
        {.id = "g0",
         .epoch = 4,
         .tp_size = 2,
         .ranks = ranks,
         .n_ranks = 2,
         .state = f->degraded ? WIRE_GROUP_DEGRADED : WIRE_GROUP_READY,
         .decode_tokens_per_second = 12.5},
    };
    SEND(c, status_response, .version = "1.2.3", .uptime_seconds = 3725, .groups = groups,
         .n_groups = 1);
    rpc_finish(c, RPC_OK, "");
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    (void)message;
    fake_of(c)->last_end = status;
    fake_of(c)->n_ended++;
}

static void on_call(struct rpc_call *c, void *context)
{
    static const struct {
        const char *path;
        struct rpc_callbacks callbacks;
    } methods[] = {
        {"/glmd.v1.Inference/Generate", {.on_message = on_generate, .on_done = on_done}},
        {"/glmd.v1.Inference/Fill", {.on_message = on_fill, .on_done = on_done}},
        {"/glmd.v1.Inference/Score", {.on_message = on_score, .on_done = on_done}},
        {"/glmd.v1.Cluster/Status", {.on_message = on_status, .on_done = on_done}},
    };
    struct fake_coordinator *f = context;
    f->n_calls++;
    for (size_t i = 0; i < ARRAY_LEN(methods); i++) {
        if (strcmp(rpc_path(c), methods[i].path) == 0)
            rpc_set(c, &methods[i].callbacks, f);
    }
}

/* ---- life cycle ---- */

void fake_coordinator_start(struct fake_coordinator *f)
{
    static struct rpc_method methods[] = {
        {.path = "/glmd.v1.Inference/Generate", .on_call = on_call},
        {.path = "/glmd.v1.Inference/Fill", .on_call = on_call},
        {.path = "/glmd.v1.Inference/Score", .on_call = on_call},
        {.path = "/glmd.v1.Cluster/Status", .on_call = on_call},
    };
    struct err e = ERR_INIT;
    int port;
    *f = (struct fake_coordinator){0};
    for (size_t i = 0; i < ARRAY_LEN(methods); i++)
        methods[i].context = f;
    assert_int_equal(uv_loop_init(&f->loop), 0);
    assert_int_equal(rpc_runtime_new(&f->loop, &f->runtime, &e), 0);
    assert_int_equal(rpc_server_new(f->runtime, NULL, &f->server), 0);
    assert_int_equal(rpc_server_add(f->server, methods, ARRAY_LEN(methods)), 0);
    if (rpc_server_listen(f->server, "127.0.0.1:0", NULL, &port, &e) < 0)
        fail_msg("%s", e.message);
    assert_int_equal(rpc_server_start(f->server), 0);
    snprintf(f->address, sizeof f->address, "127.0.0.1:%d", port);
}

static void on_server_stopped(void *context)
{
    struct fake_coordinator *f = context;
    rpc_runtime_stop(f->runtime, NULL, NULL);
}

void fake_coordinator_stop(struct fake_coordinator *f)
{
    rpc_server_shutdown(f->server, 0, on_server_stopped, f);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    wire_free_generate_request(f->generate);
    wire_free_fill_request(f->fill);
    wire_free_score_request(f->score);
}

/* ---- the program ---- */

static void on_closed(uv_handle_t *h)
{
    struct child *c = h->data;
    c->n_open--;
}

static void on_exit_of_child(uv_process_t *process, int64_t code, int number)
{
    struct child *c = process->data;
    c->exit_code = number ? -1 : (int)code;
    uv_close((uv_handle_t *)process, on_closed);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *ret)
{
    static char memory[4096];
    (void)h, (void)suggested;
    *ret = uv_buf_init(memory, sizeof memory);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *b)
{
    struct child *c = stream->data;
    struct buf *text = stream == (uv_stream_t *)&c->out ? &c->out_text : &c->err_text;
    if (n < 0) {
        uv_close((uv_handle_t *)stream, on_closed);
        return;
    }
    assert_int_equal(buf_append(text, b->base, (size_t)n), 0);
    if (c->interrupt_at && c->out_text.data && strstr(c->out_text.data, c->interrupt_at)) {
        c->interrupt_at = NULL;
        uv_process_kill(&c->process, SIGINT);
    }
}

static void on_written(uv_write_t *write, int status)
{
    (void)status;
    uv_close((uv_handle_t *)write->handle, on_closed);
    free(write);
}

static void write_input(struct child *c, const char *input)
{
    uv_write_t *write = malloc(sizeof *write);
    assert_non_null(write);
    uv_buf_t b = uv_buf_init((char *)input, (unsigned)strlen(input));
    assert_int_equal(uv_write(write, (uv_stream_t *)&c->in, &b, 1, on_written), 0);
}

static void init_pipe(struct child *c, uv_pipe_t *pipe)
{
    assert_int_equal(uv_pipe_init(&c->fake->loop, pipe, 0), 0);
    pipe->data = c;
    c->n_open++;
}

void child_run(struct fake_coordinator *f, struct child *c, const char *input, const char *verb,
               const char *const *args)
{
    const char *bin = getenv("GLMD_BIN_DIR");
    char file[4096], *argv[MAX_ARGS] = {"glmd", (char *)verb, "-c", f->address};
    int n = 4;
    if (!bin)
        fail_msg("GLMD_BIN_DIR must be the folder of the programs");
    snprintf(file, sizeof file, "%s/glmd", bin);
    for (; *args; args++) {
        assert_true(n < MAX_ARGS - 1);
        argv[n++] = (char *)*args;
    }
    c->fake = f;
    c->process.data = c;
    init_pipe(c, &c->in);
    init_pipe(c, &c->out);
    init_pipe(c, &c->err);
    uv_stdio_container_t stdio[] = {
        {UV_CREATE_PIPE | UV_READABLE_PIPE, {(uv_stream_t *)&c->in}},
        {UV_CREATE_PIPE | UV_WRITABLE_PIPE, {(uv_stream_t *)&c->out}},
        {UV_CREATE_PIPE | UV_WRITABLE_PIPE, {(uv_stream_t *)&c->err}},
    };
    const uv_process_options_t options = {
        .exit_cb = on_exit_of_child, .file = file, .args = argv, .stdio_count = 3, .stdio = stdio};
    int r = uv_spawn(&f->loop, &c->process, &options);
    if (r < 0)
        fail_msg("%s: %s", file, uv_strerror(r));
    c->n_open++;
    write_input(c, input ? input : "");
    uv_read_start((uv_stream_t *)&c->out, on_alloc, on_read);
    uv_read_start((uv_stream_t *)&c->err, on_alloc, on_read);
    while (c->n_open)
        uv_run(&f->loop, UV_RUN_ONCE);
}

void child_deinit(struct child *c)
{
    buf_deinit(&c->out_text);
    buf_deinit(&c->err_text);
}
