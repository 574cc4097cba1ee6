/* wire_step.c: see wire_step.h. The numbers of the fields are those of worker.proto. */
#include "proto/rpc/wire_step.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "proto/rpc/wire_map.h"

enum wire_type { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

enum { VARINT_BYTES = 10 }; /* of the longest */

/* ---- writing: room for the longest bytes is reserved before ---- */

static inline uint8_t *put_varint(uint8_t *at, uint64_t value)
{
    if (value >= 0x80 && value < 0x4000) { /* most block ids and positions */
        at[0] = (uint8_t)(value | 0x80);
        at[1] = (uint8_t)(value >> 7);
        return at + 2;
    }
    for (; value >= 0x80; value >>= 7)
        *at++ = (uint8_t)(value | 0x80);
    *at++ = (uint8_t)value;
    return at;
}

/* Tags take two bytes from field 16 on. */
static inline uint8_t *put_tag(uint8_t *at, uint32_t field, enum wire_type type)
{
    return put_varint(at, field << 3 | type);
}

/* Zeros are left out. */
static inline uint8_t *put_u64(uint8_t *at, uint32_t field, uint64_t value)
{
    return value ? put_varint(put_tag(at, field, VARINT), value) : at;
}

static inline uint8_t *put_float(uint8_t *at, uint32_t field, float value)
{
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "floats are copied");
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (!bits) /* -0 travels */
        return at;
    at = put_tag(at, field, FIXED32);
    memcpy(at, &bits, sizeof bits);
    return at + sizeof bits;
}

static inline uint64_t zigzag(int32_t value)
{
    return (uint32_t)value << 1 ^ (0u - ((uint32_t)value >> 31));
}

/* Something whose length is not known yet: nearly always it fits a byte. */
static inline uint8_t *begin(uint8_t *at, uint32_t field)
{
    return put_tag(at, field, LENGTH) + 1;
}

static inline uint8_t *finish(uint8_t *start, uint8_t *at)
{
    size_t size = (size_t)(at - start);
    if (size < 0x80) {
        start[-1] = (uint8_t)size;
        return at;
    }
    uint8_t length[VARINT_BYTES];
    size_t more = (size_t)(put_varint(length, size) - length) - 1;
    memmove(start + more, start, size);
    memcpy(start - 1, length, more + 1);
    return at + more;
}

static uint8_t *put_unsigned(uint8_t *at, uint32_t field, const uint32_t *values, uint32_t n)
{
    if (!n)
        return at;
    uint8_t *start = at = begin(at, field);
    for (uint32_t i = 0; i != n; i++)
        at = put_varint(at, values[i]);
    return finish(start, at);
}

static uint8_t *put_signed(uint8_t *at, uint32_t field, const int32_t *values, uint32_t n)
{
    if (!n || !values)
        return at;
    uint8_t *start = at = begin(at, field);
    for (uint32_t i = 0; i != n; i++)
        at = put_varint(at, zigzag(values[i]));
    return finish(start, at);
}

static uint8_t *put_ints(uint8_t *at, uint32_t field, const int32_t *values, uint32_t n)
{
    if (!n || !values)
        return at;
    uint8_t *start = at = begin(at, field);
    for (uint32_t i = 0; i != n; i++)
        at = put_varint(at, (uint64_t)(int64_t)values[i]);
    return finish(start, at);
}

static uint8_t *put_lists(uint8_t *at, const struct plan_sampling *s)
{
    for (uint32_t i = 0; i != s->n_bias; i++) {
        uint8_t *start = at = begin(at, 9);
        at = put_u64(at, 1, (uint64_t)(int64_t)s->bias[i].token);
        at = finish(start, put_float(at, 2, s->bias[i].bias));
    }
    for (uint32_t i = 0; i != s->n_forbidden; i++) {
        uint8_t *start = at = begin(at, 10);
        at = put_u64(at, 1, (uint64_t)(int64_t)s->forbidden[i].begin);
        at = finish(start, put_u64(at, 2, (uint64_t)(int64_t)s->forbidden[i].end));
    }
    return put_ints(at, 11, s->banned, s->n_banned);
}

static uint8_t *put_sampling(uint8_t *at, const struct plan_sampling *s)
{
    uint8_t *start = at = begin(at, 12);
    at = put_float(at, 1, s->temperature);
    at = put_u64(at, 2, s->top_k);
    at = put_float(at, 3, s->top_p);
    at = put_u64(at, 4, s->seed);
    at = put_u64(at, 5, s->request);
    at = put_u64(at, 6, s->choice);
    at = put_u64(at, 7, s->output_index);
    at = put_u64(at, 8, s->n_top_logprobs);
    at = put_lists(at, s);
    at = put_float(at, 12, s->min_p);
    at = put_float(at, 13, s->repetition_penalty);
    at = put_float(at, 14, s->presence_penalty);
    at = put_float(at, 15, s->frequency_penalty);
    at = put_ints(at, 16, s->history, s->n_history);
    at = put_u64(at, 17, s->n_history_prompt);
    at = put_u64(at, 18, s->n_history_kept);
    at = put_u64(at, 19, s->kept);
    return finish(start, at);
}

static uint8_t *put_item(uint8_t *at, const struct plan_item *it)
{
    uint8_t *start = at = begin(at, 4);
    at = put_u64(at, 1, it->slot);
    at = put_u64(at, 2, it->slot_gen);
    at = put_u64(at, 3, it->start);
    at = put_u64(at, 4, it->prefix_len);
    at = put_signed(at, 5, it->tokens, it->n_tokens);
    at = put_ints(at, 6, it->positions, it->n_tokens);
    at = put_unsigned(at, 7, it->blocks, it->n_blocks);
    at = put_u64(at, 8, it->output);
    at = put_u64(at, 9, it->beam_group);
    at = put_float(at, 10, it->beam_score);
    at = put_signed(at, 11, it->targets, it->n_tokens);
    at = put_sampling(at, &it->sampling);
    at = put_u64(at, 13, it->sliced);
    at = put_u64(at, 14, it->n_blocks_kept);
    return finish(start, at);
}

/* No item is longer. */
static size_t item_bound(const struct plan_item *it)
{
    enum { FIELDS = 32, LIST_MESSAGE = 24 };
    const struct plan_sampling *s = &it->sampling;
    size_t n_numbers = 3 * (size_t)it->n_tokens + it->n_blocks + s->n_banned + s->n_history;
    size_t n_messages = (size_t)s->n_bias + s->n_forbidden;
    return FIELDS * (VARINT_BYTES + 2) + n_numbers * VARINT_BYTES +
           n_messages * (LIST_MESSAGE + VARINT_BYTES);
}

/* With everything in front of the items and behind them. */
static size_t step_bound(const struct plan *p)
{
    enum { FIELDS = 8, COPY = 16, GROUP = 48 };
    return FIELDS * (VARINT_BYTES + 2) + (size_t)p->n_copies * COPY + (size_t)p->n_groups * GROUP;
}

static uint8_t *put_copies(uint8_t *at, const struct plan *p)
{
    for (uint32_t i = 0; i != p->n_copies; i++) {
        uint8_t *start = at = begin(at, 3);
        at = put_u64(at, 1, p->copies[i].src);
        at = finish(start, put_u64(at, 2, p->copies[i].dst));
    }
    return at;
}

static uint8_t *put_groups(uint8_t *at, const struct plan *p)
{
    for (uint32_t i = 0; i != p->n_groups; i++) {
        const struct plan_beam_group *g = &p->groups[i];
        uint8_t *start = at = begin(at, 5);
        at = put_u64(at, 1, g->width);
        at = put_u64(at, 2, g->deterministic);
        at = put_u64(at, 3, g->seed);
        at = put_u64(at, 4, g->request);
        at = finish(start, put_u64(at, 5, g->output_index));
    }
    return at;
}

static uint8_t *put_step(uint8_t *at, const struct plan *p)
{
    uint8_t *start = at = begin(at, 2);
    at = put_u64(at, 1, p->epoch);
    at = put_u64(at, 2, p->step);
    at = put_copies(at, p);
    for (uint32_t i = 0; i != p->n_items; i++)
        at = put_item(at, &p->items[i]);
    at = put_groups(at, p);
    at = put_u64(at, 6, p->layer_begin);
    at = put_u64(at, 7, p->layer_end);
    return finish(start, at);
}

int wire_step_pack(const struct plan *p, struct buf *out)
{
    size_t bound = step_bound(p);
    for (uint32_t i = 0; i != p->n_items; i++) {
        if ((unsigned)p->items[i].output > PLAN_OUTPUT_SCORE)
            return -EINVAL;
        bound += item_bound(&p->items[i]);
    }
    size_t limit = out->limit;
    out->limit = 0; /* it bounds what is written, not the room for it */
    int r = buf_reserve(out, bound);
    out->limit = limit;
    if (r < 0)
        return r;
    uint8_t *start = (uint8_t *)out->data + out->size;
    size_t size = (size_t)(put_step(start, p) - start);
    assert(size <= bound);
    if (limit && size > limit - MIN(out->size, limit))
        r = -EFBIG;
    else
        out->size += size;
    out->data[out->size] = '\0';
    return r;
}

/* ---- reading ---- */

/* The rest of a message, or of a packed list. `bad`: the table's way has to look at it. */
struct in {
    const uint8_t *at, *end;
    bool bad;
};

static inline uint64_t get_varint(struct in *in)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 7 * VARINT_BYTES && in->at != in->end; shift += 7) {
        uint8_t byte = *in->at++;
        if (shift == 63 && byte > 1)
            break;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
    in->bad = true;
    in->at = in->end;
    return 0;
}

static inline uint32_t get_u32(struct in *in)
{
    uint64_t value = get_varint(in);
    in->bad |= value > UINT32_MAX;
    return (uint32_t)value;
}

static inline int32_t get_i32(struct in *in)
{
    int64_t value = (int64_t)get_varint(in);
    in->bad |= value != (int32_t)value;
    return (int32_t)value;
}

static inline int32_t get_zigzag(struct in *in)
{
    uint32_t value = get_u32(in);
    return (int32_t)(value >> 1 ^ (0u - (value & 1)));
}

static inline void get_fixed(struct in *in, void *ret, size_t size)
{
    if ((size_t)(in->end - in->at) < size) {
        in->bad = true;
        in->at = in->end;
        return;
    }
    memcpy(ret, in->at, size);
    in->at += size;
}

static inline struct in get_part(struct in *in)
{
    uint64_t size = get_varint(in);
    if (in->bad || size > (uint64_t)(in->end - in->at)) {
        in->bad = true;
        in->at = in->end;
        return (struct in){.bad = true};
    }
    struct in part = {.at = in->at, .end = in->at + size};
    in->at = part.end;
    return part;
}

/* The tag of the next field, in one byte as all are here; false at the end. */
static inline bool get_tag(struct in *in, uint32_t *ret)
{
    if (in->at == in->end || in->bad)
        return false;
    *ret = *in->at++;
    return true;
}

#define TAG(field, type) ((field) << 3 | (type))

/* How often a repeated message comes in a row from here on; `tag` has been read. */
static uint32_t count_messages(struct in in, uint32_t tag)
{
    uint32_t n = 0, next;
    do {
        get_part(&in);
        n++;
    } while (get_tag(&in, &next) && next == tag);
    return n;
}

/* The i-th of them: the tag of the first one has been read. */
static struct in next_message(struct in *in, uint32_t i)
{
    uint32_t tag;
    if (i)
        get_tag(in, &tag);
    return get_part(in);
}

/* A list that comes once, in one piece; so many elements of `size` bytes. */
static void *new_list(struct wire_arena *a, struct in *in, const void *present, uint32_t n,
                      size_t size)
{
    void *list = present || in->bad ? NULL : wire_arena_array(a, n, size);
    in->bad |= !list;
    return list;
}

static void get_logprob(struct in in, struct result_logprob *ret, bool *bad)
{
    for (uint32_t tag; get_tag(&in, &tag);) {
        if (tag == TAG(1, VARINT))
            ret->token = get_i32(&in);
        else if (tag == TAG(2, FIXED32))
            get_fixed(&in, &ret->logprob, sizeof ret->logprob);
        else
            in.bad = true;
    }
    *bad |= in.bad;
}

static void get_top(struct in *in, struct wire_arena *a, struct result_item *it)
{
    uint32_t n = count_messages(*in, TAG(5, LENGTH));
    struct result_logprob *top = new_list(a, in, it->top, n, sizeof *top);
    if (!top)
        return;
    it->top = top;
    it->n_top = n;
    for (uint32_t i = 0; i != n && !in->bad; i++)
        get_logprob(next_message(in, i), &top[i], &in->bad);
}

static const float *get_floats(struct in *in, struct wire_arena *a, const float *present,
                               uint32_t *ret_n)
{
    struct in part = get_part(in);
    size_t size = (size_t)(part.end - part.at);
    in->bad |= part.bad || size == 0 || size % sizeof(float);
    float *list = new_list(a, in, present, (uint32_t)(size / sizeof *list), sizeof *list);
    if (!list)
        return NULL;
    memcpy(list, part.at, size);
    *ret_n = (uint32_t)(size / sizeof *list);
    return list;
}

static const int32_t *get_ints(struct in *in, struct wire_arena *a, const int32_t *present,
                               uint32_t *ret_n)
{
    struct in part = get_part(in);
    uint32_t n = 0;
    for (const uint8_t *p = part.at; p != part.end; p++)
        n += *p < 0x80;
    in->bad |= part.bad || n == 0;
    int32_t *list = new_list(a, in, present, n, sizeof *list);
    if (!list)
        return NULL;
    for (uint32_t i = 0; i != n; i++)
        list[i] = get_i32(&part);
    in->bad |= part.bad || part.at != part.end;
    *ret_n = n;
    return list;
}

static void get_item(struct in in, struct wire_arena *a, struct result_item *it, bool *bad)
{
    uint32_t n_score_logprobs = 0;
    for (uint32_t tag; get_tag(&in, &tag);) {
        switch (tag) {
        case TAG(1, VARINT):
            it->slot = get_u32(&in);
            break;
        case TAG(2, VARINT):
            it->slot_gen = get_u32(&in);
            break;
        case TAG(3, VARINT):
            it->token = get_zigzag(&in);
            break;
        case TAG(4, FIXED32):
            get_fixed(&in, &it->logprob, sizeof it->logprob);
            break;
        case TAG(5, LENGTH):
            get_top(&in, a, it);
            break;
        case TAG(6, LENGTH):
            it->scores = get_floats(&in, a, it->scores, &it->n_scores);
            break;
        case TAG(7, LENGTH):
            it->score_tokens = get_ints(&in, a, it->score_tokens, &it->n_score_tokens);
            break;
        case TAG(8, LENGTH):
            it->score_logprobs = get_floats(&in, a, it->score_logprobs, &n_score_logprobs);
            break;
        default:
            in.bad = true;
        }
    }
    *bad |= in.bad || (n_score_logprobs && n_score_logprobs != it->n_score_tokens);
}

static void get_items(struct in *in, struct wire_arena *a, struct step_result *result)
{
    uint32_t n = count_messages(*in, TAG(3, LENGTH));
    in->bad |= n > PLAN_MAX_ITEMS;
    struct result_item *items = new_list(a, in, result->items, n, sizeof *items);
    if (!items)
        return;
    result->items = items;
    result->n_items = n;
    for (uint32_t i = 0; i != n && !in->bad; i++)
        get_item(next_message(in, i), a, &items[i], &in->bad);
}

/* Beam groups are left to the table. */
static void get_result(struct in *in, struct wire_arena *a, struct step_result *result)
{
    for (uint32_t tag; get_tag(in, &tag);) {
        switch (tag) {
        case TAG(1, VARINT):
            result->epoch = get_varint(in);
            break;
        case TAG(2, VARINT):
            result->step = get_varint(in);
            break;
        case TAG(3, LENGTH):
            get_items(in, a, result);
            break;
        case TAG(5, FIXED64):
            get_fixed(in, &result->state_hash, sizeof result->state_hash);
            break;
        case TAG(6, VARINT):
            result->compute_ns = (int64_t)get_varint(in);
            break;
        default:
            in->bad = true;
        }
    }
}

bool wire_step_unpack(const uint8_t *data, size_t size, struct wire_worker_message **ret)
{
    struct in in = {.at = data, .end = data + size};
    uint32_t tag;
    if (!get_tag(&in, &tag) || tag != TAG(4, LENGTH))
        return false;
    struct in part = get_part(&in);
    if (in.bad || in.at != in.end)
        return false;
    struct wire_arena *arena;
    struct wire_worker_message *m =
        wire_map_new(sizeof *m + sizeof(struct step_result), 2 * size, &arena);
    if (!m)
        return false;
    struct step_result *result = (struct step_result *)(m + 1);
    get_result(&part, arena, result);
    m->step_done = result;
    if (part.bad) {
        wire_map_free(m);
        return false;
    }
    *ret = m;
    return true;
}
