/* wire_scan.h: looks through a protobuf message before protobuf-c unpacks it.
 *
 * protobuf-c has no limits of its own: unknown fields cost 28 times their size on the wire, empty
 * submessages 20 times, and nesting costs stack. The scan walks the wire format along the message's
 * descriptor, without recursion and without allocating, and refuses what would be expensive or what
 * protobuf-c would take differently than the sender meant it. Pure functions; any thread.
 */
#ifndef GLMD_PROTO_RPC_WIRE_SCAN_H
#define GLMD_PROTO_RPC_WIRE_SCAN_H

#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/err.h"

enum {
    WIRE_MAX_DEPTH = 8,
    WIRE_MAX_FIELDS = 65536,
    WIRE_MAX_UNKNOWN = 64,
    WIRE_HEAP_FACTOR = 8,         /* heap after unpacking <= factor * size on the wire + slack */
    WIRE_HEAP_SLACK = 192 * 1024, /* a full step of the smallest items takes 150 KiB of it */
};

struct wire_scan_result {
    size_t heap;     /* bytes that unpacking allocates for good, each piece rounded up to 8 */
    size_t n_fields; /* in all messages together */
};

/* -EBADMSG: malformed, invalid UTF-8, a NUL byte inside a string, or a singular message or oneof
 * given twice; -E2BIG: over one of the limits. */
int wire_scan(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t size, struct err *e);
int wire_scan_sized(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t size,
                    struct wire_scan_result *ret, struct err *e);

/* sizeof an element of a repeated field in protobuf-c's structs. */
size_t wire_element_size(ProtobufCType type);

#endif
