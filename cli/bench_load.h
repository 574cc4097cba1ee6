/* bench_load.h: many streams of one client to a coordinator: begins them at their times, notes when
 * what arrives. One loop, one channel, one thread. */
#ifndef GLMD_CLI_BENCH_LOAD_H
#define GLMD_CLI_BENCH_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "cli/bench.h"
#include "cli/client.h"
#include "proto/rpc/rpc.h"

enum { LOAD_MAX_ERRORS = 16 };

/* What a request asks: text, or token ids. Borrowed. */
struct load_prompt {
    const char *text; /* NULL: tokens */
    const int32_t *tokens;
    uint32_t n_tokens;
    uint32_t max_tokens;
    uint32_t best_of; /* that many are sampled, one is told, at the end; 0 = 1 */
};

struct load_outcome { /* times of clock_now_ns; 0 = it did not happen */
    int64_t begin_ns;
    int64_t first_ns, last_ns; /* messages with new tokens */
    int64_t end_ns;
    uint32_t n_prompt, n_output; /* tokens */
    bool begun, done, ok;        /* ok: the server ended it well, or load_config.duration_ns did */
};

struct load_error {
    char message[200];
    uint32_t n;
};

struct load_result {                  /* zero-initialised before load_run */
    struct load_outcome *outcomes;    /* owned, [n_prompts] */
    struct bench_samples gaps;        /* ns between messages of a stream */
    struct bench_samples token_times; /* ns from the begin: one entry per token */
    int64_t begin_ns, end_ns;
    uint32_t n_open, max_open;     /* streams now, at most */
    uint64_t n_messages, n_tokens; /* messages with new tokens, and their tokens */
    bool interrupted;
    struct load_error
        errors[LOAD_MAX_ERRORS]; /* kinds of failures; the rest is counted in the last */
    uint32_t n_errors;
};

struct load_config {
    const struct client_target *target; /* timeout_seconds: of each request */
    const struct load_prompt *prompts;
    uint32_t n_prompts;
    double rate;              /* requests per second, Poisson arrivals; 0 = all at once */
    uint32_t max_concurrency; /* 0 = no bound */
    uint64_t seed;            /* of the arrivals */
    bool greedy, ignore_end;
    int64_t duration_ns; /* everything is cancelled then; 0 = each request to its end */
    /* Every tick_ns while the load runs (0: never); a negative value ends it and is returned. */
    int (*on_tick)(void *context, const struct load_result *so_far);
    int64_t tick_ns;
    void *context;
};

/* Fails only when it cannot begin, or on_tick says so: failed requests are outcomes. */
int load_run(const struct load_config *config, struct load_result *ret, struct err *e);
void load_result_deinit(struct load_result *r);

/* Uniform in [0, 1); moves the state on. */
double load_uniform(uint64_t *state);
/* The time of the next arrival behind `before`, in seconds: exponential gaps. rate 0: `before`. */
double load_next_arrival(double before, double rate, uint64_t *state);

#endif
