/* emu_state.h: inside the emulated GPU (emu.h): its threads, CTAs and schedule, as the files of the
 * emulation share them:
 *   emu.cc         launches, the CTAs in flight, messages
 *   emu_fibers.cc  switching between threads: who runs next
 *   emu_warps.cc   barriers and warp operations
 *   emu_tensor.cc  tensor cores
 *   emu_memory.cc  shared memory with its checks, asynchronous copies, device memory
 * One launch at a time (`lock`): everything else belongs to the thread that runs it.
 */
#ifndef GLMD_KERNELS_CUDA_EMU_STATE_H
#define GLMD_KERNELS_CUDA_EMU_STATE_H

#include "dev.h"

#include <memory>
#include <mutex>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN
#endif
#endif

namespace emulation
{

enum {
    MAX_THREADS = 1024,
    STACK_BYTES = 256 << 10, /* reserved, not touched */
    MAX_COPIES = 256,        /* of a thread, not yet waited for */
    MAX_GROUPS = 64,
    MAX_STATICS = 32,
    SPINS = 1 << 22,         /* without anything else happening: nobody will end the wait */
    STATIC_LIMIT = 48 << 10, /* with dynamic ones, where nobody asked for more */
    INVALID_VALUE = 1,       /* cudaErrorInvalidValue */
#if EMU_ARCH >= 900
    SHARED_LIMIT = 227 << 10,
#elif EMU_ARCH >= 860
    SHARED_LIMIT = 99 << 10,
#elif EMU_ARCH >= 800
    SHARED_LIMIT = 163 << 10,
#else
    SHARED_LIMIT = 64 << 10,
#endif
};

enum state { IDLE, READY, AT_WARP, AT_GROUP, AT_BARRIER, DONE };

struct copy {
    long at, low, high; /* of a dev_shared<uint4> */
    const void *src;    /* NULL: zeros */
    unsigned group;
};

/* Rows of shared memory that the tensor cores read asynchronously. */
struct operand {
    uint64_t descriptor;
    unsigned n;
    unsigned group;
    uint64_t sum; /* of the bytes that were read */
};

struct fiber {
#if defined(__x86_64__)
    void *sp;
#else
    ucontext_t context;
#endif
    char *stack;
    void *fake_stack; /* AddressSanitizer's */
    enum state state;
    struct emu_thread where;
    struct cta *cta;
    const char *op; /* what it waits at */
    unsigned n_statics;
    size_t static_top;
    copy copies[MAX_COPIES];
    unsigned n_copies, group;
    /* warpgroups (emu_tensor.cc) */
    unsigned async_fences, wgmma_fences;
    unsigned wgmma_committed, wgmma_done; /* groups */
    bool wgmma_open;                      /* something is not committed */
    std::vector<struct operand> operands; /* that are read; kept by the first thread of the group */
};

/* What happened last to 4 bytes of shared memory. */
enum readers { NOBODY, ONE, SOME_OF_WARP, SEVERAL_WARPS };
struct shadow {
    int writer = -1; /* thread */
    unsigned write_barrier = 0, write_order = 0;
    unsigned write_fences = 0;     /* dev_async_fence of the writer until then */
    enum readers readers = NOBODY; /* since write_barrier */
    unsigned reader = 0;           /* one of them */
    unsigned read_barrier = 0, read_order = 0;
};

struct warp {
    unsigned arrived, n_spinning;
    unsigned order; /* dev_warp_sync so far */
    const char *op;
    struct emu_slots slots;
};

/* The same for a warpgroup: pointers to what the lanes bring. */
struct warpgroup {
    unsigned arrived;
    void *lane[4 * DEV_WARP];
};

struct cta {
    const struct emu_call *call;
    unsigned n_threads, n_done, n_at_barrier;
    unsigned barriers; /* so far */
    std::vector<struct warp> warps;
    std::vector<struct warpgroup> groups;
    std::vector<unsigned char> memory; /* dynamic, then static */
    std::vector<struct shadow> shadows;
    struct {
        size_t bytes;
        int line;
    } statics[MAX_STATICS];
    unsigned n_statics;
    unsigned first_fiber; /* in the pool */
    int barrier_line;
};

struct work {
    const struct emu_call *call;
    unsigned index; /* of the CTA in its grid */
};

struct schedule_state {
    std::vector<std::unique_ptr<struct fiber>> pool;
    std::vector<struct cta> resident;
    std::vector<struct fiber *> order; /* the ring */
    std::vector<struct work> queue;
    size_t next_work, at; /* in queue, in order */
    struct fiber *current;
    uint64_t random;
    unsigned spins;
    bool failed;
    char message[512];
#if !defined(__x86_64__)
    ucontext_t main;
#else
    void *main_sp;
#endif
    void *main_fake_stack;
    const void *main_stack;
    size_t main_stack_bytes;
};

extern std::recursive_mutex lock;
extern struct emu_options options;
extern struct schedule_state emu;
extern float half_values[1 << 16]; /* of all halves, while something runs */

/* Runs `to`; comes back when somebody runs `from`. NULL: the scheduler's caller. `dying`: never to
 * come back. */
void switch_to(struct fiber *from, struct fiber *to, bool dying);
/* Ends the launch. */
[[noreturn]] void leave();
/* Runs the next fiber that can; comes back when this one is chosen again. */
void schedule();
/* What wgmma reads of shared memory: 16 bytes, bounds and races checked, and that the writer has
 * fenced. */
const unsigned char *async_access(long at);
/* Puts a fiber at the beginning of its kernel. */
void prepare(struct fiber *f);

} // namespace emulation

#endif
