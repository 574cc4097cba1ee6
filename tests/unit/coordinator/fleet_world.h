/* fleet_world.h: a coordinator's fleet over a fake transport and a virtual clock, and ranks that
 * say what a test wants them to. */
#ifndef GLMD_TESTS_COORDINATOR_FLEET_WORLD_H
#define GLMD_TESTS_COORDINATOR_FLEET_WORLD_H

#include "coordinator/fleet.h"
#include "fake_rpc.h"
#include "proto/rpc/wire.h"

enum { WORLD_GROUPS = 8, WORLD_LAYERS = 7 };

extern int64_t world_now; /* the virtual clock; world_start_clock before the first test */
void world_start_clock(void);

/* ---- a coordinator's side ---- */

struct seen { /* what the fleet has said about a group */
    unsigned n_ready, n_down, n_results, n_gone, n_rank_changes;
    struct plan_limits limits;
    uint32_t n_stages;
    uint64_t epoch;
    uint32_t last_hash; /* slot of the last result's first item: which rank's it was */
    char why[600];
};

struct world {
    char dir[64];
    struct config config;
    struct epoch_store epochs;
    struct fleet *fleet;
    struct seen seen[WORLD_GROUPS];
    uint64_t last_epoch;
    bool refuse_result;
};

/* With workers: spawn, group "0" of tp ranks is configured; tp 0: workers: external. */
struct world *world_new(unsigned tp);
void world_free(struct world *w);
void world_start_fleet(struct world *w); /* again, after world_stop_fleet */
void world_stop_fleet(struct world *w);
void world_pass(struct world *w, int64_t ns);
void world_send_step(struct world *w, uint32_t group, uint64_t step);

/* ---- a rank's side ---- */

struct fake_rank {
    struct rpc_call *call;
    struct wire_hello hello;
    uint8_t instance[16];
    struct wire_loaded loaded;
};

/* Of group "0", one stage. */
void rank_init(struct fake_rank *r, unsigned rank, unsigned tp);
/* Of any group; layers are shared out evenly. */
void rank_init_in(struct fake_rank *r, const char *group, unsigned rank, unsigned tp, unsigned pp);
void rank_say(struct fake_rank *r, const struct wire_worker_message *m);
void rank_dial(struct world *w, struct fake_rank *r); /* and Hello */
void rank_loaded(struct fake_rank *r);
void rank_beat(struct fake_rank *r);
void rank_ready(struct fake_rank *r, uint64_t epoch, uint64_t answer);
void rank_done(struct fake_rank *r, uint64_t epoch, uint64_t step, uint64_t hash);
void rank_hang_up(struct fake_rank *r);

/* The newest message of a kind that the rank was sent; NULL when there is none. The caller frees
 * it. */
enum sent_kind { SENT_GRANT, SENT_STEP, SENT_ABORT, SENT_REFUSE, SENT_DRAIN };
struct wire_coordinator_message *rank_find_sent(const struct fake_rank *r, enum sent_kind kind);
uint64_t rank_granted(const struct fake_rank *r); /* epoch of the newest grant, 0 = none */
bool rank_was_aborted(const struct fake_rank *r, uint64_t epoch);
bool rank_was_drained(const struct fake_rank *r);

/* Ranks 0 .. tp * pp - 1 of a group, up to a ready group; returns its epoch. */
uint64_t world_form(struct world *w, struct fake_rank *ranks, unsigned tp);
uint64_t world_form_in(struct world *w, struct fake_rank *ranks, const char *group, unsigned tp,
                       unsigned pp);

#endif
