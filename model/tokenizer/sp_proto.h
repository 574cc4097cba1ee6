/* sp_proto.h: reading a SentencePiece model file without trusting it.
 *
 * The library trusts its model: the normaliser walks a double array straight from the file without
 * a bound, and some inconsistencies end the process. So the file is read here first, every part
 * that the library will look at is checked, and the library is given a model that sp_proto_write
 * builds anew from the checked parts; nothing else of the file reaches it. Only unigram models are
 * accepted, which is what icetk uses. No threads, no files.
 */
#ifndef GLMD_MODEL_TOKENIZER_SP_PROTO_H
#define GLMD_MODEL_TOKENIZER_SP_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum {
    SP_MAX_FILE_BYTES = 64 << 20,
    SP_MAX_PIECES = 1 << 20,
    SP_MAX_PIECE_BYTES = 512,
    /* The library collects at most 64 user-defined symbols that are prefixes of one another. */
    SP_MAX_USER_PIECE_BYTES = 64,
    SP_MAX_CHARSMAP_BYTES = 4 << 20,
    /* The library collects at most 32 normalisation rules that match at one place. */
    SP_MAX_RULES_PER_PLACE = 32,
    SP_MAX_RULE_OUTPUT_BYTES = 64, /* U+FDFA, the longest of NFKC, needs 33 */
    SP_MAX_UNK_SURFACE_BYTES = 64,
};

enum sp_piece_type { /* the numbers of sentencepiece_model.proto */
                     SP_PIECE_NORMAL = 1,
                     SP_PIECE_UNKNOWN = 2,
                     SP_PIECE_CONTROL = 3,
                     SP_PIECE_USER_DEFINED = 4,
                     SP_PIECE_UNUSED = 5,
                     SP_PIECE_BYTE = 6,
};

struct sp_piece {
    size_t text_at; /* offset in the text pool; UTF-8, NUL-terminated, without NUL inside */
    uint32_t text_size;
    float score;
    enum sp_piece_type type;
};

struct sp_proto {
    /* owned */
    struct sp_piece *pieces;
    size_t n_pieces;
    size_t pieces_capacity;
    struct buf text;        /* pool of piece texts */
    struct buf charsmap;    /* trie size, double array, outputs; empty = no normalisation */
    struct buf unk_surface; /* what an unknown piece decodes to */
    /* state */
    bool byte_fallback;
    bool add_dummy_prefix;
    bool remove_extra_whitespaces;
    bool escape_whitespaces;
    bool whitespace_as_suffix;
};

/* -EINVAL names what is wrong with the model. On failure nothing needs freeing. */
int sp_proto_parse(const void *data, size_t size, struct sp_proto *ret, struct err *e);
void sp_proto_deinit(struct sp_proto *p);

/* Appends a piece; -EINVAL when its text is empty, too long, holds a NUL or is not UTF-8. */
int sp_proto_add(struct sp_proto *p, const char *text, size_t size, float score,
                 enum sp_piece_type type, struct err *e);

const char *sp_proto_text(const struct sp_proto *p, size_t piece);

/* Appends the model in the library's format. */
int sp_proto_write(const struct sp_proto *p, struct buf *ret_model);

/* sp_charsmap.c: every walk of the normaliser through this rule table stays inside it. */
int sp_charsmap_check(const void *data, size_t size, struct err *e);

#endif
