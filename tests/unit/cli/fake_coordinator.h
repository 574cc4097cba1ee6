/* fake_coordinator.h: a server with canned answers on the test's loop, and `glmd` as a child.
 *
 * What it answers depends on the text of the request: "refuse" is refused, "forever" gets one piece
 * of text and no end, anything else a complete answer.
 */
#ifndef GLMD_TESTS_UNIT_CLI_FAKE_COORDINATOR_H
#define GLMD_TESTS_UNIT_CLI_FAKE_COORDINATOR_H

#include <uv.h>

#include "base/buf.h"
#include "proto/rpc/rpc.h"
#include "proto/rpc/wire.h"

struct fake_coordinator {
    uv_loop_t loop;
    struct rpc_runtime *runtime;
    struct rpc_server *server;
    char address[64];
    /* the last requests, owned */
    struct wire_generate_request *generate;
    struct wire_fill_request *fill;
    struct wire_score_request *score;
    int n_calls;
    enum rpc_status last_end; /* of the last call that ended, as the server saw it */
    int n_ended;
    bool degraded; /* what Status tells */
};

void fake_coordinator_start(struct fake_coordinator *f);
void fake_coordinator_stop(struct fake_coordinator *f);

/* One run of the program; texts are owned. */
struct child {
    struct fake_coordinator *fake;
    uv_process_t process;
    uv_pipe_t in, out, err;
    struct buf out_text, err_text;
    const char *interrupt_at; /* send SIGINT when this stands on standard output */
    int n_open;               /* handles that are still open */
    int exit_code;            /* -1: ended by a signal */
};

/* Runs `glmd verb -c ADDRESS args...` (a NULL-terminated list behind the verb) with `input` on
 * standard input (may be NULL), and waits for its end. */
void child_run(struct fake_coordinator *f, struct child *c, const char *input, const char *verb,
               const char *const *args);
void child_deinit(struct child *c);

#endif
