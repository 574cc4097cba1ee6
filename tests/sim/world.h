/* world.h: virtual time, the event queue, randomness and the trace of one simulated run.
 *
 * Everything that happens is an event of a process (or of the world itself, NULL). Time stands
 * still while an event runs, and jumps to the next one. A frozen process has its events later, in
 * their order. One thread; nothing here looks at the real clock.
 */
#ifndef GLMD_TESTS_SIM_WORLD_H
#define GLMD_TESTS_SIM_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct rng {
    uint64_t state;
};
uint64_t rng_next(struct rng *r);
uint32_t rng_below(struct rng *r, uint32_t n);                /* [0, n) */
int64_t rng_between(struct rng *r, int64_t min, int64_t max); /* [min, max] */
bool rng_chance(struct rng *r, uint32_t percent);

struct process {
    char name[32];
    bool dead;
    int64_t frozen_until;
};

struct event {
    int64_t at_ns;
    uint64_t order; /* of posting */
    struct process *owner;
    void (*run)(void *arg);
    void (*run_value)(void *arg, uint64_t value); /* or this */
    void *arg;
    uint64_t value;
};

enum { WORLD_KEPT_LINES = 40, WORLD_LINE_BYTES = 400 };

struct world {
    uint64_t seed;
    uint32_t generator; /* for the message of a failure */
    int64_t now_ns;
    struct event *heap; /* owned */
    size_t n_events, capacity;
    uint64_t n_posted, n_run;
    struct process *current; /* whose event runs */
    /* Independent streams: another draw in one does not move the others. */
    struct rng work, faults, net, timing, program, options, keys;
    /* the trace */
    FILE *trace; /* NULL = only the hash and the last lines are kept */
    uint64_t trace_hash, n_lines;
    char lines[WORLD_KEPT_LINES][WORLD_LINE_BYTES];
};

/* Clock, randomness and log of the programs come from this world until world_deinit. */
void world_init(struct world *w, uint64_t seed, FILE *trace);
void world_deinit(struct world *w);

void world_post(struct world *w, struct process *owner, int64_t delay_ns, void (*run)(void *arg),
                void *arg);
void world_post_value(struct world *w, struct process *owner, int64_t delay_ns,
                      void (*run)(void *arg, uint64_t value), void *arg, uint64_t value);

/* Runs the next event; false when there is none. */
bool world_step(struct world *w);

/* One line, with the time and the running process in front of it. */
void trace(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The run has shown an error: says what, with the last lines of the trace, and ends the program
 * with code 1. */
void world_fail(struct world *w, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));

#endif
