/* sampler-speed: what choosing a token costs on the host, for GLM-130B's vocabulary.
 *
 *   sampler-speed [VOCAB]
 *
 * A line for each kind of sampling: the best and the median time of a row. Logits are normally
 * distributed with a few tokens far above the others, as a model's are. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "worker/engine/sampler.h"

enum { GLM_VOCAB = 150528, SAMPLES = 41, HISTORY = 512 };

static uint64_t state = 88172645463325252u;
static double uniform(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((double)(state >> 11) + 0.5) * 0x1p-53;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    uint32_t vocab = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : GLM_VOCAB;
    struct sampler *s = NULL;
    float *logits = calloc(vocab ? vocab : 1, sizeof *logits);
    float *row = calloc(vocab ? vocab : 1, sizeof *row);
    if (!logits || !row || vocab < 64 || sampler_new(vocab, &s) < 0) {
        fprintf(stderr, "expected a vocabulary of at least 64 that memory holds, found %u\n",
                vocab);
        return 1;
    }
    for (uint32_t i = 0; i != vocab; i++)
        logits[i] = (float)(2.0 * sqrt(-2.0 * log(uniform())) * cos(6.283185307 * uniform()));
    for (uint32_t i = 0; i != 50; i++)
        logits[(uint32_t)(uniform() * vocab)] = (float)(8.0 + 6.0 * uniform());
    int32_t history[HISTORY];
    for (uint32_t i = 0; i != HISTORY; i++)
        history[i] = (int32_t)(uniform() * vocab);
    static const struct {
        const char *name;
        struct plan_sampling p;
    } kinds[] = {
        {"greedy", {.temperature = 1, .top_k = 1}},
        {"temperature 0.8", {.temperature = 0.8f}},
        {"top-k 40", {.temperature = 1, .top_k = 40}},
        {"top-p 0.7", {.temperature = 1, .top_p = 0.7f}},
        {"top-p 0.95, hot", {.temperature = 2.5f, .top_p = 0.95f}},
        {"top-k 40, top-p 0.7", {.temperature = 0.8f, .top_k = 40, .top_p = 0.7f}},
        {"min-p 0.05", {.temperature = 1, .min_p = 0.05f}},
        {"penalties, top-p 0.7", {.temperature = 1, .top_p = 0.7f, .repetition_penalty = 1.2f}},
        {"greedy, 20 log-probs", {.temperature = 1, .top_k = 1, .n_top_logprobs = 20}},
    };
    printf("%-24s %12s %12s  ns a row of %u\n", "", "best", "median", vocab);
    int64_t sum = 0;
    for (size_t k = 0; k != sizeof kinds / sizeof *kinds; k++) {
        double ns[SAMPLES];
        for (uint32_t i = 0; i != SAMPLES; i++) {
            struct plan_sampling p = kinds[k].p;
            p.seed = 1;
            p.output_index = i;
            if (p.repetition_penalty != 0.0f) {
                p.history = history;
                p.n_history = HISTORY;
            }
            struct result_logprob top[PLAN_MAX_TOP_LOGPROBS];
            float logprob;
            memcpy(row, logits, vocab * sizeof *row);
            int64_t begin_ns = clock_now_ns();
            sum += sampler_choose(s, row, &p, -1, &logprob, top);
            ns[i] = (double)(clock_now_ns() - begin_ns);
        }
        qsort(ns, SAMPLES, sizeof *ns, by_value);
        printf("%-24s %12.0f %12.0f\n", kinds[k].name, ns[0], ns[SAMPLES / 2]);
    }
    sampler_free(s);
    free(logits);
    free(row);
    return sum < 0;
}
