/* sample.h: rows of logits become tokens where they lie: the third table of a backend
 * (k_ops.sample; NULL where the host samples). The rules, and every bit of the results, are those
 * of kernels/sampling.h and of the host's sampler.
 *
 * A k_sampler is scratch for up to max_rows rows at a time. `begin` (or `send` and `launch`) copies
 * what it is given, enqueues and returns; `end` waits and has the results. Between them nothing is
 * allocated and nothing waits: a device sees the rows' parameters in memory of its own, at the same
 * place in every call.
 */
#ifndef GLMD_KERNELS_SAMPLE_H
#define GLMD_KERNELS_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct k_ctx;
struct k_sampler; /* opaque */

enum { K_SAMPLE_MAX_TOP = 20 };

struct k_sampler_params {
    uint32_t vocab;
    uint32_t max_rows;
    uint32_t buffer_rows; /* of logits that come from elsewhere: `buffer`, `put`; 0 = none do */
    uint32_t n_ranks;     /* that share the vocabulary evenly; 0 and 1: none do. `begin` takes
                             k_sampler_whole_rows then, begin_shard max_rows */
    /* the longest lists of a row */
    uint32_t max_history, max_bias, max_forbidden, max_banned;
};

/* Rows of `begin`, whose logits are whole: a rank's part of max_rows. */
static inline uint32_t k_sampler_whole_rows(const struct k_sampler_params *p)
{
    return p->n_ranks > 1 ? (p->max_rows + p->n_ranks - 1) / p->n_ranks : p->max_rows;
}

/* Best tokens that a rank shows the others of a row: what top-k and top-p are decided by. */
static inline uint32_t k_sampler_candidates(const struct k_sampler_params *p)
{
    const uint32_t n = p->n_ranks > 1 ? p->vocab / p->n_ranks / 64 : 0;
    return n < 8 ? 8 : n < 256 ? n : 256;
}

struct k_sample_bias {
    int32_t token;
    float bias;
};

struct k_sample_range { /* half open */
    int32_t begin, end;
};

/* How a row is used. All ids are below the vocabulary. */
struct k_sample_row {
    bool score; /* no choice: the log-probability of `target`, without bias; only n_top counts
                   besides */
    int32_t target;
    uint32_t n_top;    /* log-probabilities of the best tokens, at most K_SAMPLE_MAX_TOP */
    float temperature; /* > 0 */
    uint32_t top_k;    /* 0 = off, 1 = greedy */
    float top_p;       /* 0 or >= 1 = off */
    float min_p;       /* 0 = off */
    float repetition, frequency, presence; /* 0 (or repetition 1) = off */
    const int32_t *history;                /* prompt, then output */
    uint32_t n_history, n_history_prompt;
    int32_t previous; /* one more token of the output, or -1 */
    uint64_t seed;
    uint32_t counter[4];
    const struct k_sample_bias *bias;
    uint32_t n_bias;
    const struct k_sample_range *forbidden;
    uint32_t n_forbidden;
    const int32_t *banned;
    uint32_t n_banned;
};

struct k_sample_token {
    int32_t token;
    float logprob;
};

struct k_sample_result {
    struct k_sample_token chosen;
    struct k_sample_token top[K_SAMPLE_MAX_TOP]; /* [n_top], best first; equal: the lower id */
};

/* Ranks with a part of the vocabulary each, in the order of the ids. */
struct k_sample_ranks {
    uint32_t rank, size;
    /* all [size * bytes] = every rank's `own` [bytes], as k_comm_ops.gather: on the device, only
     * enqueued; bytes: a multiple of 16. All ranks come with the same sizes in the same order. */
    void (*gather)(void *context, const void *own, size_t bytes, void *all);
    void *context;
};

struct k_sample_ops {
    /* NULL: out of memory. */
    struct k_sampler *(*create)(struct k_ctx *c, const struct k_sampler_params *p);
    void (*destroy)(struct k_ctx *c, struct k_sampler *s); /* NULL is fine */
    /* Room for logits on the device, [buffer_rows, vocab] FP32. */
    void *(*buffer)(struct k_sampler *s);
    /* Logits from the host to [at, at + n) of the buffer. Waits. */
    void (*put)(struct k_ctx *c, struct k_sampler *s, size_t at, const float *logits, size_t n);
    /* logits: on the device, FP32, [n_parts, part_rows, vocab / n_parts] (what ranks that share the
     * vocabulary have computed, one behind the other), of which rows [first, first + n_rows) are
     * sampled; biased in place. */
    void (*begin)(struct k_ctx *c, struct k_sampler *s, void *logits, uint32_t n_parts,
                  uint32_t part_rows, uint32_t first, const struct k_sample_row *rows,
                  uint32_t n_rows);
    /* The same rows on all ranks, logits [n_rows, vocab / size] of this rank's part; biased in
     * place. Ranks tell each other maxima, sums and their best tokens, never logits, and have the
     * same results. Where the best tokens do not decide top-k or top-p, `end` gives the token -1
     * on all ranks: such a row takes `begin`. */
    void (*begin_shard)(struct k_ctx *c, struct k_sampler *s, const struct k_sample_ranks *ranks,
                        void *logits, const struct k_sample_row *rows, uint32_t n_rows);
    /* begin (whole logits of one part) or, with n_ranks, begin_shard in two halves, for steps that
     * are recorded (k_ops.graph_begin). `send`, in front of the record, brings the parameters of
     * n_rows rows, padded to n_padded <= max_rows, to their places on the device, and says which
     * kind of launches they take: the same on all ranks, from 1 on. `launch`, in the record:
     * launches that follow from n_padded and kind alone; what a row takes of them it reads from its
     * parameters. `end` has the results of n_rows. */
    uint32_t (*send)(struct k_ctx *c, struct k_sampler *s, const struct k_sample_row *rows,
                     uint32_t n_rows, uint32_t n_padded);
    void (*launch)(struct k_ctx *c, struct k_sampler *s, const struct k_sample_ranks *ranks,
                   void *logits, uint32_t n_padded, uint32_t kind);
    /* Waits. ret [n_rows] of the last begin; meaningless after a device error (k_ops.sync). */
    void (*end)(struct k_ctx *c, struct k_sampler *s, struct k_sample_result *ret);
};

#endif
