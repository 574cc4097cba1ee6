/* config.json: architecture and quantization. What is accepted must be consistent enough for the
 * sizes that everything else computes from it, and survive being written and read again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/jsonfile.h"
#include "model/layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct arch *a, const struct quant_scheme *s)
{
    struct arch again;
    struct err e = ERR_INIT;
    json_t *config = json_object();
    if (!config || arch_to_json(a, config) < 0 || arch_from_json(config, &again, &e) < 0 ||
        again.hidden != a->hidden || again.tokens.eos != a->tokens.eos ||
        again.norm_eps != a->norm_eps)
        abort();
    json_decref(config);
    for (size_t i = 0; i < shard_n_tensors(a); i += 1 + shard_n_tensors(a) / 40) {
        struct shard_tensor t;
        struct shard_piece pieces[2];
        shard_tensor_at(a, i, &t);
        for (uint32_t tp = 1; tp <= 8; tp *= 2) {
            if (arch_check_tp(a, tp, NULL) == 0)
                shard_pieces(&t, tp, tp - 1, pieces);
        }
        if (quant_check(s, a, NULL) == 0) {
            struct st_tensor stored[2];
            size_t n = layout_tensor(s, &t, stored);
            for (size_t k = 0; k < n; k++)
                free(stored[k].name);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err e = ERR_INIT;
    json_t *config = NULL;
    struct arch a;
    struct quant_scheme s;
    if (size > LAYOUT_MAX_CONFIG_BYTES ||
        jsonfile_parse((const char *)data, size, "input", &config, &e) < 0)
        return 0;
    if (arch_from_json(config, &a, &e) == 0 && quant_from_json(config, &s, &e) == 0)
        check(&a, &s);
    else if (e.message[0] == '\0')
        abort();
    json_decref(config);
    return 0;
}
