/* wire.h: every message of glmd/v1/{inference,cluster,worker}.proto and of inference/kserve.proto
 * as a plain C struct.
 *
 *   int  wire_unpack_hello(data, size, &hello, &err);   bytes -> new object
 *   void wire_free_hello(hello);                        NULL is fine
 *   int  wire_pack_hello(&hello, &buf);                 appends bytes to a buffer
 *
 * Unpacking takes hostile bytes: they are scanned before protobuf-c sees them (limits in
 * wire_scan.h), strings are valid UTF-8 without NUL, enums have a value of this version. -EBADMSG:
 * malformed; -E2BIG: over a limit; -ENOMEM. What the fields mean together is the caller's to check
 * (plan_validate for steps). Everything inside an object belongs to it and dies with
 * wire_free_xxx; the bytes are not needed any more.
 *
 * Packing: -EINVAL when two members of a oneof are set or an enum is out of range, -ENOMEM, -EFBIG
 * (limit of the buffer). Strings must be UTF-8 (utf8_repair what comes from elsewhere).
 *
 * How fields look:
 *   singular scalar       T x               absent = 0
 *   optional scalar       bool has_x; T x
 *   string                const char *x     never NULL after unpacking; NULL packs as ""
 *   message               const struct *x   NULL = absent
 *   member of a oneof     pointer           at most one is not NULL
 *   repeated              const T *x; uint32_t n_x
 *
 * Thread-free: objects may be handed from thread to thread.
 */
#ifndef GLMD_PROTO_RPC_WIRE_H
#define GLMD_PROTO_RPC_WIRE_H

#include "proto/rpc/wire_cluster.h"
#include "proto/rpc/wire_inference.h"
#include "proto/rpc/wire_kserve.h"
#include "proto/rpc/wire_worker.h"

#endif
