/* token_list.c: the growable list of token ids of tokenizer.h. */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/tokenizer/tokenizer.h"

void token_list_deinit(struct token_list *l)
{
    free(l->ids);
    *l = (struct token_list){0};
}

int token_list_extend(struct token_list *l, const int32_t *ids, size_t n)
{
    size_t need;
    if (!add_size(l->n, n, &need))
        return -ENOMEM;
    if (need > l->capacity) {
        size_t capacity = MAX(l->capacity + l->capacity / 2, MAX(need, (size_t)32));
        int32_t *grown = reallocarray(l->ids, capacity, sizeof *grown);
        if (!grown)
            return -ENOMEM;
        l->ids = grown;
        l->capacity = capacity;
    }
    if (n)
        memcpy(l->ids + l->n, ids, n * sizeof *ids);
    l->n = need;
    return 0;
}

int token_list_append(struct token_list *l, int32_t id)
{
    return token_list_extend(l, &id, 1);
}
