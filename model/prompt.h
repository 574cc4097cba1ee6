/* prompt.h: the blank-filling protocol of GLM-130B as pure functions over token lists.
 *
 * Source: GLM-130B generate.py (fill_blanks) and initialize.py; checked against the golden
 * generations. See docs/model.md.
 */
#ifndef GLMD_MODEL_PROMPT_H
#define GLMD_MODEL_PROMPT_H

#include "model/tokenizer/tokenizer.h"

enum mask_kind { MASK_NONE, MASK_MASK, MASK_SMASK, MASK_GMASK };

/* One generation call: what the model sees and where its output goes. */
struct prompt {
    struct token_list ids; /* context, ending in sop (unidirectional: [gMASK] sop text) */
    uint32_t prefix_len;   /* columns [0, prefix_len) are visible to every row: n - 1 (not sop);
                              0 for a unidirectional (fully causal) prompt */
    int32_t mask_index;    /* index of the mask that is being filled */
    enum mask_kind kind;
};
void prompt_deinit(struct prompt *p);

/* Position id of token `index` of the sequence prompt + output: 0, 1, 2, ... for [gMASK]; for
 * [MASK]/[sMASK] the mask's index from sop on. */
int32_t prompt_position(const struct prompt *p, uint32_t index);

/* Text with masks -> ids, nothing appended: each stretch between masks is encoded alone, "[MASK]",
 * "[sMASK]" and "[gMASK]" become their ids. Limits: -E2BIG over max_tokens (with both numbers),
 * -EINVAL for more than max_masks masks. */
int prompt_encode_masked(const struct tokenizer *t, const struct arch *a, const char *text,
                         size_t size, bool keep_linebreak, size_t max_tokens, size_t max_masks,
                         struct token_list *ret_ids, struct err *e);

/* Text with any number of masks -> ids: kind is [MASK] if the text has one, else [sMASK], else
 * [gMASK] (appended when there is no mask); each stretch is encoded alone; eos is appended when the
 * text does not end in a mask. Limits: -E2BIG over max_tokens (with both numbers; sop, which is
 * not in the list, does not count), -EINVAL for empty text or more than max_masks masks. */
int prompt_encode_text(const struct tokenizer *t, const struct arch *a, const char *text,
                       size_t size, size_t max_tokens, size_t max_masks, struct token_list *ret_ids,
                       enum mask_kind *ret_kind, struct err *e);

/* The next call: the first mask of `kind` in ids; appends sop. -ENOENT when no such mask is left.
 */
int prompt_next(const struct arch *a, const struct token_list *ids, enum mask_kind kind,
                struct prompt *ret, struct err *e);

/* A prompt from token ids that a client sent (Generate with token ids). Ids may end in sop already;
 * otherwise sop is appended. The mask is the first one of the preferred kind ([MASK], [sMASK],
 * [gMASK]); none -> [gMASK] is appended in front of sop (as for text). Ids outside [0, vocab), or
 * none at all -> -EINVAL; more than max_tokens, mask and sop included -> -E2BIG. */
int prompt_from_ids(const struct arch *a, const int32_t *ids, size_t n, size_t max_tokens,
                    struct prompt *ret, struct err *e);

/* The fully causal prompt of a unidirectional request: [gMASK] sop text, positions 0, 1, 2, ...
 * -EINVAL and -E2BIG as prompt_from_ids; the text's ids may be empty. */
int prompt_unidirectional(const struct arch *a, const int32_t *ids, size_t n, size_t max_tokens,
                          struct prompt *ret, struct err *e);

/* Puts the answer (end token already dropped) in the mask's place: *ret_ids becomes the ids of the
 * next round (and may be `ids` itself). */
int prompt_apply(const struct token_list *ids, int32_t mask_index, const int32_t *answer, size_t n,
                 struct token_list *ret_ids);

#endif
