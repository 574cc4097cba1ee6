/* pickle.c: the stack machine of pickle.h. Values live in one array and refer to each other by
 * index; aggregates keep their members in a second array. Nothing is freed before the end.
 * pickle_table.c turns the result into tensors. Opcodes: Python's pickletools. */
#include "model/pickle.h"

#include <assert.h>
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/pickle_machine.h"

enum opcode {
    OP_MARK = '(',
    OP_STOP = '.',
    OP_BINFLOAT = 'G',
    OP_BININT = 'J',
    OP_BININT1 = 'K',
    OP_BININT2 = 'M',
    OP_NONE = 'N',
    OP_BINPERSID = 'Q',
    OP_REDUCE = 'R',
    OP_BINUNICODE = 'X',
    OP_EMPTY_LIST = ']',
    OP_APPEND = 'a',
    OP_BUILD = 'b',
    OP_GLOBAL = 'c',
    OP_APPENDS = 'e',
    OP_BINGET = 'h',
    OP_LONG_BINGET = 'j',
    OP_BINPUT = 'q',
    OP_LONG_BINPUT = 'r',
    OP_SETITEM = 's',
    OP_TUPLE = 't',
    OP_SETITEMS = 'u',
    OP_EMPTY_DICT = '}',
    OP_EMPTY_TUPLE = ')',
    OP_PROTO = 0x80,
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_LONG1 = 0x8a,
};

static const struct {
    const char *module, *name;
    enum pickle_global global;
    enum pickle_dtype dtype;
} globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", PICKLE_GLOBAL_REBUILD_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", PICKLE_GLOBAL_REBUILD_PARAMETER, 0},
    {"collections", "OrderedDict", PICKLE_GLOBAL_ORDERED_DICT, 0},
    {"torch", "HalfStorage", PICKLE_GLOBAL_STORAGE, PICKLE_F16},
    {"torch", "BFloat16Storage", PICKLE_GLOBAL_STORAGE, PICKLE_BF16},
    {"torch", "FloatStorage", PICKLE_GLOBAL_STORAGE, PICKLE_F32},
    {"torch", "DoubleStorage", PICKLE_GLOBAL_STORAGE, PICKLE_F64},
    {"torch", "CharStorage", PICKLE_GLOBAL_STORAGE, PICKLE_I8},
    {"torch", "ByteStorage", PICKLE_GLOBAL_STORAGE, PICKLE_U8},
    {"torch", "ShortStorage", PICKLE_GLOBAL_STORAGE, PICKLE_I16},
    {"torch", "IntStorage", PICKLE_GLOBAL_STORAGE, PICKLE_I32},
    {"torch", "LongStorage", PICKLE_GLOBAL_STORAGE, PICKLE_I64},
    {"torch", "BoolStorage", PICKLE_GLOBAL_STORAGE, PICKLE_BOOL},
};

static int fail(struct pickle_machine *m, int code, const char *what)
{
    return err_set(m->e, code, "%s: byte %zu: %s", m->where, m->op_offset, what);
}

static int truncated(struct pickle_machine *m)
{
    return fail(m, -EBADMSG, "the pickle ends in the middle");
}

/* n bytes of input, or NULL. */
static const uint8_t *take(struct pickle_machine *m, size_t n)
{
    if (m->size - m->at < n)
        return NULL;
    const uint8_t *p = m->data + m->at;
    m->at += n;
    return p;
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return le32toh(v);
}

/* Room for one more element in an array that grows up to a bound. */
static int grow(struct pickle_machine *m, void *array, size_t element, size_t n, size_t *capacity,
                size_t bound)
{
    if (n < *capacity)
        return 0;
    if (n >= bound)
        return fail(m, -EFBIG, "more values than any checkpoint has");
    size_t wanted = MIN(bound, MAX((size_t)256, *capacity * 2));
    void *old, *grown;
    memcpy(&old, array, sizeof old);
    grown = realloc(old, wanted * element);
    if (!grown)
        return fail(m, -ENOMEM, "out of memory");
    memcpy(array, &grown, sizeof grown);
    *capacity = wanted;
    return 0;
}

static int push(struct pickle_machine *m, uint32_t value)
{
    int r = grow(m, &m->stack, sizeof *m->stack, m->n_stack, &m->stack_capacity, PICKLE_MAX_STACK);
    if (r == 0)
        m->stack[m->n_stack++] = value;
    return r;
}

/* A new value on top of the stack. */
static int push_new(struct pickle_machine *m, struct pickle_value v)
{
    int r =
        grow(m, &m->values, sizeof *m->values, m->n_values, &m->value_capacity, PICKLE_MAX_VALUES);
    if (r < 0)
        return r;
    m->values[m->n_values] = v;
    return push(m, (uint32_t)m->n_values++);
}

/* Values above the topmost mark, or on the whole stack; they cannot be popped through a mark. */
static size_t n_above_mark(const struct pickle_machine *m)
{
    return m->n_stack - (m->n_marks ? m->marks[m->n_marks - 1] : 0);
}

static int pop(struct pickle_machine *m, uint32_t *ret_value)
{
    if (n_above_mark(m) == 0)
        return fail(m, -EBADMSG, "the stack is empty");
    *ret_value = m->stack[--m->n_stack];
    return 0;
}

static int pop_mark(struct pickle_machine *m, size_t *ret_start)
{
    if (m->n_marks == 0)
        return fail(m, -EBADMSG, "no mark on the stack");
    *ret_start = m->marks[--m->n_marks];
    return 0;
}

/* Appends one member to the list of all members; members of one aggregate are linked. */
static int add_item(struct pickle_machine *m, uint32_t aggregate, uint32_t key, uint32_t value)
{
    int r = grow(m, &m->items, sizeof *m->items, m->n_items, &m->item_capacity, PICKLE_MAX_VALUES);
    if (r < 0)
        return r;
    struct pickle_value *a = &m->values[aggregate];
    uint32_t item = (uint32_t)m->n_items++;
    m->items[item] = (struct pickle_item){.key = key, .value = value, .next = PICKLE_NO_ITEM};
    if (a->n_items++ == 0)
        a->first_item = item;
    else
        m->items[a->last_item].next = item;
    a->last_item = item;
    return 0;
}

/* A tuple of the values from stack position `start` on. */
static int make_tuple(struct pickle_machine *m, size_t start)
{
    size_t n = m->n_stack - start;
    int r = push_new(m, (struct pickle_value){.kind = PICKLE_TUPLE});
    if (r < 0)
        return r;
    uint32_t tuple = m->stack[m->n_stack - 1];
    for (size_t i = 0; i < n && r == 0; i++)
        r = add_item(m, tuple, PICKLE_NO_ITEM, m->stack[start + i]);
    m->n_stack = start;
    return r < 0 ? r : push(m, tuple);
}

static int op_short_tuple(struct pickle_machine *m, size_t n)
{
    if (n_above_mark(m) < n)
        return fail(m, -EBADMSG, "the stack is empty");
    return make_tuple(m, m->n_stack - n);
}

static int op_tuple(struct pickle_machine *m)
{
    size_t start = 0;
    int r = pop_mark(m, &start);
    return r < 0 ? r : make_tuple(m, start);
}

static int op_mark(struct pickle_machine *m)
{
    int r = grow(m, &m->marks, sizeof *m->marks, m->n_marks, &m->mark_capacity, PICKLE_MAX_STACK);
    if (r == 0)
        m->marks[m->n_marks++] = m->n_stack;
    return r;
}

static int push_int(struct pickle_machine *m, int64_t value)
{
    return push_new(m, (struct pickle_value){.kind = PICKLE_INT, .integer = value});
}

/* Little-endian integer of n bytes; the widths that pickle has. */
static int op_int(struct pickle_machine *m, size_t n)
{
    const uint8_t *p = take(m, n);
    if (!p)
        return truncated(m);
    if (n == 1)
        return push_int(m, p[0]);
    if (n == 2)
        return push_int(m, p[0] | p[1] << 8);
    return push_int(m, (int32_t)get32(p)); /* BININT is signed */
}

/* LONG1: a length byte and a two's complement integer of up to 8 bytes. */
static int op_long1(struct pickle_machine *m)
{
    const uint8_t *p = take(m, 1);
    size_t n = p ? p[0] : 0;
    const uint8_t *digits = p ? take(m, n) : NULL;
    if (!digits)
        return truncated(m);
    if (n > 8)
        return fail(m, -ENOTSUP, "an integer of more than 64 bits");
    uint64_t value = n && digits[n - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = n; i-- > 0;)
        value = value << 8 | digits[i];
    return push_int(m, (int64_t)value);
}

static int op_unicode(struct pickle_machine *m)
{
    const uint8_t *p = take(m, 4);
    size_t n = p ? get32(p) : 0;
    const uint8_t *text = p ? take(m, n) : NULL;
    if (!text)
        return truncated(m);
    return push_new(m, (struct pickle_value){.kind = PICKLE_TEXT, .text = text, .text_bytes = n});
}

/* A line of input without its newline. */
static const uint8_t *take_line(struct pickle_machine *m, size_t *ret_n)
{
    const uint8_t *start = m->data + m->at;
    const uint8_t *end = memchr(start, '\n', m->size - m->at);
    if (!end)
        return NULL;
    *ret_n = (size_t)(end - start);
    m->at += *ret_n + 1;
    return start;
}

static bool line_is(const uint8_t *line, size_t n, const char *text)
{
    return n == strlen(text) && memcmp(line, text, n) == 0;
}

/* For messages: printable ASCII only. */
static void printable(const uint8_t *text, size_t n, char *ret_text, size_t size)
{
    n = MIN(n, size - 1);
    for (size_t i = 0; i < n; i++)
        ret_text[i] = text[i] >= 0x20 && text[i] < 0x7f ? (char)text[i] : '?';
    ret_text[n] = '\0';
}

static int op_global(struct pickle_machine *m)
{
    size_t module_bytes = 0, name_bytes = 0;
    const uint8_t *module = take_line(m, &module_bytes);
    const uint8_t *name = module ? take_line(m, &name_bytes) : NULL;
    if (!name)
        return truncated(m);
    for (size_t i = 0; i < ARRAY_LEN(globals); i++) {
        if (line_is(module, module_bytes, globals[i].module) &&
            line_is(name, name_bytes, globals[i].name))
            return push_new(m, (struct pickle_value){.kind = PICKLE_GLOBAL,
                                                     .global = globals[i].global,
                                                     .dtype = globals[i].dtype});
    }
    char module_text[64], name_text[64];
    printable(module, module_bytes, module_text, sizeof module_text);
    printable(name, name_bytes, name_text, sizeof name_text);
    return err_set(m->e, -ENOTSUP,
                   "%s: byte %zu: the checkpoint wants to call %s.%s, which is not allowed: only "
                   "tensors are read, nothing is executed. Save it again with tensors alone, "
                   "torch.save({\"module\": state_dict})",
                   m->where, m->op_offset, module_text, name_text);
}

static int op_put(struct pickle_machine *m, size_t index_bytes)
{
    const uint8_t *p = take(m, index_bytes);
    if (!p)
        return truncated(m);
    size_t index = index_bytes == 1 ? p[0] : get32(p);
    if (index >= PICKLE_MAX_MEMO)
        return fail(m, -EFBIG, "a memo index larger than any checkpoint has");
    if (n_above_mark(m) == 0)
        return fail(m, -EBADMSG, "the stack is empty");
    while (m->memo_capacity <= index) {
        size_t before = m->memo_capacity;
        int r = grow(m, &m->memo, sizeof *m->memo, before, &m->memo_capacity, PICKLE_MAX_MEMO);
        if (r < 0)
            return r;
        for (size_t i = before; i < m->memo_capacity; i++)
            m->memo[i] = PICKLE_NO_VALUE;
    }
    m->memo[index] = m->stack[m->n_stack - 1];
    return 0;
}

static int op_get(struct pickle_machine *m, size_t index_bytes)
{
    const uint8_t *p = take(m, index_bytes);
    if (!p)
        return truncated(m);
    size_t index = index_bytes == 1 ? p[0] : get32(p);
    if (index >= m->memo_capacity || m->memo[index] == PICKLE_NO_VALUE)
        return fail(m, -EBADMSG, "reads a memo entry that was never written");
    return push(m, m->memo[index]);
}

/* The aggregate below the arguments that start at `start`. */
static int aggregate_below(struct pickle_machine *m, size_t start, enum pickle_kind kind,
                           uint32_t *ret_value)
{
    size_t base = m->n_marks ? m->marks[m->n_marks - 1] : 0;
    if (start <= base || m->values[m->stack[start - 1]].kind != kind)
        return fail(m, -EBADMSG, "members for something that is not a dict or list");
    *ret_value = m->stack[start - 1];
    return 0;
}

/* Moves key-value pairs, or elements, from stack position start on into the aggregate below. */
static int op_set(struct pickle_machine *m, size_t start, enum pickle_kind kind)
{
    uint32_t aggregate = 0;
    int r = aggregate_below(m, start, kind, &aggregate);
    if (r < 0)
        return r;
    size_t step = kind == PICKLE_DICT ? 2 : 1;
    if ((m->n_stack - start) % step)
        return fail(m, -EBADMSG, "a key without a value");
    for (size_t i = start; i < m->n_stack && r == 0; i += step)
        r = add_item(m, aggregate, m->stack[i], m->stack[i + step - 1]);
    m->n_stack = start;
    return r;
}

static int op_set_marked(struct pickle_machine *m, enum pickle_kind kind)
{
    size_t start = 0;
    int r = pop_mark(m, &start);
    return r < 0 ? r : op_set(m, start, kind);
}

static int op_set_one(struct pickle_machine *m, enum pickle_kind kind)
{
    size_t n = kind == PICKLE_DICT ? 2 : 1;
    if (n_above_mark(m) < n)
        return fail(m, -EBADMSG, "the stack is empty");
    return op_set(m, m->n_stack - n, kind);
}

/* BUILD: state for an object (an OrderedDict's metadata). The object stays, the state is dropped:
 * it cannot change a tensor. */
static int op_build(struct pickle_machine *m)
{
    uint32_t state = 0;
    int r = pop(m, &state);
    if (r < 0)
        return r;
    return n_above_mark(m) ? 0 : fail(m, -EBADMSG, "the stack is empty");
}

static int op_reduce(struct pickle_machine *m)
{
    uint32_t args = 0, callable = 0;
    int r = pop(m, &args);
    if (r == 0)
        r = pop(m, &callable);
    if (r < 0)
        return r;
    struct pickle_value result = {0};
    r = pickle_call(m, callable, args, &result);
    return r < 0 ? r : push_new(m, result);
}

static int op_persid(struct pickle_machine *m)
{
    uint32_t id = 0;
    int r = pop(m, &id);
    if (r < 0)
        return r;
    struct pickle_value result = {0};
    r = pickle_storage(m, id, &result);
    return r < 0 ? r : push_new(m, result);
}

static int op_proto(struct pickle_machine *m)
{
    const uint8_t *p = take(m, 1);
    if (!p)
        return truncated(m);
    return p[0] == 2 ? 0 : fail(m, -ENOTSUP, "expected pickle protocol 2");
}

static int op_float(struct pickle_machine *m)
{
    return take(m, 8) ? push_new(m, (struct pickle_value){.kind = PICKLE_OTHER}) : truncated(m);
}

static int op_unknown(struct pickle_machine *m, unsigned op)
{
    return err_set(m->e, -ENOTSUP,
                   "%s: byte %zu: opcode 0x%02x is not one that torch.save writes for a "
                   "checkpoint of tensors",
                   m->where, m->op_offset, op);
}

static int step(struct pickle_machine *m, unsigned op)
{
    switch (op) {
    case OP_PROTO:
        return op_proto(m);
    case OP_MARK:
        return op_mark(m);
    case OP_NONE:
    case OP_NEWTRUE:
    case OP_NEWFALSE:
        return push_new(m, (struct pickle_value){.kind = PICKLE_OTHER});
    case OP_BINFLOAT:
        return op_float(m);
    case OP_BININT1:
        return op_int(m, 1);
    case OP_BININT2:
        return op_int(m, 2);
    case OP_BININT:
        return op_int(m, 4);
    case OP_LONG1:
        return op_long1(m);
    case OP_BINUNICODE:
        return op_unicode(m);
    case OP_EMPTY_DICT:
        return push_new(m, (struct pickle_value){.kind = PICKLE_DICT});
    case OP_EMPTY_LIST:
        return push_new(m, (struct pickle_value){.kind = PICKLE_LIST});
    case OP_EMPTY_TUPLE:
        return make_tuple(m, m->n_stack);
    case OP_TUPLE1:
    case OP_TUPLE2:
    case OP_TUPLE3:
        return op_short_tuple(m, op - OP_TUPLE1 + 1);
    case OP_TUPLE:
        return op_tuple(m);
    case OP_GLOBAL:
        return op_global(m);
    case OP_BINPUT:
        return op_put(m, 1);
    case OP_LONG_BINPUT:
        return op_put(m, 4);
    case OP_BINGET:
        return op_get(m, 1);
    case OP_LONG_BINGET:
        return op_get(m, 4);
    case OP_SETITEM:
        return op_set_one(m, PICKLE_DICT);
    case OP_SETITEMS:
        return op_set_marked(m, PICKLE_DICT);
    case OP_APPEND:
        return op_set_one(m, PICKLE_LIST);
    case OP_APPENDS:
        return op_set_marked(m, PICKLE_LIST);
    case OP_BUILD:
        return op_build(m);
    case OP_BINPERSID:
        return op_persid(m);
    case OP_REDUCE:
        return op_reduce(m);
    default:
        return op_unknown(m, op);
    }
}

int pickle_run(struct pickle_machine *m, uint32_t *ret_result)
{
    for (;;) {
        m->op_offset = m->at;
        const uint8_t *p = take(m, 1);
        if (!p)
            return truncated(m);
        if (*p == OP_STOP) {
            if (m->n_marks || m->n_stack != 1)
                return fail(m, -EBADMSG, "ends with more or less than one value");
            *ret_result = m->stack[0];
            return 0;
        }
        int r = step(m, *p);
        if (r < 0)
            return r;
    }
}

void pickle_machine_deinit(struct pickle_machine *m)
{
    free(m->values);
    free(m->items);
    free(m->stack);
    free(m->marks);
    free(m->memo);
}
