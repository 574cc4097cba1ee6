/* text_join.c: see text_join.h. */
#include "model/text_join.h"

#include <string.h>

static const char word_mark[] = "\xe2\x96\x81"; /* U+2581 */

/* The character that begins at a byte of well-formed UTF-8. */
static uint32_t decode_char(const char *at)
{
    const unsigned char *c = (const unsigned char *)at;
    int n = *c < 0x80 ? 0 : *c < 0xe0 ? 1 : *c < 0xf0 ? 2 : 3;
    uint32_t v = n ? *c & (0x3fu >> n) : *c;
    for (int i = 1; i <= n; i++)
        v = v << 6 | (c[i] & 0x3fu);
    return v;
}

/* Letters, digits and marks of writing that has blanks between its words: neither Chinese nor the
 * quotation marks that it shares with others. */
static bool is_spaced(uint32_t v)
{
    return (v > 0x20 && v < 0x7f) || (v > 0xa0 && v < 0x2000) || (v >= 0xac00 && v < 0xd7a4);
}

static uint32_t last_char(const char *text)
{
    const char *at = text + strlen(text);
    do
        at--;
    while (at != text && ((unsigned char)*at & 0xc0) == 0x80);
    return decode_char(at);
}

bool text_join_due(const char *prompt)
{
    if (!prompt || !*prompt)
        return false;
    if (strstr(prompt, "[MASK]") || strstr(prompt, "[sMASK]") || strstr(prompt, "[gMASK]"))
        return false;
    return is_spaced(last_char(prompt));
}

bool text_join_take(struct text_join *j, const int32_t *tokens, size_t n, const char *text,
                    bool ended, const char *(*piece)(const void *context, int32_t id),
                    const void *context)
{
    if (!j->has_first && n) {
        j->has_first = true;
        j->first = tokens[0];
    }
    bool known = j->has_first && text && *text;
    if (j->settled || (j->due && !known && !ended))
        return j->settled;
    j->settled = true;
    if (!j->due || !known)
        return true;
    const char *first = piece(context, j->first);
    j->blank = first && strncmp(first, word_mark, sizeof word_mark - 1) == 0 &&
               is_spaced(decode_char(text)) && !strchr(".,;:!?)]}%", *text);
    return true;
}
