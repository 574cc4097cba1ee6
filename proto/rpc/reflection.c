/* reflection.c: grpc.reflection.v1 and v1alpha.ServerReflection, so that any stock client can call
 * this server without its .proto files. Both versions have the same messages. Loop thread. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "proto/rpc/rpc_builtin.h"
#include "proto/rpc/rpc_requests.h"
#include "proto/rpc/wire_arena.h"
#include "proto/rpc/wire_scan.h"

#include "grpc/reflection/v1/reflection.pb-c.h"

typedef Grpc__Reflection__V1__ServerReflectionRequest request_message;
typedef Grpc__Reflection__V1__ServerReflectionResponse response_message;

enum {
    MAX_SERVICES = 32,
    MAX_SERVICE_BYTES = 128,
    QUEUE_HIGH_WATER = 256 * 1024, /* answers that wait; then no request is read */
    REQUEST_HEAP = 16384,
};

struct stream {
    struct reflection *reflection;
    struct rpc_call *call;
    struct stream *next, **link;
};

struct reflection {
    struct rpc_method methods[2];
    struct descriptors *descriptors; /* owned */
    char names[MAX_SERVICES][MAX_SERVICE_BYTES + 1];
    const char *services[MAX_SERVICES]; /* point into names */
    size_t n_services;
    struct stream *streams; /* owned */
};

/* ---- one request ---- */

static int pack(response_message *response, struct buf *ret, struct err *e)
{
    size_t size = grpc__reflection__v1__server_reflection_response__get_packed_size(response);
    int code = buf_reserve(ret, size);
    if (code)
        return err_set(e, code, "no memory for %zu bytes of reflection", size);
    grpc__reflection__v1__server_reflection_response__pack(response,
                                                           (uint8_t *)ret->data + ret->size);
    ret->size += size;
    ret->data[ret->size] = '\0';
    return 0;
}

static response_message response_to(request_message *request)
{
    response_message response = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    response.valid_host = request->host;
    response.original_request = request;
    return response;
}

static int answer_file(const struct descriptors *d, int file, request_message *request,
                       struct buf *ret, struct err *e)
{
    int files[DESCRIPTORS_MAX_FILES];
    size_t n = descriptors_closure(d, file, files);
    ProtobufCBinaryData bytes[DESCRIPTORS_MAX_FILES];
    for (size_t i = 0; i < n; i++)
        bytes[i].data = (uint8_t *)descriptors_bytes(d, files[i], &bytes[i].len);
    Grpc__Reflection__V1__FileDescriptorResponse found =
        GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
    found.n_file_descriptor_proto = n;
    found.file_descriptor_proto = bytes;
    response_message response = response_to(request);
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response.file_descriptor_response = &found;
    return pack(&response, ret, e);
}

static int answer_services(const char *const *services, size_t n, request_message *request,
                           struct buf *ret, struct err *e)
{
    Grpc__Reflection__V1__ServiceResponse each[MAX_SERVICES], *list[MAX_SERVICES];
    assert(n <= MAX_SERVICES);
    for (size_t i = 0; i < n; i++) {
        grpc__reflection__v1__service_response__init(&each[i]);
        each[i].name = (char *)services[i];
        list[i] = &each[i];
    }
    Grpc__Reflection__V1__ListServiceResponse found =
        GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
    found.n_service = n;
    found.service = list;
    response_message response = response_to(request);
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response.list_services_response = &found;
    return pack(&response, ret, e);
}

static int answer_error(enum rpc_status status, const char *message, request_message *request,
                        struct buf *ret, struct err *e)
{
    Grpc__Reflection__V1__ErrorResponse error = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
    error.error_code = (int32_t)status;
    error.error_message = (char *)message;
    response_message response = response_to(request);
    response.message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response.error_response = &error;
    return pack(&response, ret, e);
}

static int answer(const struct descriptors *d, const char *const *services, size_t n_services,
                  request_message *request, struct buf *ret, struct err *e)
{
    request->base.n_unknown_fields = 0; /* only what is understood is sent back */
    int file = -1;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        return answer_services(services, n_services, request, ret, e);
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        file = descriptors_find_file(d, request->file_by_filename);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        file = descriptors_find_symbol(d, request->file_containing_symbol);
        break;
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
        request->file_containing_extension->base.n_unknown_fields = 0;
        break; /* proto3 has no extensions, and there are none */
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        break;
    default:
        return answer_error(RPC_INVALID_ARGUMENT, "the request asks for nothing", request, ret, e);
    }
    if (file < 0)
        return answer_error(RPC_NOT_FOUND, "not found", request, ret, e);
    return answer_file(d, file, request, ret, e);
}

int reflection_answer(const struct descriptors *d, const char *const *services, size_t n_services,
                      const uint8_t *data, size_t size, struct buf *ret_response, struct err *e)
{
    if (size > REFLECTION_MAX_REQUEST_BYTES)
        return err_set(e, -E2BIG, "a reflection request has at most %d bytes, found %zu",
                       REFLECTION_MAX_REQUEST_BYTES, size);
    int code =
        wire_scan(&grpc__reflection__v1__server_reflection_request__descriptor, data, size, e);
    if (code)
        return code;
    struct wire_arena arena;
    wire_arena_init(&arena, WIRE_HEAP_FACTOR * size + REQUEST_HEAP, 0);
    ProtobufCAllocator allocator = wire_arena_allocator(&arena);
    request_message *request =
        grpc__reflection__v1__server_reflection_request__unpack(&allocator, size, data);
    if (request)
        code = answer(d, services, n_services, request, ret_response, e);
    else
        code = err_set(e, -EBADMSG, "ServerReflectionRequest: malformed message");
    wire_arena_deinit(&arena);
    return code;
}

/* ---- streams ---- */

static void on_request(struct rpc_call *c, const uint8_t *data, size_t size)
{
    const struct reflection *f = ((struct stream *)rpc_user(c))->reflection;
    struct buf response = {0};
    struct err e = ERR_INIT;
    int code =
        reflection_answer(f->descriptors, f->services, f->n_services, data, size, &response, &e);
    if (!code)
        code = rpc_send(c, response.data, response.size);
    buf_deinit(&response);
    if (code)
        rpc_finish(c, code == -ENOMEM ? RPC_RESOURCE_EXHAUSTED : RPC_INVALID_ARGUMENT,
                   e.code ? e.message : err_name(code));
    else if (rpc_queued_bytes(c) > QUEUE_HIGH_WATER)
        rpc_pause(c);
}

static void on_drained(struct rpc_call *c)
{
    rpc_resume(c);
}

static void on_half_close(struct rpc_call *c)
{
    rpc_finish(c, RPC_OK, "");
}

static void on_done(struct rpc_call *c, enum rpc_status status, const char *message)
{
    (void)status, (void)message;
    struct stream *t = rpc_user(c);
    *t->link = t->next;
    if (t->next)
        t->next->link = t->link;
    free(t);
}

static void on_call(struct rpc_call *c, void *context)
{
    static const struct rpc_callbacks callbacks = {.on_message = on_request,
                                                   .on_half_close = on_half_close,
                                                   .on_drained = on_drained,
                                                   .on_done = on_done};
    struct reflection *f = context;
    struct stream *t = calloc(1, sizeof *t);
    if (!t) {
        rpc_refuse(c, RPC_RESOURCE_EXHAUSTED, "no memory");
        return;
    }
    *t = (struct stream){.reflection = f, .call = c, .next = f->streams, .link = &f->streams};
    if (t->next)
        t->next->link = &t->next;
    f->streams = t;
    rpc_set(c, &callbacks, t);
}

/* ---- the server's side ---- */

static int add_service(struct reflection *f, const char *name)
{
    if (!descriptors_has_service(f->descriptors, name))
        return -ENOENT;
    for (size_t i = 0; i < f->n_services; i++) {
        if (strcmp(f->services[i], name) == 0)
            return 0;
    }
    if (f->n_services == MAX_SERVICES || strlen(name) > MAX_SERVICE_BYTES)
        return -ENOSPC;
    memcpy(f->names[f->n_services], name, strlen(name) + 1);
    f->services[f->n_services] = f->names[f->n_services];
    f->n_services++;
    return 0;
}

static int fill(struct reflection *f, const struct rpc_builtin *builtin,
                const char *const *services, size_t n)
{
    int code = descriptors_new(glmd_descriptors, glmd_descriptors_size, &f->descriptors, NULL);
    for (size_t i = 0; i < n && !code; i++)
        code = add_service(f, services[i]);
    if (!code && builtin->health)
        code = add_service(f, "grpc.health.v1.Health");
    if (!code)
        code = add_service(f, "grpc.reflection.v1.ServerReflection");
    if (!code)
        code = add_service(f, "grpc.reflection.v1alpha.ServerReflection");
    return code;
}

int rpc_reflection_add(struct rpc_server *s, const char *const *services, size_t n)
{
    struct rpc_builtin *builtin = rpc_server_builtin(s);
    assert(!builtin->reflection);
    struct reflection *f = calloc(1, sizeof *f);
    if (!f)
        return -ENOMEM;
    f->methods[0] = (struct rpc_method){"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                                        on_call, f};
    f->methods[1] = (struct rpc_method){
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", on_call, f};
    int code = fill(f, builtin, services, n);
    if (!code)
        code = rpc_server_add_builtin(s, f->methods, ARRAY_LEN(f->methods));
    if (code) {
        reflection_free(f);
        return code;
    }
    builtin->reflection = f;
    return 0;
}

void reflection_stop(struct reflection *f)
{
    for (struct stream *t = f->streams; t; t = t->next)
        rpc_finish(t->call, RPC_UNAVAILABLE, "the server is shutting down");
}

void reflection_free(struct reflection *f)
{
    if (!f)
        return;
    assert(!f->streams); /* every call has ended */
    descriptors_free(f->descriptors);
    free(f);
}
