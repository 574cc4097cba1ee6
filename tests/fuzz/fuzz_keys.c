/* fuzz_keys.c: any bytes as a file of API keys. What is accepted has names and hashes that differ
 * and limits in their ranges; what is refused says why, and never repeats a hash. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/auth.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_key(const struct auth_key *k)
{
    size_t n = strlen(k->name);
    const struct auth_limits *l = &k->limits;
    if (n == 0 || n > AUTH_MAX_NAME || k->n_refs != 1 || k->n_running)
        abort();
    if (l->priority < -100 || l->priority > 100 || l->choices > 1024 || l->context > INT32_MAX)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct auth_key **keys;
    struct err e = ERR_INIT;
    size_t n;
    int r = auth_parse((const char *)data, size, "keys", &keys, &n, &e);
    if (r < 0) {
        if (!e.message[0] || e.code != r)
            abort();
        return 0;
    }
    for (size_t i = 0; i != n; i++) {
        check_key(keys[i]);
        for (size_t k = 0; k != i; k++) {
            if (strcmp(keys[i]->name, keys[k]->name) == 0)
                abort();
        }
    }
    for (size_t i = 0; i != n; i++)
        free(keys[i]);
    free(keys);
    return 0;
}
