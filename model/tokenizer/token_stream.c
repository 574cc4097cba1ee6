/* token_stream.c: token ids -> text, at once or id by id; both ways are the same code.
 *
 *   id -> piece -> text of the piece -> "<n>", "<|tab|>", "<|blank_k|>" replaced -> out
 *
 * The text of a piece is SentencePiece's rule (SentencePieceProcessor::Decode, 0.1.97): U+2581 is a
 * space, the one in front of a stretch is dropped, control pieces are invisible, byte pieces join
 * into characters and what is no UTF-8 becomes U+FFFD, byte by byte. Held back are only byte pieces
 * of an unfinished character and a tail that could still become one of the three replaced texts.
 * Special tokens end a stretch (SAT's detokenize).
 */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"
#include "model/tokenizer/tokenizer_internal.h"

static const char space_mark[] = "\xe2\x96\x81";  /* U+2581 */
static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

enum { MAX_TAG_BYTES = sizeof "<|blank_80|>" };

struct token_stream {
    const struct tokenizer *tokenizer; /* borrowed */
    /* state of the stretch */
    bool at_start;   /* a leading U+2581 is still to be dropped */
    bool mark_seen;  /* the previous piece was, or began with, the one that is dropped */
    bool has_text;   /* the stretch has produced text */
    uint8_t n_bytes; /* byte pieces of an unfinished character */
    uint8_t n_tag;
    char bytes[4];
    char tag[MAX_TAG_BYTES]; /* tail that may become a replaced text */
};

/* ---- the replaced texts ---- */

enum match { MATCH_NO, MATCH_PREFIX, MATCH_WHOLE };

/* Compares text[n] with `whole`: different, a prefix of it, or all of it. */
static enum match match_literal(const char *text, size_t n, const char *whole)
{
    size_t size = strlen(whole);
    if (n > size || memcmp(text, whole, n) != 0)
        return MATCH_NO;
    return n == size ? MATCH_WHOLE : MATCH_PREFIX;
}

/* "<|blank_k|>" with k = 2 .. 80, without leading zeros. */
static enum match match_blank(const char *text, size_t n, unsigned *ret_blanks)
{
    static const char head[] = "<|blank_";
    size_t head_size = strlen(head);
    if (n <= head_size)
        return memcmp(text, head, n) == 0 ? MATCH_PREFIX : MATCH_NO;
    if (memcmp(text, head, head_size) != 0)
        return MATCH_NO;
    unsigned k = 0;
    size_t i = head_size;
    for (; i < n && text[i] >= '0' && text[i] <= '9'; i++) {
        if (text[i] == '0' && i == head_size)
            return MATCH_NO;
        k = k * 10 + (unsigned)(text[i] - '0');
        if (k > TOKENIZER_MAX_BLANK)
            return MATCH_NO;
    }
    if (i == n)
        return MATCH_PREFIX;
    if (i == head_size || k < 2)
        return MATCH_NO;
    *ret_blanks = k;
    return match_literal(text + i, n - i, "|>");
}

/* Whether the tail is (the beginning of) a replaced text, and what replaces it. */
static enum match match_tag(const struct token_stream *s, char *ret_with, unsigned *ret_n)
{
    enum match m = match_literal(s->tag, s->n_tag, "<n>");
    *ret_with = '\n';
    *ret_n = 1;
    if (m != MATCH_NO || s->tokenizer->variant == TOKENIZER_PLAIN)
        return m;
    m = match_literal(s->tag, s->n_tag, "<|tab|>");
    *ret_with = '\t';
    if (m != MATCH_NO)
        return m;
    *ret_with = ' ';
    return match_blank(s->tag, s->n_tag, ret_n);
}

static int emit_tag(struct token_stream *s, struct buf *out)
{
    int r = buf_append(out, s->tag, s->n_tag);
    s->n_tag = 0;
    return r;
}

/* Passes text on with the replacements done. All three begin with '<', which occurs nowhere else
 * in them, so a tail that fails to match holds no other beginning. */
static int emit(struct token_stream *s, const char *text, size_t size, struct buf *out)
{
    int r = 0;
    if (size)
        s->has_text = true;
    for (size_t i = 0; i < size && r == 0;) {
        if (s->n_tag == 0) {
            const char *open = memchr(text + i, '<', size - i);
            size_t n = open ? (size_t)(open - (text + i)) : size - i;
            r = buf_append(out, text + i, n);
            i += n;
            if (open)
                s->tag[s->n_tag++] = text[i++];
            continue;
        }
        char with;
        unsigned n;
        s->tag[s->n_tag++] = text[i];
        enum match m = match_tag(s, &with, &n);
        if (m == MATCH_NO) {
            s->n_tag--; /* look at this byte again, as ordinary text */
            r = emit_tag(s, out);
            continue;
        }
        i++;
        if (m == MATCH_WHOLE) {
            s->n_tag = 0;
            while (n-- && r == 0)
                r = buf_append(out, &with, 1);
        }
    }
    return r;
}

/* ---- pieces ---- */

/* Bytes of the character that starts with this byte, 1 when none does. */
static size_t character_size(uint8_t lead)
{
    if (lead >= 0xc0 && lead < 0xe0)
        return 2;
    if (lead >= 0xe0 && lead < 0xf0)
        return 3;
    if (lead >= 0xf0 && lead < 0xf8)
        return 4;
    return 1;
}

/* Emits the characters that the collected bytes spell; with `all`, leaves nothing behind. */
static int emit_bytes(struct token_stream *s, bool all, struct buf *out)
{
    while (s->n_bytes) {
        size_t want = character_size((uint8_t)s->bytes[0]), have = 1;
        while (have < want && have < s->n_bytes && (s->bytes[have] & 0xc0) == 0x80)
            have++;
        if (have < want && have == s->n_bytes && !all)
            return 0; /* more may come */
        bool valid = have == want && utf8_check(s->bytes, want) == want;
        int r =
            valid ? emit(s, s->bytes, want, out) : emit(s, replacement, strlen(replacement), out);
        if (r < 0)
            return r;
        size_t used = valid ? want : 1;
        s->n_bytes = (uint8_t)(s->n_bytes - used);
        memmove(s->bytes, s->bytes + used, s->n_bytes);
    }
    return 0;
}

/* Text with U+2581 turned into spaces. */
static int emit_marked(struct token_stream *s, const char *text, size_t size, struct buf *out)
{
    size_t mark_size = strlen(space_mark);
    int r = 0;
    while (size && r == 0) {
        const char *mark = memmem(text, size, space_mark, mark_size);
        size_t n = mark ? (size_t)(mark - text) : size;
        r = emit(s, text, n, out);
        text += n;
        size -= n;
        if (mark && r == 0) {
            r = emit(s, " ", 1, out);
            text += mark_size;
            size -= mark_size;
        }
    }
    return r;
}

static int push_byte_piece(struct token_stream *s, size_t piece, struct buf *out)
{
    /* "<0xE4>"; SentencePiece has checked the form. */
    uint8_t byte = (uint8_t)strtoul(sp_proto_text(&s->tokenizer->proto, piece) + 3, NULL, 16);
    s->bytes[s->n_bytes++] = (char)byte;
    return emit_bytes(s, false, out);
}

static int push_piece(struct token_stream *s, size_t piece, struct buf *out)
{
    const struct sp_proto *p = &s->tokenizer->proto;
    const char *text = sp_proto_text(p, piece);
    size_t size = p->pieces[piece].text_size;
    size_t mark_size = strlen(space_mark);
    int r = emit_bytes(s, true, out);
    if (r < 0)
        return r;
    if (s->mark_seen || s->has_text)
        s->at_start = false;
    s->mark_seen = false;
    switch (p->pieces[piece].type) {
    case SP_PIECE_CONTROL:
        return 0;
    case SP_PIECE_UNKNOWN:
        return emit(s, p->unk_surface.data, p->unk_surface.size, out);
    default:
        break;
    }
    if (s->at_start && (p->add_dummy_prefix || p->remove_extra_whitespaces) && size >= mark_size &&
        memcmp(text, space_mark, mark_size) == 0) {
        text += mark_size;
        size -= mark_size;
        /* models that collapse white space lose all of it in front */
        s->mark_seen = !p->remove_extra_whitespaces;
    }
    return emit_marked(s, text, size, out);
}

/* ---- the interface ---- */

static void start_stretch(struct token_stream *s)
{
    *s = (struct token_stream){.tokenizer = s->tokenizer, .at_start = true};
}

int token_stream_new(const struct tokenizer *t, struct token_stream **ret)
{
    struct token_stream *s = malloc(sizeof *s);
    if (!s)
        return -ENOMEM;
    s->tokenizer = t;
    start_stretch(s);
    *ret = s;
    return 0;
}

void token_stream_free(struct token_stream *s)
{
    free(s);
}

static int no_memory(struct err *e, int r)
{
    if (r == 0)
        return 0;
    return err_set(e, r, r == -EFBIG ? "the decoded text exceeds its limit" : "out of memory");
}

int token_stream_flush(struct token_stream *s, struct buf *ret_text, struct err *e)
{
    int r = emit_bytes(s, true, ret_text);
    if (r == 0)
        r = emit_tag(s, ret_text);
    start_stretch(s);
    return no_memory(e, r);
}

int token_stream_push(struct token_stream *s, int32_t id, struct buf *ret_text, struct err *e)
{
    const char *special = tokenizer_special_name(s->tokenizer, id);
    if (special) {
        int r = token_stream_flush(s, ret_text, e);
        return r < 0 ? r : no_memory(e, buf_printf(ret_text, "[%s]", special));
    }
    int64_t piece = tokenizer_piece_index(s->tokenizer, id);
    if (piece < 0)
        return err_set(e, -EINVAL, "token id %d has no text: it is an image code or a padding row",
                       id);
    if (s->tokenizer->proto.pieces[piece].type == SP_PIECE_BYTE)
        return no_memory(e, push_byte_piece(s, (size_t)piece, ret_text));
    return no_memory(e, push_piece(s, (size_t)piece, ret_text));
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret_text,
                     struct err *e)
{
    size_t before = ret_text->size;
    struct token_stream s = {.tokenizer = t};
    start_stretch(&s);
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++)
        r = token_stream_push(&s, ids[i], ret_text, e);
    if (r == 0)
        r = token_stream_flush(&s, ret_text, e);
    if (r < 0 && ret_text->data) {
        ret_text->size = before;
        ret_text->data[before] = '\0';
    }
    return r;
}
