/* fuzz_tokenizer_model.c: a tokenizer.model from outside. What is accepted must be safe to encode
 * with: the library walks the model's tables without bounds of its own. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer/sp_proto.h"
#include "model/tokenizer/sp_shim.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Letters, runs of the same character, blanks, full-width forms, an emoji, a NUL. */
static const char text[] = "abc aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa  <n>\t"
                           "\xef\xbd\x81\xef\xbc\xa1 \xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x99\x82"
                           "\xcc\x81\x01\x01\x01\x01\x01 \0 z";

static void encode(const struct sp_proto *p, const struct sp_shim *shim)
{
    int32_t *ids;
    size_t n;
    if (sp_shim_encode(shim, text, sizeof text - 1, &ids, &n, NULL) < 0)
        return;
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= p->n_pieces)
            abort();
    }
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sp_proto p;
    struct sp_shim *shim;
    struct buf model = {0};
    struct err e = ERR_INIT;
    if (sp_proto_parse(data, size, &p, &e) < 0) {
        if (!e.message[0])
            abort();
        return 0;
    }
    if (sp_proto_write(&p, &model) == 0 && sp_shim_load(model.data, model.size, &shim, &e) == 0) {
        encode(&p, shim);
        sp_shim_free(shim);
    }
    buf_deinit(&model);
    sp_proto_deinit(&p);
    return 0;
}
