/* tokenizer_internal.h: what tokenizer.c and token_stream.c share. */
#ifndef GLMD_MODEL_TOKENIZER_TOKENIZER_INTERNAL_H
#define GLMD_MODEL_TOKENIZER_TOKENIZER_INTERNAL_H

#include "model/tokenizer/sp_proto.h"
#include "model/tokenizer/sp_shim.h"
#include "model/tokenizer/tokenizer.h"

/* Runs of 2 to 80 blanks have a piece of their own in the white-space keeping variant. */
enum { TOKENIZER_MAX_BLANK = 80 };

struct tokenizer {
    /* owned */
    struct sp_proto proto; /* pieces; piece i is token i + tokens.n_image_tokens */
    struct sp_shim *sp;
    /* state, constant after opening */
    enum tokenizer_variant variant;
    struct arch_tokens tokens;
    char digest[33];
};

/* The piece of a token id, -1 when the id is no piece. */
static inline int64_t tokenizer_piece_index(const struct tokenizer *t, int32_t id)
{
    int64_t piece = (int64_t)id - t->tokens.n_image_tokens;
    return piece >= 0 && piece < (int64_t)t->proto.n_pieces ? piece : -1;
}

#endif
