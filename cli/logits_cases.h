/* logits_cases.h: which sequences `glmd logits` runs: the manifests of reference data.
 *
 *   {"cases": [{"input_ids": [T], "position_ids": [T]?, "prefix_length": n?}, ...]}
 *       -> tensors case0.logits [T, V], ...; "bidirectional_prefix" is prefix_length's other name
 *   {"logits": [{"name": s, "tokens": [B][T], "position_ids": [B][T], "allowed": FILE?,
 *                "valid_lengths": [B]?}, ...]}
 *       -> tensors <name>.logits [B, T, V]; FILE is a uint8 .npy [B, T, T] beside the manifest: row
 *          may attend to column. It must describe a prefix (every row sees [0, P) and all columns
 * up to itself); without it everything is causal. Rows beyond the valid length are not run.
 *
 * Files are untrusted: everything is bounded and checked.
 */
#ifndef GLMD_CLI_LOGITS_CASES_H
#define GLMD_CLI_LOGITS_CASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct logits_sample {        /* one sequence */
    int32_t *ids, *positions; /* [n_valid] owned */
    uint32_t n_valid;
    uint32_t prefix_len;
};

struct logits_case {               /* one tensor of the output */
    char *tensor_name;             /* owned */
    bool batched;                  /* [n_samples, n_rows, V] or [n_rows, V] */
    struct logits_sample *samples; /* owned */
    uint32_t n_samples;
    uint32_t n_rows; /* T, padding included */
};

struct logits_cases { /* zero-initialised = empty */
    struct logits_case *cases;
    size_t n;
};

/* Ids and positions are checked against vocab and max_seq. -EINVAL or -EBADMSG names case and key.
 */
int logits_cases_load(const char *manifest, uint32_t vocab, uint32_t max_seq,
                      struct logits_cases *ret, struct err *e);
void logits_cases_deinit(struct logits_cases *c);

#endif
