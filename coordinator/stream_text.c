/* stream_text.c: see stream_text.h. */
#include "coordinator/stream_text.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/stream.h"

static const char word_mark[] = "\xe2\x96\x81"; /* U+2581 */

void stream_text_deinit(struct stream_text *x)
{
    token_stream_free(x->decoder);
    buf_deinit(&x->text);
    free(x->ends);
    *x = (struct stream_text){0};
}

static bool has_text(const struct tokenizer *t, int32_t id)
{
    return tokenizer_piece(t, id) != NULL;
}

int stream_decode(const struct tokenizer *t, const int32_t *ids, size_t n, struct buf *ret_text)
{
    struct token_list kept = {0};
    int r = buf_append(ret_text, "", 0); /* data is a string even when there are no ids */
    for (size_t i = 0; i != n && r == 0; i++) {
        if (has_text(t, ids[i]))
            r = token_list_append(&kept, ids[i]);
    }
    struct err e = ERR_INIT;
    if (r == 0)
        r = tokenizer_decode(t, kept.ids, kept.n, ret_text, &e);
    token_list_deinit(&kept);
    return r;
}

/* ---- growing ---- */

static int reserve_ends(struct stream_text *x, size_t n)
{
    if (n <= x->capacity)
        return 0;
    size_t capacity = MAX(n, MAX(2 * x->capacity, (size_t)16));
    size_t *ends = realloc(x->ends, capacity * sizeof *ends);
    if (!ends)
        return -ENOMEM;
    x->ends = ends;
    x->capacity = capacity;
    return 0;
}

int stream_text_push(struct stream_text *x, const struct tokenizer *t, const struct stop_set *stops,
                     const int32_t *tokens, size_t n, bool end)
{
    struct err e = ERR_INIT;
    if (x->ended)
        return 0;
    int r = buf_append(&x->text, "", 0);
    if (r == 0 && !x->decoder)
        r = token_stream_new(t, &x->decoder);
    if (r == 0 && stops)
        r = reserve_ends(x, n);
    while (r == 0 && x->n_tokens != n) {
        assert(x->n_tokens < n);
        if (has_text(t, tokens[x->n_tokens]))
            r = token_stream_push(x->decoder, tokens[x->n_tokens], &x->text, &e);
        if (stops)
            x->ends[x->n_tokens] = x->text.size;
        x->n_tokens++;
    }
    if (r < 0 || !end)
        return r;
    x->ended = true;
    r = token_stream_flush(x->decoder, &x->text, &e);
    if (stops && n)
        x->ends[n - 1] = x->text.size;
    return r;
}

/* ---- stopping ---- */

bool stream_text_find(struct stream_text *x, const struct stop_set *stops, bool search_only,
                      struct stop_match *ret)
{
    bool found;
    do
        found = stop_search_next(stops, &x->search, x->text.data, x->text.size, ret);
    while (found && search_only);
    return found;
}

/* The tokens whose text lies within the first `size` bytes, without those behind them that have no
 * text. */
static size_t tokens_within(const struct stream_text *x, size_t size)
{
    size_t n = x->n_sent_tokens;
    for (size_t i = n; i != x->n_tokens && x->ends[i] <= size; i++) {
        if (x->ends[i] > (i ? x->ends[i - 1] : 0))
            n = i + 1;
    }
    return n;
}

size_t stream_text_cut(struct stream_text *x, size_t size)
{
    assert(size >= x->n_sent_bytes && size <= x->text.size);
    size_t n = tokens_within(x, size);
    if ((n ? x->ends[n - 1] : 0) < size) { /* the end lies inside a token */
        while (x->ends[n] < size)
            n++;
        n++;
    }
    x->text.size = size;
    x->text.data[size] = '\0';
    x->n_tokens = n;
    x->ended = true;
    return n;
}

size_t stream_text_bytes(const struct stream_text *x, const struct stop_set *stops)
{
    size_t held = stops && !x->ended ? stop_search_held(stops, &x->search) : 0;
    assert(held <= x->text.size);
    return x->text.size - held;
}

size_t stream_text_tokens(const struct stream_text *x, const struct stop_set *stops)
{
    return stops && !x->ended ? tokens_within(x, stream_text_bytes(x, stops)) : x->n_tokens;
}

/* ---- text to tokens ---- */

/* The tokens of a text in front of (or behind) the line break in it. */
static int encode_around_break(const struct tokenizer *t, const char *text, size_t size,
                               bool in_front, struct token_list *ret)
{
    struct token_list ids = {0};
    struct err e = ERR_INIT;
    int r = tokenizer_encode(t, text, size, true, size + 8, &ids, &e);
    size_t at = 0;
    while (r == 0 && at != ids.n && strcmp(tokenizer_piece(t, ids.ids[at]), "<n>") != 0)
        at++;
    if (r == 0 && at != ids.n)
        r = in_front ? token_list_extend(ret, ids.ids, at)
                     : token_list_extend(ret, ids.ids + at + 1, ids.n - at - 1);
    token_list_deinit(&ids);
    return r;
}

/* Text that stands inside a sentence: with the space of its word, or, behind a line break that is
 * dropped again, without. A space alone is what encoding puts in front of a line break. */
static int encode_inside(const struct tokenizer *t, const char *text, size_t size, bool new_word,
                         struct token_list *ret)
{
    struct err e = ERR_INIT;
    size_t space = new_word && size && *text == ' ';
    if (space == size)
        return encode_around_break(t, "\n", 1, true, ret);
    if (new_word)
        return tokenizer_encode(t, text + space, size - space, true, size + 8, ret, &e);
    struct buf behind_break = {0};
    int r = buf_append(&behind_break, "\n", 1);
    if (r == 0)
        r = buf_append(&behind_break, text, size);
    if (r == 0)
        r = encode_around_break(t, behind_break.data, behind_break.size, false, ret);
    buf_deinit(&behind_break);
    return r;
}

int stream_text_encode(const struct stream_text *x, const struct tokenizer *t,
                       const int32_t *tokens, struct token_list *ret)
{
    size_t n = x->n_tokens, size = x->text.size;
    bool is_cut = n && x->ends[n - 1] > size;
    if (!is_cut)
        return token_list_extend(ret, tokens, n);
    while (n && x->ends[n - 1] > size) /* without the cut token, */
        n--;
    size_t n_whole = n;
    while (n && x->ends[n - 1] == (n > 1 ? x->ends[n - 2] : 0)) /* and those that wait for it */
        n--;
    size_t begin = n ? x->ends[n - 1] : 0;
    const char *piece = tokenizer_piece(t, tokens[n]);
    bool new_word = piece && strncmp(piece, word_mark, strlen(word_mark)) == 0;
    int r = token_list_extend(ret, tokens, n);
    if (r == 0)
        r = encode_inside(t, x->text.data + begin, size - begin, new_word, ret);
    struct buf again = {0};
    if (r == 0)
        r = stream_decode(t, ret->ids, ret->n, &again);
    bool same = r == 0 && again.size == size && memcmp(again.data, x->text.data, size) == 0;
    buf_deinit(&again);
    if (!same && r != -ENOMEM) {
        ret->n = 0;
        r = token_list_extend(ret, tokens, n_whole);
    }
    return r;
}
