/* rpc_sim.h: the second implementation of rpc.h: hosts on a simulated network, in one thread and on
 * virtual time. Linked instead of the gRPC files, so that whatever stands on rpc.h runs unchanged.
 *
 * Who simulates provides the event queue and the randomness (struct rpc_sim_ops); the network posts
 * its events there, each for a host, and everything that happens follows from the order in which
 * they run. A host that is frozen is the event queue's business: it runs that host's events later.
 *
 * What it does as gRPC does: callbacks run from events only; messages of one direction of a call
 * keep their order, nothing else does; a status comes behind the messages; flow control holds back
 * what a reader does not read (rpc_queued_bytes grows, on_drained comes later); deadlines count at
 * both ends; a broken connection ends calls with UNAVAILABLE at the client and CANCELLED at the
 * server. What it leaves out: bytes on a wire, TLS, name resolution, health, reflection, and all
 * headers but one a call (rpc_sim_set_metadata).
 */
#ifndef GLMD_PROTO_RPC_RPC_SIM_H
#define GLMD_PROTO_RPC_RPC_SIM_H

#include "proto/rpc/rpc.h"

struct rpc_sim;      /* a network */
struct rpc_sim_host; /* one process on it */

struct rpc_sim_ops {
    /* Runs `run` after delay_ns of virtual time, in an event of `owner` (of a host). Events of the
     * same time run in the order in which they were posted. */
    void (*post)(void *context, void *owner, int64_t delay_ns, void (*run)(void *arg), void *arg);
    uint64_t (*random)(void *context);
};

struct rpc_sim *rpc_sim_new(const struct rpc_sim_ops *ops, void *context);
/* Frees calls, servers, channels and hosts as they are; no callbacks, and no event of the network
 * may run afterwards. */
void rpc_sim_free(struct rpc_sim *n);

/* `name` is what rpc_peer shows; copied. `owner` goes with every event. */
struct rpc_sim_host *rpc_sim_host_new(struct rpc_sim *n, const char *name, void *owner);

/* The loop to give to rpc_runtime_new: everything of that runtime is on this host then. */
struct uv_loop_s *rpc_sim_host_loop(struct rpc_sim_host *h);

/* One way on the wire to or from this host takes from min to max. Default: 50 to 300 us. */
void rpc_sim_set_latency(struct rpc_sim_host *h, int64_t min_ns, int64_t max_ns);

/* A header of a client's call; in the event that has opened it. Both are cut to fit. */
void rpc_sim_set_metadata(struct rpc_call *c, const char *key, const char *value);

/* Unread bytes that a call carries per direction before the sender waits. Default: 64 KiB. */
void rpc_sim_set_window(struct rpc_sim_host *h, size_t bytes);

/* Nothing leaves or reaches the host before this time; connections hold. */
void rpc_sim_block(struct rpc_sim_host *h, int64_t until_ns);

/* Every connection of the host breaks. */
void rpc_sim_break(struct rpc_sim_host *h);

/* The process is gone: its calls end here and now (on_done runs, so that memory can be given back),
 * what it sends goes nowhere, its servers, channels and runtimes are gone without a word. The peers
 * learn of it after notice_ns. */
void rpc_sim_kill(struct rpc_sim_host *h, int64_t notice_ns);

/* For checks: calls whose client or server end is on this host, and messages under way anywhere. */
size_t rpc_sim_n_calls(const struct rpc_sim_host *h);
size_t rpc_sim_n_messages(const struct rpc_sim *n);

#endif
