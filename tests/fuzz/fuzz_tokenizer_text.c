/* fuzz_tokenizer_text.c: text and token ids from outside. The first byte chooses: bit 0 the
 * variant, bit 1 keep_linebreak; the rest is text, and also ids (two bytes each). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/unit/coordinator/golden_arch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 1024, MAX_TOKENS = 1 << 16 };

static struct tokenizer *open_once(enum tokenizer_variant variant)
{
    static struct tokenizer *opened[2];
    struct arch a = arch_glm_130b;
    a.vocab = VOCAB;
    a.tokens = golden_arch.tokens;
    if (!opened[variant] &&
        tokenizer_open_file(GLMD_GOLDEN_TOKENIZER, &a, variant, &opened[variant], NULL) < 0)
        abort();
    return opened[variant];
}

/* All at once and one by one must agree, in whole characters. */
static void check_decode(const struct tokenizer *t, const int32_t *ids, size_t n)
{
    struct buf whole = {0}, parts = {0};
    struct token_stream *s;
    int result = tokenizer_decode(t, ids, n, &whole, NULL);
    if (token_stream_new(t, &s) < 0)
        abort();
    int r = 0;
    for (size_t i = 0; i < n && r == 0; i++) {
        size_t before = parts.size;
        r = token_stream_push(s, ids[i], &parts, NULL);
        if (parts.size > before &&
            utf8_check(parts.data + before, parts.size - before) != parts.size - before)
            abort();
    }
    if (r == 0)
        r = token_stream_flush(s, &parts, NULL);
    token_stream_free(s);
    if (r != result ||
        (r == 0 && (whole.size != parts.size ||
                    (whole.size && memcmp(whole.data, parts.data, whole.size) != 0))))
        abort();
    buf_deinit(&whole);
    buf_deinit(&parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const struct tokenizer *t = open_once(data[0] & 1 ? TOKENIZER_WHITESPACE : TOKENIZER_PLAIN);
    const char *text = (const char *)data + 1;
    size--;
    struct token_list ids = {0};
    struct err e = ERR_INIT;
    int r = tokenizer_encode(t, text, size, data[0] & 2, MAX_TOKENS, &ids, &e);
    if ((r == 0) !=
        (utf8_check(text, size) == size && size <= tokenizer_text_limit(MAX_TOKENS) && r != -E2BIG))
        abort();
    for (size_t i = 0; i < ids.n; i++) {
        if (!tokenizer_is_text(t, ids.ids[i]))
            abort();
    }
    check_decode(t, ids.ids, ids.n);
    ids.n = 0;
    for (size_t i = 0; i + 1 < size; i += 2) {
        int32_t id = (int32_t)(data[i + 1] | data[i + 2] << 8) % VOCAB;
        if (token_list_append(&ids, id) < 0)
            abort();
    }
    check_decode(t, ids.ids, ids.n);
    token_list_deinit(&ids);
    return 0;
}
