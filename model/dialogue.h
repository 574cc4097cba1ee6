/* dialogue.h: how a conversation reads as one text: what a model directory states for it.
 *
 * GLM-130B was not trained on conversations: it goes on with whatever reads like one. A dialogue is
 * plain text around each message, text that the answer is written behind, and texts that end the
 * answer, so that the model does not write the other side's next turn, too:
 *
 *   "dialogue": {                             in generation_config.json
 *     "begin": "",                            in front of everything
 *     "system": "{content}\n\n",              one "{content}" in each
 *     "user": "User: {content}\n",
 *     "assistant": "Assistant: {content}\n",
 *     "answer": "Assistant:",
 *     "stop": ["User:"]                       at most DIALOGUE_MAX_STOPS
 *   }
 *
 * Nothing is escaped: a message that contains "User:" reads like another turn.
 */
#ifndef GLMD_MODEL_DIALOGUE_H
#define GLMD_MODEL_DIALOGUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "base/buf.h"
#include "base/err.h"

enum dialogue_role { DIALOGUE_SYSTEM, DIALOGUE_USER, DIALOGUE_ASSISTANT, DIALOGUE_N_ROLES };

enum { DIALOGUE_TEXT_BYTES = 512, DIALOGUE_STOP_BYTES = 64, DIALOGUE_MAX_STOPS = 8 };

struct dialogue { /* no pointers: copied by assignment */
    char begin[DIALOGUE_TEXT_BYTES];
    char roles[DIALOGUE_N_ROLES][DIALOGUE_TEXT_BYTES]; /* with one "{content}" */
    char answer[DIALOGUE_TEXT_BYTES];
    char stops[DIALOGUE_MAX_STOPS][DIALOGUE_STOP_BYTES];
    uint32_t n_stops;
};

/* What the example above says; with a few more stop texts, so that no blank is left in front. */
extern const struct dialogue dialogue_default;

/* The "dialogue" of <model_dir>/generation_config.json, or the default where there is none.
 * -EINVAL, -EBADMSG: with the key and the reason. */
int dialogue_load(const char *model_dir, struct dialogue *ret, struct err *e);
/* From the object itself, every key of which is required but for "begin". */
int dialogue_from_json(const json_t *object, struct dialogue *ret, struct err *e);
json_t *dialogue_to_json(const struct dialogue *d); /* NULL: out of memory */

struct dialogue_turn {
    enum dialogue_role role;
    const char *text;
};

/* Appends the text that the model goes on from. `go_on`: the last turn is the answer's beginning
 * and nothing comes behind it. -ENOMEM, -EFBIG (limit of the buffer). */
int dialogue_render(const struct dialogue *d, const struct dialogue_turn *turns, size_t n,
                    bool go_on, struct buf *ret_text);

#endif
