/* reference.h: what a request must give, computed from the request alone, one sequence after the
 * other: no scheduler, no blocks, no slots, no batch. The model is the fake device's function. */
#ifndef GLMD_TESTS_SIM_REFERENCE_H
#define GLMD_TESTS_SIM_REFERENCE_H

#include "coordinator/request.h"
#include "worker/engine/fake.h"

struct ref_output {
    struct token_list tokens; /* without the end token; with a stop text: all up to its last one */
    int stop;                 /* index of the stop text that ended it, -1 = none */
    struct buf text;          /* then: what is left of it */
    int32_t end_token;        /* -1 = none */
    enum finish finish;
    double score;       /* beams: penalized; Score: sum */
    double logprob_sum; /* samples: of all tokens that were chosen, the last one included */
    uint32_t n_sampled;
    float *logprobs;  /* [tokens.n], samples; Score: [n_target] */
    uint64_t *states; /* likewise: for top log-probabilities */
};

struct ref_round {
    struct token_list prompt; /* ends in sop */
    struct ref_output *outputs;
    uint32_t n_outputs;
};

struct reference {
    struct ref_round *rounds; /* Generate and Score have one */
    uint32_t n_rounds;
    uint64_t n_completion_tokens; /* usage */
    bool is_open; /* a blank's tokens are not known: nothing is said about what follows */
    const char
        *wrong; /* the tokens found for a blank that a stop text has cut; NULL = they are right */
};

/* What a request is made of that admission has digested. */
struct ref_stops {
    const char *const *texts;
    uint32_t n;
    /* Fill: a stop text cuts a blank inside a token; which tokens say what is left is for the
     * tokenizer to choose. The reference checks the ones that were found, and goes on with them.
     * NULL = they have not come. */
    const struct token_list *(*blank_tokens)(void *context, uint32_t blank);
    void *context;
};

/* `fresh` was admitted and never submitted. */
void reference_make(const struct arch *a, const struct tokenizer *t, const struct fake_config *c,
                    const struct request *fresh, struct ref_stops stops, struct reference *ret);
void reference_deinit(struct reference *r);

#endif
