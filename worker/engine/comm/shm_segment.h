/* shm_segment.h: a shared-memory segment that the ranks of one host join: rank 0 creates it, the
 * others find it by name and show the token, and once all are there it is unlinked, so that it
 * disappears with its last process, however that ends.
 *
 * The segment is trusted as far as the token goes; the header holds counters, and no size or offset
 * that is used after joining.
 */
#ifndef GLMD_WORKER_ENGINE_COMM_SHM_SEGMENT_H
#define GLMD_WORKER_ENGINE_COMM_SHM_SEGMENT_H

#include "base/err.h"
#include "worker/engine/comm/barrier.h"
#include "worker/engine/comm/comm.h"
#include "worker/engine/comm/token.h"

struct shm_header {
    _Atomic uint32_t magic; /* written last: the header is complete */
    int32_t size;           /* ranks */
    uint64_t unit_bytes;    /* what the transport calls its message or link size */
    uint8_t token[COMM_TOKEN_BYTES];
    struct comm_barrier barrier;
    _Atomic uint32_t joined[COMM_MAX_RANKS];
};

struct shm_segment_params {
    const char *name;
    const uint8_t *token; /* [COMM_TOKEN_BYTES] */
    int rank, size;
    size_t unit_bytes;    /* equal on all ranks */
    size_t payload_bytes; /* behind the header, zeroed */
    int64_t spin_ns;
    int64_t timeout_ns;
};

struct shm_segment { /* zero-initialised = none */
    struct shm_header *header;
    char *payload; /* page-aligned */
    size_t bytes;
};

/* Returns when all ranks have joined. */
int shm_segment_join(const struct shm_segment_params *p, struct shm_segment *ret, struct err *e);
void shm_segment_leave(struct shm_segment *s);

#endif
