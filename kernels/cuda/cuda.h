/* cuda.h: what the files of the CUDA backend share: the context, and the operations behind the
 * table in cuda.c. Included by C and by CUDA C++.
 *
 * A context is one device with one stream. Operations enqueue kernels through dev_run and hand its
 * result to cuda_check, which keeps the first error: from then on everything is lost, and sync says
 * what and where. Nothing is allocated and nothing waits inside an operation; upload, download and
 * sync wait.
 *
 * Activations are binary16. Where an operation is fed from the host (ids, positions, sequences),
 * the arrays came with begin_step or begin_decode and lie in c->step.
 */
#ifndef GLMD_KERNELS_CUDA_CUDA_H
#define GLMD_KERNELS_CUDA_CUDA_H

#include "kernels/cuda/driver.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    CUDA_ALIGN = 256,
    CUDA_MIN_ARCH = 75,
    CUDA_STAGE_BYTES = 4 << 20, /* of the page-locked buffer for uploads and downloads */
    CUDA_MAX_HEAD_DIM = 128,
    CUDA_KV_GROUP = 16, /* tokens that one piece of a block holds: block_tokens is a multiple */
    CUDA_ATTENTION_ROWS = 16, /* rows of q that one warp takes on */
    CUDA_ATTENTION_KEYS = 64, /* keys of a tile: the unit of all sums */
    CUDA_MAX_MAILBOXES = 4,   /* one in use; those that peers of ended epochs have not closed */
    CUDA_MAX_GRAPHS = 64,
    CUDA_MAX_DECODE_ROWS = 256, /* of a step that is recorded */
};

/* One sequence of a step, as the kernels read it. n_rows 0: padding, whose row (its own number)
 * nothing is written to the cache for. */
struct cuda_seq {
    uint32_t row0, n_rows;
    uint32_t start, prefix_len;
    uint32_t first_block; /* in cuda_step.blocks */
};

/* A step's arrays on the device, in one piece, and what the host knows about them. The host's copy
 * is page-locked; `copied` says when it may be written again. */
struct cuda_step {
    /* owned; made by kv_new, which knows the size of blocks */
    void *host, *device;
    size_t bytes;
    struct CUevent_st *copied;
    bool in_flight; /* the copy, for all that is known */
    /* of the current step: on the device */
    const int32_t *ids, *positions; /* [n_rows] */
    const uint32_t *row_seqs;       /* [n_rows] the sequence of a row */
    const struct cuda_seq *seqs;    /* [n_seqs] */
    const uint32_t *blocks;         /* block lists of all sequences, one behind the other */
    /* on the host: what the operations are given again */
    struct k_step given;
    /* A decode step: rows and sequences with the padding, and how many tiles of keys the longest
     * sequence may have. Launches depend on these two alone. 0: any other step. */
    uint32_t decode_rows, decode_tiles;
};

/* Launches of decode steps, recorded (graph.c). */
struct cuda_graph {
    uint32_t rows, tiles, kind;
    struct CUgraphExec_st *exec; /* owned; NULL: such a step was seen, and no more */
    uint64_t used;               /* when, in steps */
};

struct cuda_graphs {
    /* owned */
    struct cuda_graph all[CUDA_MAX_GRAPHS];
    uint32_t n;
    /* state */
    bool off;  /* for good; `why` says for what reason */
    bool held; /* nothing is recorded or run until cuda_graph_release */
    bool recording;
    struct cuda_graph *current; /* what is recorded */
    int error;                  /* the first one while recording; nothing of it has run */
    char why[256];
    uint64_t n_replays, n_enqueued;
};

/* mailbox.h */
struct cuda_mailbox {
    void *memory; /* NULL: there is none */
    size_t bytes;
    int lock;      /* descriptor of the file that its users lock; -1: none */
    char name[64]; /* of that file; "": nobody else is to open it */
};

struct k_ctx {
    /* set once */
    const struct cuda_driver *driver;
    int device;
    int arch; /* 75, 80, 90 ... */
    int n_multiprocessors;
    size_t shared_bytes;
    size_t prefetch_most; /* bytes: a quarter of the L2 cache */
    enum k_mode mode;
    uint32_t max_rows, max_cols, max_seq;
    char description[256];
    /* owned */
    struct CUstream_st *stream;
    void *stage_host, *stage_device; /* [CUDA_STAGE_BYTES] each */
    struct cuda_step step;
    struct cuda_graphs graphs;
    void *attention; /* scratch of attention.cu, made by kv_new */
    size_t attention_bytes;
    uint32_t *attention_counters; /* zeros between launches */
    size_t n_attention_counters;
    struct cuda_products *products; /* linear.h; NULL in tests of the other operations */
    void (*close_products)(struct k_ctx *c);
    struct cuda_mailbox mailboxes[CUDA_MAX_MAILBOXES]; /* they outlive the comms whose peers write
                                                          into them */
    int64_t mailbox_wait_ns; /* for peers that have one open, when the context is closed */
    /* borrowed: the comm that sums over ranks, and what it does before anyone waits for the stream,
     * in which its sums may wait for other ranks; NULL = none */
    struct k_comm *comm;
    void (*before_wait)(struct k_comm *m);
    /* state */
    const void *next; /* weights that the next fused sum may prefetch; NULL: none */
    size_t next_bytes;
    int error; /* the first one; 0 = none */
    char error_text[256];
};

/* ---- cuda.c ---- */

int cuda_open(const struct k_open_params *p, struct k_ctx **ret, char *message, size_t size);
void cuda_close(struct k_ctx *c);
const char *cuda_describe(struct k_ctx *c);
int cuda_sync(struct k_ctx *c, char *message, size_t size);
size_t cuda_act_bytes(struct k_ctx *c);
void cuda_context_memory(struct k_ctx *c, struct k_memory *ret);
int cuda_memory(struct k_ctx *c, uint64_t *ret_free, uint64_t *ret_total);
void cuda_upload(struct k_ctx *c, void *dst, const float *src, size_t n);
void cuda_download(struct k_ctx *c, float *dst, const void *src, size_t n);
float *cuda_host_view(struct k_ctx *c, void *buffer);

/* Keeps the first error. `what`: the operation. While launches are recorded it is the recording's,
 * whose operations are enqueued anew. */
void cuda_check(struct k_ctx *c, int error, const char *what);
/* Until the stream has run dry: what waits for the device says it here. */
void cuda_wait(struct k_ctx *c, const char *what);
/* Makes the context's device the calling thread's. Before anything that talks to the runtime. */
void cuda_enter(struct k_ctx *c);
/* Device memory, zeroed; NULL: there is not enough. */
void *cuda_new(struct k_ctx *c, size_t bytes);
void cuda_free(struct k_ctx *c, void *p);
/* Bytes as they are, host to device and back; both wait. */
void cuda_upload_bytes(struct k_ctx *c, void *dst, const void *src, size_t bytes);
void cuda_download_bytes(struct k_ctx *c, void *dst, const void *src, size_t bytes);

/* ---- step.c ---- */

int cuda_step_reserve(struct k_ctx *c, uint32_t block_tokens);
void cuda_step_deinit(struct k_ctx *c);
void cuda_begin_step(struct k_ctx *c, const struct k_step *s);
uint32_t cuda_begin_decode(struct k_ctx *c, const struct k_step *s);
/* The device's copy of what begin_step was given; asserts that it is that. */
const int32_t *cuda_step_ids(struct k_ctx *c, const int32_t *ids, uint32_t n_rows);
const int32_t *cuda_step_positions(struct k_ctx *c, const int32_t *positions);
/* Rows of the step's first `n_seqs` sequences; of a decode step, with the padding. */
uint32_t cuda_step_rows(struct k_ctx *c, const struct k_seq *seqs, uint32_t n_seqs);

/* ---- graph.c ---- */

bool cuda_graph_begin(struct k_ctx *c, uint32_t kind);
bool cuda_graph_end(struct k_ctx *c);
void cuda_graph_stats(struct k_ctx *c, struct k_graph_stats *ret);
/* Drops all records, one that is being made, too, and makes none until it is released: the sums in
 * them belong to a comm that ends. */
void cuda_graph_hold(struct k_ctx *c);
void cuda_graph_release(struct k_ctx *c);

/* ---- convert.cu ---- */

void cuda_halves_from_floats(struct k_ctx *c, uint16_t *dst, const float *src, size_t n);
void cuda_floats_from_halves(struct k_ctx *c, float *dst, const uint16_t *src, size_t n);
void cuda_gather(struct k_ctx *c, const void *x, uint32_t cols, const uint32_t *rows, uint32_t n,
                 void *y);
/* Launches a kernel that writes a word: whether this device can run what this library holds. */
int cuda_probe(struct k_ctx *c, uint32_t *device_word);

/* ---- rowwise.c, rowwise.cu: norms, GLU ---- */

struct k_norm *cuda_norm_new(struct k_ctx *c, enum k_norm_kind kind, const uint16_t *weight,
                             const uint16_t *bias, uint32_t cols);
void cuda_norm_free(struct k_ctx *c, struct k_norm *n);
struct k_bias *cuda_bias_new(struct k_ctx *c, const uint16_t *bias, uint32_t cols);
void cuda_bias_free(struct k_ctx *c, struct k_bias *b);
void cuda_norm(struct k_ctx *c, const struct k_norm *n, float eps, const void *x, uint32_t n_rows,
               void *y);
void cuda_residual_norm(struct k_ctx *c, const struct k_norm *n, float eps, float alpha,
                        const void *a, void *r, const struct k_bias *bias, uint32_t n_rows,
                        void *y);
void cuda_glu(struct k_ctx *c, enum k_glu glu, const void *u, uint32_t n_rows, uint32_t inner,
              void *g);

/* ---- kv.c, rope.cu, attention.cu ---- */

struct k_kv *cuda_kv_new(struct k_ctx *c, const struct k_kv_params *p);
void cuda_kv_free(struct k_ctx *c, struct k_kv *kv);
size_t cuda_kv_block_bytes(struct k_ctx *c, const struct k_kv_params *p);
void cuda_kv_copy(struct k_ctx *c, struct k_kv *kv, uint32_t src, uint32_t dst);
struct k_rope *cuda_rope_new(struct k_ctx *c, const float *cos, const float *sin, uint32_t max_seq,
                             uint32_t half_dim);
void cuda_rope_free(struct k_ctx *c, struct k_rope *r);
void cuda_rope_kv(struct k_ctx *c, const struct k_attn_params *p, const struct k_rope *r,
                  const void *qkv, const int32_t *positions, const struct k_seq *seqs,
                  uint32_t n_seqs, struct k_kv *kv, void *q);
void cuda_attention(struct k_ctx *c, const struct k_attn_params *p, const void *q,
                    const struct k_seq *seqs, uint32_t n_seqs, const struct k_kv *kv, void *out);

extern const struct k_ops glmd_cuda_ops;
extern const struct k_comm_ops cuda_comm_ops; /* comm.c */
extern const struct k_feed_ops cuda_feed_ops; /* feed.c */

#ifdef __cplusplus
}
#endif

#endif
