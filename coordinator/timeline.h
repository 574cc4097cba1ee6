/* timeline.h: what became of the requests of late, for `glmd why`.
 *
 * A ring of entries, one for each client call, each with room for a bounded number of events; the
 * oldest entry makes room for a new one. Events of one kind that follow each other on one group
 * become one with a count. No text of prompts or outputs is kept. Nothing is allocated after
 * timeline_new. Loop thread.
 */
#ifndef GLMD_COORDINATOR_TIMELINE_H
#define GLMD_COORDINATOR_TIMELINE_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/metrics.h"
#include "coordinator/request.h"
#include "proto/rpc/wire_cluster.h"

enum {
    TIMELINE_ENTRIES = 2048, /* requests that are remembered */
    TIMELINE_EVENTS = 24,    /* of each, the last one is its end */
    TIMELINE_GROUPS = 128,   /* names of groups that are remembered */
    TIMELINE_TRACE_BYTES = 33,
};

struct timeline_event {
    int64_t at_ns, until_ns; /* equal unless it stands for several */
    uint64_t epoch;          /* of the group; 0 = on none */
    uint32_t n;              /* tokens, layers ...: see cluster.proto */
    uint16_t kind;           /* enum wire_event_kind */
    uint16_t group;          /* index of its name, TIMELINE_GROUPS = on none */
};

struct timeline_entry {
    uint64_t serial; /* 0 = unused */
    char id[REQUEST_ID_BYTES], trace[TIMELINE_TRACE_BYTES];
    enum request_kind kind;
    int32_t priority;
    int64_t arrived_ns;
    bool ended, refused;
    enum rpc_status status;
    enum metrics_end end;
    enum metrics_reject reject; /* refused */
    char message[256];
    uint32_t n_prompt_tokens;
    uint64_t n_completion_tokens;
    struct timeline_event events[TIMELINE_EVENTS];
    uint32_t n_events, n_lost;
};

struct timeline; /* opaque */

int timeline_new(struct timeline **ret);
void timeline_free(struct timeline *t);

/* A new entry, and its serial, by which the others are called; they do nothing when the entry has
 * made room since. `trace`: as of timeline_trace. */
uint64_t timeline_open(struct timeline *t, const struct request *r, const char *trace);
/* group: its name; NULL = on none. */
void timeline_add(struct timeline *t, uint64_t serial, enum wire_event_kind kind, const char *group,
                  uint64_t epoch, uint32_t n, int64_t now_ns);
void timeline_end(struct timeline *t, uint64_t serial, const struct request *r,
                  enum metrics_end end, int64_t now_ns);

/* A request that was not queued. */
void timeline_refuse(struct timeline *t, const struct request *r, const char *trace,
                     enum metrics_reject reject, const char *message, int64_t now_ns);

/* The newest entry of this id older than `before` (0 = of all); NULL = no other. */
const struct timeline_entry *timeline_find(const struct timeline *t, const char *id,
                                           uint64_t before);
const char *timeline_group(const struct timeline *t, const struct timeline_event *e); /* "": none */

/* The trace id, 32 hexadecimal digits, of a W3C traceparent header; "" when there is none or it is
 * malformed. */
void timeline_trace(const char *traceparent, char ret[TIMELINE_TRACE_BYTES]);

#endif
