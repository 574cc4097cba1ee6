/* step.c: a step's arrays on the device. All of them go there in one copy, once a step; the seventy
 * layers then read the same ones.
 *
 * A decode step is padded to one of a few numbers of rows, so that its launches and the places of
 * its arrays are those of the next one (graph.c).
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/memory.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

int cuda_step_reserve(struct k_ctx *c, uint32_t block_tokens)
{
    struct cuda_step *s = &c->step;
    size_t bytes = memory_step_most(c->max_rows, c->max_seq, block_tokens);
    if (s->bytes >= bytes)
        return 0;
    cuda_step_deinit(c);
    cuda_enter(c);
    int e = c->driver->alloc_host(&s->host, bytes);
    if (!e)
        e = c->driver->event_new(&s->copied);
    s->device = e ? NULL : cuda_new(c, bytes);
    if (!s->device) {
        cuda_step_deinit(c);
        return -ENOMEM;
    }
    s->bytes = bytes;
    return 0;
}

void cuda_step_deinit(struct k_ctx *c)
{
    struct cuda_step *s = &c->step;
    if (s->host)
        (void)c->driver->free_host(s->host);
    if (s->copied)
        (void)c->driver->event_free(s->copied);
    cuda_free(c, s->device);
    *s = (struct cuda_step){0};
}

static uint32_t blocks_of(const struct k_seq *q, uint32_t block_tokens)
{
    return (q->start + q->n_rows + block_tokens - 1) / block_tokens;
}

/* The sequences and their blocks, from `first_block` 0 on. */
static void write_seqs(const struct k_step *from, struct cuda_seq *seqs, uint32_t *row_seqs,
                       uint32_t *blocks)
{
    uint32_t n_blocks = 0;
    for (uint32_t i = 0; i < from->n_seqs; i++) {
        const struct k_seq *q = &from->seqs[i];
        uint32_t n = blocks_of(q, from->block_tokens);
        assert(q->row0 + q->n_rows <= from->n_rows);
        seqs[i] = (struct cuda_seq){q->row0, q->n_rows, q->start, q->prefix_len, n_blocks};
        for (uint32_t r = 0; r < q->n_rows; r++)
            row_seqs[q->row0 + r] = i;
        memcpy(blocks + n_blocks, q->blocks, n * sizeof *blocks);
        n_blocks += n;
    }
}

/* Rows that belong to nobody: their id has no embedding, their sequence no rows. */
static void write_padding(const struct k_step *from, uint32_t n_rows, char *host,
                          const struct memory_step *p)
{
    int32_t *ids = (int32_t *)host, *positions = (int32_t *)(host + p->positions);
    uint32_t *row_seqs = (uint32_t *)(host + p->row_seqs);
    struct cuda_seq *seqs = (struct cuda_seq *)(host + p->seqs);
    for (uint32_t i = from->n_rows; i < n_rows; i++) {
        ids[i] = -1;
        positions[i] = 0;
        row_seqs[i] = i;
        seqs[i] = (struct cuda_seq){.row0 = i};
    }
}

/* The arrays of `from` onto the device, in the places of a step of n_rows rows and n_seqs
 * sequences, which may be more than it has. */
static void send_arrays(struct k_ctx *c, const struct k_step *from, uint32_t n_rows,
                        uint32_t n_seqs)
{
    struct cuda_step *s = &c->step;
    assert(s->host); /* there is a cache */
    assert(from->n_rows && n_rows <= c->max_rows && from->n_seqs <= from->n_rows);
    size_t n_blocks = 0;
    for (uint32_t i = 0; i < from->n_seqs; i++) {
        assert(from->seqs[i].start + from->seqs[i].n_rows <= c->max_seq);
        n_blocks += blocks_of(&from->seqs[i], from->block_tokens);
    }
    struct memory_step p = memory_step_of(n_rows, n_seqs, n_blocks);
    assert(p.end <= s->bytes);
    cuda_enter(c);
    if (s->in_flight)
        cuda_check(c, c->driver->event_wait(s->copied), "the step before");
    char *host = s->host, *device = s->device;
    memcpy(host, from->ids, from->n_rows * sizeof *from->ids);
    memcpy(host + p.positions, from->positions, from->n_rows * sizeof *from->positions);
    memset(host + p.row_seqs, 0, from->n_rows * sizeof(uint32_t));
    write_seqs(from, (struct cuda_seq *)(host + p.seqs), (uint32_t *)(host + p.row_seqs),
               (uint32_t *)(host + p.blocks));
    if (n_seqs > from->n_seqs)
        write_padding(from, n_rows, host, &p);
    s->in_flight = true;
    cuda_check(c, c->driver->copy(device, host, p.end, c->stream), "the arrays of a step");
    cuda_check(c, c->driver->event_record(s->copied, c->stream), "the arrays of a step");
    s->ids = (const int32_t *)device;
    s->positions = (const int32_t *)(device + p.positions);
    s->row_seqs = (const uint32_t *)(device + p.row_seqs);
    s->seqs = (const struct cuda_seq *)(device + p.seqs);
    s->blocks = (const uint32_t *)(device + p.blocks);
    s->given = *from;
    s->given.n_rows = n_rows;
}

void cuda_begin_step(struct k_ctx *c, const struct k_step *from)
{
    send_arrays(c, from, from->n_rows, from->n_seqs);
    c->step.decode_rows = c->step.decode_tiles = 0;
}

/* 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, ... 256: at most a third more than it must be. */
static uint32_t padded_rows(uint32_t n, uint32_t max_rows)
{
    uint32_t rows = 1;
    while (rows < n)
        rows = rows >= 16 && rows + rows / 2 >= n ? rows + rows / 2 : rows * 2;
    return rows < max_rows ? rows : max_rows;
}

/* 4, 8, 16, ... tiles, enough for the longest sequence: a launch has CTAs for all of them. */
static uint32_t padded_tiles(const struct k_step *s, uint32_t max_seq)
{
    uint32_t keys = 1, tiles = 4, most = (max_seq + CUDA_ATTENTION_KEYS - 1) / CUDA_ATTENTION_KEYS;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct k_seq *q = &s->seqs[i];
        uint32_t n = q->start + q->n_rows > q->prefix_len ? q->start + q->n_rows : q->prefix_len;
        keys = keys < n ? n : keys;
    }
    while (tiles * CUDA_ATTENTION_KEYS < keys)
        tiles *= 2;
    return tiles < most ? tiles : most;
}

uint32_t cuda_begin_decode(struct k_ctx *c, const struct k_step *from)
{
    assert(from->n_seqs == from->n_rows);
    if (from->n_rows > CUDA_MAX_DECODE_ROWS)
        return 0;
    const uint32_t rows = padded_rows(from->n_rows, c->max_rows);
    send_arrays(c, from, rows, rows);
    c->step.decode_rows = rows;
    c->step.decode_tiles = padded_tiles(from, c->max_seq);
    return rows;
}

const int32_t *cuda_step_ids(struct k_ctx *c, const int32_t *ids, uint32_t n_rows)
{
    assert(ids == c->step.given.ids && n_rows <= c->step.given.n_rows);
    return c->step.ids;
}

const int32_t *cuda_step_positions(struct k_ctx *c, const int32_t *positions)
{
    assert(positions == c->step.given.positions);
    return c->step.positions;
}

uint32_t cuda_step_rows(struct k_ctx *c, const struct k_seq *seqs, uint32_t n_seqs)
{
    const struct k_step *s = &c->step.given;
    assert(seqs == s->seqs && n_seqs <= s->n_seqs);
    if (c->step.decode_rows) {
        assert(n_seqs == s->n_seqs);
        return c->step.decode_rows;
    }
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n_seqs; i++) { /* rows of the first sequences come first */
        assert(seqs[i].row0 == n_rows);
        n_rows += seqs[i].n_rows;
    }
    return n_rows;
}
