/* sp_shim.h: the only door to the SentencePiece library (C++). Exceptions end here.
 *
 * Models come from sp_proto_write, never straight from a file. Thread-safe after loading.
 */
#ifndef GLMD_MODEL_TOKENIZER_SP_SHIM_H
#define GLMD_MODEL_TOKENIZER_SP_SHIM_H

#ifdef __cplusplus
extern "C" {
#endif

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct sp_shim; /* opaque */

/* -EINVAL with the library's message when the model is inconsistent; -ENOMEM. */
int sp_shim_load(const void *model, size_t size, struct sp_shim **ret, struct err *e);
void sp_shim_free(struct sp_shim *s); /* NULL is fine */

/* Encodes text; *ret_ids (piece ids) is allocated with malloc and belongs to the caller. */
int sp_shim_encode(const struct sp_shim *s, const char *text, size_t size, int32_t **ret_ids,
                   size_t *ret_n, struct err *e);

#ifdef __cplusplus
}
#endif

#endif
