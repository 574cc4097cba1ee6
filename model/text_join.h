/* text_join.h: how an output reads on behind its prompt.
 *
 * A detokenizer leaves out the blank in front of a first word: "The capital is" and then "Paris".
 * Whether one is due is known from the end of the prompt, the first token and the first character:
 * none behind Chinese text, an open line, or in front of a comma. Text in the shape of its tokens;
 * pure. */
#ifndef GLMD_MODEL_TEXT_JOIN_H
#define GLMD_MODEL_TEXT_JOIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The beginning of one output. Zeroed: text that stands alone. */
struct text_join {
    bool due;       /* it reads on behind a prompt, so that a blank may belong between them */
    bool settled;   /* what stands between them is known */
    bool blank;     /* a blank */
    bool has_first; /* its first token is known */
    int32_t first;
};

/* Whether something may be due behind this text: not where a mask is filled, not at the start of a
 * line, not behind writing without blanks. NULL or "": nothing. */
bool text_join_due(const char *prompt);

/* News of an output: n more tokens (`tokens` may be NULL where n is 0), and all of its text so far,
 * NULL or "" = none yet. Text that came before its first token waits for it. `ended`: nothing more
 * will come. True: it is settled from now on. `piece`: the first token's, once it is asked for. */
bool text_join_take(struct text_join *j, const int32_t *tokens, size_t n, const char *text,
                    bool ended, const char *(*piece)(const void *context, int32_t id),
                    const void *context);

#endif
