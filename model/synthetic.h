/* synthetic.h: models with made-up weights, for benchmarks: a shape by name, and the bytes of any
 * stored tensor as a function of seed, name and place, so that no file is needed (see
 * model_dir_synthetic) and any rank can make its own part.
 *
 * INT4 and INT8 values are uniform over all codes; scales and FP16 weights are of the size that
 * trained ones have; norms are 1 and 0, but for the last one's weights, which are 1 or -1. The
 * residual path carries a token's embedding to the head, which is the embedding: without those
 * signs the token would be its own successor with probability 1, whatever the layers computed. With
 * them logits have a standard deviation of 0.03 times the root of the width, and log-probabilities
 * show every bit of the way. Finite and fast, nothing else is promised of what such a model says.
 */
#ifndef GLMD_MODEL_SYNTHETIC_H
#define GLMD_MODEL_SYNTHETIC_H

#include <stddef.h>
#include <stdint.h>

#include "model/arch.h"
#include "model/quant.h"
#include "model/safetensors.h"

/*               hidden  layers  heads  inner (per half)  vocabulary  parameters
 *   glm-130b     12288      70     96             32768      150528   129.6e9
 *   glm-1.6b      2048      24     16              5504       32000     1.3e9
 *   glm-300m      1024      22     16              2752       32000     0.31e9
 *   glm-tiny       256       2     64               512        2048     0.003e9
 *
 * 130b is the published model. The two in the middle are siblings of it; tiny is for machinery: it
 * can be split among 64 ranks. "glm-" may be left out of a name. n_layers 0: as many as the table
 * says. -ENOENT. */
int synthetic_arch(const char *name, uint32_t n_layers, struct arch *ret);
extern const char synthetic_names[]; /* for messages: "glm-130b, ..." */

uint64_t synthetic_n_parameters(const struct arch *a);

/* Bytes [byte0, byte0 + n) of a tensor of a model whose linears are stored as `weights`. */
void synthetic_fill(const struct st_tensor *t, enum quant_weights weights, uint64_t seed,
                    uint64_t byte0, size_t n, void *dst);

#endif
