/* history.h: the last minutes of the cluster as samples, for whoever begins to look just now. Pure;
 * loop thread. */
#ifndef GLMD_COORDINATOR_HISTORY_H
#define GLMD_COORDINATOR_HISTORY_H

#include <stdint.h>

enum { HISTORY_CAPACITY = 300 };
#define HISTORY_INTERVAL_NS INT64_C(1000000000)

struct history_sample { /* of all groups together */
    float prefill_tokens_per_second, decode_tokens_per_second;
    float kv_usage;            /* 0 .. 1; 0 while no group is there */
    uint32_t running, waiting; /* requests */
};

struct history {
    struct history_sample samples[HISTORY_CAPACITY]; /* a ring */
    uint32_t n, first;                               /* samples, and where the oldest one is */
};

/* The oldest sample goes when there is no room. */
void history_add(struct history *h, const struct history_sample *s);
/* index 0 is the oldest of h->n. */
const struct history_sample *history_get(const struct history *h, uint32_t index);

#endif
