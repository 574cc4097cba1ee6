/* front_rig.c: see front_rig.h. */
#include "front_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/wire_inference.h"
#include "proto/rpc/wire_kserve.h"

#define ADDRESS  "127.0.0.1:8130"
#define GRACE_NS (2 * NSEC_PER_SEC)

/* ---- the driver ---- */

static void on_health(void *context, bool serving)
{
    (void)context;
    (void)serving;
}

static void on_drained(void *context)
{
    (void)context;
}

static bool on_work(void *context, struct front_job *j)
{
    struct front_rig *r = context;
    if (r->has_no_thread)
        return false;
    assert_true(r->n_jobs < ARRAY_LEN(r->jobs));
    r->jobs[r->n_jobs++] = j;
    r->n_works++;
    return true;
}

static const struct coordinator_ops without_threads = {.health = on_health, .drained = on_drained};
static const struct coordinator_ops with_threads = {
    .health = on_health, .drained = on_drained, .work = on_work};

static void *thread_main(void *job)
{
    front_job_run(job);
    return NULL;
}

struct front_job *front_rig_run(struct front_rig *r)
{
    pthread_t thread;
    assert_true(r->n_jobs > 0);
    struct front_job *j = r->jobs[0];
    memmove(&r->jobs[0], &r->jobs[1], --r->n_jobs * sizeof r->jobs[0]);
    assert_int_equal(pthread_create(&thread, NULL, thread_main, j), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    return j;
}

void front_rig_end(struct front_rig *r, struct front_job *j)
{
    front_job_end(j);
    front_rig_pass(r, NSEC_PER_MSEC);
}

void front_rig_work(struct front_rig *r)
{
    while (r->n_jobs)
        front_rig_end(r, front_rig_run(r));
}

/* ---- the world ---- */

static void post(void *context, void *owner, int64_t delay_ns, void (*run)(void *arg), void *arg)
{
    struct front_rig *r = context;
    world_post(&r->world, owner, delay_ns, run, arg);
}

static uint64_t draw(void *context)
{
    struct front_rig *r = context;
    return rng_next(&r->world.net);
}

static const struct rpc_sim_ops net_ops = {.post = post, .random = draw};

static void nothing(void *arg)
{
    (void)arg;
}

void front_rig_pass(struct front_rig *r, int64_t ns)
{
    int64_t end_ns = r->world.now_ns + ns;
    world_post(&r->world, NULL, ns, nothing, NULL);
    while (r->world.n_events && r->world.heap[0].at_ns <= end_ns)
        world_step(&r->world);
    assert_int_equal(r->world.now_ns, end_ns);
}

static void set(struct front_rig *r, const char *path, const char *value)
{
    struct err e = ERR_INIT;
    if (config_set(&r->config, path, value, path, &e) < 0)
        fail_msg("%s", e.message);
}

static void open_core(struct front_rig *r, bool threads)
{
    const struct coordinator_config config = {.config = &r->config,
                                              .model = r->model,
                                              .tokenizer = r->tokenizer,
                                              .epochs = &r->epochs,
                                              .ops = threads ? &with_threads : &without_threads,
                                              .context = r};
    struct err e = ERR_INIT;
    int code = rpc_runtime_new(rpc_sim_host_loop(r->server_host), &r->server_runtime, &e);
    if (code == 0)
        code = rpc_runtime_new(rpc_sim_host_loop(r->client_host), &r->client_runtime, &e);
    if (code == 0)
        code = coordinator_init(&r->core, &config, &e);
    if (code == 0)
        code = coordinator_listen(&r->core, r->server_runtime, &e);
    if (code == 0)
        code = rpc_channel_new(r->client_runtime, ADDRESS, NULL, NULL, &r->channel, &e);
    if (code < 0)
        fail_msg("%s", e.message);
}

struct front_rig *front_rig_new(bool threads, const char *keys)
{
    struct front_rig *r = calloc(1, sizeof *r);
    struct err e = ERR_INIT;
    char dir[512];
    assert_non_null(r);
    snprintf(dir, sizeof dir, "%s/deploy/demo/model", getenv("GLMD_SOURCE_DIR"));
    world_init(&r->world, 1, NULL);
    assert_int_equal(config_init(&r->config), 0);
    set(r, "coordinator.listen", ADDRESS);
    set(r, "coordinator.keys", keys);
    set(r, "group.workers", "external");
    if (model_dir_open(dir, &r->model, &e) < 0 ||
        tokenizer_open(dir, model_dir_arch(r->model), &r->tokenizer, &e) < 0)
        fail_msg("%s", e.message);
    r->epochs.dir_fd = -1;
    r->net = rpc_sim_new(&net_ops, r);
    r->server_host = rpc_sim_host_new(r->net, "server", &r->server_process);
    r->client_host = rpc_sim_host_new(r->net, "client", &r->client_process);
    open_core(r, threads);
    return r;
}

static void on_stopped(void *context)
{
    struct front_rig *r = context;
    r->n_runtimes_stopped++;
}

static void on_core_stopped(void *context)
{
    struct front_rig *r = context;
    r->n_stopped++;
}

void front_rig_free(struct front_rig *r)
{
    rpc_channel_close(r->channel);
    if (!r->core.stopping)
        coordinator_stop(&r->core, GRACE_NS, on_core_stopped, r);
    while (r->n_jobs)
        front_job_end(front_rig_run(r));
    front_rig_pass(r, 2 * GRACE_NS);
    rpc_runtime_stop(r->server_runtime, on_stopped, r);
    rpc_runtime_stop(r->client_runtime, on_stopped, r);
    while (world_step(&r->world))
        ;
    assert_int_equal(r->n_stopped, 1);
    assert_int_equal(r->n_runtimes_stopped, 2);
    coordinator_deinit(&r->core);
    rpc_sim_free(r->net);
    tokenizer_close(r->tokenizer);
    model_dir_close(r->model);
    config_deinit(&r->config);
    world_deinit(&r->world);
    free(r);
}

/* ---- clients ---- */

static void on_message(struct rpc_call *call, const uint8_t *data, size_t size)
{
    struct front_client *c = rpc_user(call);
    buf_clear(&c->last);
    assert_int_equal(buf_append(&c->last, data, size), 0);
    c->n_messages++;
}

static void on_done(struct rpc_call *call, enum rpc_status status, const char *message)
{
    struct front_client *c = rpc_user(call);
    size_t size;
    const uint8_t *details = rpc_details(call, &size);
    c->call = NULL;
    c->status = status;
    snprintf(c->message, sizeof c->message, "%s", message);
    if (details)
        assert_int_equal(status_details_unpack(details, size, &c->details, NULL), 0);
}

static const struct rpc_callbacks callbacks = {.on_message = on_message, .on_done = on_done};

struct front_client *front_client_new(struct front_rig *r, const char *path, const char *key,
                                      int64_t deadline_ns)
{
    struct front_client *c = calloc(1, sizeof *c);
    char header[128];
    assert_non_null(c);
    assert_int_equal(rpc_open(r->channel, path, deadline_ns, true, &callbacks, c, &c->call), 0);
    snprintf(header, sizeof header, "Bearer %s", key ? key : "");
    if (key)
        rpc_sim_set_metadata(c->call, "authorization", header);
    return c;
}

void front_client_free(struct front_client *c)
{
    assert_null(c->call);
    buf_deinit(&c->last);
    free(c);
}

static int pack_kserve(const char *id, struct buf *out)
{
    static const int64_t one[] = {1};
    static const struct wire_bytes text = {9, (const uint8_t *)"The river"};
    static const struct wire_kserve_contents contents = {.bytes_contents = &text,
                                                         .n_bytes_contents = 1};
    static const struct wire_kserve_tensor tensor = {.name = "text_input",
                                                     .datatype = "BYTES",
                                                     .shape = one,
                                                     .n_shape = 1,
                                                     .contents = &contents};
    const struct wire_kserve_infer_request w = {
        .model_name = "", .model_version = "", .id = id, .inputs = &tensor, .n_inputs = 1};
    return wire_pack_kserve_infer_request(&w, out);
}

static int pack(const char *path, const char *id, struct buf *out)
{
    static const char *const choices[] = {"deep"};
    static const int32_t ids[] = {100, 101};
    const char *name = strrchr(path, '/') + 1, *text = "The river";
    if (strcmp(name, "Generate") == 0)
        return wire_pack_generate_request(
            &(struct wire_generate_request){
                .model = "", .text = text, .request_id = "", .user = ""},
            out);
    if (strcmp(name, "Fill") == 0)
        return wire_pack_fill_request(
            &(struct wire_fill_request){
                .model = "", .text = "The [MASK]", .request_id = "", .user = ""},
            out);
    if (strcmp(name, "Score") == 0)
        return wire_pack_score_request(&(struct wire_score_request){.model = "",
                                                                    .text = text,
                                                                    .request_id = "",
                                                                    .user = "",
                                                                    .choices = choices,
                                                                    .n_choices = 1},
                                       out);
    if (strcmp(name, "Tokenize") == 0)
        return wire_pack_tokenize_request(
            &(struct wire_tokenize_request){.model = "", .text = text}, out);
    if (strcmp(name, "Detokenize") == 0)
        return wire_pack_detokenize_request(
            &(struct wire_detokenize_request){.model = "", .ids = ids, .n_ids = 2}, out);
    return pack_kserve(id, out);
}

/* Field 1000, bytes: a key of two bytes, a length of three, zeros. */
static void pad(struct buf *b, size_t size)
{
    enum { HEAD = 5 };
    assert_true(b->size + HEAD < size && size < 1 << 21);
    size_t n = size - b->size - HEAD;
    const uint8_t head[HEAD] = {0xc2, 0x3e, (uint8_t)(n | 0x80), (uint8_t)(n >> 7 | 0x80),
                                (uint8_t)(n >> 14)};
    assert_int_equal(buf_append(b, head, HEAD), 0);
    assert_int_equal(buf_reserve(b, n), 0);
    memset(b->data + b->size, 0, n + 1);
    b->size += n;
}

void front_message(struct buf *ret, const char *path, const char *id, size_t size)
{
    buf_clear(ret);
    assert_int_equal(pack(path, id, ret), 0);
    if (size)
        pad(ret, size);
}
