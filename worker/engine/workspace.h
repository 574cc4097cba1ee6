/* workspace.h: the activation buffers of a step. All are allocated once; which of them share
 * memory is decided here. */
#ifndef GLMD_WORKER_ENGINE_WORKSPACE_H
#define GLMD_WORKER_ENGINE_WORKSPACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"
#include "model/arch.h"

/* Rows that go through the output head at once: bounds the logits in memory (32 rows of 150528 are
 * 19 MB), and is enough to read the embedding once for a whole decode step of 32 sequences. */
enum { WORKSPACE_HEAD_ROWS = 32 };

/* T rows of a step, P ranks. Device buffers, owned; zero-initialised = empty. */
struct workspace {
    void *a;        /* [T, H] input of attention; after the last layer: what the head reads */
    void *b;        /* [T, H] input of the MLP */
    void *r;        /* [T, H] output of a sub-layer, then the residual stream */
    void *stash;    /* [T, H] `a` of the sliced rows between two slices */
    void *inner;    /* memory of the following five */
    void *qkv;      /* [T, 3H/P] */
    void *q;        /* [T, H/P] rotated */
    void *context;  /* [T, H/P] attention's output, heads side by side */
    void *u;        /* [T, 2I/P] over qkv .. context */
    void *g;        /* [T, I/P] */
    void *head_x;   /* [WORKSPACE_HEAD_ROWS, H] */
    void *head_out; /* [WORKSPACE_HEAD_ROWS, V/P], FP32 also where activations are not */
    float *logits;  /* host [P, WORKSPACE_HEAD_ROWS, V/P] */
    float *staging; /* host [T, H] for what goes to other ranks; NULL where host_view works */
    uint64_t bytes;
};

/* Bytes of every buffer. */
struct workspace_sizes {
    size_t hidden;              /* a, b, r and stash, each */
    size_t qkv, q, u, g, inner; /* context is as large as q */
    size_t head_x, head_out;
    size_t logits, staging; /* host; staging: only where it is needed */
};

/* `act_bytes`: of an activation. */
void workspace_sizes(const struct arch *a, uint32_t tp_size, uint32_t max_rows, size_t act_bytes,
                     struct workspace_sizes *ret);
/* On the device; without staging on the host. */
uint64_t workspace_device_bytes(const struct workspace_sizes *s);
/* Besides; `shared`: the device's memory is the host's, nothing is staged; `alone`: there are no
 * other ranks. */
uint64_t workspace_host_bytes(const struct workspace_sizes *s, bool alone, bool shared);

int workspace_init(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx,
                   const struct arch *a, uint32_t tp_size, bool alone, uint32_t max_rows);
void workspace_deinit(struct workspace *w, const struct k_ops *ops, struct k_ctx *ctx);

#endif
