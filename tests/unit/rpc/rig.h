/* rig.h: a loop, a runtime, a server with known methods and a channel to it, for the tests of
 * proto/rpc. Everything is waited for by its event; a watchdog ends a test that waits in vain. */
#ifndef GLMD_TESTS_UNIT_RPC_RIG_H
#define GLMD_TESTS_UNIT_RPC_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <uv.h>

#include "proto/rpc/rpc.h"

struct rig {
    uv_loop_t loop;
    uv_timer_t watchdog;
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    struct rpc_channel *channel;
    char address[160]; /* of the server, to dial */
    char directory[96];
    int n_stopped; /* servers whose shutdown is over */
    bool runtime_stopped;
    const char *awaited; /* what WAIT waits for */
    int line;
};

/* What a server-side call of the test methods has seen; kept until the rig goes. */
struct served {
    struct rpc_call *call; /* NULL after on_done */
    size_t n_messages, bytes, n_half_closes, n_drained, n_done;
    size_t to_send, sent, message_size; /* Stream */
    enum rpc_status status;
    int64_t deadline_ns;
    char peer[64], user_agent[128];
    struct served *next; /* newest first */
};

/* A client-side call that collects what arrives. */
struct client {
    struct rpc_call *call; /* NULL after on_done */
    size_t n_messages, bytes, n_done;
    size_t last_size;
    uint8_t last[64]; /* start of the last message */
    enum rpc_status status;
    char message[1200];
    size_t n_details; /* bytes of status details */
    uint8_t details[256];
    size_t pause_after; /* rpc_pause after so many messages; 0: never */
};

extern struct served *served;                  /* all calls of this test, newest first */
extern const struct rpc_method test_methods[]; /* Unary Bidi Stream Flood Hold Paused Refuse */
extern const size_t n_test_methods;
extern const struct rpc_callbacks client_callbacks;

/* `kind`: "tcp" or "unix". */
void rig_init(struct rig *r, const char *kind);
/* As rig_init, without server and channel. */
void rig_init_bare(struct rig *r);
/* Server and channel on the rig's address ("" = choose); NULL limits and tls: defaults. */
void rig_serve(struct rig *r, const char *kind, const struct rpc_limits *limits,
               const struct rpc_tls *tls);
void rig_dial(struct rig *r, const struct rpc_limits *limits, const struct rpc_tls *tls);
void rig_stop_server(struct rig *r, int64_t grace_ns);
void rig_deinit(struct rig *r); /* everything down; the loop must be empty then */

void rig_wait_start(struct rig *r, const char *what, int line);
void rig_wait_end(struct rig *r);
#define WAIT(rig, condition)                                                                       \
    do {                                                                                           \
        rig_wait_start(rig, #condition, __LINE__);                                                 \
        while (!(condition))                                                                       \
            uv_run(&(rig)->loop, UV_RUN_ONCE);                                                     \
        rig_wait_end(rig);                                                                         \
    } while (0)

void client_open(struct rig *r, struct client *c, const char *path, int64_t deadline_ns);
/* One unary call from start to end. */
void client_unary(struct rig *r, struct client *c, const char *path, const void *data, size_t size);
/* `n` unary calls one after the other: lets everything else that can happen meanwhile happen. */
void client_round_trips(struct rig *r, unsigned n);

#endif
