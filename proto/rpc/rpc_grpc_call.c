/* rpc_grpc_call.c: one call, of either side.
 *
 * Every operation handed to gRPC comes back as an event; n_pending counts those under way. The call
 * is over when gRPC has said its last word (RECV_CLOSE_ON_SERVER or RECV_STATUS_ON_CLIENT:
 * `closed`) and every operation is back. Then on_done runs and the object goes. Callbacks run from
 * events only, never from inside a function of rpc.h.
 *
 * At most one operation sends at any time. It takes along whatever fits: the initial metadata
 * before the first message, the status (or the client's half-close) behind the last one.
 */
#include "proto/rpc/rpc_grpc.h"

#include <assert.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/util.h"

enum { CHUNK_OVERHEAD = 256 }; /* bytes of memory per queued message besides its own, roughly */

/* The name that every gRPC library knows; "-bin": any bytes. */
#define DETAILS_KEY  "grpc-status-details-bin"
#define PUSHBACK_KEY "grpc-retry-pushback-ms"

static void on_received(struct event *e, bool ok);
static void on_sent(struct event *e, bool ok);
static void on_resume(struct event *e, bool ok);

/* ---- life ---- */

struct rpc_call *call_new(struct rpc_runtime *r)
{
    struct rpc_call *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    c->runtime = r;
    c->queue_tail = &c->queue;
    c->resume_event.run = on_resume;
    c->status_details = grpc_empty_slice();
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    grpc_metadata_array_init(&c->initial_metadata);
    grpc_metadata_array_init(&c->trailing_metadata);
    return c;
}

/* All messages that gRPC has not been given yet. */
static void drop_queue(struct rpc_call *c)
{
    struct chunk **at = c->sending_message ? &c->queue->next : &c->queue;
    struct chunk *chunk = *at;
    *at = NULL;
    c->queue_tail = at;
    while (chunk) {
        struct chunk *next = chunk->next;
        c->queued_bytes -= chunk->size;
        c->n_queued--;
        grpc_byte_buffer_destroy(chunk->buffer);
        free(chunk);
        chunk = next;
    }
}

static void drop_held(struct rpc_call *c)
{
    grpc_byte_buffer_destroy(c->held); /* accepts NULL */
    c->held = NULL;
}

void call_free(struct rpc_call *c)
{
    assert(!c->n_pending && !c->sending && !c->receiving);
    if (c->link)
        call_list_remove(c->link, c);
    drop_queue(c);
    drop_held(c);
    grpc_byte_buffer_destroy(c->incoming);
    if (c->call)
        grpc_call_unref(c->call);
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    grpc_metadata_array_destroy(&c->initial_metadata);
    grpc_metadata_array_destroy(&c->trailing_metadata);
    grpc_slice_unref(c->status_details);
    gpr_free(c->peer);
    gpr_free(c->path);
    free(c->metadata_text);
    free(c->metadata_values);
    free(c->finish_details);
    free(c);
}

void call_list_add(struct call_list *l, struct rpc_call *c)
{
    assert(!c->link);
    c->link = l;
    c->next = l->first;
    c->previous = NULL;
    if (l->first)
        l->first->previous = c;
    l->first = c;
    l->n++;
}

void call_list_remove(struct call_list *l, struct rpc_call *c)
{
    assert(c->link == l && l->n > 0);
    if (c->previous)
        c->previous->next = c->next;
    else
        l->first = c->next;
    if (c->next)
        c->next->previous = c->previous;
    c->link = NULL;
    l->n--;
}

/* ---- operations and the end ---- */

void call_get(struct rpc_call *c)
{
    c->n_pending++;
}

void call_batch(struct rpc_call *c, const grpc_op *ops, size_t n, struct event *e,
                void (*run)(struct event *e, bool ok))
{
    e->run = run;
    call_get(c);
    event_release(e);
    grpc_call_error error = grpc_call_start_batch(c->call, ops, n, e, NULL);
    assert(error == GRPC_CALL_OK); /* anything else is a wrong sequence of operations */
}

static enum rpc_status end_status(const struct rpc_call *c)
{
    if (c->failed)
        return c->finish_status;
    if (c->server)
        return c->cancelled || !c->finishing ? RPC_CANCELLED : c->finish_status;
    return c->status <= GRPC_STATUS_UNAUTHENTICATED ? (enum rpc_status)c->status : RPC_UNKNOWN;
}

static void end(struct rpc_call *c)
{
    enum rpc_status status = end_status(c);
    char *details = NULL;
    const char *message = c->finish_message;
    if (!c->failed && c->channel)
        message = details = grpc_slice_to_c_string(c->status_details);
    else if (!c->failed && c->cancelled)
        message = "the peer went away or its deadline passed";
    c->ended = true;
    if (c->callbacks)
        c->callbacks->on_done(c, status, message);
    gpr_free(details);
    struct rpc_server *server = c->server;
    struct rpc_channel *channel = c->channel;
    call_free(c);
    if (server)
        server_call_gone(server);
    else
        channel_call_gone(channel);
}

void call_put(struct rpc_call *c)
{
    assert(c->n_pending > 0);
    if (--c->n_pending || !c->closed)
        return;
    /* A client that paused still gets the last messages of a call that went well. An error does not
     * wait for it. */
    if (c->channel && c->held && c->status == GRPC_STATUS_OK)
        return;
    end(c);
}

void call_closed(struct rpc_call *c)
{
    c->closed = true;
    c->broken = true;
    drop_queue(c);
}

/* Lets the loop look at the call again. */
static void wake(struct rpc_call *c)
{
    if (c->resuming)
        return;
    c->resuming = true;
    call_get(c);
    mailbox_post(&c->runtime->mailbox, &c->resume_event.item);
}

void call_fail(struct rpc_call *c, enum rpc_status status, const char *message)
{
    if (c->failed || c->ended)
        return;
    c->failed = true;
    c->broken = true;
    drop_queue(c);
    drop_held(c);
    c->finish_status = status;
    snprintf(c->finish_message, sizeof c->finish_message, "%s", message);
    if (c->closed) { /* a paused client gives up the rest of a finished call */
        wake(c);
        return;
    }
    /* On a server this sends the status at once, past flow control. */
    grpc_call_cancel_with_status(c->call, (grpc_status_code)status, c->finish_message, NULL);
}

/* ---- receiving ---- */

static bool wants_messages(const struct rpc_call *c)
{
    return !c->failed && !c->finishing && !(c->server && c->closed);
}

static void deliver(struct rpc_call *c, grpc_byte_buffer *buffer)
{
    static const uint8_t nothing[1];
    if (buffer->type != GRPC_BB_RAW || buffer->data.raw.compression != GRPC_COMPRESS_NONE) {
        call_fail(c, RPC_UNIMPLEMENTED, "compressed messages are not supported; send them plain");
        return;
    }
    const grpc_slice_buffer *slices = &buffer->data.raw.slice_buffer;
    if (slices->count == 1) { /* the usual case: no copy */
        const grpc_slice *slice = &slices->slices[0];
        c->callbacks->on_message(c, GRPC_SLICE_START_PTR(*slice), GRPC_SLICE_LENGTH(*slice));
        return;
    }
    grpc_byte_buffer_reader reader;
    if (!slices->count || !grpc_byte_buffer_reader_init(&reader, buffer)) {
        c->callbacks->on_message(c, nothing, 0);
        return;
    }
    grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    c->callbacks->on_message(c, GRPC_SLICE_START_PTR(whole), GRPC_SLICE_LENGTH(whole));
    grpc_slice_unref(whole);
}

static void deliver_end(struct rpc_call *c)
{
    c->held_end = false;
    if (c->callbacks->on_half_close && wants_messages(c))
        c->callbacks->on_half_close(c);
}

void call_receive(struct rpc_call *c)
{
    if (c->receiving || c->receive_end || c->paused || c->held || !wants_messages(c))
        return;
    c->receiving = true;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &c->incoming;
    call_batch(c, &op, 1, &c->receive_event, on_received);
}

static void on_received(struct event *e, bool ok)
{
    struct rpc_call *c = event_owner(e, struct rpc_call, receive_event);
    c->receiving = false;
    c->heard = true;
    grpc_byte_buffer *buffer = c->incoming;
    c->incoming = NULL;
    if (buffer && wants_messages(c)) {
        if (c->paused) {
            c->held = buffer;
            buffer = NULL;
        } else {
            deliver(c, buffer);
        }
    } else if (!buffer) {
        /* No message: the peer has finished sending, or the call broke. On a client the status
         * follows and says which. */
        c->receive_end = true;
        if (c->server && ok && !grpc_call_failed_before_recv_message(c->call)) {
            if (c->paused)
                c->held_end = true;
            else
                deliver_end(c);
        }
    }
    grpc_byte_buffer_destroy(buffer);
    call_receive(c);
    call_put(c);
}

void rpc_pause(struct rpc_call *c)
{
    runtime_assert_loop(c->runtime);
    c->paused = true;
}

void rpc_resume(struct rpc_call *c)
{
    runtime_assert_loop(c->runtime);
    if (!c->paused)
        return;
    c->paused = false;
    if (c->held || c->held_end)
        wake(c);
    else if (c->started)
        call_receive(c);
}

static void on_resume(struct event *e, bool ok)
{
    (void)ok;
    struct rpc_call *c = event_owner(e, struct rpc_call, resume_event);
    c->resuming = false;
    if (!c->paused && c->held) {
        grpc_byte_buffer *buffer = c->held;
        c->held = NULL;
        if (wants_messages(c))
            deliver(c, buffer);
        grpc_byte_buffer_destroy(buffer);
    }
    if (!c->paused && c->held_end)
        deliver_end(c);
    call_receive(c);
    call_put(c);
}

/* ---- sending ---- */

/* The trailers with the status details and the pushback; how many there are. */
static size_t make_trailers(const struct rpc_call *c, grpc_metadata ret[2])
{
    size_t n = 0;
    if (c->finish_details)
        ret[n++] = (grpc_metadata){
            .key = grpc_slice_from_static_string(DETAILS_KEY),
            .value =
                grpc_slice_from_copied_buffer((const char *)c->finish_details, c->n_finish_details),
        };
    if (*c->pushback)
        ret[n++] = (grpc_metadata){
            .key = grpc_slice_from_static_string(PUSHBACK_KEY),
            .value = grpc_slice_from_copied_string(c->pushback),
        };
    return n;
}

static void send_more(struct rpc_call *c)
{
    if (c->sending || c->broken || c->sent_final)
        return;
    grpc_op ops[3] = {0};
    size_t n = 0;
    bool last = !c->queue || !c->queue->next;
    bool finish = last && (c->server ? c->finishing : c->half_closing);
    if (!c->queue && !finish)
        return;
    if (c->server && !c->sent_initial) {
        c->sent_initial = true;
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    }
    if (c->queue) {
        c->sending_message = true;
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = c->queue->buffer;
    }
    grpc_slice details = grpc_empty_slice();
    grpc_metadata trailers[2];
    size_t n_trailers = 0;
    if (finish && c->server) {
        details = grpc_slice_from_copied_string(c->finish_message);
        n_trailers = make_trailers(c, trailers);
        ops[n].data.send_status_from_server.trailing_metadata_count = n_trailers;
        ops[n].data.send_status_from_server.trailing_metadata = trailers;
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = (grpc_status_code)c->finish_status;
        ops[n++].data.send_status_from_server.status_details = &details;
    } else if (finish) {
        ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    c->sent_final = finish;
    c->sending = true;
    c->sending_ns = clock_now_ns();
    call_batch(c, ops, n, &c->send_event, on_sent);
    grpc_slice_unref(details);
    while (n_trailers)
        grpc_slice_unref(trailers[--n_trailers].value);
}

static void on_sent(struct event *e, bool ok)
{
    struct rpc_call *c = event_owner(e, struct rpc_call, send_event);
    bool message = c->sending_message;
    c->sending = c->sending_message = false;
    if (message) {
        struct chunk *chunk = c->queue;
        c->queue = chunk->next;
        if (!c->queue)
            c->queue_tail = &c->queue;
        c->queued_bytes -= chunk->size;
        c->n_queued--;
        grpc_byte_buffer_destroy(chunk->buffer);
        free(chunk);
    }
    if (!ok) { /* the end follows by itself */
        c->broken = true;
        drop_queue(c);
    }
    send_more(c);
    if (message && !c->queue && !c->broken && !c->finishing && !c->half_closing &&
        c->callbacks->on_drained)
        c->callbacks->on_drained(c);
    call_put(c);
}

/* Whether the call takes a message of this size: 1; 0: it is ending; or a negative code. */
static int takes_message(struct rpc_call *c, size_t size)
{
    runtime_assert_loop(c->runtime);
    if (c->broken || c->ended || c->finishing || c->half_closing)
        return 0;
    char reason[160];
    if (size > c->max_message_bytes) {
        snprintf(reason, sizeof reason, "a message of %zu bytes is over the limit of %zu", size,
                 c->max_message_bytes);
        call_fail(c, RPC_RESOURCE_EXHAUSTED, reason);
        return -EMSGSIZE;
    }
    if (c->queue &&
        c->queued_bytes + size + (c->n_queued + 1) * CHUNK_OVERHEAD > RPC_MAX_QUEUED_BYTES) {
        snprintf(reason, sizeof reason,
                 "%zu bytes in %zu messages wait to be sent: the receiver reads too slowly",
                 c->queued_bytes, c->n_queued);
        call_fail(c, RPC_RESOURCE_EXHAUSTED, reason);
        return -ENOBUFS;
    }
    return 1;
}

/* The slice stays the caller's. */
static int send_slice(struct rpc_call *c, grpc_slice *slice)
{
    size_t size = GRPC_SLICE_LENGTH(*slice);
    int r = takes_message(c, size);
    if (r <= 0)
        return r;
    struct chunk *chunk = malloc(sizeof *chunk);
    if (!chunk)
        return -ENOMEM;
    *chunk = (struct chunk){.buffer = grpc_raw_byte_buffer_create(slice, 1), .size = size};
    *c->queue_tail = chunk;
    c->queue_tail = &chunk->next;
    c->queued_bytes += size;
    c->n_queued++;
    send_more(c);
    return 0;
}

int rpc_send(struct rpc_call *c, const void *data, size_t size)
{
    return rpc_send_all(&c, 1, data, size);
}

int rpc_send_all(struct rpc_call *const *calls, size_t n, const void *data, size_t size)
{
    int code = 0;
    grpc_slice slice = grpc_slice_from_copied_buffer(data, size);
    for (size_t i = 0; i != n; i++) {
        int r = send_slice(calls[i], &slice);
        code = r < 0 ? r : code;
    }
    grpc_slice_unref(slice);
    return code;
}

size_t rpc_queued_bytes(const struct rpc_call *c)
{
    return c->queued_bytes;
}

void rpc_half_close(struct rpc_call *c)
{
    runtime_assert_loop(c->runtime);
    assert(c->channel);
    if (c->half_closing)
        return;
    c->half_closing = true;
    send_more(c);
}

void rpc_finish(struct rpc_call *c, enum rpc_status status, const char *message)
{
    runtime_assert_loop(c->runtime);
    assert(c->server);
    if (c->finishing || c->failed || c->ended)
        return;
    c->finishing = true;
    c->finish_status = status;
    snprintf(c->finish_message, sizeof c->finish_message, "%s", message ? message : "");
    size_t length = strlen(c->finish_message);
    if (length == RPC_MAX_STATUS_BYTES) { /* cut, perhaps inside a character: drop its rest */
        while (length && ((unsigned char)c->finish_message[length - 1] & 0xc0) == 0x80)
            length--;
        if (length && (unsigned char)c->finish_message[length - 1] >= 0x80)
            length--;
        c->finish_message[length] = '\0';
    }
    send_more(c);
}

void rpc_finish_details(struct rpc_call *c, enum rpc_status status, const char *message,
                        const void *details, size_t size)
{
    if (c->finishing || c->failed || c->ended)
        return;
    if (size && size <= RPC_MAX_DETAILS_BYTES && (c->finish_details = malloc(size))) {
        memcpy(c->finish_details, details, size);
        c->n_finish_details = size;
    }
    rpc_finish(c, status, message);
}

void rpc_set_pushback(struct rpc_call *c, int32_t ms)
{
    if (ms != RPC_PUSHBACK_NONE)
        snprintf(c->pushback, sizeof c->pushback, "%" PRId32, ms);
}

const uint8_t *rpc_details(const struct rpc_call *c, size_t *ret_size)
{
    for (size_t i = 0; i < c->trailing_metadata.count && !c->failed; i++) {
        const grpc_metadata *m = &c->trailing_metadata.metadata[i];
        if (grpc_slice_str_cmp(m->key, DETAILS_KEY) != 0)
            continue;
        *ret_size = GRPC_SLICE_LENGTH(m->value);
        return GRPC_SLICE_START_PTR(m->value);
    }
    *ret_size = 0;
    return NULL;
}

void rpc_cancel(struct rpc_call *c)
{
    runtime_assert_loop(c->runtime);
    call_fail(c, RPC_CANCELLED, "cancelled");
}

/* ---- what a call knows about itself ---- */

void rpc_set(struct rpc_call *c, const struct rpc_callbacks *callbacks, void *user)
{
    runtime_assert_loop(c->runtime);
    assert(callbacks && callbacks->on_message && callbacks->on_done);
    c->callbacks = callbacks;
    c->user = user;
}

struct rpc_server *rpc_server_of(const struct rpc_call *c)
{
    return c->server;
}

void *rpc_user(const struct rpc_call *c)
{
    return c->user;
}

const char *rpc_path(const struct rpc_call *c)
{
    return c->path;
}

/* gRPC gives a URI: the brackets of an IPv6 address come as %5B and %5D. */
static void decode_percent(char *text)
{
    char *to = text;
    for (const char *from = text; *from; to++) {
        if (strncmp(from, "%5B", 3) == 0 || strncmp(from, "%5D", 3) == 0) {
            *to = from[2] == 'B' ? '[' : ']';
            from += 3;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
}

const char *rpc_peer(const struct rpc_call *c)
{
    if (!c->peer && c->call) {
        struct rpc_call *self = (struct rpc_call *)c; /* a cache */
        self->peer = grpc_call_get_peer(c->call);
        if (self->peer)
            decode_percent(self->peer);
    }
    return c->peer ? c->peer : "unknown";
}

int64_t rpc_deadline_ns(const struct rpc_call *c)
{
    return c->deadline_ns;
}

/* Copies all values once, each with a NUL byte behind it; at most 8 KiB by the metadata limit. */
static bool copy_metadata(struct rpc_call *c)
{
    size_t total = 1;
    for (size_t i = 0; i < c->metadata.count; i++)
        total += GRPC_SLICE_LENGTH(c->metadata.metadata[i].value) + 1;
    c->metadata_text = malloc(total);
    c->metadata_values = alloc_array(c->metadata.count, sizeof *c->metadata_values);
    if (!c->metadata_text || !c->metadata_values) {
        free(c->metadata_text);
        free(c->metadata_values);
        c->metadata_text = NULL;
        c->metadata_values = NULL;
        return false;
    }
    char *at = c->metadata_text;
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_slice *value = &c->metadata.metadata[i].value;
        size_t length = GRPC_SLICE_LENGTH(*value);
        memcpy(at, GRPC_SLICE_START_PTR(*value), length);
        at[length] = '\0';
        c->metadata_values[i] = at;
        at += length + 1;
    }
    return true;
}

const char *rpc_metadata(const struct rpc_call *c, const char *key)
{
    for (size_t i = 0; i < c->metadata.count; i++) {
        if (grpc_slice_str_cmp(c->metadata.metadata[i].key, key) != 0)
            continue;
        if (!c->metadata_values && !copy_metadata((struct rpc_call *)c))
            return NULL;
        return c->metadata_values[i];
    }
    return NULL;
}
