/* wire_bytes.h: a `bytes` field in a plain struct. */
#ifndef GLMD_PROTO_RPC_WIRE_BYTES_H
#define GLMD_PROTO_RPC_WIRE_BYTES_H

#include <stddef.h>
#include <stdint.h>

struct wire_bytes {
    size_t size;
    const uint8_t *data; /* NULL when size is 0 */
};

#endif
