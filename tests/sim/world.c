/* world.c: see world.h. */
#include "world.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "base/util.h"

/* Not 0: that means "no time" in many places. */
#define START_NS (1000 * NSEC_PER_SEC)

/* ---- randomness: splitmix64 ---- */

uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint32_t rng_below(struct rng *r, uint32_t n)
{
    return n ? (uint32_t)((rng_next(r) >> 32) % n) : 0;
}

int64_t rng_between(struct rng *r, int64_t min, int64_t max)
{
    assert(min <= max);
    return min + (int64_t)(rng_next(r) % (uint64_t)(max - min + 1));
}

bool rng_chance(struct rng *r, uint32_t percent)
{
    return rng_below(r, 100) < percent;
}

/* ---- what the programs see ---- */

static int64_t clock_of_world(void *context)
{
    const struct world *w = context;
    return w->now_ns;
}

static void random_of_world(void *context, void *dst, size_t size)
{
    struct world *w = context;
    uint8_t *p = dst;
    for (size_t i = 0; i != size; i++)
        p[i] = (uint8_t)rng_next(&w->program);
}

static void log_of_world(void *context, enum log_level level, const char *line)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    trace(context, "log %s: %s", names[level], line);
}

void world_init(struct world *w, uint64_t seed, FILE *trace_file)
{
    *w = (struct world){.seed = seed, .now_ns = START_NS, .trace = trace_file};
    struct rng r = {seed * 2 + 1};
    w->work.state = rng_next(&r);
    w->faults.state = rng_next(&r);
    w->net.state = rng_next(&r);
    w->timing.state = rng_next(&r);
    w->program.state = rng_next(&r);
    w->options.state = rng_next(&r);
    w->keys.state = rng_next(&r);
    clock_set_source(clock_of_world, w);
    random_set_source(random_of_world, w);
    log_init("sim", LOG_LEVEL_DEBUG, LOG_FORMAT_TEXT);
    log_set_sink(log_of_world, w);
}

void world_deinit(struct world *w)
{
    assert(w->n_events == 0);
    free(w->heap);
    w->heap = NULL;
    clock_set_source(NULL, NULL);
    random_set_source(NULL, NULL);
    log_set_sink(NULL, NULL);
}

/* ---- the event queue: a binary heap ---- */

static bool before(const struct event *a, const struct event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void push(struct world *w, struct event e)
{
    if (w->n_events == w->capacity) {
        w->capacity = MAX(2 * w->capacity, (size_t)1024);
        w->heap = realloc(w->heap, w->capacity * sizeof *w->heap);
        if (!w->heap)
            abort();
    }
    size_t i = w->n_events++;
    for (; i && before(&e, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = e;
}

static struct event pop(struct world *w)
{
    struct event first = w->heap[0], last = w->heap[--w->n_events];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= w->n_events)
            break;
        if (child + 1 < w->n_events && before(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!before(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
        i = child;
    }
    w->heap[i] = last;
    return first;
}

static void post(struct world *w, struct event e, int64_t delay_ns)
{
    assert(delay_ns >= 0);
    e.at_ns = w->now_ns + delay_ns;
    e.order = w->n_posted++;
    push(w, e);
}

void world_post(struct world *w, struct process *owner, int64_t delay_ns, void (*run)(void *arg),
                void *arg)
{
    post(w, (struct event){.owner = owner, .run = run, .arg = arg}, delay_ns);
}

void world_post_value(struct world *w, struct process *owner, int64_t delay_ns,
                      void (*run)(void *arg, uint64_t value), void *arg, uint64_t value)
{
    post(w, (struct event){.owner = owner, .run_value = run, .arg = arg, .value = value}, delay_ns);
}

bool world_step(struct world *w)
{
    if (!w->n_events)
        return false;
    struct event e = pop(w);
    w->now_ns = MAX(w->now_ns, e.at_ns);
    if (e.owner && !e.owner->dead && e.owner->frozen_until > w->now_ns) {
        e.at_ns = e.owner->frozen_until; /* keeps its place among the others */
        push(w, e);
        return true;
    }
    w->n_run++;
    w->current = e.owner;
    if (e.run)
        e.run(e.arg);
    else
        e.run_value(e.arg, e.value);
    w->current = NULL;
    return true;
}

/* ---- the trace ---- */

static void hash_line(struct world *w, const char *line, size_t n)
{
    uint64_t h = w->trace_hash;
    for (size_t i = 0; i != n; i++)
        h = (h ^ (uint8_t)line[i]) * UINT64_C(0x100000001b3);
    w->trace_hash = h ^ h >> 31;
}

void trace(struct world *w, const char *format, ...)
{
    char *line = w->lines[w->n_lines++ % WORLD_KEPT_LINES];
    int64_t us = (w->now_ns - START_NS) / NSEC_PER_USEC;
    int n = snprintf(line, WORLD_LINE_BYTES, "%4lld.%06lld %-10s ", (long long)(us / 1000000),
                     (long long)(us % 1000000), w->current ? w->current->name : "-");
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, WORLD_LINE_BYTES - (size_t)n, format, args);
    va_end(args);
    size_t size = MIN((size_t)(n + MAX(m, 0)), (size_t)WORLD_LINE_BYTES - 1);
    hash_line(w, line, size);
    if (w->trace) {
        fwrite(line, 1, size, w->trace);
        fputc('\n', w->trace);
    }
}

void world_fail(struct world *w, const char *format, ...)
{
    fflush(stdout);
    if (w->trace) {
        fflush(w->trace);
    } else {
        uint64_t n = MIN(w->n_lines, (uint64_t)WORLD_KEPT_LINES);
        for (uint64_t i = w->n_lines - n; i != w->n_lines; i++)
            fprintf(stderr, "%s\n", w->lines[i % WORLD_KEPT_LINES]);
    }
    fprintf(stderr, "seed %llu at %.6f s failed: ", (unsigned long long)w->seed,
            (double)(w->now_ns - START_NS) / 1e9);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\nreplay: glmd-sim --seed %llu --generator %u --trace\n",
            (unsigned long long)w->seed, w->generator);
    fflush(stderr);
    _exit(1);
}
