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

struct cpu_rope_job cpu_rope_job(const struct k_attn_params *p, const struct k_rope *r,
                                 const void *qkv, const int32_t *positions,
                                 const struct k_seq *seqs, uint32_t n_seqs, struct k_kv *kv,
                                 void *q)
{
    check_params(p, kv);
    assert(r->half_dim * 2 == p->head_dim);
    return (struct cpu_rope_job){*p, r, qkv, positions, seqs, n_seqs, kv, q};
}

struct rope_section {
    const struct cpu_kernels *kernels;
    struct cpu_rope_job job;
};

/* By heads, so that no two threads write into the same piece of the cache. */
static void rope_heads(void *arg, uint64_t first, uint64_t end, uint64_t more)
{
    const struct rope_section *s = arg;
    (void)more;
    s->kernels->rope(&s->job, first, end);
}

void cpu_rope_kv(struct k_ctx *c, const struct k_attn_params *p, const struct k_rope *r,
                 const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                 uint32_t n_seqs, struct k_kv *kv, void *q)
{
    struct rope_section s = {c->kernels, cpu_rope_job(p, r, qkv, positions, seqs, n_seqs, kv, q)};
    uint64_t n_rows = 0;
    for (uint32_t i = 0; i < n_seqs; i++)
        n_rows += seqs[i].n_rows;
    const uint64_t head_values = n_rows * (p->n_heads / p->n_kv_heads + 2) * (uint64_t)p->head_dim;
    cpu_run_items(c, K_PART_ROPE, p->n_kv_heads, cpu_piece(head_values), rope_heads, &s);
}

/* Items are taken from a counter: their costs differ by the lengths of the sequences. Those of a
 * sequence: for each key-value head the parts of the context's rows, then the tiles of the others.
 */
struct attention_share {
    const struct k_ctx *c;
    struct cpu_attention_job job;
    uint32_t part_rows, tile_rows, n_items;
    _Atomic uint32_t next;
};

/* A part converts the keys and values of its head, which takes as long as a dozen rows. */
enum { MIN_PART_TILES = 8 };

static uint32_t cut(uint32_t n, uint32_t size)
{
    return n / size + (n % size != 0);
}

/* Rows of one key-value head. */
static uint32_t n_rows(const struct attention_share *s, const struct k_seq *seq)
{
    return seq->n_rows * (s->job.p.n_heads / s->job.p.n_kv_heads);
}

/* Those of them that are the context's and go in integers. */
static uint32_t context_rows(const struct attention_share *s, const struct k_seq *seq)
{
    if (s->c->mode == K_MODE_FP32 || seq->start >= seq->prefix_len)
        return 0;
    uint32_t n = seq->prefix_len - seq->start;
    return (n < seq->n_rows ? n : seq->n_rows) * (s->job.p.n_heads / s->job.p.n_kv_heads);
}

static uint32_t n_parts(const struct attention_share *s, const struct k_seq *seq)
{
    return cut(context_rows(s, seq), s->part_rows);
}

static uint32_t n_tiles(const struct attention_share *s, const struct k_seq *seq)
{
    return cut(n_rows(s, seq) - context_rows(s, seq), s->tile_rows);
}

/* An item, found. */
struct place {
    uint32_t seq_idx, seq_item0; /* the sequence, and its first item */
    uint32_t head, i;            /* part or tile `i` of the head */
};

/* Takes the next item; false: there is none. A thread's items only grow, so that the sequence is
 * found by walking on from the last one. */
static bool take_item(struct attention_share *s, struct place *at)
{
    const uint32_t item = atomic_fetch_add(&s->next, 1), n_heads = s->job.p.n_kv_heads;
    if (item >= s->n_items)
        return false;
    uint32_t items; /* of a head */
    while (items = n_parts(s, &s->job.seqs[at->seq_idx]) + n_tiles(s, &s->job.seqs[at->seq_idx]),
           item - at->seq_item0 >= items * n_heads) {
        at->seq_item0 += items * n_heads;
        at->seq_idx++;
    }
    at->head = (item - at->seq_item0) / items;
    at->i = (item - at->seq_item0) % items;
    return true;
}

/* next: what this thread does behind it, or NULL. */
static void attend(const struct attention_share *s, const struct place *at,
                   const struct place *next, float *scratch)
{
    const struct cpu_kernels *kernels = s->c->kernels;
    const struct k_seq *seq = &s->job.seqs[at->seq_idx];
    uint32_t parts = n_parts(s, seq), context = context_rows(s, seq);
    if (at->i < parts) {
        uint32_t row = at->i * s->part_rows, left = context - row;
        kernels->attention_context(&s->job, seq, at->head, row,
                                   left < s->part_rows ? left : s->part_rows, scratch);
    } else {
        uint32_t row = context + (at->i - parts) * s->tile_rows, left = n_rows(s, seq) - row;
        kernels->attention(&s->job, seq, at->head, row, left < s->tile_rows ? left : s->tile_rows,
                           scratch, next ? &s->job.seqs[next->seq_idx] : NULL,
                           next ? next->head : 0);
    }
}

/* Items for each thread from which on one is taken while another is worked on. With fewer a thread
 * might hold what another one waits for. */
enum { AHEAD_ITEMS = 16 };

/* All items of a head follow each other: its keys and values stay in the cache. */
static void attention_share(void *arg, uint32_t thread, uint32_t n_threads)
{
    struct attention_share *s = arg;
    float *scratch = (float *)s->c->scores + thread * s->c->scores_per_thread;
    const bool ahead = s->n_items / AHEAD_ITEMS >= n_threads;
    struct place at = {0}, next;
    for (bool found = take_item(s, &at); found; at = next) {
        next = at;
        if (ahead)
            found = take_item(s, &next);
        attend(s, &at, ahead && found ? &next : NULL, scratch);
        if (!ahead)
            found = take_item(s, &next);
    }
}

static void count_items(struct attention_share *s)
{
    s->n_items = 0;
    for (uint32_t i = 0; i < s->job.n_seqs; i++)
        s->n_items +=
            (n_parts(s, &s->job.seqs[i]) + n_tiles(s, &s->job.seqs[i])) * s->job.p.n_kv_heads;
}

void cpu_attention(struct k_ctx *c, const struct k_attn_params *p, const void *q,
                   const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv, void *out)
{
    check_params(p, kv);
    for (uint32_t i = 0; i < n_seqs; i++)
        assert(seqs[i].start + seqs[i].n_rows <= c->max_seq && seqs[i].prefix_len <= c->max_seq);
    struct attention_share s = {
        .c = c,
        .job = {*p, q, seqs, n_seqs, kv, out, c->mode == K_MODE_A8},
        .part_rows = (c->max_rows + 1) / 2 * 2 * (p->n_heads / p->n_kv_heads),
        .tile_rows = c->kernels->attention_rows,
    };
    count_items(&s);
    /* parts of unlike costs for the threads to share, as long as converting counts for little */
    const uint32_t n_threads = pool_threads(c->pool), least = MIN_PART_TILES * s.tile_rows;
    while (n_threads > 1 && s.n_items < 4 * n_threads && s.part_rows > least) {
        s.part_rows = cut(s.part_rows / 2, s.tile_rows) * s.tile_rows;
        count_items(&s);
    }
    /* rather keys that are read twice than threads without an item */
    while (s.n_items < n_threads && s.tile_rows > 1) {
        s.tile_rows = (s.tile_rows + 1) / 2;
        count_items(&s);
    }
    cpu_run(c, K_PART_ATTENTION, attention_share, &s);
}
