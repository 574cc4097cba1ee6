/* session_rig.c: see session_rig.h. */
#include "session_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static void note(struct fake *f, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void note(struct fake *f, const char *format, ...)
{
    assert_in_range(f->n, 0, MAX_LOG - 1);
    va_list args;
    va_start(args, format);
    vsnprintf(f->log[f->n++], sizeof f->log[0], format, args);
    va_end(args);
}

static void fake_send(void *context, const struct wire_worker_message *m)
{
    static const char *const codes[] = {"UNSPECIFIED", "INTERNAL", "BAD_PLAN", "DEVICE",
                                        "PEER",        "ABORTED",  "JOIN",     "PROTOCOL"};
    static const char *const states[] = {"UNSPECIFIED", "LOADING", "LOADED",
                                         "JOINING",     "READY",   "DRAINING"};
    struct fake *f = context;
    struct buf bytes = {0};
    assert_int_equal(wire_pack_worker_message(m, &bytes), 0); /* whatever is sent can be packed */
    buf_deinit(&bytes);
    if (m->hello) {
        f->hello_last_epoch = m->hello->last_epoch;
        note(f, "hello");
    } else if (m->loaded) {
        note(f, "loaded");
    } else if (m->ready) {
        note(f, "ready:%llu", (unsigned long long)m->ready->epoch);
    } else if (m->failed) {
        snprintf(f->failure, sizeof f->failure, "%s", m->failed->message);
        note(f, "failed:%llu:%llu:%s", (unsigned long long)m->failed->epoch,
             (unsigned long long)m->failed->step, codes[m->failed->code]);
    } else if (m->heartbeat) {
        f->beat = *m->heartbeat;
        note(f, "beat:%s", states[m->heartbeat->state]);
    } else {
        fail_msg("an empty message was sent");
    }
}

static void fake_send_bytes(void *context, const void *data, size_t size)
{
    note(context, "%.*s", (int)size, (const char *)data);
}

static void fake_disconnect(void *context)
{
    note(context, "disconnect");
}

static void fake_join(void *context, struct wire_coordinator_message *m)
{
    note(context, "join:%llu", (unsigned long long)m->grant->epoch);
    wire_free_coordinator_message(m);
}

static void fake_step(void *context, struct wire_coordinator_message *m)
{
    note(context, "step:%llu:%llu", (unsigned long long)m->step->epoch,
         (unsigned long long)m->step->step);
    wire_free_coordinator_message(m);
}

static void fake_abort(void *context)
{
    note(context, "abort");
}

static void fake_exit(void *context, int code, const char *why)
{
    (void)why;
    note(context, "exit:%d", code);
}

static const struct session_ops fake_ops = {fake_send, fake_send_bytes, fake_disconnect, fake_join,
                                            fake_step, fake_abort,      fake_exit};

const struct wire_loaded loaded = {.limits = {.n_slots = 4,
                                              .n_blocks = 8,
                                              .max_tokens = 16,
                                              .max_seq = 32,
                                              .vocab = 100,
                                              .n_top_logprobs = 5,
                                              .n_layers = 2},
                                   .block_tokens = PLAN_KV_BLOCK_TOKENS,
                                   .description = "fake"};

void fake_init_stage(struct fake *f, bool cpu, uint32_t pp)
{
    static const uint8_t instance[16] = {1};
    *f = (struct fake){0};
    const struct session_config config = {.hello = {.protocol_min = WIRE_PROTOCOL_MIN,
                                                    .protocol_max = WIRE_PROTOCOL_MAX,
                                                    .instance_id = {16, instance},
                                                    .rank = 1,
                                                    .tp_size = 2,
                                                    .group = "g",
                                                    .pp_size = pp},
                                          .heartbeat_ns = NSEC_PER_SEC,
                                          .device_is_cpu = cpu};
    session_init(&f->session, &config, &fake_ops, f);
}

void fake_init(struct fake *f, bool cpu)
{
    fake_init_stage(f, cpu, 1);
}

/* The next orders, in this sequence and no others. */
void expect(struct fake *f, const char *words)
{
    char found[1024] = "";
    for (int size = 0; f->read < f->n; f->read++)
        size += snprintf(found + size, sizeof found - (size_t)size, size ? " %s" : "%s",
                         f->log[f->read]);
    if (strcmp(words, found) != 0)
        fail_msg("expected \"%s\", found \"%s\"", words, found);
}

void say(struct fake *f, const struct wire_coordinator_message *m, int64_t now)
{
    struct buf bytes = {0};
    struct wire_coordinator_message *copy;
    struct err e = ERR_INIT;
    assert_int_equal(wire_pack_coordinator_message(m, &bytes), 0);
    if (wire_unpack_coordinator_message((uint8_t *)bytes.data, bytes.size, &copy, &e))
        fail_msg("%s", e.message);
    buf_deinit(&bytes);
    session_message(&f->session, copy, now);
}

static const uint8_t token[WIRE_TOKEN_BYTES] = {7};

struct wire_grant grant_of(uint64_t epoch)
{
    return (struct wire_grant){.group = "g",
                               .epoch = epoch,
                               .protocol = WIRE_PROTOCOL_MAX,
                               .rank = 1,
                               .tp_size = 2,
                               .comm = WIRE_COMM_SHM,
                               .comm_name = "glmd-g-7",
                               .token = {sizeof token, token},
                               .comm_timeout_ms = 1000,
                               .lease_ms = 5000,
                               .heartbeat_ms = 250};
}

void say_grant(struct fake *f, uint64_t epoch, int64_t now)
{
    const struct wire_grant g = grant_of(epoch);
    say(f, &(struct wire_coordinator_message){.grant = &g}, now);
}

void say_step_of(struct fake *f, uint64_t epoch, uint64_t step, int32_t first_token)
{
    const int32_t position = 0;
    const uint32_t block = 3;
    const struct plan_item item = {.n_tokens = 1,
                                   .tokens = &first_token,
                                   .positions = &position,
                                   .blocks = &block,
                                   .n_blocks = 1};
    const struct plan plan = {.epoch = epoch, .step = step, .items = &item, .n_items = 1};
    say(f, &(struct wire_coordinator_message){.step = &plan}, 0);
}

void say_step(struct fake *f, uint64_t epoch, uint64_t step)
{
    say_step_of(f, epoch, step, 5);
}

void say_abort(struct fake *f, uint64_t epoch)
{
    const struct wire_abort a = {epoch, "test"};
    say(f, &(struct wire_coordinator_message){.abort = &a}, 0);
}

/* Connected, loaded, joined in epoch 7. */
void fake_ready(struct fake *f)
{
    fake_init(f, true);
    session_loaded(&f->session, &loaded);
    session_connected(&f->session, 0);
    expect(f, "hello loaded");
    say_grant(f, 7, 0);
    expect(f, "join:7");
    session_joined(&f->session, 7, 42, "host: shm");
    expect(f, "ready:7");
}

void done(struct fake *f, uint64_t epoch, uint64_t step)
{
    session_step_done(&f->session, epoch, step, "done", 4);
}
