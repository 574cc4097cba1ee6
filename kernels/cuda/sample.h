/* sample.h: sampling on the device, between its two halves: sample.c lays a step's parameters out,
 * sample.cu launches the kernels (sample.cuh). */
#ifndef GLMD_KERNELS_CUDA_SAMPLE_H
#define GLMD_KERNELS_CUDA_SAMPLE_H

#include "kernels/sample.h"
#include "kernels/sampling.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SAMPLE_THREADS = 256,
    SAMPLE_ITEMS = 8, /* logits of a thread */
    SAMPLE_TILE = SAMPLE_THREADS * SAMPLE_ITEMS,
    SAMPLE_MAX_PARTS = 64, /* and ranks */
};

struct CUstream_st;

enum sample_kind { SAMPLE_NONE, SAMPLE_SCORE, SAMPLE_GREEDY, SAMPLE_DRAW };

/* A row's parameters, as the kernels read them. Lists are words of sample_params.lists, from `at`
 * on. */
struct sample_list {
    uint32_t at, n;
};

struct sample_row {
    uint32_t kind; /* enum sample_kind */
    int32_t target;
    uint32_t n_top;
    uint32_t top_k;    /* 0 = off; below the vocabulary */
    uint32_t n_best;   /* the rank that select looks for: top_k, or in a shard one more than the
                          candidates of a row that is cut; 0 = none */
    float temperature; /* 1 where it must not count */
    float top_p;       /* 0 = off */
    float repetition, frequency, presence;
    uint32_t counter[4];
    uint64_t seed;
    uint64_t least;               /* weights below do not count (min-p); 0 = off */
    struct sample_list bias;      /* pairs (token, bias), equal tokens side by side */
    struct sample_list penalties; /* pairs (token, times in the output), no token twice */
    struct sample_list forbidden; /* pairs (begin, end) */
    struct sample_list banned;    /* tokens */
};

/* Where the best keys exceed a limit, in counts or weights: digit by digit. */
struct sample_edge {
    uint32_t key;
    uint32_t found;
    uint64_t above; /* the sum of the better keys */
    uint64_t limit;
};

enum { SAMPLE_BY_RANK, SAMPLE_BY_MASS, SAMPLE_SELECTIONS };

/* What the CTAs of a row find out together; zeros at first. */
struct sample_state {
    struct sample_edge edges[SAMPLE_SELECTIONS][SAMPLING_DIGITS];
    /* the last cut */
    uint32_t edge_key;
    uint32_t n_equal; /* that many of those equal to it stay */
    uint64_t edge_weight;
    uint32_t wide; /* candidates do not tell where it is */
    uint32_t pad;
    uint64_t bins[SAMPLE_SELECTIONS][SAMPLING_DIGITS][SAMPLING_BINS];
};

/* What the ranks of a vocabulary tell each other of a row, in the order in which they do; zeros at
 * first. A rank that is alone tells itself. */
enum sample_exchange {
    SAMPLE_PEAKS,   /* sample_peak [n_rows] */
    SAMPLE_MASSES,  /* sample_mass [n_rows], candidates' keys [n_rows, n_candidates] */
    SAMPLE_SHARES,  /* sample_share [n_rows] */
    SAMPLE_CHOICES, /* sample_choice [n_rows], sample_top [n_rows, K_SAMPLE_MAX_TOP] */
    SAMPLE_EXCHANGES
};

struct sample_peak {
    uint32_t max_key;       /* of the logits */
    uint32_t value_max_key; /* of the values: logits under the strategy */
};

struct sample_mass {
    uint64_t sum;       /* of the weights of the logits */
    uint64_t value_sum; /* of the values, where top-p needs it */
    uint32_t first;     /* UINT32_MAX - the lowest id of the largest value; 0 = it is elsewhere */
    uint32_t floor;     /* the candidates are all keys from here on */
    uint32_t n_candidates; /* of the row, at most sample_params.n_candidates */
    uint32_t pad;
};

struct sample_share { /* after the last cut */
    uint64_t sum;     /* of the weights of keys above the edge */
    uint64_t n_equal; /* keys at it */
};

struct sample_choice {
    uint32_t token; /* 1 + it; 0 = another rank's */
    float logit;
    uint32_t wide; /* as in the state */
    uint32_t pad;
};

struct sample_top {
    uint64_t entry; /* key, then UINT32_MAX - id; 0 = none */
    float logit;
    uint32_t pad;
};

struct sample_params {
    /* [n_rows] each */
    const struct sample_row *rows;
    struct sample_state *states;
    struct k_sample_result *results;
    const uint32_t *lists;
    float *logits; /* [n_parts, part_rows, cols], from the first row that is sampled on */
    float *values; /* [n_rows, n_ids] */
    struct sample_share *tiles; /* [n_rows, n_tiles] */
    uint64_t *tops;             /* [n_rows, n_tiles, K_SAMPLE_MAX_TOP] */
    char *own[SAMPLE_EXCHANGES];
    const char *all[SAMPLE_EXCHANGES]; /* [n_ranks][bytes]; alone: own */
    size_t bytes[SAMPLE_EXCHANGES];
    uint32_t n_rows, n_parts, part_rows, cols;
    uint32_t first_id, n_ids; /* of this rank */
    uint32_t rank, n_ranks, n_candidates;
    uint32_t part_tiles; /* of a part of a row; n_tiles of a row */
    uint32_t n_tiles;
};

/* What some row of the call needs. */
struct sample_needs {
    bool draw, rank, mass, top, cut;
};

/* Launches what makes exchange `up_to` from those before it; SAMPLE_EXCHANGES: the results of
 * several ranks (that of one, alone, comes with its choice). The first error, 0 = none. */
int sample_launch(const struct sample_params *p, const struct sample_needs *needs, int up_to,
                  struct CUstream_st *stream);

/* Device memory that a sampler takes (sample_layout.c: plain arithmetic, without a device). */
struct sample_layout {
    size_t row_bytes;   /* most bytes of a row's parameters and lists */
    size_t stage_bytes; /* parameters of all rows */
    /* where they lie behind the parameters */
    size_t states, logits, values, tiles, tops, results, end;
    size_t own[SAMPLE_EXCHANGES],
        all[SAMPLE_EXCHANGES]; /* own: cleared with the states, behind it */
    size_t cleared;            /* where `own` begins */
};
/* Bytes of an exchange, a multiple of 16. */
size_t sample_exchange_bytes(int exchange, uint32_t n_rows, uint32_t n_candidates, bool top);
void sample_layout_of(const struct k_sampler_params *p, struct sample_layout *ret);
size_t sample_bytes(const struct k_sampler_params *p);

extern const struct k_sample_ops cuda_sample_ops; /* sample.c */

#ifdef __cplusplus
}
#endif

#endif
