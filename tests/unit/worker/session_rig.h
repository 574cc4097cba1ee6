/* session_rig.h: a session with a recording fake in place of stream and engine. */
#ifndef GLMD_TESTS_WORKER_SESSION_RIG_H
#define GLMD_TESTS_WORKER_SESSION_RIG_H

#include "worker/session.h"

enum { MAX_LOG = 64 };

/* What the session did, one word per order: "hello", "loaded", "ready:7", "failed:7:3:BAD_PLAN",
 * "beat:READY", "done", "join:7", "step:7:1", "abort", "disconnect", "exit:0". */
struct fake {
    struct session session;
    char log[MAX_LOG][64];
    int n, read;
    char failure[512];
    struct wire_heartbeat beat;
    uint64_t hello_last_epoch;
};

extern const struct wire_loaded loaded;

/* Rank 1 of 2 tensor-parallel ones, of the first stage. */
void fake_init_stage(struct fake *f, bool cpu, uint32_t pp);
void fake_init(struct fake *f, bool cpu);
/* Connected, loaded, joined in epoch 7. */
void fake_ready(struct fake *f);

/* What it has done since the last time. */
void expect(struct fake *f, const char *words);

/* The coordinator says something; the grant is one for the rank. */
void say(struct fake *f, const struct wire_coordinator_message *m, int64_t now);
struct wire_grant grant_of(uint64_t epoch);
void say_grant(struct fake *f, uint64_t epoch, int64_t now);
void say_step_of(struct fake *f, uint64_t epoch, uint64_t step, int32_t first_token);
void say_step(struct fake *f, uint64_t epoch, uint64_t step);
void say_abort(struct fake *f, uint64_t epoch);
/* The engine has answered a step. */
void done(struct fake *f, uint64_t epoch, uint64_t step);

#endif
