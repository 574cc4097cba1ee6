/* stop.c: see stop.h. One Knuth-Morris-Pratt automaton for each text, all of them fed byte by byte:
 * their states say at any time how much of a stop text the end of the text may be. */
#include "coordinator/stop.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

struct stop_text {
    uint16_t size;
    uint16_t border[STOP_MAX_BYTES + 1]; /* [i]: longest proper prefix that ends text[0 .. i) */
    char text[STOP_MAX_BYTES + 1];
};

struct stop_set {
    uint32_t n;
    struct stop_text texts[];
};

/* How much of the text is matched once `byte` follows a match of `n` bytes, n < size. */
static uint16_t step(const struct stop_text *t, uint16_t n, char byte)
{
    while (n && t->text[n] != byte)
        n = t->border[n];
    return t->text[n] == byte ? n + 1 : 0;
}

static void prepare(struct stop_text *t, const char *text)
{
    size_t size = strlen(text);
    assert(size >= 1 && size <= STOP_MAX_BYTES);
    t->size = (uint16_t)size;
    memcpy(t->text, text, size + 1);
    for (size_t i = 1; i != size; i++)
        t->border[i + 1] = step(t, t->border[i], text[i]);
}

int stop_set_new(const char *const *texts, uint32_t n, struct stop_set **ret)
{
    assert(n >= 1 && n <= STOP_MAX_TEXTS);
    struct stop_set *s = calloc(1, sizeof *s + n * sizeof s->texts[0]);
    if (!s)
        return -ENOMEM;
    s->n = n;
    for (uint32_t i = 0; i != n; i++)
        prepare(&s->texts[i], texts[i]);
    *ret = s;
    return 0;
}

void stop_set_free(struct stop_set *s)
{
    free(s);
}

const char *stop_set_text(const struct stop_set *s, uint32_t index)
{
    assert(index < s->n);
    return s->texts[index].text;
}

bool stop_search_next(const struct stop_set *s, struct stop_search *at, const char *text,
                      size_t size, struct stop_match *ret)
{
    while (at->n_read < size) {
        char byte = text[at->n_read++];
        const struct stop_text *longest = NULL;
        for (uint32_t i = 0; i != s->n; i++) {
            const struct stop_text *t = &s->texts[i];
            at->matched[i] = step(t, at->matched[i], byte);
            if (at->matched[i] != t->size)
                continue;
            at->matched[i] = t->border[t->size];
            if (!longest || t->size > longest->size)
                longest = t;
        }
        if (longest) {
            *ret = (struct stop_match){(uint32_t)(longest - s->texts), at->n_read - longest->size,
                                       at->n_read};
            return true;
        }
    }
    return false;
}

size_t stop_search_held(const struct stop_set *s, const struct stop_search *at)
{
    uint16_t held = 0;
    for (uint32_t i = 0; i != s->n; i++)
        held = MAX(held, at->matched[i]);
    return held;
}
