/* blas_lt.cu: see blas.h: cuBLASLt, opened by its name. */
#include "blas.h"

#include <cerrno>
#include <cstdlib>

#include <cublasLt.h>
#include <dlfcn.h>

namespace
{

enum { MAX_PLANS = 64 };

#define LIBRARY_TEXT_(x) #x
#define LIBRARY_TEXT(x)  LIBRARY_TEXT_(x)
const char *const library_name = "libcublasLt.so." LIBRARY_TEXT(CUBLAS_VER_MAJOR);

/* What is called of it. */
struct functions {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescInit_internal) desc_init;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutInit_internal) layout_init;
    decltype(&cublasLtMatmulPreferenceInit_internal) preference_init;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
};

/* One shape of products: the algorithm is chosen once, so that equal calls give equal bits. */
struct plan {
    uint32_t rows, cols, n, stride, bias;
    cublasLtMatmulAlgo_t algorithm;
};

struct layouts {
    cublasLtMatmulDescOpaque_t multiply;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

} // namespace

struct blas {
    struct linear_device device;
    void *opened; /* dlopen */
    struct functions f;
    cublasLtHandle_t handle;
    void *workspace;
    struct plan plans[MAX_PLANS];
    uint32_t n_plans;
};

namespace
{

template <class F> bool find(void *opened, const char *name, F *ret)
{
    *ret = reinterpret_cast<F>(dlsym(opened, name));
    return *ret != nullptr;
}

bool load(struct blas *l)
{
    l->opened = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
    struct functions *f = &l->f;
    return l->opened && find(l->opened, "cublasLtCreate", &f->create) &&
           find(l->opened, "cublasLtDestroy", &f->destroy) &&
           find(l->opened, "cublasLtMatmul", &f->matmul) &&
           find(l->opened, "cublasLtMatmulDescInit_internal", &f->desc_init) &&
           find(l->opened, "cublasLtMatmulDescSetAttribute", &f->desc_set) &&
           find(l->opened, "cublasLtMatrixLayoutInit_internal", &f->layout_init) &&
           find(l->opened, "cublasLtMatmulPreferenceInit_internal", &f->preference_init) &&
           find(l->opened, "cublasLtMatmulPreferenceSetAttribute", &f->preference_set) &&
           find(l->opened, "cublasLtMatmulAlgoGetHeuristic", &f->heuristic);
}

/* Column-major for the library: y^T [rows, n] = w [cols, rows]^T x^T [cols, n]. */
bool describe(const struct blas *l, uint32_t rows, uint32_t cols, uint32_t n, uint32_t stride,
              const void *bias, struct layouts *ret)
{
    const struct functions *f = &l->f;
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasLtMatmulDescOpaque_t *d = &ret->multiply;
    bool ok = f->desc_init(d, sizeof *d, CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
              f->desc_set(d, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) == 0 &&
              f->layout_init(&ret->w, sizeof ret->w, CUDA_R_16F, cols, rows, cols) == 0 &&
              f->layout_init(&ret->x, sizeof ret->x, CUDA_R_16F, cols, n, cols) == 0 &&
              f->layout_init(&ret->y, sizeof ret->y, CUDA_R_16F, rows, n, stride) == 0;
    if (ok && bias)
        ok = f->desc_set(d, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) == 0 &&
             f->desc_set(d, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias) == 0;
    return ok;
}

/* NULL: the library knows no way. */
const struct plan *plan_for(struct blas *l, struct layouts *at, uint32_t rows, uint32_t cols,
                            uint32_t n, uint32_t stride, bool bias)
{
    for (uint32_t i = 0; i < l->n_plans; i++) {
        const struct plan *p = &l->plans[i];
        if (p->rows == rows && p->cols == cols && p->n == n && p->stride == stride &&
            p->bias == bias)
            return p;
    }
    cublasLtMatmulPreferenceOpaque_t preference;
    size_t bytes = BLAS_WORKSPACE_BYTES;
    uint32_t aligned = 2; /* of x, y and their rows */
    cublasLtMatmulHeuristicResult_t found;
    int n_found = 0;
    if (l->f.preference_init(&preference, sizeof preference) ||
        l->f.preference_set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                            sizeof bytes))
        return nullptr;
    if (cols % 8 == 0 && stride % 8 == 0)
        aligned = 16;
    if (l->f.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &aligned,
                            sizeof aligned) ||
        l->f.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &aligned,
                            sizeof aligned) ||
        l->f.preference_set(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &aligned,
                            sizeof aligned) ||
        l->f.heuristic(l->handle, &at->multiply, &at->w, &at->x, &at->y, &at->y, &preference, 1,
                       &found, &n_found) ||
        n_found != 1)
        return nullptr;
    struct plan *p = &l->plans[l->n_plans % MAX_PLANS];
    l->n_plans = l->n_plans < MAX_PLANS ? l->n_plans + 1 : l->n_plans;
    *p = {rows, cols, n, stride, bias, found.algo};
    return p;
}

} // namespace

struct blas *blas_open(const struct linear_device *d)
{
    struct blas *l = static_cast<struct blas *>(calloc(1, sizeof *l));
    if (!l)
        return nullptr;
    l->device = *d;
    l->workspace = d->memory.alloc(d->memory.arg, BLAS_WORKSPACE_BYTES);
    if (!l->workspace || !load(l) || l->f.create(&l->handle) != 0) {
        blas_close(l);
        return nullptr;
    }
    return l;
}

void blas_close(struct blas *l)
{
    if (!l)
        return;
    if (l->handle)
        (void)l->f.destroy(l->handle);
    if (l->workspace)
        l->device.memory.free(l->device.memory.arg, l->workspace);
    if (l->opened)
        dlclose(l->opened);
    free(l);
}

int blas_multiply(struct blas *l, const void *w, uint32_t rows, uint32_t cols, const void *x,
                  uint32_t n, const void *bias, void *y, uint32_t y_stride)
{
    struct layouts at;
    if (!describe(l, rows, cols, n, y_stride, bias, &at))
        return cudaErrorUnknown;
    const struct plan *p = plan_for(l, &at, rows, cols, n, y_stride, bias != nullptr);
    if (!p)
        return -ENOTSUP;
    float one = 1, zero = 0;
    cublasStatus_t r =
        l->f.matmul(l->handle, &at.multiply, &one, w, &at.w, x, &at.x, &zero, y, &at.y, y, &at.y,
                    &p->algorithm, l->workspace, BLAS_WORKSPACE_BYTES, l->device.stream);
    return r == CUBLAS_STATUS_SUCCESS ? cudaSuccess : cudaErrorUnknown;
}
