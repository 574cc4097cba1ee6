/* group.h: a rank's comm from its place in the group: which transports, names and peers follow from
 * it. What the worker daemon calls; runs on the engine's thread and waits for the others. */
#ifndef GLMD_WORKER_ENGINE_COMM_GROUP_H
#define GLMD_WORKER_ENGINE_COMM_GROUP_H

#include "worker/engine/comm/comm.h"

enum comm_transport {
    COMM_SELF, /* one rank, or one stage: nobody to talk to */
    COMM_SHM,  /* all on one host */
    COMM_TCP,
};

struct comm_group_config {
    int tp_size, pp_size;
    int rank; /* in the group: stage * tp_size + rank within the stage */
    /* All ranks of a group say the same. With tp_size = 1 or pp_size = 1 the one that has nothing
     * to carry is ignored. A group over two hosts with a whole stage on each is SHM within the
     * stage and TCP between stages. */
    enum comm_transport within_stage, between_stages;
    const char *name;         /* SHM: prefix of the segments, unique to group and epoch */
    const uint8_t *token;     /* [16] that all ranks of this group and epoch were given */
    int listen_fd;            /* TCP: borrowed */
    const char *const *peers; /* TCP: [tp_size * pp_size] "host:port" by rank in the group */
    size_t piece_bytes;       /* SHM: what a sum moves at once, e.g. 1 MiB */
    size_t link_bytes;        /* engine_link_bytes */
    int64_t timeout_ns;       /* longest wait in a call, and for the others to join */
};

int comm_group_new(const struct comm_group_config *config, struct comm **ret, struct err *e);

#endif
