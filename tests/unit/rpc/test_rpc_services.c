/* test_rpc_services.c: grpc.health.v1 and server reflection, as pure functions and over calls.
 * Messages are written and read byte by byte here, against the published numbers. */
#include "rig.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "proto/rpc/rpc_requests.h"

/* ---- protobuf by hand ---- */

struct bytes {
    uint8_t data[512];
    size_t size;
};

/* A length-delimited field of less than 128 bytes. */
static void put(struct bytes *b, unsigned field, const void *data, size_t size)
{
    assert_true(size < 128 && b->size + size + 2 < sizeof b->data);
    b->data[b->size++] = (uint8_t)(field << 3 | 2);
    b->data[b->size++] = (uint8_t)size;
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static struct bytes request(unsigned field, const char *text)
{
    struct bytes b = {.size = 0};
    put(&b, field, text, strlen(text));
    return b;
}

static uint64_t get_varint(const uint8_t **at, const uint8_t *end)
{
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        assert_true(*at < end && shift < 64);
        uint8_t byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
}

/* The n-th occurrence of a length-delimited field; NULL when there is none. */
static const uint8_t *get(const uint8_t *data, size_t size, unsigned field, size_t n,
                          size_t *ret_size)
{
    const uint8_t *at = data, *end = data + size;
    while (at < end) {
        uint64_t tag = get_varint(&at, end), length = 0;
        if ((tag & 7) == 2)
            length = get_varint(&at, end);
        else if ((tag & 7) == 0)
            get_varint(&at, end);
        else
            fail_msg("unexpected wire type %d", (int)(tag & 7));
        assert_true(length <= (uint64_t)(end - at));
        if (tag >> 3 == field && (tag & 7) == 2 && n-- == 0) {
            *ret_size = length;
            return at;
        }
        at += length;
    }
    return NULL;
}

static uint64_t get_number(const uint8_t *data, size_t size, unsigned field)
{
    const uint8_t *at = data, *end = data + size;
    while (at < end) {
        uint64_t tag = get_varint(&at, end);
        uint64_t value = get_varint(&at, end);
        if ((tag & 7) == 2)
            at += value;
        else if (tag >> 3 == field)
            return value;
    }
    return 0;
}

static void assert_text(const uint8_t *data, size_t size, const char *expected)
{
    if (!data || size != strlen(expected) || memcmp(data, expected, size) != 0)
        fail_msg("expected \"%s\", found \"%.*s\"", expected, data ? (int)size : 4,
                 data ? (const char *)data : "NULL");
}

/* ---- reflection, without calls ---- */

enum { BY_FILENAME = 3, BY_SYMBOL = 4, BY_EXTENSION = 5, ALL_EXTENSIONS = 6, LIST = 7 };
enum { DESCRIPTORS = 4, SERVICES = 6, ERROR = 7 };

static const char *const listed[] = {"glmd.v1.Inference", "grpc.health.v1.Health"};

static struct buf ask(struct bytes b)
{
    struct descriptors *d = NULL;
    struct err e = ERR_INIT;
    struct buf response = {0};
    assert_int_equal(descriptors_new(glmd_descriptors, glmd_descriptors_size, &d, &e), 0);
    if (reflection_answer(d, listed, ARRAY_LEN(listed), b.data, b.size, &response, &e))
        fail_msg("%s", e.message);
    descriptors_free(d);
    return response;
}

static void assert_defined_in(unsigned kind, const char *name, const char *file)
{
    struct buf response = ask(request(kind, name));
    size_t size = 0, inner = 0;
    const uint8_t *found = get((uint8_t *)response.data, response.size, DESCRIPTORS, 0, &size);
    if (!found)
        fail_msg("\"%s\" was not found", name);
    found = get(found, size, 1, 0, &size); /* the first file */
    assert_non_null(found);
    const uint8_t *file_name = get(found, size, 1, 0, &inner);
    assert_text(file_name, inner, file);
    /* the request comes back */
    found = get((uint8_t *)response.data, response.size, 2, 0, &size);
    assert_non_null(found);
    const uint8_t *text = get(found, size, kind, 0, &inner);
    assert_text(text, inner, name);
    buf_deinit(&response);
}

static void assert_not_found(struct bytes b, uint64_t status)
{
    struct buf response = ask(b);
    size_t size = 0;
    const uint8_t *error = get((uint8_t *)response.data, response.size, ERROR, 0, &size);
    assert_non_null(error);
    assert_int_equal(get_number(error, size, 1), status);
    buf_deinit(&response);
}

static void test_symbols(void **state)
{
    (void)state;
    const char *inference = "glmd/v1/inference.proto", *health = "grpc/health/v1/health.proto";
    assert_defined_in(BY_SYMBOL, "glmd.v1.Inference", inference);
    assert_defined_in(BY_SYMBOL, "glmd.v1.Inference.Generate", inference);
    assert_defined_in(BY_SYMBOL, "glmd.v1.GenerateRequest", inference);
    assert_defined_in(BY_SYMBOL, "glmd.v1.FinishReason", inference);
    assert_defined_in(BY_SYMBOL, "glmd.v1.Cluster.Status", "glmd/v1/cluster.proto");
    assert_defined_in(BY_SYMBOL, "glmd.v1.Worker", "glmd/v1/worker.proto");
    assert_defined_in(BY_SYMBOL, "inference.GRPCInferenceService.ModelInfer",
                      "inference/kserve.proto");
    assert_defined_in(BY_SYMBOL, "inference.ModelInferRequest.InferInputTensor",
                      "inference/kserve.proto");
    assert_defined_in(BY_SYMBOL, "grpc.health.v1.HealthCheckResponse.ServingStatus", health);
    assert_defined_in(BY_SYMBOL, "grpc.reflection.v1.ServerReflection",
                      "grpc/reflection/v1/reflection.proto");
    assert_defined_in(BY_SYMBOL, "grpc.reflection.v1alpha.ServerReflectionRequest",
                      "grpc/reflection/v1alpha/reflection.proto");
    assert_defined_in(BY_FILENAME, health, health);
    assert_defined_in(BY_FILENAME, inference, inference);
}

static void test_imports_come_along(void **state)
{
    (void)state;
    struct buf response = ask(request(BY_SYMBOL, "glmd.v1.Cluster"));
    size_t size = 0, inner = 0;
    const uint8_t *found = get((uint8_t *)response.data, response.size, DESCRIPTORS, 0, &size);
    assert_non_null(found);
    const uint8_t *second = get(found, size, 1, 1, &inner);
    assert_non_null(second);
    const uint8_t *name = get(second, inner, 1, 0, &inner);
    assert_text(name, inner, "glmd/v1/inference.proto");
    assert_null(get(found, size, 1, 2, &inner)); /* each once */
    buf_deinit(&response);
}

static void test_not_found(void **state)
{
    (void)state;
    static const char *const symbols[] = {
        "",
        ".",
        "glmd",
        "glmd.v1",
        "glmd.v1.",
        "glmd.v1.Nothing",
        "glmd.v1.Inference.Nothing",
        "glmd.v1.Inference.Generate.more",
        "glmd.v1.InferenceX",
        "glmd.v1.GenerateRequest.Nothing",
        ".glmd.v1.Inference",
        "grpc.health.v1.HealthCheckResponse.ServingStatus.more",
        "Inference",
    };
    for (size_t i = 0; i < ARRAY_LEN(symbols); i++)
        assert_not_found(request(BY_SYMBOL, symbols[i]), RPC_NOT_FOUND);
    assert_not_found(request(BY_FILENAME, "inference.proto"), RPC_NOT_FOUND);
    assert_not_found(request(BY_FILENAME, ""), RPC_NOT_FOUND);
    assert_not_found(request(ALL_EXTENSIONS, "glmd.v1.GenerateRequest"), RPC_NOT_FOUND);
    assert_not_found(request(BY_EXTENSION, ""), RPC_NOT_FOUND); /* an empty ExtensionRequest */
    assert_not_found(request(1, "host"), RPC_INVALID_ARGUMENT); /* asks for nothing */
}

static void test_list(void **state)
{
    (void)state;
    struct buf response = ask(request(LIST, "*"));
    size_t size = 0, inner = 0;
    const uint8_t *list = get((uint8_t *)response.data, response.size, SERVICES, 0, &size);
    assert_non_null(list);
    for (size_t i = 0; i < ARRAY_LEN(listed); i++) {
        const uint8_t *service = get(list, size, 1, i, &inner);
        assert_non_null(service);
        const uint8_t *name = get(service, inner, 1, 0, &inner);
        assert_text(name, inner, listed[i]);
    }
    assert_null(get(list, size, 1, ARRAY_LEN(listed), &inner));
    buf_deinit(&response);
}

static void test_hostile_requests(void **state)
{
    (void)state;
    struct descriptors *d = NULL;
    assert_int_equal(descriptors_new(glmd_descriptors, glmd_descriptors_size, &d, NULL), 0);
    static const struct {
        const char *bytes;
        size_t size;
        int code;
    } cases[] = {
        {"\x22\x7f", 2, -EBADMSG},     /* cut off */
        {"\x22\x01\xff", 3, -EBADMSG}, /* not UTF-8 */
        {"\x22\x03g\0d", 5, -EBADMSG}, /* a NUL inside a name */
        {"\x08\x01", 2, -EBADMSG},     /* a number where a text belongs */
        {"\xff\xff\xff\xff\xff\xff", 6, -EBADMSG},
    };
    struct buf response = {0};
    struct err e = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        int code = reflection_answer(d, listed, 2, (const uint8_t *)cases[i].bytes, cases[i].size,
                                     &response, &e);
        if (code != cases[i].code)
            fail_msg("case %zu: expected %d, found %d", i, cases[i].code, code);
    }
    static uint8_t large[REFLECTION_MAX_REQUEST_BYTES + 1];
    assert_int_equal(reflection_answer(d, listed, 2, large, sizeof large, &response, &e), -E2BIG);
    assert_int_equal(response.size, 0);
    buf_deinit(&response);
    descriptors_free(d);
    /* a set that is none */
    assert_int_equal(descriptors_new((const uint8_t *)"\x0a\x05xxx", 5, &d, &e), -EBADMSG);
    assert_int_equal(descriptors_new((const uint8_t *)"\x12\x01x", 3, &d, &e), -EBADMSG);
}

static void test_health_request(void **state)
{
    (void)state;
    char service[HEALTH_MAX_SERVICE_BYTES + 1];
    struct err e = ERR_INIT;
    assert_int_equal(health_read_request((const uint8_t *)"", 0, service, &e), 0);
    assert_string_equal(service, "");
    struct bytes b = request(1, "glmd.v1.Inference");
    assert_int_equal(health_read_request(b.data, b.size, service, &e), 0);
    assert_string_equal(service, "glmd.v1.Inference");
    assert_int_equal(health_read_request(b.data, b.size - 1, service, &e), -EBADMSG);
    uint8_t longer[2 + HEALTH_MAX_SERVICE_BYTES + 2] = {0x0a, 0x81, 0x01};
    memset(longer + 3, 'x', sizeof longer - 3);
    assert_int_equal(health_read_request(longer, sizeof longer, service, &e), -ENOENT);
}

/* ---- over calls ---- */

static int setup(void **state)
{
    static struct rig r;
    static const char *const services[] = {"glmd.v1.Inference"};
    static const struct rpc_limits one_call = {.max_calls = 1};
    struct err e = ERR_INIT;
    int port;
    rig_init_bare(&r);
    assert_int_equal(rpc_server_new(r.runtime, &one_call, &r.server), 0);
    assert_int_equal(rpc_server_add(r.server, test_methods, n_test_methods), 0);
    assert_int_equal(rpc_health_add(r.server), 0);
    assert_int_equal(rpc_reflection_add(r.server, services, 1), 0);
    assert_int_equal(rpc_server_listen(r.server, "127.0.0.1:0", NULL, &port, &e), 0);
    assert_int_equal(rpc_server_start(r.server), 0);
    snprintf(r.address, sizeof r.address, "127.0.0.1:%d", port);
    rig_dial(&r, NULL, NULL);
    *state = &r;
    return 0;
}

static int teardown(void **state)
{
    rig_deinit(*state);
    return 0;
}

static const char check[] = "/grpc.health.v1.Health/Check";

static void assert_health(struct rig *r, const char *service, enum rpc_status status, int serving)
{
    struct bytes b = request(1, service);
    struct client c = {0};
    client_unary(r, &c, check, b.data, b.size);
    assert_int_equal(c.status, status);
    if (status == RPC_OK)
        assert_int_equal(get_number(c.last, c.last_size, 1), serving);
}

static void test_check(void **state)
{
    struct rig *r = *state;
    assert_health(r, "", RPC_OK, RPC_NOT_SERVING); /* until somebody says more */
    assert_health(r, "glmd.v1.Inference", RPC_NOT_FOUND, 0);
    rpc_health_set(r->server, "", RPC_SERVING);
    rpc_health_set(r->server, "glmd.v1.Inference", RPC_SERVING);
    assert_health(r, "", RPC_OK, RPC_SERVING);
    assert_health(r, "glmd.v1.Inference", RPC_OK, RPC_SERVING);
    rpc_health_set(r->server, "glmd.v1.Inference", RPC_NOT_SERVING);
    assert_health(r, "glmd.v1.Inference", RPC_OK, RPC_NOT_SERVING);
    assert_health(r, "", RPC_OK, RPC_SERVING);
    struct client c = {0};
    client_unary(r, &c, check, "\x0a\x05x", 3);
    assert_int_equal(c.status, RPC_INVALID_ARGUMENT);
    client_open(r, &c, check, 0);
    rpc_half_close(c.call);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_INVALID_ARGUMENT);
}

/* Health is asked for most when a server has all it can do. */
static void test_check_when_full(void **state)
{
    struct rig *r = *state;
    struct client only = {0}, more = {0};
    client_open(r, &only, "/test.Test/Hold", 0);
    WAIT(r, served);
    client_unary(r, &more, "/test.Test/Unary", "x", 1);
    assert_int_equal(more.status, RPC_RESOURCE_EXHAUSTED);
    assert_health(r, "", RPC_OK, RPC_NOT_SERVING);
    rpc_cancel(only.call);
    WAIT(r, only.n_done);
}

static void watch(struct rig *r, struct client *c, const char *service)
{
    struct bytes b = request(1, service);
    client_open(r, c, "/grpc.health.v1.Health/Watch", 0);
    assert_int_equal(rpc_send(c->call, b.data, b.size), 0);
    rpc_half_close(c->call);
    WAIT(r, c->n_messages == 1);
}

#define ASSERT_SEEN(c, n, serving)                                                                 \
    do {                                                                                           \
        WAIT(r, (c).n_messages == (n) || (c).n_done);                                              \
        assert_int_equal(get_number((c).last, (c).last_size, 1), serving);                         \
    } while (0)

static void test_watch(void **state)
{
    struct rig *r = *state;
    struct client whole = {0}, one = {0};
    watch(r, &whole, "");
    ASSERT_SEEN(whole, 1, RPC_NOT_SERVING);
    watch(r, &one, "glmd.v1.Inference");
    ASSERT_SEEN(one, 1, 3); /* SERVICE_UNKNOWN */
    rpc_health_set(r->server, "", RPC_SERVING);
    ASSERT_SEEN(whole, 2, RPC_SERVING);
    rpc_health_set(r->server, "glmd.v1.Inference", RPC_SERVING);
    ASSERT_SEEN(one, 2, RPC_SERVING);
    rpc_health_set(r->server, "glmd.v1.Inference", RPC_SERVING); /* no change, no message */
    rig_stop_server(r, 3600 * NSEC_PER_SEC);                     /* no watch holds it up */
    WAIT(r, whole.n_done && one.n_done && r->n_stopped);
    assert_int_equal(whole.n_messages, 3);
    assert_int_equal(one.n_messages, 3);
    assert_int_equal(get_number(whole.last, whole.last_size, 1), RPC_NOT_SERVING);
    assert_int_equal(get_number(one.last, one.last_size, 1), RPC_NOT_SERVING);
    assert_int_equal(whole.status, RPC_UNAVAILABLE);
    assert_int_equal(one.status, RPC_UNAVAILABLE);
}

static void test_watch_cancelled(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    watch(r, &c, "");
    rpc_cancel(c.call);
    WAIT(r, c.n_done);
    rpc_health_set(r->server, "", RPC_SERVING); /* nobody there to tell, or not for long */
    assert_health(r, "", RPC_OK, RPC_SERVING);
}

static void test_reflection_stream(void **state)
{
    static const char *const paths[] = {
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"};
    struct rig *r = *state;
    for (size_t i = 0; i < 2; i++) {
        struct client c = {0};
        struct bytes b = request(LIST, "");
        client_open(r, &c, paths[i], 0);
        for (size_t k = 1; k <= 3; k++) {
            assert_int_equal(rpc_send(c.call, b.data, b.size), 0);
            WAIT(r, c.n_messages == k || c.n_done);
            assert_int_equal(c.n_messages, k);
        }
        rpc_half_close(c.call);
        WAIT(r, c.n_done);
        assert_int_equal(c.status, RPC_OK);
    }
}

/* A client that asks for much and reads nothing must not fill the server's memory. */
static void test_reflection_flood(void **state)
{
    enum { N = 4000 };
    struct rig *r = *state;
    struct client c = {.pause_after = 1}, other = {0};
    struct bytes b = request(BY_SYMBOL, "glmd.v1.Cluster"); /* answers of about 7 KiB */
    char host[101];
    memset(host, 'h', sizeof host);
    put(&b, 1, host, sizeof host - 1);
    client_open(r, &c, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 0);
    for (int i = 0; i < N; i++)
        assert_int_equal(rpc_send(c.call, b.data, b.size), 0);
    rpc_half_close(c.call);
    WAIT(r, c.n_messages == 1);
    size_t queued;
    do { /* until it stands still */
        queued = rpc_queued_bytes(c.call);
        for (int i = 0; i < 20; i++) {
            client_unary(r, &other, check, "", 0);
            assert_int_equal(other.status, RPC_OK);
        }
    } while (rpc_queued_bytes(c.call) != queued);
    assert_int_equal(c.n_messages, 1);
    /* requests that the server does not read, because its answers do not get away */
    assert_in_range(rpc_queued_bytes(c.call), N * b.size / 4, N * b.size);
    rpc_resume(c.call);
    WAIT(r, c.n_done);
    assert_int_equal(c.status, RPC_OK);
    assert_int_equal(c.n_messages, N);
}

static void test_reflection_bad_request(void **state)
{
    struct rig *r = *state;
    struct client c = {0};
    client_unary(r, &c, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "\x22\x7f", 2);
    assert_int_equal(c.status, RPC_INVALID_ARGUMENT);
    assert_true(strlen(c.message) > 0);
}

static void test_reflection_unknown_service(void **state)
{
    (void)state;
    struct rig r;
    static const char *const services[] = {"glmd.v1.Nothing"};
    rig_init_bare(&r);
    assert_int_equal(rpc_server_new(r.runtime, NULL, &r.server), 0);
    assert_int_equal(rpc_reflection_add(r.server, services, 1), -ENOENT);
    rig_deinit(&r);
}

int main(void)
{
#define CALLS(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    signal(SIGPIPE, SIG_IGN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_symbols),
        cmocka_unit_test(test_imports_come_along),
        cmocka_unit_test(test_not_found),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_hostile_requests),
        cmocka_unit_test(test_health_request),
        CALLS(test_check),
        CALLS(test_check_when_full),
        CALLS(test_watch),
        CALLS(test_watch_cancelled),
        CALLS(test_reflection_stream),
        CALLS(test_reflection_flood),
        CALLS(test_reflection_bad_request),
        cmocka_unit_test(test_reflection_unknown_service),
    };
    return cmocka_run_group_tests_name("rpc_services", tests, NULL, NULL);
}
