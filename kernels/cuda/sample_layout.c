/* sample_layout.c: how much memory sampling on the device takes (sample.h). Plain arithmetic, also
 * for `glmd plan` on a host without a GPU. */
#include "kernels/cuda/sample.h"

enum { ALIGN = 256 };

static size_t behind(size_t at, size_t bytes)
{
    return (at + bytes + ALIGN - 1) / ALIGN * ALIGN;
}

void sample_layout_of(const struct k_sampler_params *p, struct sample_layout *ret)
{
    /* A row's vocabulary may come in parts, each with a last tile of its own. */
    const size_t n_tiles = (p->vocab + SAMPLE_TILE - 1) / SAMPLE_TILE + SAMPLE_MAX_PARTS - 1;
    const size_t rows = p->max_rows;
    ret->row_bytes = sizeof(struct sample_row) + 8 * (size_t)p->max_bias +
                     8 * ((size_t)p->max_history + 1) + 8 * (size_t)p->max_forbidden +
                     4 * (size_t)p->max_banned;
    ret->stage_bytes = rows * ret->row_bytes;
    ret->states = behind(0, ret->stage_bytes);
    ret->logits = behind(ret->states, rows * sizeof(struct sample_state));
    ret->values = behind(ret->logits, (size_t)p->buffer_rows * p->vocab * sizeof(float));
    ret->tiles = behind(ret->values, rows * p->vocab * sizeof(float));
    ret->tops = behind(ret->tiles, rows * n_tiles * sizeof(struct sample_tile));
    ret->results = behind(ret->tops, rows * n_tiles * K_SAMPLE_MAX_TOP * sizeof(uint64_t));
    ret->end = behind(ret->results, rows * sizeof(struct k_sample_result));
}

size_t sample_bytes(const struct k_sampler_params *p)
{
    struct sample_layout l;
    sample_layout_of(p, &l);
    return l.end;
}
