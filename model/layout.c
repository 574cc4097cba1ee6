/* layout.c: see layout.h. Pure functions; any thread. */
#include "model/layout.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

size_t layout_tensor(const struct quant_scheme *s, const struct shard_tensor *t,
                     struct st_tensor ret_tensors[2])
{
    bool quantized = quant_applies(s, t);
    ret_tensors[0] = (struct st_tensor){.name = strdup(t->name), .dtype = ST_F16, .n_dims = 1};
    ret_tensors[0].shape[0] = t->rows;
    if (!ret_tensors[0].name)
        return 0;
    if (t->role == SHARD_ROLE_LINEAR || t->role == SHARD_ROLE_EMBEDDING) {
        ret_tensors[0].n_dims = 2;
        ret_tensors[0].shape[1] = quantized ? quant_row_bytes(s->weights, t->cols) : t->cols;
    }
    if (!quantized)
        return 1;
    ret_tensors[0].dtype = s->weights == QUANT_INT4 ? ST_U8 : ST_I8;
    ret_tensors[1] = (struct st_tensor){.dtype = ST_F16, .n_dims = 2};
    ret_tensors[1].shape[0] = t->rows;
    ret_tensors[1].shape[1] = quant_n_groups(s, t);
    if (asprintf(&ret_tensors[1].name, "%s_scale", t->name) < 0) {
        free(ret_tensors[0].name);
        return 0;
    }
    return 2;
}

int layout_tensors(const struct arch *a, const struct quant_scheme *s, struct st_list *ret_list)
{
    size_t n = shard_n_tensors(a);
    *ret_list = (struct st_list){.tensors = alloc_array(2 * n, sizeof *ret_list->tensors)};
    if (!ret_list->tensors)
        return -ENOMEM;
    for (size_t i = 0; i < n; i++) {
        struct shard_tensor t;
        shard_tensor_at(a, i, &t);
        size_t added = layout_tensor(s, &t, ret_list->tensors + ret_list->n);
        if (added == 0) {
            st_list_deinit(ret_list);
            return -ENOMEM;
        }
        ret_list->n += added;
    }
    return 0;
}
