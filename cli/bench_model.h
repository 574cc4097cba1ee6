/* bench_model.h: a model directory with made-up weights on disk. */
#ifndef GLMD_CLI_BENCH_MODEL_H
#define GLMD_CLI_BENCH_MODEL_H

#include "base/err.h"
#include "model/arch.h"
#include "model/quant.h"

/* Takes vocabulary, special tokens and context length from the model directory `like`. */
int bench_model_adopt(struct arch *a, const char *like, struct err *e);

/* Writes the directory `out`; tokenizer.model is copied from the model directory `like`. */
int bench_model_write(const struct arch *a, const struct quant_scheme *scheme, uint64_t seed,
                      const char *like, const char *out, struct err *e);

#endif
