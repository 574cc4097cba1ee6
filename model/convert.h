/* convert.h: published checkpoint -> model directory. One call; the calling thread does all of it,
 * with helpers for the quantizer's arithmetic. Memory is bounded by a chunk of rows and the scales
 * of one tensor, whatever the size of the model.
 */
#ifndef GLMD_MODEL_CONVERT_H
#define GLMD_MODEL_CONVERT_H

#include "model/arch.h"
#include "model/quant.h"

#define CONVERT_DEFAULT_FILE_BYTES (UINT64_C(2) << 30)

struct convert_progress {
    uint64_t done_bytes, total_bytes; /* of the source's tensors */
    uint64_t kept_bytes;              /* part of done_bytes: finished by an earlier run */
    const char *tensor;               /* that is being converted */
};

struct convert_options {
    const char *from, *out;
    const char *tokenizer;       /* NULL: tokenizer.model in `from`, if it is there */
    const char *config;          /* NULL: config.json in `from`, or GLM-130B's values */
    bool has_weights, has_group; /* false: what the source has; INT4 per row for FP16 sources */
    struct quant_scheme scheme;  /* what was asked for; SHARD with group_n 0 = the source's */
    uint64_t max_file_bytes;
    unsigned n_threads; /* for quantizing; 0 = 1 */
    /* A non-zero return stops the conversion (-ECANCELED); it can be resumed. */
    int (*on_progress)(void *context, const struct convert_progress *p);
    void (*on_warning)(void *context, const char *text);
    void *context; /* of both */
};

struct convert_result {
    struct arch arch;
    struct quant_scheme scheme;
    uint32_t n_shards;
    char iteration[257];
    uint64_t source_bytes, kept_bytes; /* of tensors: all, and those kept from an earlier run */
    bool was_complete;                 /* there was nothing to do */
    bool has_tokenizer;
};

int convert_run(const struct convert_options *o, struct convert_result *ret, struct err *e);

#endif
