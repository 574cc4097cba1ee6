/* wire_step.h: the two messages of every step by hand: what the tables of wire_worker.c say, ten
 * times as fast. Internal to proto/rpc.
 *
 * wire_step_pack writes the bytes that wire_map_pack writes. wire_step_unpack takes a StepDone
 * of the usual shape: fields that this version knows, each singular one and each list at most once,
 * sizes that need no look at the limits. It leaves everything else, malformed bytes above all, to
 * wire_map_unpack, which says what is wrong; what it takes it reads as wire_map_unpack does. The
 * tests compare both. Pure functions; any thread.
 */
#ifndef GLMD_PROTO_RPC_WIRE_STEP_H
#define GLMD_PROTO_RPC_WIRE_STEP_H

#include <stdbool.h>

#include "proto/rpc/wire_worker.h"

/* Appends a CoordinatorMessage with this step. -EINVAL: an output that does not travel; -ENOMEM,
 * -EFBIG. */
int wire_step_pack(const struct plan *p, struct buf *out);

/* A WorkerMessage with a StepDone; freed with wire_free_worker_message. False: not of the usual
 * shape, or no memory; nothing has happened. */
bool wire_step_unpack(const uint8_t *data, size_t size, struct wire_worker_message **ret);

#endif
