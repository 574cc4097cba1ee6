/* sample_layout.c: how much memory sampling on the device takes (sample.h). Plain arithmetic, also
 * for `glmd plan` on a host without a GPU. */
#include "kernels/cuda/sample.h"

enum { ALIGN = 256 };

static size_t behind(size_t at, size_t bytes)
{
    return (at + bytes + ALIGN - 1) / ALIGN * ALIGN;
}

size_t sample_exchange_bytes(int exchange, uint32_t n_rows, uint32_t n_candidates, bool top)
{
    size_t each = 0;
    switch ((enum sample_exchange)exchange) {
    case SAMPLE_PEAKS:
        each = sizeof(struct sample_peak);
        break;
    case SAMPLE_MASSES:
        each = sizeof(struct sample_mass) + n_candidates * sizeof(uint32_t);
        break;
    case SAMPLE_SHARES:
        each = sizeof(struct sample_share);
        break;
    case SAMPLE_CHOICES:
        each =
            sizeof(struct sample_choice) + (top ? K_SAMPLE_MAX_TOP * sizeof(struct sample_top) : 0);
        break;
    case SAMPLE_EXCHANGES:
        break;
    }
    return (n_rows * each + 15) / 16 * 16;
}

void sample_layout_of(const struct k_sampler_params *p, struct sample_layout *ret)
{
    /* A row's vocabulary may come in parts, each with a last tile of its own. */
    const size_t rows = p->max_rows, whole_rows = k_sampler_whole_rows(p);
    const size_t shard = p->vocab / (p->n_ranks > 1 ? p->n_ranks : 1);
    const size_t whole_tiles =
        whole_rows * ((p->vocab + SAMPLE_TILE - 1) / SAMPLE_TILE + SAMPLE_MAX_PARTS - 1);
    const size_t shard_tiles = rows * ((shard + SAMPLE_TILE - 1) / SAMPLE_TILE);
    const size_t tiles = whole_tiles > shard_tiles ? whole_tiles : shard_tiles;
    ret->row_bytes = sizeof(struct sample_row) + 8 * (size_t)p->max_bias +
                     8 * ((size_t)p->max_history + 1) + 8 * (size_t)p->max_forbidden +
                     4 * (size_t)p->max_banned;
    ret->stage_bytes = rows * ret->row_bytes;
    ret->cleared = behind(0, ret->stage_bytes);
    size_t at = ret->cleared;
    for (int i = 0; i < SAMPLE_EXCHANGES; i++) {
        ret->own[i] = at;
        at = behind(at, sample_exchange_bytes(i, p->max_rows, k_sampler_candidates(p), true));
    }
    ret->states = at;
    at = behind(at, rows * sizeof(struct sample_state));
    for (int i = 0; i < SAMPLE_EXCHANGES; i++) {
        ret->all[i] = at;
        if (p->n_ranks > 1)
            at = behind(at, p->n_ranks * sample_exchange_bytes(i, p->max_rows,
                                                               k_sampler_candidates(p), true));
    }
    ret->logits = at;
    ret->values = behind(ret->logits, (size_t)p->buffer_rows * p->vocab * sizeof(float));
    ret->tiles = behind(ret->values, whole_rows * p->vocab * sizeof(float));
    ret->tops = behind(ret->tiles, tiles * sizeof(struct sample_share));
    ret->results = behind(ret->tops, tiles * K_SAMPLE_MAX_TOP * sizeof(uint64_t));
    ret->end = behind(ret->results, rows * sizeof(struct k_sample_result));
}

size_t sample_bytes(const struct k_sampler_params *p)
{
    struct sample_layout l;
    sample_layout_of(p, &l);
    return l.end;
}
