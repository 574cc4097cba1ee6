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
int sample_launch(const struct sample_params *params, const struct sample_needs *needs,
                  struct CUstream_st *stream)
{
    const sample_params &p = *params;
    struct dev_launch at = {};
    at.grid = {p.n_tiles, p.n_rows, 1};
    at.threads = SAMPLE_THREADS;
    at.stream = stream;
    int e = (int)dev_run(at, sample_prepare_kernel, p);
    e = first_of(e, (int)dev_run(at, sample_weigh_kernel, p));
    if (needs->rank) {
        e = first_of(e, run_select<SAMPLE_BY_RANK, 1>(at, p));
        e = first_of(e, run_select<SAMPLE_BY_RANK, 2>(at, p));
        e = first_of(e, run_select<SAMPLE_BY_MASS, 0>(at, p));
    }
    if (needs->mass) {
        e = first_of(e, run_select<SAMPLE_BY_MASS, 1>(at, p));
        e = first_of(e, run_select<SAMPLE_BY_MASS, 2>(at, p));
    }
    if (needs->draw)
        e = first_of(e, (int)dev_run(at, sample_sums_kernel, p));
    if (needs->top)
        e = first_of(e, (int)dev_run(at, sample_tops_kernel, p));
    at.grid = {p.n_rows, 1, 1};
    return first_of(e, (int)dev_run(at, sample_draw_kernel, p));
}
