/* feed.h: weight matrices on their way to a device, piece by piece, by several threads at once: the
 * part of k_ops that loads models. k_ops.linear_new packs a matrix that lies in memory as a whole;
 * here none ever does.
 *
 *   the context's thread     linear_begin -> a matrix with its bias and without weights
 *   any of the feed's        buffer -> fill it with rows, as they lie on disk -> rows or scales
 *   threads, again and again
 *   the context's thread     feed_free: all that was handed over has arrived, or sync says why not
 *
 * Pieces of one matrix may come in any order and from any threads, each row once. A piece begins at
 * a multiple of `piece_rows` rows and has a multiple of them, the last one of the matrix excepted.
 * The result is bit for bit what linear_new makes of the same rows.
 */
#ifndef GLMD_KERNELS_FEED_H
#define GLMD_KERNELS_FEED_H

#include "kernels/kernels.h"

enum { K_FEED_ALIGN = 4096 }; /* of buffers: what direct reads ask for */

struct k_feed; /* buffers, and what is under way; zero or one of a context */

struct k_feed_ops {
    uint32_t piece_rows;
    size_t piece_bytes; /* of a piece, as the device likes them */
    bool direct;        /* buffers are read by the device: best filled past the page cache */

    /* How many threads feed this device well. */
    uint32_t (*n_threads)(struct k_ctx *c);

    /* `shape`: data and scale are NULL; the bias is copied. Memory is taken here, near the threads
     * that will multiply with it. NULL: out of memory. Others may feed meanwhile. */
    struct k_linear *(*linear_begin)(struct k_ctx *c, const struct k_linear_src *shape);

    /* Buffers of `buffer_bytes` for threads 0 .. n_threads - 1. NULL: out of memory. */
    struct k_feed *(*feed_new)(struct k_ctx *c, uint32_t n_threads, size_t buffer_bytes);
    /* A buffer for `thread`, which may wait until the device is done with an earlier one; valid
     * until it is handed over. NULL: the device has failed. */
    void *(*buffer)(struct k_feed *f, uint32_t thread);
    /* Hands the thread's buffer over. `data`, inside of it: rows [first_row, first_row + n_rows) of
     * the matrix, dense. */
    void (*rows)(struct k_feed *f, uint32_t thread, struct k_linear *l, uint32_t first_row,
                 uint32_t n_rows, const void *data);
    /* The same with scales [n_rows, n_groups]. */
    void (*scales)(struct k_feed *f, uint32_t thread, struct k_linear *l, uint32_t first_row,
                   uint32_t n_rows, const uint16_t *data);
    /* Waits for what was handed over. No thread uses the feed any more. NULL is fine. */
    void (*feed_free)(struct k_feed *f);

    /* How long `bytes` take from page-locked memory of the host to the device, in pieces of
     * piece_bytes and with nothing else to do: the bus's own rate. The context's thread, without a
     * feed. 0, -ENOMEM, or -EIO, which sync explains. NULL: there is no bus between them. */
    int (*copy_time)(struct k_ctx *c, uint64_t bytes, int64_t *ret_ns);
};

#endif
