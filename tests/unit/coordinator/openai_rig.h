/* openai_rig.h: what the tests of the codec share: requests as one readable line, and a small
 * vocabulary. */
#ifndef GLMD_TESTS_OPENAI_RIG_H
#define GLMD_TESTS_OPENAI_RIG_H

#include "coordinator/openai.h"

extern const struct openai_settings rig_settings; /* model "glm", the default dialogue, id "" */

/* Everything that a request says beyond the defaults of its structs, in a fixed order. */
void rig_dump(const struct openai_request *q, struct buf *ret);

/* Parses and dumps; what is refused reads "STATUS param: message" or "STATUS -: message". The
 * result is valid until the next call. */
const char *rig_parse(enum openai_route route, const char *body);
const char *rig_parse_with(const struct openai_settings *s, enum openai_route route,
                           const char *body, size_t size);

/* Ids 0 .. 11 have pieces, with and without word marks, a byte, a tab; others have none. */
extern const struct openai_tokens rig_tokens;
const struct openai_identity *rig_identity(void);

#endif
