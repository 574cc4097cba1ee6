/* layout.h: which tensors a model directory holds, given architecture and scheme: the canonical
 * ones (shard.h), quantized weights in their stored form, each followed by its scales. The writer
 * writes this list, the reader insists on it. */
#ifndef GLMD_MODEL_LAYOUT_H
#define GLMD_MODEL_LAYOUT_H

#include "model/quant.h"
#include "model/safetensors.h"
#include "model/shard.h"

enum {
    LAYOUT_MAX_CONFIG_BYTES = 1 << 20,
    LAYOUT_MAX_INDEX_BYTES = 64 << 20,
    LAYOUT_MAX_FILES = 9999,
};

#define LAYOUT_CONFIG            "config.json"
#define LAYOUT_GENERATION_CONFIG "generation_config.json"
#define LAYOUT_TOKENIZER         "tokenizer.model"
#define LAYOUT_TOKENIZER_CONFIG  "tokenizer_config.json"
#define LAYOUT_INDEX             "model.safetensors.index.json"
#define LAYOUT_MANIFEST          "manifest.json"
#define LAYOUT_JOURNAL           "convert.journal.json" /* only while a conversion is unfinished */

/* The stored form of one canonical tensor, without file, offset and bytes: one tensor, or two for
 * a quantized weight (weight, scales). Returns how many; 0 = out of memory. Names are malloc'd. */
size_t layout_tensor(const struct quant_scheme *s, const struct shard_tensor *t,
                     struct st_tensor ret_tensors[2]);

/* All of them in file order. -ENOMEM. */
int layout_tensors(const struct arch *a, const struct quant_scheme *s, struct st_list *ret_list);

#endif
