/* history.c: see history.h. */
#include "coordinator/history.h"

#include <assert.h>

void history_add(struct history *h, const struct history_sample *s)
{
    h->samples[(h->first + h->n) % HISTORY_CAPACITY] = *s;
    if (h->n < HISTORY_CAPACITY)
        h->n++;
    else
        h->first = (h->first + 1) % HISTORY_CAPACITY;
}

const struct history_sample *history_get(const struct history *h, uint32_t index)
{
    assert(index < h->n);
    return &h->samples[(h->first + index) % HISTORY_CAPACITY];
}
