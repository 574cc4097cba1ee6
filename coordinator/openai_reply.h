/* openai_reply.h: a reply while it grows: internal to the codec. See openai.h.
 *
 * Each choice gathers what is new of it in a part. A stream writes a chunk of it and empties it;
 * other replies keep it until they are finished. What stands in front of a choice's output (the
 * echo of its prompt) is a part, too, shared by the choices of a prompt. */
#ifndef GLMD_COORDINATOR_OPENAI_REPLY_H
#define GLMD_COORDINATOR_OPENAI_REPLY_H

#include "coordinator/json_out.h"
#include "coordinator/openai_internal.h"
#include "model/text_join.h"

/* Lists are without their brackets: "1,2,3". */
struct openai_part {
    struct buf text;
    /* Completions: four lists. Chats: entries of "content" in `tokens`, nothing in the others. */
    struct buf tokens, logprobs, tops, offsets;
    struct buf ids;
};

struct openai_choice {
    struct openai_part part;
    size_t n_chars;        /* characters so far, those in front of it included */
    struct buf held;       /* int32_t: tokens whose place waits for the beginning */
    bool has_offsets;      /* tokens of it have their place */
    struct text_join join; /* blank: one that was not written yet */
    bool told, told_end;   /* streams: a chunk of it went out; the last one, too */
    bool ended;
    enum wire_finish_reason finish;
    char *stop; /* owned: the text that ended it; NULL = none */
    bool has_stop_token;
    int32_t stop_token;
    bool has_score;
    double score;
};

struct openai_prompt {
    struct openai_choice *choices; /* [n_choices]; a fill: [blanks so far] */
    uint32_t n_choices;
    struct openai_part front;       /* the echo */
    uint32_t n_scored;              /* tokens of the prompt that have their log-probability */
    size_t n_front_chars, front_at; /* characters of the echo; bytes that tokens were found for */
    bool has_seed;
    uint64_t seed;
    bool ended;
};

struct openai_reply {
    const struct openai_request *q; /* borrowed */
    const struct openai_private *p; /* borrowed: q's */
    struct openai_tokens tokens_of;
    char *head;                    /* owned: of every object, up to its choices */
    struct openai_prompt *prompts; /* owned, [n_prompts] */
    uint64_t n_prompt_tokens, n_cached_tokens, n_completion_tokens;
    struct buf results; /* fills: the end of the body */
    struct buf scratch; /* text of a token */
    size_t n_gathered, max_bytes;
};

/* ---- openai_logprobs.c ---- */

/* Tokens with their log-probabilities, behind what the part has. `first_null`: the first one of a
 * prompt has none. The lists of the four shapes follow r->q->route. */
int openai_add_logprobs(struct openai_reply *r, struct openai_part *part,
                        const struct wire_token_logprob *tokens, uint32_t n, bool first_null);
/* Places of output tokens from *n_chars on; of prompt tokens inside the prompt's text. `at_start`:
 * the text begins with the first one, without the blank of its word mark. */
int openai_add_offsets(struct openai_reply *r, struct openai_part *part, const int32_t *ids,
                       size_t n, bool at_start, size_t *n_chars);
int openai_add_prompt_offsets(struct openai_reply *r, struct openai_prompt *p,
                              const struct wire_token_logprob *tokens, uint32_t n);
/* Characters of UTF-8. */
size_t openai_count_chars(const char *text, size_t n);

/* ---- openai_reply.c ---- */

void openai_write_usage(struct json_out *o, const struct openai_reply *r);
void openai_write_finish(struct json_out *o, const struct openai_reply *r,
                         const struct openai_choice *c);
/* Takes over how something ended. */
int openai_take_end(struct openai_choice *c, enum wire_finish_reason finish, const char *stop,
                    bool has_stop_token, int32_t stop_token);
int openai_add_ids(struct openai_part *part, const int32_t *ids, uint32_t n);
size_t openai_part_bytes(const struct openai_part *part);
void openai_part_clear(struct openai_part *part);
void openai_choice_deinit(struct openai_choice *c);
/* Counts what was gathered since; -EFBIG over the limit. */
int openai_count_bytes(struct openai_reply *r, size_t more);

/* ---- openai_reply_fill.c ---- */

int openai_fill_message(struct openai_reply *r, const struct wire_fill_response *w,
                        struct buf *out);
int openai_fill_finish(struct openai_reply *r, struct buf *out);
int openai_legacy_finish(struct openai_reply *r, struct buf *out);

#endif
