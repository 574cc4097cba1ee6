/* driver_cuda.c: see driver.h. The runtime is linked statically; it opens the driver's library by
 * itself, so that a host without one gets an error from device_count and not a failing dlopen. */
#include "kernels/cuda/driver.h"

#include <assert.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static int device_count(int *ret)
{
    return (int)cudaGetDeviceCount(ret);
}

static int properties(int device, struct cuda_properties *ret)
{
    struct cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess)
        return (int)e;
    *ret = (struct cuda_properties){
        .major = p.major,
        .minor = p.minor,
        .n_multiprocessors = p.multiProcessorCount,
        .memory_bytes = p.totalGlobalMem,
        .l2_bytes = p.l2CacheSize > 0 ? (size_t)p.l2CacheSize : 0,
        .shared_bytes = p.sharedMemPerBlockOptin,
    };
    snprintf(ret->name, sizeof ret->name, "%.127s", p.name);
    return (int)cudaDeviceGetPCIBusId(ret->pci_bus, sizeof ret->pci_bus, device);
}

static int versions(int *ret_driver, int *ret_runtime)
{
    cudaError_t e = cudaDriverGetVersion(ret_driver);
    return (int)(e == cudaSuccess ? cudaRuntimeGetVersion(ret_runtime) : e);
}

static int use(int device)
{
    return (int)cudaSetDevice(device);
}

static int memory(size_t *ret_free, size_t *ret_total)
{
    return (int)cudaMemGetInfo(ret_free, ret_total);
}

static int alloc(void **ret, size_t bytes)
{
    return (int)cudaMalloc(ret, bytes);
}

static int free_memory(void *p)
{
    return (int)cudaFree(p);
}

static int alloc_host(void **ret, size_t bytes)
{
    return (int)cudaHostAlloc(ret, bytes, cudaHostAllocPortable);
}

static int free_host(void *p)
{
    return (int)cudaFreeHost(p);
}

static int stream_new(struct CUstream_st **ret)
{
    return (int)cudaStreamCreateWithFlags(ret, cudaStreamNonBlocking);
}

static int stream_free(struct CUstream_st *s)
{
    return (int)cudaStreamDestroy(s);
}

static int stream_wait(struct CUstream_st *s)
{
    return (int)cudaStreamSynchronize(s);
}

static int event_new(struct CUevent_st **ret)
{
    return (int)cudaEventCreateWithFlags(ret, cudaEventDisableTiming);
}

static int event_free(struct CUevent_st *e)
{
    return (int)cudaEventDestroy(e);
}

static int event_record(struct CUevent_st *e, struct CUstream_st *s)
{
    return (int)cudaEventRecord(e, s);
}

static int event_wait(struct CUevent_st *e)
{
    return (int)cudaEventSynchronize(e);
}

static int stream_wait_event(struct CUstream_st *s, struct CUevent_st *e)
{
    return (int)cudaStreamWaitEvent(s, e, 0);
}

static int copy(void *dst, const void *src, size_t bytes, struct CUstream_st *s)
{
    return (int)cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, s);
}

static int clear(void *dst, size_t bytes, struct CUstream_st *s)
{
    return (int)cudaMemsetAsync(dst, 0, bytes, s);
}

static int capture_begin(struct CUstream_st *s)
{
    return (int)cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
}

static int capture_end(struct CUstream_st *s, struct CUgraphExec_st **ret)
{
    cudaGraph_t graph = NULL;
    cudaError_t e = cudaStreamEndCapture(s, &graph);
    if (e == cudaSuccess)
        e = cudaGraphInstantiate(ret, graph, 0);
    if (graph)
        (void)cudaGraphDestroy(graph);
    return (int)e;
}

static int graph_run(struct CUgraphExec_st *g, struct CUstream_st *s)
{
    return (int)cudaGraphLaunch(g, s);
}

static int graph_free(struct CUgraphExec_st *g)
{
    return (int)cudaGraphExecDestroy(g);
}

static int stream_ready(struct CUstream_st *s, bool *ret)
{
    cudaError_t e = cudaStreamQuery(s);
    *ret = e != cudaErrorNotReady;
    if (*ret)
        return (int)e;
    (void)cudaGetLastError(); /* "not ready" is kept as the last error, too */
    return 0;
}

static int reach(int device, int other, bool *ret)
{
    int can = device == other;
    cudaError_t e = can ? cudaSuccess : cudaDeviceCanAccessPeer(&can, device, other);
    if (e == cudaSuccess && can && device != other)
        e = cudaDeviceEnablePeerAccess(other, 0);
    if (e == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();
        e = cudaSuccess;
    }
    *ret = can;
    return (int)e;
}

static int share(void *p, struct cuda_shared_memory *ret)
{
    cudaIpcMemHandle_t handle;
    static_assert(sizeof handle == sizeof ret->bytes, "a handle of shared memory");
    cudaError_t e = cudaIpcGetMemHandle(&handle, p);
    memcpy(ret->bytes, &handle, sizeof handle);
    return (int)e;
}

static int share_open(const struct cuda_shared_memory *m, void **ret)
{
    cudaIpcMemHandle_t handle;
    memcpy(&handle, m->bytes, sizeof handle);
    return (int)cudaIpcOpenMemHandle(ret, handle, cudaIpcMemLazyEnablePeerAccess);
}

static int share_close(void *p)
{
    return (int)cudaIpcCloseMemHandle(p);
}

static int pin(void *p, size_t bytes, void **ret)
{
    cudaError_t e = cudaHostRegister(p, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    if (e != cudaSuccess)
        return (int)e;
    e = cudaHostGetDevicePointer(ret, p, 0);
    if (e != cudaSuccess)
        (void)cudaHostUnregister(p);
    return (int)e;
}

static int unpin(void *p)
{
    return (int)cudaHostUnregister(p);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t process_number;

static void draw_number(void)
{
    if (getrandom(&process_number, sizeof process_number, 0) != sizeof process_number)
        process_number = (uint64_t)getpid(); /* of this host, at least */
}

static uint64_t process(void)
{
    (void)pthread_once(&once, draw_number);
    return process_number;
}

static int last_error(void)
{
    return (int)cudaGetLastError();
}

static const char *error_name(int error)
{
    return cudaGetErrorName((cudaError_t)error);
}

static const char *error_text(int error)
{
    return cudaGetErrorString((cudaError_t)error);
}

static const struct cuda_driver driver = {
    .device_count = device_count,
    .properties = properties,
    .versions = versions,
    .use = use,
    .memory = memory,
    .alloc = alloc,
    .free = free_memory,
    .alloc_host = alloc_host,
    .free_host = free_host,
    .stream_new = stream_new,
    .stream_free = stream_free,
    .stream_wait = stream_wait,
    .event_new = event_new,
    .event_free = event_free,
    .event_record = event_record,
    .event_wait = event_wait,
    .copy = copy,
    .clear = clear,
    .capture_begin = capture_begin,
    .capture_end = capture_end,
    .graph_run = graph_run,
    .graph_free = graph_free,
    .last_error = last_error,
    .error_name = error_name,
    .error_text = error_text,
    .out_of_memory = cudaErrorMemoryAllocation,
    .stream_ready = stream_ready,
    .reach = reach,
    .share = share,
    .share_open = share_open,
    .share_close = share_close,
    .pin = pin,
    .unpin = unpin,
    .process = process,
    .timed_out = cudaErrorLaunchTimeout,
    .stream_wait_event = stream_wait_event,
};

const struct cuda_driver *cuda_driver_table(void)
{
    return &driver;
}
