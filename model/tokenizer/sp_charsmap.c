/* sp_charsmap.c: the check of a normaliser's rule table ("precompiled_charsmap").
 *
 *   u32 little endian: bytes of the double array
 *   double array of u32 units, in blocks of 256 (Darts-clone)
 *   outputs, each ending in a NUL
 *
 * A unit: bits 0-7 label, 8 has_leaf, 9 offset scale, 10-31 offset, 31 also "is a value". The child
 * of unit i by byte c is unit (i ^ offset(i)) ^ c, if its label is c; a rule that ends at i has its
 * value in unit i ^ offset(i). As blocks are whole, c never leaves the block, so it is enough that
 * i ^ offset(i) lies inside for every unit that can be reached.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/tokenizer/sp_proto.h"

enum { BLOCK_UNITS = 256 };

struct trie {
    const uint8_t *units; /* [n] u32 little endian, unaligned */
    uint32_t n;
    const char *outputs;
    size_t outputs_size;
};

struct frame {
    uint32_t unit;
    uint32_t next; /* the byte to look at next */
};

#define NO_UNIT UINT32_MAX

/* State of a unit; a finished one holds the longest chain of rules from there on, plus 1. */
enum { STATE_NEW = 0, STATE_OPEN = 0xff };

static uint32_t unit_at(const struct trie *t, uint32_t i)
{
    const uint8_t *p = t->units + (size_t)i * 4;
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t unit_offset(uint32_t unit)
{
    return (unit >> 10) << ((unit & (1u << 9)) >> 6);
}

/* The output of the rule whose value unit is `at`. */
static int check_output(const struct trie *t, uint32_t at, struct err *e)
{
    uint32_t value = unit_at(t, at) & 0x7fffffff;
    if (value >= t->outputs_size)
        return err_set(e, -EINVAL, "a normalisation rule points outside of its output table");
    size_t length = strnlen(t->outputs + value, t->outputs_size - value);
    if (length > SP_MAX_RULE_OUTPUT_BYTES)
        return err_set(e, -EINVAL, "a normalisation rule writes %zu bytes, the limit is %d", length,
                       SP_MAX_RULE_OUTPUT_BYTES);
    return 0;
}

/* First visit of a unit: its block and its own rule. */
static int enter(const struct trie *t, uint32_t i, struct err *e)
{
    uint32_t unit = unit_at(t, i);
    uint32_t base = i ^ unit_offset(unit);
    if (base >= t->n)
        return err_set(e, -EINVAL, "the normalisation table leads outside of itself");
    if (unit >> 8 & 1)
        return check_output(t, base, e);
    return 0;
}

static bool is_child(const struct trie *t, uint32_t unit, uint32_t byte)
{
    return (unit_at(t, unit) & 0x800000ff) == byte;
}

/* The next child of the topmost unit that nobody has visited: *ret, or NO_UNIT. */
static int next_child(const struct trie *t, const uint8_t *state, struct frame *f, uint32_t *ret,
                      struct err *e)
{
    uint32_t base = f->unit ^ unit_offset(unit_at(t, f->unit));
    while (f->next < BLOCK_UNITS) {
        uint32_t byte = f->next++;
        uint32_t child = base ^ byte;
        if (!is_child(t, child, byte))
            continue;
        if (state[child] == STATE_OPEN)
            return err_set(e, -EINVAL, "the normalisation table has a cycle");
        if (state[child] == STATE_NEW) {
            *ret = child;
            return 0;
        }
    }
    *ret = NO_UNIT;
    return 0;
}

/* The longest chain of rules from `i` on, all of its children being finished. */
static int finish(const struct trie *t, uint8_t *state, uint32_t i, struct err *e)
{
    uint32_t unit = unit_at(t, i);
    uint32_t base = i ^ unit_offset(unit);
    unsigned longest = 0;
    for (uint32_t byte = 0; byte < BLOCK_UNITS; byte++) {
        if (is_child(t, base ^ byte, byte))
            longest = MAX(longest, state[base ^ byte] - 1u);
    }
    longest += unit >> 8 & 1;
    if (longest > SP_MAX_RULES_PER_PLACE)
        return err_set(e, -EINVAL, "more than %d normalisation rules match at one place",
                       SP_MAX_RULES_PER_PLACE);
    state[i] = (uint8_t)(longest + 1);
    return 0;
}

/* Depth first over everything that can be reached. The table may share ends of rules (it is a
 * directed graph), so each unit is looked at once. */
static int walk(const struct trie *t, uint8_t *state, struct frame *stack, struct err *e)
{
    uint32_t depth = 0;
    uint32_t unit = 0;
    for (;;) {
        if (unit != NO_UNIT) {
            int r = enter(t, unit, e);
            if (r < 0)
                return r;
            state[unit] = STATE_OPEN;
            stack[depth++] = (struct frame){.unit = unit};
        } else {
            int r = finish(t, state, stack[depth - 1].unit, e);
            if (r < 0)
                return r;
            if (--depth == 0)
                return 0;
        }
        int r = next_child(t, state, &stack[depth - 1], &unit, e);
        if (r < 0)
            return r;
    }
}

int sp_charsmap_check(const void *data, size_t size, struct err *e)
{
    const uint8_t *p = data;
    if (size > SP_MAX_CHARSMAP_BYTES)
        return err_set(e, -EINVAL, "the normalisation table has %zu bytes, the limit is %d", size,
                       SP_MAX_CHARSMAP_BYTES);
    if (size < 4)
        return err_set(e, -EINVAL, "the normalisation table is cut short");
    size_t trie_size = p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
    if (trie_size >= size - 4 || trie_size == 0 || trie_size % (4 * BLOCK_UNITS) != 0)
        return err_set(e, -EINVAL,
                       "the normalisation table of %zu bytes cannot hold a double array of %zu",
                       size, trie_size);
    struct trie t = {
        .units = p + 4,
        .n = (uint32_t)(trie_size / 4),
        .outputs = (const char *)p + 4 + trie_size,
        .outputs_size = size - 4 - trie_size,
    };
    if (t.outputs[t.outputs_size - 1] != '\0')
        return err_set(e, -EINVAL, "the outputs of the normalisation table do not end in a NUL");
    uint8_t *state = alloc_array(t.n, sizeof *state);
    struct frame *stack = alloc_array(t.n, sizeof *stack); /* a unit is open at most once */
    int r = state && stack ? walk(&t, state, stack, e) : err_set(e, -ENOMEM, "out of memory");
    free(state);
    free(stack);
    return r;
}
