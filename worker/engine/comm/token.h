/* token.h: the secret that all ranks of a group and epoch share. */
#ifndef GLMD_WORKER_ENGINE_COMM_TOKEN_H
#define GLMD_WORKER_ENGINE_COMM_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { COMM_TOKEN_BYTES = 16 };

/* Takes the same time wherever the tokens differ. */
static inline bool comm_token_equal(const uint8_t *a, const uint8_t *b)
{
    volatile uint8_t difference = 0;
    for (size_t i = 0; i != COMM_TOKEN_BYTES; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return difference == 0;
}

#endif
