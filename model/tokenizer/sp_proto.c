/* sp_proto.c: see sp_proto.h. The field numbers are those of sentencepiece_model.proto. */
#include "model/tokenizer/sp_proto.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "base/util.h"

/* ---- protocol buffers, as far as a model file needs them ---- */

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

struct reader {
    const uint8_t *at, *end;
};

struct field {
    uint32_t number;
    enum wire_type type;
    uint64_t value;        /* WIRE_VARINT, WIRE_FIXED32 */
    struct reader message; /* WIRE_BYTES */
};

static bool read_varint(struct reader *r, uint64_t *ret)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (r->at == r->end)
            return false;
        uint8_t byte = *r->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *ret = value;
            return true;
        }
    }
    return false;
}

static bool skip(struct reader *r, uint64_t n)
{
    if (n > (uint64_t)(r->end - r->at))
        return false;
    r->at += n;
    return true;
}

/* False at malformed input; groups count as such. The caller checks for the end. */
static bool read_field(struct reader *r, struct field *ret)
{
    uint64_t tag;
    if (!read_varint(r, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
        return false;
    *ret = (struct field){.number = (uint32_t)(tag >> 3), .type = (enum wire_type)(tag & 7)};
    const uint8_t *start = r->at;
    switch (tag & 7) {
    case WIRE_VARINT:
        return read_varint(r, &ret->value);
    case WIRE_FIXED64:
        return skip(r, 8);
    case WIRE_FIXED32:
        if (!skip(r, 4))
            return false;
        ret->value = start[0] | (uint64_t)start[1] << 8 | (uint64_t)start[2] << 16 |
                     (uint64_t)start[3] << 24;
        return true;
    case WIRE_BYTES: {
        uint64_t size;
        if (!read_varint(r, &size))
            return false;
        start = r->at;
        if (!skip(r, size))
            return false;
        ret->message = (struct reader){start, r->at};
        return true;
    }
    default:
        return false;
    }
}

static int malformed(struct err *e, const char *part)
{
    return err_set(e, -EINVAL, "malformed %s: not a SentencePiece model, or a damaged one", part);
}

static size_t reader_size(const struct reader *r)
{
    return (size_t)(r->end - r->at);
}

/* ---- reading ---- */

int sp_proto_add(struct sp_proto *p, const char *text, size_t size, float score,
                 enum sp_piece_type type, struct err *e)
{
    size_t limit = type == SP_PIECE_USER_DEFINED ? SP_MAX_USER_PIECE_BYTES : SP_MAX_PIECE_BYTES;
    if (size == 0 || size > limit)
        return err_set(e, -EINVAL, "piece %zu has %zu bytes, expected 1 to %zu", p->n_pieces, size,
                       limit);
    if (memchr(text, '\0', size) || utf8_check(text, size) < size)
        return err_set(e, -EINVAL, "piece %zu is not text in UTF-8", p->n_pieces);
    if (!isfinite(score))
        return err_set(e, -EINVAL, "piece %zu has a score that is not a finite number",
                       p->n_pieces);
    if (p->n_pieces == SP_MAX_PIECES)
        return err_set(e, -EINVAL, "more than %d pieces", SP_MAX_PIECES);
    if (p->n_pieces == p->pieces_capacity) {
        size_t capacity = MAX(p->pieces_capacity * 2, (size_t)1024);
        struct sp_piece *pieces = reallocarray(p->pieces, capacity, sizeof *pieces);
        if (!pieces)
            return err_set(e, -ENOMEM, "out of memory for %zu pieces", capacity);
        p->pieces = pieces;
        p->pieces_capacity = capacity;
    }
    size_t at = p->text.size;
    int r = buf_append(&p->text, text, size);
    if (r == 0)
        r = buf_append(&p->text, "", 1);
    if (r < 0)
        return err_set(e, r, "out of memory for the text of %zu pieces", p->n_pieces);
    p->pieces[p->n_pieces++] =
        (struct sp_piece){.text_at = at, .text_size = (uint32_t)size, .score = score, .type = type};
    return 0;
}

static int parse_piece(struct sp_proto *p, struct reader r, struct err *e)
{
    struct reader text = {NULL, NULL};
    uint32_t score_bits = 0;
    uint64_t type = SP_PIECE_NORMAL;
    while (r.at != r.end) {
        struct field f;
        if (!read_field(&r, &f))
            return malformed(e, "piece");
        if (f.number == 1 && f.type == WIRE_BYTES)
            text = f.message;
        else if (f.number == 2 && f.type == WIRE_FIXED32)
            score_bits = (uint32_t)f.value;
        else if (f.number == 3 && f.type == WIRE_VARINT)
            type = f.value;
    }
    if (type < SP_PIECE_NORMAL || type > SP_PIECE_BYTE)
        return err_set(e, -EINVAL, "piece %zu is of type %llu, which is unknown", p->n_pieces,
                       (unsigned long long)type);
    float score;
    memcpy(&score, &score_bits, sizeof score);
    return sp_proto_add(p, (const char *)text.at, reader_size(&text), score,
                        (enum sp_piece_type)type, e);
}

static int parse_trainer_spec(struct sp_proto *p, struct reader r, struct err *e)
{
    while (r.at != r.end) {
        struct field f;
        if (!read_field(&r, &f))
            return malformed(e, "trainer_spec");
        if (f.number == 3 && f.type == WIRE_VARINT && f.value != 1)
            return err_set(e, -EINVAL,
                           "model type %llu: expected 1 (unigram), as icetk's models are",
                           (unsigned long long)f.value);
        if (f.number == 24 && f.type == WIRE_VARINT)
            p->whitespace_as_suffix = f.value != 0;
        if (f.number == 35 && f.type == WIRE_VARINT)
            p->byte_fallback = f.value != 0;
        if (f.number == 44 && f.type == WIRE_BYTES) {
            const char *text = (const char *)f.message.at;
            size_t size = strnlen(text, reader_size(&f.message));
            if (size > SP_MAX_UNK_SURFACE_BYTES || utf8_check(text, size) < size)
                return malformed(e, "unk_surface");
            buf_clear(&p->unk_surface);
            if (buf_append(&p->unk_surface, text, size))
                return err_set(e, -ENOMEM, "out of memory");
        }
    }
    return 0;
}

static int parse_normalizer_spec(struct sp_proto *p, struct reader r, struct err *e)
{
    while (r.at != r.end) {
        struct field f;
        if (!read_field(&r, &f))
            return malformed(e, "normalizer_spec");
        if (f.number == 2 && f.type == WIRE_BYTES) {
            buf_clear(&p->charsmap);
            if (buf_append(&p->charsmap, f.message.at, reader_size(&f.message)))
                return err_set(e, -ENOMEM, "out of memory");
        }
        if (f.number == 3 && f.type == WIRE_VARINT)
            p->add_dummy_prefix = f.value != 0;
        if (f.number == 4 && f.type == WIRE_VARINT)
            p->remove_extra_whitespaces = f.value != 0;
        if (f.number == 5 && f.type == WIRE_VARINT)
            p->escape_whitespaces = f.value != 0;
    }
    return 0;
}

static int check_denormalizer_spec(struct reader r, struct err *e)
{
    while (r.at != r.end) {
        struct field f;
        if (!read_field(&r, &f))
            return malformed(e, "denormalizer_spec");
        if (f.number == 2 && f.type == WIRE_BYTES && reader_size(&f.message))
            return err_set(e, -EINVAL,
                           "the model rewrites decoded text (denormalizer_spec), which cannot be "
                           "done for text that is streamed");
    }
    return 0;
}

static int parse(struct sp_proto *p, struct reader r, struct err *e)
{
    int result = 0;
    while (r.at != r.end && result == 0) {
        struct field f;
        if (!read_field(&r, &f))
            return malformed(e, "model");
        if (f.type != WIRE_BYTES)
            continue;
        if (f.number == 1)
            result = parse_piece(p, f.message, e);
        else if (f.number == 2)
            result = parse_trainer_spec(p, f.message, e);
        else if (f.number == 3)
            result = parse_normalizer_spec(p, f.message, e);
        else if (f.number == 5)
            result = check_denormalizer_spec(f.message, e);
    }
    if (result == 0 && p->n_pieces == 0)
        return err_set(e, -EINVAL, "no pieces: not a SentencePiece model, or an empty one");
    if (result == 0 && p->charsmap.size)
        result = sp_charsmap_check(p->charsmap.data, p->charsmap.size, e);
    return result;
}

int sp_proto_parse(const void *data, size_t size, struct sp_proto *ret, struct err *e)
{
    if (size > SP_MAX_FILE_BYTES)
        return err_set(e, -EINVAL, "%zu bytes, the limit for a SentencePiece model is %d", size,
                       SP_MAX_FILE_BYTES);
    struct sp_proto p = {
        .add_dummy_prefix = true,
        .remove_extra_whitespaces = true,
        .escape_whitespaces = true,
    };
    int r = buf_append_str(&p.unk_surface, " \xe2\x81\x87 ");
    if (r < 0)
        return err_set(e, r, "out of memory");
    r = parse(&p, (struct reader){data, (const uint8_t *)data + size}, e);
    if (r < 0) {
        sp_proto_deinit(&p);
        return r;
    }
    *ret = p;
    return 0;
}

void sp_proto_deinit(struct sp_proto *p)
{
    free(p->pieces);
    buf_deinit(&p->text);
    buf_deinit(&p->charsmap);
    buf_deinit(&p->unk_surface);
    *p = (struct sp_proto){0};
}

const char *sp_proto_text(const struct sp_proto *p, size_t piece)
{
    assert(piece < p->n_pieces);
    return p->text.data + p->pieces[piece].text_at;
}

/* ---- writing ---- */

static int write_varint(struct buf *b, uint64_t value)
{
    uint8_t bytes[10];
    size_t n = 0;
    while (value > 0x7f) {
        bytes[n++] = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    bytes[n++] = (uint8_t)value;
    return buf_append(b, bytes, n);
}

static int write_number(struct buf *b, uint32_t field, uint64_t value)
{
    int r = write_varint(b, (uint64_t)field << 3 | WIRE_VARINT);
    return r < 0 ? r : write_varint(b, value);
}

static int write_bytes(struct buf *b, uint32_t field, const void *data, size_t size)
{
    int r = write_varint(b, (uint64_t)field << 3 | WIRE_BYTES);
    if (r == 0)
        r = write_varint(b, size);
    return r < 0 ? r : buf_append(b, data, size);
}

static int write_piece(const struct sp_proto *p, size_t i, struct buf *scratch, struct buf *ret)
{
    const struct sp_piece *piece = &p->pieces[i];
    uint32_t bits;
    memcpy(&bits, &piece->score, sizeof bits);
    uint8_t fixed[5] = {2 << 3 | WIRE_FIXED32, (uint8_t)bits, (uint8_t)(bits >> 8),
                        (uint8_t)(bits >> 16), (uint8_t)(bits >> 24)};
    buf_clear(scratch);
    int r = write_bytes(scratch, 1, sp_proto_text(p, i), piece->text_size);
    if (r == 0)
        r = buf_append(scratch, fixed, sizeof fixed);
    if (r == 0)
        r = write_number(scratch, 3, piece->type);
    return r < 0 ? r : write_bytes(ret, 1, scratch->data, scratch->size);
}

static int write_specs(const struct sp_proto *p, struct buf *scratch, struct buf *ret)
{
    buf_clear(scratch);
    int r = write_number(scratch, 3, 1);
    if (r == 0)
        r = write_number(scratch, 24, p->whitespace_as_suffix);
    if (r == 0)
        r = write_number(scratch, 35, p->byte_fallback);
    if (r == 0)
        r = write_bytes(ret, 2, scratch->data, scratch->size);
    buf_clear(scratch);
    if (r == 0)
        r = write_bytes(scratch, 2, p->charsmap.data, p->charsmap.size);
    if (r == 0)
        r = write_number(scratch, 3, p->add_dummy_prefix);
    if (r == 0)
        r = write_number(scratch, 4, p->remove_extra_whitespaces);
    if (r == 0)
        r = write_number(scratch, 5, p->escape_whitespaces);
    return r < 0 ? r : write_bytes(ret, 3, scratch->data, scratch->size);
}

int sp_proto_write(const struct sp_proto *p, struct buf *ret_model)
{
    struct buf scratch = {0};
    int r = 0;
    for (size_t i = 0; i < p->n_pieces && r == 0; i++)
        r = write_piece(p, i, &scratch, ret_model);
    if (r == 0)
        r = write_specs(p, &scratch, ret_model);
    buf_deinit(&scratch);
    return r;
}
