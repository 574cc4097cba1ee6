/* pickle_machine.h: what pickle.c (opcodes) and pickle_table.c (storages, tensors, the table)
 * share. Not for anyone else. */
#ifndef GLMD_MODEL_PICKLE_MACHINE_H
#define GLMD_MODEL_PICKLE_MACHINE_H

#include <stdbool.h>

#include "model/pickle.h"

#define PICKLE_NO_VALUE UINT32_MAX
#define PICKLE_NO_ITEM  UINT32_MAX

enum pickle_kind {
    PICKLE_OTHER, /* None, booleans, floats: never looked at */
    PICKLE_INT,
    PICKLE_TEXT,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT,
    PICKLE_GLOBAL,
    PICKLE_STORAGE,
    PICKLE_TENSOR,
};

enum pickle_global {
    PICKLE_GLOBAL_REBUILD_TENSOR,
    PICKLE_GLOBAL_REBUILD_PARAMETER,
    PICKLE_GLOBAL_ORDERED_DICT,
    PICKLE_GLOBAL_STORAGE,
};

struct pickle_value {
    enum pickle_kind kind;
    union {
        int64_t integer;
        struct {
            const uint8_t *text; /* in the input; not NUL-terminated */
            size_t text_bytes;
        };
        struct { /* tuple, list, dict */
            uint32_t n_items, first_item, last_item;
        };
        struct { /* global; storage: its key (text value) and elements */
            enum pickle_global global;
            enum pickle_dtype dtype;
            uint32_t key;
            uint32_t n_elements; /* index of an integer value */
        };
        struct { /* tensor: indices of values */
            uint32_t storage, offset, shape, stride;
        };
    };
};

struct pickle_item {
    uint32_t key, value; /* indices of values; key only in dicts */
    uint32_t next;
};

struct pickle_machine {
    /* borrowed */
    const uint8_t *data;
    size_t size;
    const char *where;
    struct err *e;
    /* owned */
    struct pickle_value *values;
    struct pickle_item *items;
    uint32_t *stack;
    size_t *marks; /* heights of the stack */
    uint32_t *memo;
    /* state */
    size_t at, op_offset;
    size_t n_values, value_capacity;
    size_t n_items, item_capacity;
    size_t n_stack, stack_capacity;
    size_t n_marks, mark_capacity;
    size_t memo_capacity;
};

/* Runs to STOP. */
int pickle_run(struct pickle_machine *m, uint32_t *ret_result);
void pickle_machine_deinit(struct pickle_machine *m);

/* What REDUCE and BINPERSID mean; ret gets the new value. */
int pickle_call(struct pickle_machine *m, uint32_t callable, uint32_t args,
                struct pickle_value *ret);
int pickle_storage(struct pickle_machine *m, uint32_t id, struct pickle_value *ret);

#endif
