/* tokenizer.h: text <-> token ids in icetk's conventions over a SentencePiece model.
 *
 * Token id = piece id + n_image_tokens; the special tokens follow the pieces and are added by id
 * only: "[MASK]" inside a string is ordinary text here (prompt.h splits at masks first).
 * Two variants exist on the same file: PLAIN (the released code: newline and tab become a space
 * through the normaliser unless keep_linebreak) and WHITESPACE (newline -> <n>, tab -> <|tab|>,
 * runs of blanks -> <|blank_k|>, byte fallback). Thread-safe after opening.
 */
#ifndef GLMD_MODEL_TOKENIZER_TOKENIZER_H
#define GLMD_MODEL_TOKENIZER_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/arch.h"

struct tokenizer; /* opaque */

struct token_list { /* zero-initialised = empty; owned, free with token_list_deinit */
    int32_t *ids;
    size_t n;
    size_t capacity;
};
void token_list_deinit(struct token_list *l);
int token_list_append(struct token_list *l, int32_t id);
int token_list_extend(struct token_list *l, const int32_t *ids, size_t n);

enum tokenizer_variant { TOKENIZER_PLAIN, TOKENIZER_WHITESPACE };

/* Opens <dir>/tokenizer.model with the variant of <dir>/tokenizer_config.json (PLAIN when absent).
 */
int tokenizer_open(const char *model_dir, const struct arch *a, struct tokenizer **ret,
                   struct err *e);
int tokenizer_open_file(const char *file, const struct arch *a, enum tokenizer_variant variant,
                        struct tokenizer **ret, struct err *e);
void tokenizer_close(struct tokenizer *t);

/* Digest of pieces and normaliser as used (XXH3-128 hex; the variants differ), for the handshake
 * between coordinator and workers. */
const char *tokenizer_digest(const struct tokenizer *t);

/* Largest text in bytes that is encoded into at most max_tokens: 64 bytes a token and 4 KiB, but
 * never more than TOKENIZER_MAX_TEXT_BYTES. A bound for memory and time; ordinary text has 2 to 6
 * bytes a token. */
enum { TOKENIZER_MAX_TEXT_BYTES = 4 << 20 };
size_t tokenizer_text_limit(size_t max_tokens);
/* UTF-8 within that limit: -E2BIG, -EILSEQ with a message as of tokenizer_encode. */
int tokenizer_check_text(const char *text, size_t size, size_t max_tokens, struct err *e);

/* Encodes UTF-8 text (need not be NUL-terminated) and appends the ids. -EILSEQ with the byte offset
 * for invalid UTF-8; -E2BIG with both numbers when more than max_tokens would be appended, or when
 * the text exceeds tokenizer_text_limit. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, bool keep_linebreak,
                     size_t max_tokens, struct token_list *ret_ids, struct err *e);

/* SAT's detokenize: cut at special ids (eos included), each stretch decoded alone, specials as
 * their names in an additional pair of brackets ("[[MASK]]", "[sop]", "[</s>]"). Ids that no text
 * belongs to (image codes, padding rows): -EINVAL. */
int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret_text,
                     struct err *e);

/* The piece of a text token ("▁the") or the name of a special one; NULL for other ids. */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id);

/* Whether an id can appear in text (a piece that is not control), so that sampling may allow it. */
bool tokenizer_is_text(const struct tokenizer *t, int32_t id);

/* "[MASK]" -> id and back; NULL / -1 when unknown. Names: [MASK] [gMASK] [sMASK] eod sop eop ENC
 * dBLOCK </s>. */
int32_t tokenizer_special_id(const struct tokenizer *t, const char *name);
const char *tokenizer_special_name(const struct tokenizer *t, int32_t id);

/* Incremental decoding of one output: feeds ids one by one and emits only text that later ids
 * cannot change and that ends at a UTF-8 character boundary. The concatenation of everything
 * emitted, plus the flush, equals tokenizer_decode of the whole list. */
struct token_stream; /* opaque */
int token_stream_new(const struct tokenizer *t, struct token_stream **ret);
void token_stream_free(struct token_stream *s);
int token_stream_push(struct token_stream *s, int32_t id, struct buf *ret_text, struct err *e);
int token_stream_flush(struct token_stream *s, struct buf *ret_text, struct err *e);

#endif
