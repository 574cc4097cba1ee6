/* wire_declare.h: declares the three functions of a message; wire.h says what they do. */
#ifndef GLMD_PROTO_RPC_WIRE_DECLARE_H
#define GLMD_PROTO_RPC_WIRE_DECLARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

#define WIRE_DECLARE(name, T)                                                                      \
    int wire_unpack_##name(const uint8_t *data, size_t size, T **ret, struct err *e);              \
    void wire_free_##name(T *object);                                                              \
    int wire_pack_##name(const T *object, struct buf *out)

#endif
