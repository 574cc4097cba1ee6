/* emulated_driver.cc: see emulated_driver.h. */
#include "tests/support/emulated_driver.h"

#include <cassert>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "kernels/cuda/dev.h"
#include "kernels/cuda/driver.h"

namespace
{

std::recursive_mutex lock; /* ranks are threads */
struct emulated_driver state;
bool ready, stuck;
std::map<void *, size_t> device_memory, host_memory;
std::map<void *, int> opened; /* memory that other processes have open */

int record_hook();

void make_ready()
{
    if (!ready)
        emulated_driver_reset();
}

/* What the call of this name returns; 0: it may go on. */
int result_of(const char *name)
{
    make_ready();
    if (stuck)
        return state.error;
    if (!state.fail || strcmp(state.fail, name) != 0 || state.fail_after-- > 0)
        return 0;
    state.fail = nullptr;
    stuck = state.sticky != 0;
    return state.error;
}

int device_count(int *ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    make_ready();
    *ret = state.count_error ? 0 : state.n_devices;
    return state.count_error;
}

int properties(int device, struct cuda_properties *ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("properties");
    if (e)
        return e;
    *ret = {};
    snprintf(ret->name, sizeof ret->name, "emulated GPU");
    unsigned bus = state.one_gpu ? 0 : (unsigned)device & 0xff;
    snprintf(ret->pci_bus, sizeof ret->pci_bus, "0000:%02x:00.0", bus);
    ret->major = state.major;
    ret->minor = state.minor;
    ret->n_multiprocessors = 4;
    ret->memory_bytes = state.memory_bytes;
    ret->l2_bytes = 64 << 10;
    ret->shared_bytes = state.major < 8 ? 64 << 10 : state.major < 9 ? 99 << 10 : 227 << 10;
    return 0;
}

int versions(int *ret_driver, int *ret_runtime)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    make_ready();
    *ret_driver = state.driver_version;
    *ret_runtime = 13000;
    return 0;
}

int use(int device)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("use");
    if (!e)
        state.device = device;
    return e;
}

int memory(size_t *ret_free, size_t *ret_total)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("memory");
    *ret_total = state.memory_bytes;
    *ret_free = state.memory_bytes - (size_t)state.allocated;
    return e;
}

int alloc(void **ret, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("alloc");
    if (e)
        return e;
    if (state.allocated + bytes > state.memory_bytes)
        return EMULATED_OUT_OF_MEMORY;
    *ret = emu_alloc((bytes + 15) / 16 * 16);
    device_memory[*ret] = bytes;
    state.allocated += bytes;
    state.n_allocs++;
    return 0;
}

int free_memory(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    auto at = device_memory.find(p);
    assert(at != device_memory.end());
    state.n_freed_open += opened.count(p) != 0;
    state.allocated -= at->second;
    device_memory.erase(at);
    emu_free(p);
    return stuck ? state.error : 0;
}

int alloc_host(void **ret, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("alloc_host");
    if (e)
        return e;
    *ret = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096); /* whole pages, as the driver's are */
    assert(*ret);
    host_memory[*ret] = bytes;
    state.host_allocated += bytes;
    return 0;
}

int free_host(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    auto at = host_memory.find(p);
    assert(at != host_memory.end());
    state.host_allocated -= at->second;
    host_memory.erase(at);
    free(p);
    return stuck ? state.error : 0;
}

/* Streams, events and graphs are a byte each, so that a leak shows. */
template <class T> int handle_new(const char *name, T **ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of(name);
    if (!e)
        *ret = reinterpret_cast<T *>(malloc(1));
    return e;
}

int stream_new(struct CUstream_st **ret)
{
    return handle_new("stream_new", ret);
}

int stream_free(struct CUstream_st *s)
{
    free(s);
    return 0;
}

/* What waits is refused while the stream is recorded. */
int refused(const struct CUstream_st *s)
{
    return emu_recording(s) ? EMULATED_CAPTURING : 0;
}

int stream_wait(struct CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    state.n_waits++;
    int e = result_of("stream_wait");
    return e ? e : refused(s);
}

int event_new(struct CUevent_st **ret)
{
    return handle_new("event_new", ret);
}

int event_free(struct CUevent_st *e)
{
    free(e);
    return 0;
}

int event_record(struct CUevent_st *, struct CUstream_st *)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    return result_of("event_record");
}

int event_wait(struct CUevent_st *)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    state.n_event_waits++;
    return result_of("event_wait");
}

int copy(void *dst, const void *src, size_t bytes, struct CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("copy");
    state.n_copies++;
    if (e)
        return e;
    if (emu_recording(s))
        return emu_record_add(s, [=] {
            memcpy(dst, src, bytes);
            return 0;
        });
    memcpy(dst, src, bytes);
    return 0;
}

int clear(void *dst, size_t bytes, struct CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("clear");
    if (e)
        return e;
    if (emu_recording(s))
        return emu_record_add(s, [=] {
            memset(dst, 0, bytes);
            return 0;
        });
    memset(dst, 0, bytes);
    return 0;
}

int last_error()
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    return result_of("last_error");
}

const char *error_name(int error)
{
    switch (error) {
    case EMULATED_OUT_OF_MEMORY:
        return "cudaErrorMemoryAllocation";
    case EMULATED_OLD_DRIVER:
        return "cudaErrorInsufficientDriver";
    case EMULATED_NO_DEVICE:
        return "cudaErrorNoDevice";
    case EMULATED_NO_IMAGE:
        return "cudaErrorNoKernelImageForDevice";
    case EMULATED_ILLEGAL_ADDRESS:
        return "cudaErrorIllegalAddress";
    case EMULATED_TIMED_OUT:
        return "cudaErrorLaunchTimeout";
    case EMULATED_NO_PEERS:
        return "cudaErrorPeerAccessUnsupported";
    case EMULATED_CAPTURING:
        return "cudaErrorStreamCaptureUnsupported";
    default:
        return "cudaErrorUnknown";
    }
}

const char *error_text(int error)
{
    switch (error) {
    case EMULATED_OUT_OF_MEMORY:
        return "out of memory";
    case EMULATED_OLD_DRIVER:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case EMULATED_NO_DEVICE:
        return "no CUDA-capable device is detected";
    case EMULATED_NO_IMAGE:
        return "no kernel image is available for execution on the device";
    case EMULATED_ILLEGAL_ADDRESS:
        return "an illegal memory access was encountered";
    case EMULATED_TIMED_OUT:
        return "the launch timed out and was terminated";
    case EMULATED_NO_PEERS:
        return "peer access is not supported between these two devices";
    case EMULATED_CAPTURING:
        return "operation not permitted when stream is capturing";
    default:
        return "unknown error";
    }
}

/* Kernels run when they are launched, so that what is launched meanwhile is kept (emu.h). */
int capture_begin(struct CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("capture_begin");
    if (!e)
        emu_record_begin(s);
    return e;
}

int capture_end(struct CUstream_st *s, struct CUgraphExec_st **ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    struct emu_record *r = emu_record_end(s);
    int e = result_of("capture_end");
    if (!e && !r)
        e = EMULATED_CAPTURING;
    if (e) {
        emu_record_free(r);
        return e;
    }
    state.n_graphs++;
    *ret = reinterpret_cast<struct CUgraphExec_st *>(r);
    return 0;
}

/* Without the lock: ranks wait for each other in it. */
int graph_run(struct CUgraphExec_st *g, struct CUstream_st *)
{
    {
        std::lock_guard<std::recursive_mutex> hold(lock);
        int e = result_of("graph_run");
        if (e)
            return e;
        state.n_graph_runs++;
    }
    return emu_record_run(reinterpret_cast<struct emu_record *>(g));
}

int graph_free(struct CUgraphExec_st *g)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    emu_record_free(reinterpret_cast<struct emu_record *>(g));
    state.n_graphs--;
    return stuck ? state.error : 0;
}

/* A launch that is recorded. */
int record_hook()
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    return result_of("launch");
}

/* What was launched has run, unless something holds the stream up. */
int stream_ready(struct CUstream_st *s, bool *ret)
{
    bool (*pending)(void);
    {
        std::lock_guard<std::recursive_mutex> hold(lock);
        int e = result_of("stream_ready");
        e = e ? e : refused(s);
        if (e)
            return e;
        pending = state.pending;
    }
    *ret = !pending || !pending();
    return 0;
}

int reach(int device, int other, bool *ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    *ret = device == other || !state.no_peers;
    return result_of("reach");
}

/* Every process is this one: a handle is the address. */
int share(void *p, struct cuda_shared_memory *ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    memcpy(ret->bytes, &p, sizeof p);
    return result_of("share");
}

int share_open(const struct cuda_shared_memory *m, void **ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = state.no_peers ? EMULATED_NO_PEERS : result_of("share_open");
    if (e)
        return e;
    memcpy(ret, m->bytes, sizeof *ret);
    state.n_shared++;
    opened[*ret]++;
    return 0;
}

int share_close(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    state.n_shared--;
    if (--opened[p] == 0)
        opened.erase(p);
    return 0;
}

int pin(void *p, size_t, void **ret)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    int e = result_of("pin");
    if (e)
        return e;
    *ret = p;
    state.n_pinned++;
    return 0;
}

int unpin(void *)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    state.n_pinned--;
    return 0;
}

int stream_wait_event(struct CUstream_st *, struct CUevent_st *)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    return result_of("stream_wait_event");
}

uint64_t process()
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    return state.separate_processes ? ++state.n_processes : 1;
}

const struct cuda_driver driver = {
    device_count,
    properties,
    versions,
    use,
    memory,
    alloc,
    free_memory,
    alloc_host,
    free_host,
    stream_new,
    stream_free,
    stream_wait,
    event_new,
    event_free,
    event_record,
    event_wait,
    copy,
    clear,
    capture_begin,
    capture_end,
    graph_run,
    graph_free,
    last_error,
    error_name,
    error_text,
    EMULATED_OUT_OF_MEMORY,
    stream_ready,
    reach,
    share,
    share_open,
    share_close,
    pin,
    unpin,
    process,
    EMULATED_TIMED_OUT,
    stream_wait_event,
};

} // namespace

struct emulated_driver *emulated_driver_state(void)
{
    make_ready();
    return &state;
}

void emulated_driver_set_patience_ms(int64_t ms)
{
    emu_set_together_ms(ms);
}

void emulated_driver_set_order(uint64_t seed)
{
    struct emu_options o = {};
    o.seed = seed;
    emu_set_options(&o);
}

uint64_t emulated_driver_launches(void)
{
    return emu_n_launches();
}

bool emulated_driver_works(void)
{
    if (!emu_works())
        printf("skipped: fibers and ThreadSanitizer do not go together\n");
    return emu_works();
}

void emulated_driver_reset(void)
{
    uint64_t allocated = state.allocated, host_allocated = state.host_allocated;
    int64_t n_shared = state.n_shared, n_pinned = state.n_pinned, n_graphs = state.n_graphs;
    state = {};
    state.n_devices = 8;
    state.driver_version = 13000;
    state.major = EMU_ARCH / 100;
    state.minor = EMU_ARCH / 10 % 10;
    state.memory_bytes = (size_t)1 << 30;
    state.allocated = allocated;
    state.host_allocated = host_allocated;
    state.n_shared = n_shared;
    state.n_pinned = n_pinned;
    state.n_graphs = n_graphs;
    ready = true;
    stuck = false;
    emu_set_record_hook(record_hook);
}

const struct cuda_driver *cuda_driver_table(void)
{
    return &driver;
}
