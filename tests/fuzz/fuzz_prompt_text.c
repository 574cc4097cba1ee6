/* fuzz_prompt_text.c: text with masks from outside, through all rounds of blank filling. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/prompt.h"
#include "tests/unit/coordinator/golden_arch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 640, MAX_TOKENS = 256, MAX_MASKS = 16 };

static void check(const struct arch *a, const struct prompt *p)
{
    if (p->ids.n < 2 || p->ids.ids[p->ids.n - 1] != a->tokens.sop ||
        p->prefix_len != p->ids.n - 1 || p->mask_index < 0 || (size_t)p->mask_index >= p->ids.n - 1)
        abort();
    for (uint32_t i = 0; i < p->ids.n + 3; i++) {
        if (prompt_position(p, i) < 0 || prompt_position(p, i) > (int32_t)i)
            abort();
    }
}

static void fill(const struct arch *a, struct token_list *ids, enum mask_kind kind)
{
    static const int32_t answer[] = {54, 60};
    for (size_t round = 0;; round++) {
        struct prompt p;
        if (prompt_next(a, ids, kind, &p, NULL) < 0)
            return;
        if (round > MAX_MASKS)
            abort();
        check(a, &p);
        if (prompt_apply(ids, p.mask_index, answer, round % 3, ids) < 0)
            abort();
        prompt_deinit(&p);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *t;
    static struct arch a;
    if (!t) {
        a = arch_glm_130b;
        a.vocab = VOCAB;
        a.tokens = golden_arch.tokens;
        if (tokenizer_open_file(GLMD_GOLDEN_TOKENIZER, &a, TOKENIZER_PLAIN, &t, NULL) < 0)
            abort();
    }
    struct token_list ids = {0};
    struct prompt p;
    struct err e = ERR_INIT;
    enum mask_kind kind;
    if (prompt_encode_text(t, &a, (const char *)data, size, MAX_TOKENS, MAX_MASKS, &ids, &kind,
                           &e) < 0) {
        if (!e.message[0] || ids.n)
            abort();
        return 0;
    }
    if (ids.n > MAX_TOKENS)
        abort();
    if (prompt_from_ids(&a, ids.ids, ids.n, MAX_TOKENS + 2, &p, &e) < 0 || p.kind != kind)
        abort();
    check(&a, &p);
    prompt_deinit(&p);
    fill(&a, &ids, kind);
    token_list_deinit(&ids);
    return 0;
}
