/* utf8.c: see utf8.h. */
#include "base/utf8.h"

#include <stdint.h>

/* Length of the well-formed sequence at p, 0 when there is none. */
static size_t sequence_length(const uint8_t *p, size_t size)
{
    uint8_t lead = p[0];
    if (lead < 0x80)
        return 1;
    size_t length;
    uint8_t low = 0x80, high = 0xbf; /* allowed second byte */
    if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        if (lead == 0xe0)
            low = 0xa0; /* overlong */
        else if (lead == 0xed)
            high = 0x9f; /* surrogates */
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        if (lead == 0xf0)
            low = 0x90; /* overlong */
        else if (lead == 0xf4)
            high = 0x8f; /* above U+10FFFF */
    } else {
        return 0;
    }
    if (length > size || p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return length;
}

size_t utf8_check(const char *text, size_t size)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t at = 0;
    while (at < size) {
        size_t length = sequence_length(p + at, size - at);
        if (!length)
            break;
        at += length;
    }
    return at;
}

void utf8_repair(char *text, size_t size)
{
    size_t at = 0;
    while ((at += utf8_check(text + at, size - at)) < size)
        text[at] = '?';
}
