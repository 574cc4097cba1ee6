/* sequence.c: rotary tables, and how rope and attention are cut into threads. */
#include "cpu.h"
#include "mem.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

size_t cpu_sizes_rope(uint32_t max_seq, uint32_t half_dim)
{
    return 2 * (size_t)max_seq * half_dim * sizeof(float);
}

struct k_rope *cpu_rope_new(struct k_ctx *c, const float *cos, const float *sin, uint32_t max_seq,
                            uint32_t half_dim)
{
    struct k_rope *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    size_t bytes = cpu_sizes_rope(max_seq, half_dim) / 2;
    r->max_seq = max_seq;
    r->half_dim = half_dim;
    r->cos = mem_alloc(bytes);
    r->sin = mem_alloc(bytes);
    if (!r->cos || !r->sin) {
        cpu_rope_free(c, r);
        return NULL;
    }
    memcpy(r->cos, cos, bytes);
    memcpy(r->sin, sin, bytes);
    return r;
}

void cpu_rope_free(struct k_ctx *c, struct k_rope *r)
{
    (void)c;
    if (!r)
        return;
    mem_free(r->cos);
    mem_free(r->sin);
    free(r);
}

static void check_params(const struct k_attn_params *p, const struct k_kv *kv)
{
    assert(p->n_kv_heads && p->n_heads % p->n_kv_heads == 0);
    assert(p->n_kv_heads == kv->p.n_kv_heads);
    assert(p->head_dim == kv->p.head_dim);
    assert(p->layer < kv->p.n_layers);
}

struct rope_share {
    const struct cpu_kernels *kernels;
    struct cpu_rope_job job;
};

/* By heads, so that no two threads write into the same piece of the cache. */
static void rope_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    const struct rope_share *s = arg;
    uint64_t first, end;
    pool_share(s->job.p.n_kv_heads, thread, n_threads, &first, &end);
    s->kernels->rope(&s->job, first, end);
}

void cpu_rope_kv(struct k_ctx *c, const struct k_attn_params *p, const struct k_rope *r,
                 const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                 uint32_t n_seqs, struct k_kv *kv, void *q)
{
    check_params(p, kv);
    assert(r->half_dim * 2 == p->head_dim);
    struct rope_share s = {c->kernels, {*p, r, qkv, positions, seqs, n_seqs, kv, q}};
    cpu_run(c, K_PART_ROPE, rope_share, &s);
}

/* Items are taken from a counter: their costs differ by the lengths of the sequences. */
struct attention_share {
    const struct k_ctx *c;
    struct cpu_attention_job job;
    uint32_t tile_rows, n_items;
    _Atomic uint32_t next;
};

/* Of one key-value head. */
static uint32_t n_rows(const struct attention_share *s, const struct k_seq *seq)
{
    return seq->n_rows * (s->job.p.n_heads / s->job.p.n_kv_heads);
}

static uint32_t n_tiles(const struct attention_share *s, const struct k_seq *seq)
{
    return (n_rows(s, seq) + s->tile_rows - 1) / s->tile_rows;
}

/* A thread's items only grow, so that the sequence is found by walking on from the last one. All
 * tiles of a head follow each other: its keys and values stay in the cache. */
static void attention_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct attention_share *s = arg;
    const struct k_ctx *c = s->c;
    const uint32_t tile_rows = s->tile_rows, n_heads = s->job.p.n_kv_heads;
    float *scores = (float *)c->scores + thread * c->scores_per_thread;
    uint32_t seq_idx = 0, seq_item0 = 0, item;
    (void)n_threads;
    while ((item = atomic_fetch_add(&s->next, 1)) < s->n_items) {
        uint32_t tiles;
        while (tiles = n_tiles(s, &s->job.seqs[seq_idx]), item - seq_item0 >= tiles * n_heads) {
            seq_item0 += tiles * n_heads;
            seq_idx++;
        }
        const struct k_seq *seq = &s->job.seqs[seq_idx];
        uint32_t head = (item - seq_item0) / tiles;
        uint32_t row = (item - seq_item0) % tiles * tile_rows, left = n_rows(s, seq) - row;
        c->kernels->attention(&s->job, seq, head, row, left < tile_rows ? left : tile_rows, scores);
    }
}

static void count_items(struct attention_share *s)
{
    s->n_items = 0;
    for (uint32_t i = 0; i < s->job.n_seqs; i++)
        s->n_items += n_tiles(s, &s->job.seqs[i]) * s->job.p.n_kv_heads;
}

void cpu_attention(struct k_ctx *c, const struct k_attn_params *p, const void *q,
                   const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv, void *out)
{
    check_params(p, kv);
    for (uint32_t i = 0; i < n_seqs; i++)
        assert(seqs[i].start + seqs[i].n_rows <= c->max_seq && seqs[i].prefix_len <= c->max_seq);
    struct attention_share s = {
        .c = c, .job = {*p, q, seqs, n_seqs, kv, out}, .tile_rows = c->kernels->attention_rows};
    count_items(&s);
    /* rather keys that are read twice than threads without an item */
    while (s.n_items < pool_threads(c->pool) && s.tile_rows > 1) {
        s.tile_rows = (s.tile_rows + 1) / 2;
        count_items(&s);
    }
    cpu_run(c, K_PART_ATTENTION, attention_share, &s);
}
