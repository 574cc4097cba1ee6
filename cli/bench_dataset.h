/* bench_dataset.h: the prompts of a load: random tokens, or the lines of a file. */
#ifndef GLMD_CLI_BENCH_DATASET_H
#define GLMD_CLI_BENCH_DATASET_H

#include "base/err.h"
#include "cli/bench_load.h"
#include "cli/client.h"

struct dataset_options {
    const char *file; /* JSON lines; NULL = random */
    uint32_t n;
    uint32_t input_len, output_len; /* tokens */
    double range;                   /* of random lengths: 0 .. 1 */
    uint32_t seed;
};

struct dataset { /* zero-initialised = empty; all owned */
    struct load_prompt *prompts;
    uint32_t n;
    char **texts; /* of a file, one per line */
    uint32_t n_texts;
    int32_t *tokens; /* of all random prompts, one behind the other */
};

/* Random prompts are made of ids that the coordinator's tokenizer gives for a few sentences: text,
 * whatever the model. 0, or an exit code with the reason printed. */
int dataset_make(const struct dataset_options *o, const struct client_target *t,
                 struct dataset *ret);
void dataset_deinit(struct dataset *d);

/* The two halves of it, for tests. */
int dataset_random(const struct dataset_options *o, const int32_t *ids, uint32_t n_ids,
                   struct dataset *ret);
int dataset_read(const struct dataset_options *o, struct dataset *ret, struct err *e);

#endif
