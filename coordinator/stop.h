/* stop.h: finds stop texts in a text that arrives in pieces.
 *
 * Pure bytes: what is found does not depend on where the pieces end. The search ends where the
 * first stop text is complete; of several that are complete there it names the longest. Texts are
 * UTF-8, so that a match never begins or ends inside a character.
 */
#ifndef GLMD_COORDINATOR_STOP_H
#define GLMD_COORDINATOR_STOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STOP_MAX_TEXTS = 16, STOP_MAX_BYTES = 256 };

struct stop_set; /* opaque: the texts, prepared; constant, shared by all outputs of a request */

/* 1 .. STOP_MAX_TEXTS texts of 1 .. STOP_MAX_BYTES bytes; copies. -ENOMEM. */
int stop_set_new(const char *const *texts, uint32_t n, struct stop_set **ret);
void stop_set_free(struct stop_set *s); /* NULL is fine */
const char *stop_set_text(const struct stop_set *s, uint32_t index);

/* The state of one search; zero-initialised = nothing read. */
struct stop_search {
    size_t n_read;                    /* bytes */
    uint16_t matched[STOP_MAX_TEXTS]; /* how much of each text the bytes read end with */
};

struct stop_match {
    uint32_t index;    /* of the stop text */
    size_t begin, end; /* bytes from the start of the searched text */
};

/* Reads `text` from where the search is up to `size`; true: a stop text is complete, and the search
 * stands behind it. */
bool stop_search_next(const struct stop_set *s, struct stop_search *at, const char *text,
                      size_t size, struct stop_match *ret);

/* Bytes at the end of what was read that may be the beginning of a stop text. */
size_t stop_search_held(const struct stop_set *s, const struct stop_search *at);

#endif
