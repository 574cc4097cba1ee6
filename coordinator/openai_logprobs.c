/* openai_logprobs.c: tokens with their log-probabilities, in both of OpenAI's shapes:
 *
 *   completions  {"tokens": [], "token_logprobs": [], "top_logprobs": [{}], "text_offset": []}
 *   chats        {"content": [{"token", "logprob", "bytes", "top_logprobs": [{...}]}]}
 *
 * A token reads as it does inside a text: the word mark of its piece is a blank. See
 * openai_reply.h. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "coordinator/openai_reply.h"

static const char word_mark[] = "\xe2\x96\x81"; /* U+2581 */

size_t openai_count_chars(const char *text, size_t n)
{
    size_t chars = 0;
    for (size_t i = 0; i != n; i++)
        chars += ((unsigned char)text[i] & 0xc0) != 0x80;
    return chars;
}

/* ---- texts of tokens ---- */

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<0xE4>": the byte, or -1. */
static int byte_piece(const char *piece)
{
    if (strlen(piece) != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>')
        return -1;
    int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* "<|blank_12|>": 12, or 0. */
static unsigned blank_piece(const char *piece)
{
    unsigned n = 0;
    char end = '\0';
    return sscanf(piece, "<|blank_%2u|%c", &n, &end) == 2 && end == '>' ? n : 0;
}

static int append_piece(struct buf *text, const char *piece)
{
    int byte = byte_piece(piece), r = 0;
    unsigned n_blanks = blank_piece(piece);
    if (byte >= 0)
        return buf_append(text, &(char){(char)byte}, 1);
    if (strcmp(piece, "<n>") == 0)
        return buf_append(text, "\n", 1);
    if (strcmp(piece, "<|tab|>") == 0)
        return buf_append(text, "\t", 1);
    if (n_blanks)
        return buf_printf(text, "%*s", (int)n_blanks, "");
    for (const char *at; r == 0 && (at = strstr(piece, word_mark)); piece = at + 3) {
        r = buf_append(text, piece, (size_t)(at - piece));
        if (r == 0)
            r = buf_append(text, " ", 1);
    }
    return r == 0 ? buf_append_str(text, piece) : r;
}

/* The token's bytes into r->scratch. Ids without a piece read as their number. */
static int read_token(struct openai_reply *r, int32_t id)
{
    const char *piece = r->tokens_of.piece(r->tokens_of.context, id);
    buf_clear(&r->scratch);
    return piece ? append_piece(&r->scratch, piece)
                 : buf_printf(&r->scratch, "token_id:%d", (int)id);
}

/* The token of r->scratch as a string. A byte that is no character alone is named. */
static void write_token(struct json_out *o, const struct openai_reply *r, int32_t id)
{
    const struct buf *t = &r->scratch;
    char name[32];
    if (r->p->tokens_as_ids) {
        snprintf(name, sizeof name, "token_id:%d", (int)id);
        json_text(o, name);
    } else if (t->size == 1 && (unsigned char)t->data[0] >= 0x80) {
        snprintf(name, sizeof name, "bytes:\\x%02x", (unsigned char)t->data[0]);
        json_text(o, name);
    } else {
        json_text_bytes(o, t->data ? t->data : "", t->size);
    }
}

/* ---- completions ---- */

static void comma(struct json_out *o)
{
    if (o->buf->size)
        json_raw(o, ",");
}

static int write_top(struct openai_reply *r, struct json_out *o, const struct wire_token_logprob *t)
{
    bool chosen = false;
    int code = 0;
    json_raw(o, "{");
    for (uint32_t i = 0; i != t->n_top && code == 0; i++) {
        code = read_token(r, t->top[i].token);
        if (i)
            json_raw(o, ",");
        write_token(o, r, t->top[i].token);
        json_raw(o, ":");
        json_float(o, t->top[i].logprob);
        chosen = chosen || t->top[i].token == t->token;
    }
    if (!chosen && code == 0) { /* it is always there */
        code = read_token(r, t->token);
        if (t->n_top)
            json_raw(o, ",");
        write_token(o, r, t->token);
        json_raw(o, ":");
        json_float(o, t->logprob);
    }
    json_raw(o, "}");
    return code;
}

static int add_completion(struct openai_reply *r, struct openai_part *part,
                          const struct wire_token_logprob *t, bool none)
{
    struct json_out tokens = {&part->tokens, 0}, logprobs = {&part->logprobs, 0},
                    tops = {&part->tops, 0};
    int code = read_token(r, t->token);
    comma(&tokens);
    write_token(&tokens, r, t->token);
    comma(&logprobs);
    comma(&tops);
    if (none) {
        json_raw(&logprobs, "null");
        json_raw(&tops, "null");
    } else {
        json_float(&logprobs, t->logprob);
        if (r->p->top_logprobs && code == 0)
            code = write_top(r, &tops, t);
        else
            json_raw(&tops, "null");
    }
    return code ? code : tokens.error ? tokens.error : logprobs.error ? logprobs.error : tops.error;
}

/* ---- chats ---- */

static int write_chat_token(struct openai_reply *r, struct json_out *o, int32_t id, float logprob)
{
    int code = read_token(r, id);
    json_raw(o, "{\"token\":");
    write_token(o, r, id);
    json_raw(o, ",\"logprob\":");
    json_float(o, logprob);
    json_raw(o, ",\"bytes\":[");
    for (size_t i = 0; i != r->scratch.size; i++) {
        if (i)
            json_raw(o, ",");
        json_u64(o, (unsigned char)r->scratch.data[i]);
    }
    json_raw(o, "]");
    return code;
}

static int add_chat(struct openai_reply *r, struct openai_part *part,
                    const struct wire_token_logprob *t)
{
    struct json_out o = {&part->tokens, 0};
    comma(&o);
    int code = write_chat_token(r, &o, t->token, t->logprob);
    json_raw(&o, ",\"top_logprobs\":[");
    for (uint32_t i = 0; i != t->n_top && code == 0; i++) {
        if (i)
            json_raw(&o, ",");
        code = write_chat_token(r, &o, t->top[i].token, t->top[i].logprob);
        json_raw(&o, "}");
    }
    json_raw(&o, "]}");
    return code ? code : o.error;
}

int openai_add_logprobs(struct openai_reply *r, struct openai_part *part,
                        const struct wire_token_logprob *tokens, uint32_t n, bool first_null)
{
    int code = 0;
    for (uint32_t i = 0; i != n && code == 0; i++)
        code = r->q->route == OPENAI_CHAT
                   ? add_chat(r, part, &tokens[i])
                   : add_completion(r, part, &tokens[i], first_null && i == 0);
    return code;
}

/* ---- where in the text ---- */

int openai_add_offsets(struct openai_reply *r, struct openai_part *part, const int32_t *ids,
                       size_t n, bool at_start, size_t *n_chars)
{
    struct json_out o = {&part->offsets, 0};
    int code = 0;
    for (size_t i = 0; i != n && code == 0; i++) {
        comma(&o);
        json_u64(&o, *n_chars);
        code = read_token(r, ids[i]);
        size_t chars = openai_count_chars(r->scratch.data, r->scratch.size);
        bool dropped = at_start && i == 0 && chars && r->scratch.data[0] == ' ';
        *n_chars += chars - dropped;
    }
    return code ? code : o.error;
}

static bool stands_at(const struct buf *text, size_t at, const char *what, size_t n)
{
    return n && n <= text->size - at && memcmp(text->data + at, what, n) == 0;
}

/* Where the token of r->scratch is in the text, from *at on; moves *at behind it. The normaliser
 * joins blanks, drops those in front of masks, and each stretch between masks begins with a word
 * mark of its own: a token that is not found at once may stand behind blanks, or stand there
 * without its own. */
static size_t find_token(const struct openai_reply *r, const struct buf *text, size_t *at)
{
    const char *t = r->scratch.data ? r->scratch.data : "";
    size_t n = r->scratch.size, begin = *at;
    if (!stands_at(text, begin, t, n)) {
        bool marked = n && *t == ' ';
        t += marked;
        n -= marked;
        while (n && begin < text->size && strchr(" \t\r\n", text->data[begin]))
            begin++;
    }
    if (stands_at(text, begin, t, n)) {
        *at = begin + n;
        return begin;
    }
    /* It was normalised into something else: as many characters, whatever they are. */
    *at = begin;
    for (size_t chars = openai_count_chars(t, n); chars && *at < text->size; chars--) {
        do
            ++*at;
        while (*at < text->size && ((unsigned char)text->data[*at] & 0xc0) == 0x80);
    }
    return begin;
}

int openai_add_prompt_offsets(struct openai_reply *r, struct openai_prompt *p,
                              const struct wire_token_logprob *tokens, uint32_t n)
{
    struct json_out o = {&p->front.offsets, 0};
    const struct buf *text = &p->front.text;
    int code = 0;
    for (uint32_t i = 0; i != n && code == 0; i++) {
        code = read_token(r, tokens[i].token);
        size_t before = p->front_at, begin = find_token(r, text, &p->front_at);
        comma(&o);
        json_u64(&o, p->n_front_chars + openai_count_chars(text->data + before, begin - before));
        p->n_front_chars += openai_count_chars(text->data + before, p->front_at - before);
    }
    return code ? code : o.error;
}
