/* fake_rpc.h: the transport seam without gRPC, for tests of what stands behind it: a call is an
 * object, sends are kept, ends are recorded. Only what servers use. */
#ifndef GLMD_TESTS_COORDINATOR_FAKE_RPC_H
#define GLMD_TESTS_COORDINATOR_FAKE_RPC_H

#include "base/buf.h"
#include "proto/rpc/rpc.h"

enum { FAKE_MAX_SENT = 64 };

struct rpc_call {
    const struct rpc_callbacks *callbacks;
    void *user;
    struct buf sent[FAKE_MAX_SENT]; /* oldest first; fake_rpc_clear empties it */
    unsigned n_sent;
    bool finished, cancelled, over;
    enum rpc_status status;
    char message[1024];
};

struct rpc_call *fake_rpc_new(void);
void fake_rpc_clear(struct rpc_call *c);
/* The peer sends bytes. */
void fake_rpc_receive(struct rpc_call *c, const struct buf *bytes);
/* The call ends: on_done runs, as it does after a finish or when the peer goes away. */
void fake_rpc_end(struct rpc_call *c);
void fake_rpc_free(struct rpc_call *c);

#endif
