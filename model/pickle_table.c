/* pickle_table.c: what the few allowed calls of a checkpoint mean, and the table of tensors at the
 * end. See pickle.h. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/pickle_machine.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [PICKLE_F16] = {"float16", 2}, [PICKLE_BF16] = {"bfloat16", 2}, [PICKLE_F32] = {"float32", 4},
    [PICKLE_F64] = {"float64", 8}, [PICKLE_I8] = {"int8", 1},       [PICKLE_U8] = {"uint8", 1},
    [PICKLE_I16] = {"int16", 2},   [PICKLE_I32] = {"int32", 4},     [PICKLE_I64] = {"int64", 8},
    [PICKLE_BOOL] = {"bool", 1},
};

size_t pickle_dtype_bytes(enum pickle_dtype d)
{
    assert((size_t)d < ARRAY_LEN(dtypes));
    return dtypes[d].bytes;
}

const char *pickle_dtype_name(enum pickle_dtype d)
{
    assert((size_t)d < ARRAY_LEN(dtypes));
    return dtypes[d].name;
}

static int fail(struct pickle_machine *m, const char *what)
{
    return err_set(m->e, -EBADMSG, "%s: byte %zu: %s", m->where, m->op_offset, what);
}

/* Copies the members of a tuple; false when it is none or has less than min or more than max. */
static bool tuple_items(const struct pickle_machine *m, uint32_t value, size_t min, size_t max,
                        uint32_t *ret_items, size_t *ret_n)
{
    const struct pickle_value *v = &m->values[value];
    if (v->kind != PICKLE_TUPLE || v->n_items < min || v->n_items > max)
        return false;
    uint32_t item = v->first_item;
    for (uint32_t i = 0; i < v->n_items; i++) {
        ret_items[i] = m->items[item].value;
        item = m->items[item].next;
    }
    *ret_n = v->n_items;
    return true;
}

static bool is_text(const struct pickle_value *v, const char *text)
{
    return v->kind == PICKLE_TEXT && v->text_bytes == strlen(text) &&
           memcmp(v->text, text, v->text_bytes) == 0;
}

/* ("storage", torch.<Type>Storage, key, location, number of elements) */
int pickle_storage(struct pickle_machine *m, uint32_t id, struct pickle_value *ret)
{
    uint32_t items[5];
    size_t n;
    if (!tuple_items(m, id, 5, 5, items, &n) || !is_text(&m->values[items[0]], "storage"))
        return fail(m, "a persistent id that is not a storage");
    const struct pickle_value *type = &m->values[items[1]], *key = &m->values[items[2]];
    const struct pickle_value *elements = &m->values[items[4]];
    if (type->kind != PICKLE_GLOBAL || type->global != PICKLE_GLOBAL_STORAGE)
        return fail(m, "a storage without an element type");
    if (key->kind != PICKLE_TEXT || key->text_bytes == 0 || key->text_bytes > PICKLE_MAX_KEY_BYTES)
        return fail(m, "a storage whose key is not a short text");
    for (size_t i = 0; i < key->text_bytes; i++) {
        if (key->text[i] < '0' || key->text[i] > '9')
            return fail(m, "a storage whose key is not a number");
    }
    if (elements->kind != PICKLE_INT || elements->integer < 0)
        return fail(m, "a storage without a number of elements");
    *ret = (struct pickle_value){
        .kind = PICKLE_STORAGE, .dtype = type->dtype, .key = items[2], .n_elements = items[4]};
    return 0;
}

/* (storage, offset, shape, stride, requires_grad, hooks[, metadata]) */
static int rebuild_tensor(struct pickle_machine *m, uint32_t args, struct pickle_value *ret)
{
    uint32_t items[7];
    size_t n;
    if (!tuple_items(m, args, 6, 7, items, &n) || m->values[items[0]].kind != PICKLE_STORAGE ||
        m->values[items[1]].kind != PICKLE_INT || m->values[items[2]].kind != PICKLE_TUPLE ||
        m->values[items[3]].kind != PICKLE_TUPLE)
        return fail(m, "_rebuild_tensor_v2 with arguments that torch does not write");
    *ret = (struct pickle_value){.kind = PICKLE_TENSOR,
                                 .storage = items[0],
                                 .offset = items[1],
                                 .shape = items[2],
                                 .stride = items[3]};
    return 0;
}

int pickle_call(struct pickle_machine *m, uint32_t callable, uint32_t args,
                struct pickle_value *ret)
{
    uint32_t items[3];
    size_t n;
    if (m->values[callable].kind != PICKLE_GLOBAL)
        return fail(m, "a call of something that is not a function");
    switch (m->values[callable].global) {
    case PICKLE_GLOBAL_REBUILD_TENSOR:
        return rebuild_tensor(m, args, ret);
    case PICKLE_GLOBAL_REBUILD_PARAMETER:
        if (!tuple_items(m, args, 3, 3, items, &n) || m->values[items[0]].kind != PICKLE_TENSOR)
            return fail(m, "_rebuild_parameter with arguments that torch does not write");
        *ret = m->values[items[0]];
        return 0;
    case PICKLE_GLOBAL_ORDERED_DICT:
        if (!tuple_items(m, args, 0, 0, items, &n))
            return fail(m, "OrderedDict with arguments");
        *ret = (struct pickle_value){.kind = PICKLE_DICT};
        return 0;
    case PICKLE_GLOBAL_STORAGE:
        return fail(m, "a call of a storage type");
    }
    assert(false);
    return -EINVAL;
}

/* A tuple of up to PICKLE_MAX_DIMS whole numbers that are not negative. */
static bool read_sizes(const struct pickle_machine *m, uint32_t tuple, uint64_t *ret_sizes,
                       size_t *ret_n)
{
    uint32_t items[PICKLE_MAX_DIMS];
    if (!tuple_items(m, tuple, 0, PICKLE_MAX_DIMS, items, ret_n))
        return false;
    for (size_t i = 0; i < *ret_n; i++) {
        const struct pickle_value *v = &m->values[items[i]];
        if (v->kind != PICKLE_INT || v->integer < 0)
            return false;
        ret_sizes[i] = (uint64_t)v->integer;
    }
    return true;
}

/* Whether the last element lies inside the storage. */
static bool fits_storage(const struct pickle_tensor *t)
{
    uint64_t end = t->offset;
    for (uint32_t i = 0; i < t->n_dims; i++) {
        uint64_t span;
        if (t->shape[i] == 0)
            return true;
        if (__builtin_mul_overflow(t->shape[i] - 1, t->stride[i], &span) ||
            __builtin_add_overflow(end, span, &end))
            return false;
    }
    return end < t->storage_n;
}

static int read_tensor(struct pickle_machine *m, const struct pickle_value *v,
                       struct pickle_tensor *t)
{
    const struct pickle_value *storage = &m->values[v->storage];
    const struct pickle_value *key = &m->values[storage->key];
    size_t n_dims = 0, n_strides = 0;
    t->dtype = storage->dtype;
    memcpy(t->key, key->text, key->text_bytes);
    t->storage_n = (uint64_t)m->values[storage->n_elements].integer;
    if (m->values[v->offset].integer < 0 || !read_sizes(m, v->shape, t->shape, &n_dims) ||
        !read_sizes(m, v->stride, t->stride, &n_strides) || n_dims != n_strides)
        return err_set(m->e, -EBADMSG, "%s: tensor \"%s\": bad offset, shape or stride", m->where,
                       t->name);
    t->offset = (uint64_t)m->values[v->offset].integer;
    t->n_dims = (uint32_t)n_dims;
    if (!fits_storage(t))
        return err_set(m->e, -EBADMSG, "%s: tensor \"%s\" reaches beyond its storage of %llu %s",
                       m->where, t->name, (unsigned long long)t->storage_n,
                       pickle_dtype_name(t->dtype));
    return 0;
}

static int add_tensor(struct pickle_machine *m, const struct pickle_item *item,
                      struct pickle_table *table)
{
    const struct pickle_value *key = &m->values[item->key], *v = &m->values[item->value];
    if (v->kind != PICKLE_TENSOR) {
        table->n_other++;
        return 0;
    }
    if (key->kind != PICKLE_TEXT || key->text_bytes == 0 ||
        key->text_bytes > PICKLE_MAX_NAME_BYTES || memchr(key->text, 0, key->text_bytes))
        return err_set(m->e, -EBADMSG, "%s: a tensor whose name is not a text of 1 to %d bytes",
                       m->where, PICKLE_MAX_NAME_BYTES);
    struct pickle_tensor *t = &table->tensors[table->n];
    t->name = text_dup(key->text, key->text_bytes);
    if (!t->name)
        return err_set(m->e, -ENOMEM, "%s: out of memory", m->where);
    table->n++;
    return read_tensor(m, v, t);
}

static int compare_names(const void *a, const void *b)
{
    const struct pickle_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The value of "module" in the dict at the top. */
static const struct pickle_value *find_module(const struct pickle_machine *m, uint32_t top)
{
    const struct pickle_value *v = &m->values[top], *found = NULL;
    if (v->kind != PICKLE_DICT)
        return NULL;
    uint32_t item = v->first_item;
    for (uint32_t i = 0; i < v->n_items; i++) {
        if (is_text(&m->values[m->items[item].key], "module"))
            found = &m->values[m->items[item].value];
        item = m->items[item].next;
    }
    return found && found->kind == PICKLE_DICT ? found : NULL;
}

static int read_table(struct pickle_machine *m, uint32_t top, struct pickle_table *table)
{
    const struct pickle_value *module = find_module(m, top);
    if (!module)
        return err_set(m->e, -EBADMSG,
                       "%s: expected {\"module\": {name: tensor}}, found something else: is this "
                       "a SwissArmyTransformer checkpoint?",
                       m->where);
    table->tensors = alloc_array(module->n_items, sizeof *table->tensors);
    if (!table->tensors)
        return err_set(m->e, -ENOMEM, "%s: out of memory", m->where);
    uint32_t item = module->first_item;
    for (uint32_t i = 0; i < module->n_items; i++) {
        int r = add_tensor(m, &m->items[item], table);
        if (r < 0)
            return r;
        item = m->items[item].next;
    }
    qsort(table->tensors, table->n, sizeof *table->tensors, compare_names);
    for (size_t i = 1; i < table->n; i++) {
        if (strcmp(table->tensors[i - 1].name, table->tensors[i].name) == 0)
            return err_set(m->e, -EBADMSG, "%s: tensor \"%s\" occurs twice", m->where,
                           table->tensors[i].name);
    }
    return 0;
}

int pickle_read(const uint8_t *data, size_t size, const char *where, struct pickle_table *ret,
                struct err *e)
{
    *ret = (struct pickle_table){0};
    if (size > PICKLE_MAX_BYTES)
        return err_set(e, -EFBIG, "%s: expected at most %d bytes, found %zu", where,
                       PICKLE_MAX_BYTES, size);
    struct pickle_machine m = {.data = data, .size = size, .where = where, .e = e};
    uint32_t top;
    int r = pickle_run(&m, &top);
    if (r == 0)
        r = read_table(&m, top, ret);
    pickle_machine_deinit(&m);
    if (r < 0)
        pickle_table_deinit(ret);
    return r;
}

void pickle_table_deinit(struct pickle_table *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->tensors[i].name);
    free(t->tensors);
    *t = (struct pickle_table){0};
}

const struct pickle_tensor *pickle_find(const struct pickle_table *t, const char *name)
{
    size_t low = 0, high = t->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(t->tensors[middle].name, name);
        if (order == 0)
            return &t->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
