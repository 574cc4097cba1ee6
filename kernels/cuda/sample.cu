/* sample.cu: launches the kernels of sampling (sample.cuh). */
#include "kernels/cuda/sample.cuh"

namespace
{

template <int SELECTION, int DIGIT>
int run_select(const struct dev_launch &at, const sample_params &p)
{
    return (int)dev_run(at, sample_select_kernel<SELECTION, DIGIT>, p);
}

int first_of(int error, int then)
{
    return error ? error : then;
}

} // namespace

/* What no row needs is not launched; a row that does not need what others do leaves it at once. */
int sample_launch(const struct sample_params *params, const struct sample_needs *needs, int up_to,
                  struct CUstream_st *stream)
{
    const sample_params &p = *params;
    const bool alone = p.n_ranks == 1;
    struct dev_launch tiles = {}, rows = {};
    tiles.grid = {p.n_tiles, p.n_rows, 1};
    rows.grid = {p.n_rows, 1, 1};
    tiles.threads = rows.threads = SAMPLE_THREADS;
    tiles.stream = rows.stream = stream;
    int e = 0;
    switch (up_to) {
    case SAMPLE_PEAKS:
        return (int)dev_run(tiles, sample_prepare_kernel, p);
    case SAMPLE_MASSES:
        e = (int)dev_run(tiles, sample_weigh_kernel, p);
        if (!alone && needs->cut) {
            e = first_of(e, run_select<SAMPLE_BY_RANK, 1>(tiles, p));
            e = first_of(e, (int)dev_run(tiles, sample_collect_kernel, p));
        }
        if (alone && needs->rank) {
            e = first_of(e, run_select<SAMPLE_BY_RANK, 1>(tiles, p));
            e = first_of(e, run_select<SAMPLE_BY_RANK, 2>(tiles, p));
            e = first_of(e, run_select<SAMPLE_BY_MASS, 0>(tiles, p));
        }
        if (alone && needs->mass) {
            e = first_of(e, run_select<SAMPLE_BY_MASS, 1>(tiles, p));
            e = first_of(e, run_select<SAMPLE_BY_MASS, 2>(tiles, p));
        }
        return e;
    case SAMPLE_SHARES:
        if (!alone)
            e = (int)dev_run(rows, sample_shard_cut_kernel, p);
        return first_of(e, (int)dev_run(tiles, sample_sums_kernel, p));
    case SAMPLE_CHOICES:
        if (needs->top)
            e = (int)dev_run(tiles, sample_tops_kernel, p);
        return first_of(e, (int)dev_run(rows, sample_choose_kernel, p));
    default:
        return alone ? 0 : (int)dev_run(rows, sample_finish_kernel, p);
    }
}
