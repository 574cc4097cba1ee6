/* emu.cc: see emu.h. The schedule of fibers, and what checks them. Context switches are a dozen
 * instructions on x86-64 and ucontext elsewhere. */
#include "dev.h"

#include <cassert>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

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
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct emu_thread emu_now;

namespace
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

enum state { IDLE, READY, AT_WARP, AT_BARRIER, DONE };

struct copy {
    long at, low, high; /* of a dev_shared<uint4> */
    const void *src;    /* NULL: zeros */
    unsigned group;
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
};

/* What happened last to 4 bytes of shared memory. */
enum readers { NOBODY, ONE, SOME_OF_WARP, SEVERAL_WARPS };
struct shadow {
    int writer = -1; /* thread */
    unsigned write_barrier = 0, write_order = 0;
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

struct cta {
    const struct emu_call *call;
    unsigned n_threads, n_done, n_at_barrier;
    unsigned barriers; /* so far */
    std::vector<struct warp> warps;
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

std::recursive_mutex lock;
struct emu_options options = {0, 1};

struct {
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
} emu;

float half_values[1 << 16];
bool have_halves;

uint64_t next_random()
{
    emu.random ^= emu.random << 13;
    emu.random ^= emu.random >> 7;
    emu.random ^= emu.random << 17;
    return emu.random;
}

template <class T> void shuffle(std::vector<T> &v)
{
    for (size_t i = v.size(); options.seed && i > 1; i--)
        std::swap(v[i - 1], v[next_random() % i]);
}

} // namespace

/* ---- switching ---- */

#if defined(__x86_64__)
extern "C" void emu_switch_stacks(void **save, void *load);
asm(R"(
.text
.type emu_switch_stacks, @function
emu_switch_stacks:
    endbr64
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch_stacks, . - emu_switch_stacks
)");
#endif

namespace
{

/* NULL: the scheduler's caller. `dying`: never to come back. */
void switch_to(struct fiber *from, struct fiber *to, bool dying)
{
    emu.current = to;
    if (to)
        emu_now = to->where;
#ifdef EMU_ASAN
    const void *stack = to ? (const void *)to->stack : emu.main_stack;
    size_t bytes = to ? (size_t)STACK_BYTES : emu.main_stack_bytes;
    void **save = from ? &from->fake_stack : &emu.main_fake_stack;
    __sanitizer_start_switch_fiber(dying ? nullptr : save, stack, bytes);
#else
    (void)dying;
#endif
#if defined(__x86_64__)
    emu_switch_stacks(from ? &from->sp : &emu.main_sp, to ? to->sp : emu.main_sp);
#else
    swapcontext(from ? &from->context : &emu.main, to ? &to->context : &emu.main);
#endif
#ifdef EMU_ASAN
    const void *old;
    size_t old_bytes;
    __sanitizer_finish_switch_fiber(from ? from->fake_stack : emu.main_fake_stack, &old,
                                    &old_bytes);
    (void)old;
    (void)old_bytes;
#endif
}

[[noreturn]] void leave()
{
    switch_to(emu.current, nullptr, true);
    abort();
}

const char *state_name(enum state s)
{
    static const char *const names[] = {"idle", "runs", "at a warp operation", "at a barrier",
                                        "returned"};
    return names[s];
}

/* Nobody can run: says who waits for whom. */
[[noreturn]] void report_stuck()
{
    const struct fiber *a = nullptr, *b = nullptr;
    for (const struct fiber *f : emu.order) {
        if (f->state == AT_WARP && (!a || a->state != AT_WARP))
            a = f;
        else if (f->state == AT_BARRIER && !a)
            a = f;
    }
    for (const struct fiber *f : emu.order)
        if (a && f->cta == a->cta && f->state != a->state && f->state != IDLE &&
            (a->state != AT_WARP || f->where.thread / DEV_WARP == a->where.thread / DEV_WARP))
            b = f;
    if (!a)
        emu_fail("nothing can run");
    if (b)
        emu_fail("thread %u of CTA %u waits at %s, which thread %u does not reach: it %s%s%s",
                 a->where.thread, a->where.cta[0], a->op, b->where.thread, state_name(b->state),
                 b->op ? " " : "", b->op ? b->op : "");
    emu_fail("thread %u of CTA %u waits at %s for ever", a->where.thread, a->where.cta[0], a->op);
}

/* Runs the next fiber that can; comes back when this one is chosen again. */
void schedule()
{
    struct fiber *from = emu.current;
    size_t n = emu.order.size();
    for (size_t i = 0; i < n; i++) {
        emu.at = emu.at + 1 == n ? 0 : emu.at + 1;
        struct fiber *f = emu.order[emu.at];
        if (f->state != READY)
            continue;
        if (f != from)
            switch_to(from, f, false);
        return;
    }
    report_stuck();
}

bool fill_resident(struct cta *c);

/* The last thread of a CTA takes the next CTA's work onto the same fibers. */
[[noreturn]] void fiber_main()
{
#ifdef EMU_ASAN
    const void *old;
    size_t old_bytes;
    __sanitizer_finish_switch_fiber(nullptr, &old, &old_bytes);
    if (!emu.main_stack) {
        emu.main_stack = old;
        emu.main_stack_bytes = old_bytes;
    }
#endif
    struct fiber *f = emu.current;
    f->cta->call->run(f->cta->call->kernel, f->cta->call->params);
    f = emu.current;
    if (f->n_copies)
        emu_fail("thread %u returns with %u copies that it did not wait for", f->where.thread,
                 f->n_copies);
    f->state = DONE;
    f->op = nullptr;
    f->cta->n_done++;
    emu.spins = 0;
    if (f->cta->n_done == f->cta->n_threads)
        switch_to(f, nullptr, true); /* the scheduler's caller puts the next CTA there */
    for (;;) {
        struct fiber *next = nullptr;
        size_t n = emu.order.size();
        for (size_t i = 0; i < n && !next; i++) {
            emu.at = emu.at + 1 == n ? 0 : emu.at + 1;
            if (emu.order[emu.at]->state == READY)
                next = emu.order[emu.at];
        }
        if (!next)
            report_stuck();
        switch_to(f, next, true);
    }
}

void prepare(struct fiber *f)
{
    if (!f->stack) {
        f->stack = (char *)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert(f->stack != MAP_FAILED);
    }
#ifdef EMU_ASAN
    __asan_unpoison_memory_region(f->stack, STACK_BYTES); /* frames that were left for good */
#endif
    f->fake_stack = nullptr;
    f->n_statics = 0;
    f->static_top = 0;
    f->n_copies = 0;
    f->group = 0;
    f->op = nullptr;
    f->state = READY;
#if defined(__x86_64__)
    /* As if emu_switch_stacks had been called at the entry of fiber_main. */
    void **top = (void **)(f->stack + STACK_BYTES - 64);
    *--top = nullptr;            /* the return address of fiber_main: keeps the ABI's alignment */
    *--top = (void *)fiber_main; /* `ret` goes there */
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    f->sp = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&f->context, (void (*)())fiber_main, 0);
#endif
}

/* Puts the next CTA of the queue onto the fibers of `c`; false when there is none. */
bool fill_resident(struct cta *c)
{
    if (emu.next_work == emu.queue.size())
        return false;
    struct work w = emu.queue[emu.next_work++];
    const struct dev_launch *at = &w.call->at;
    c->call = w.call;
    c->n_threads = at->threads;
    c->n_done = c->n_at_barrier = c->barriers = c->n_statics = 0;
    c->warps.assign(at->threads / DEV_WARP, {});
    c->memory.assign(at->shared, 0xff);
    c->shadows.assign((at->shared + 3) / 4, {});
    for (unsigned i = 0; i < c->n_threads; i++) {
        struct fiber *f = emu.pool[c->first_fiber + i].get();
        unsigned x = at->grid.x, y = at->grid.y;
        f->cta = c;
        f->where = {i,
                    at->threads,
                    {w.index % x, w.index / x % y, w.index / x / y},
                    {at->grid.x, at->grid.y, at->grid.z}};
        prepare(f);
    }
    return true;
}

/* The ring of fibers: warps in a random order, lanes in order. */
void make_ring()
{
    std::vector<std::pair<unsigned, unsigned>> warps;
    for (struct cta &c : emu.resident)
        for (unsigned w = 0; c.call && w < c.n_threads / DEV_WARP; w++)
            warps.push_back({c.first_fiber + w * DEV_WARP, DEV_WARP});
    shuffle(warps);
    emu.order.clear();
    for (auto w : warps)
        for (unsigned i = 0; i < w.second; i++)
            emu.order.push_back(emu.pool[w.first + i].get());
}

int run_all()
{
    for (;;) {
        /* Somebody who can run, or the end. */
        bool changed = false, any = false;
        for (struct cta &c : emu.resident)
            if (c.call && c.n_done == c.n_threads) {
                c.call = nullptr;
                fill_resident(&c);
                changed = true;
            }
        for (struct cta &c : emu.resident)
            any |= c.call != nullptr;
        if (!any)
            return 0;
        if (changed || emu.order.empty())
            make_ring();
        struct fiber *first = nullptr;
        for (struct fiber *f : emu.order)
            if (f->state == READY) {
                first = f;
                break;
            }
        if (!first) {
            snprintf(emu.message, sizeof emu.message, "CTAs wait for each other for ever");
            return -1;
        }
        for (emu.at = 0; emu.order[emu.at] != first;)
            emu.at++;
        switch_to(nullptr, first, false);
        if (emu.failed)
            return -1;
    }
}

std::mutex allowing;
std::map<const void *, size_t> allowed_shared;

bool plausible(const struct emu_call *c)
{
    const size_t shared = c->allowed ? c->allowed : (size_t)STATIC_LIMIT;
    const struct dev_launch *at = &c->at;
    const char *problem = nullptr;
    if (!at->threads || at->threads % DEV_WARP || at->threads > MAX_THREADS)
        problem = "threads";
    else if (!at->grid.x || !at->grid.y || !at->grid.z || at->grid.y > 65535 || at->grid.z > 65535)
        problem = "grid";
    else if (at->shared > shared)
        problem = "shared memory";
    if (problem)
        snprintf(emu.message, sizeof emu.message,
                 "launch: impossible %s: %u threads, grid %u x %u x %u, %zu bytes shared (at most "
                 "%zu)",
                 problem, at->threads, at->grid.x, at->grid.y, at->grid.z, at->shared, shared);
    return !problem;
}

} // namespace

int emu_allow_shared(const void *function, size_t bytes)
{
    if (bytes > (size_t)SHARED_LIMIT)
        return INVALID_VALUE;
    std::lock_guard<std::mutex> guard(allowing);
    allowed_shared[function] = bytes;
    return 0;
}

size_t emu_allowed_shared(const void *function)
{
    std::lock_guard<std::mutex> guard(allowing);
    auto found = allowed_shared.find(function);
    return found == allowed_shared.end() ? 0 : found->second;
}

int emu_run(const struct emu_call *calls, unsigned n)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    assert(!emu.current && "kernels do not launch kernels");
    for (unsigned i = 0; !have_halves && i < 1 << 16; i++)
        half_values[i] = half_to_float((uint16_t)i);
    have_halves = true;
    emu.failed = false;
    emu.message[0] = '\0';
    emu.queue.clear();
    emu.resident.clear();
    emu.order.clear();
    emu.next_work = emu.at = 0;
    emu.spins = 0;
    emu.main_stack = nullptr;
    emu.random = options.seed ? options.seed : 1;
    unsigned threads = 0;
    for (unsigned i = 0; i < n; i++) {
        if (!plausible(&calls[i]))
            return -1;
        const struct dev_launch *at = &calls[i].at;
        threads = at->threads > threads ? at->threads : threads;
        for (unsigned j = 0; j < at->grid.x * at->grid.y * at->grid.z; j++)
            emu.queue.push_back({&calls[i], j});
    }
    shuffle(emu.queue);
    size_t resident = options.resident_ctas && n == 1 ? options.resident_ctas : emu.queue.size();
    resident = resident < emu.queue.size() ? resident : emu.queue.size();
    while (emu.pool.size() < resident * threads)
        emu.pool.push_back(std::make_unique<struct fiber>());
    emu.resident.resize(resident);
    for (size_t i = 0; i < resident; i++) {
        emu.resident[i].first_fiber = (unsigned)i * threads;
        fill_resident(&emu.resident[i]);
    }
    return run_all();
}

/* ---- kernels of several threads that wait for each other ---- */

namespace
{

struct together {
    std::vector<struct emu_call> calls;
    int result = 0;
};

std::mutex meeting;
std::condition_variable met;
std::map<uint64_t, std::shared_ptr<together>> gathering;
int64_t together_ms = 10000;

} // namespace

void emu_set_together_ms(int64_t ms)
{
    std::lock_guard<std::mutex> hold(meeting);
    together_ms = ms;
}

int emu_run_together(uint64_t key, unsigned size, const struct emu_call *call)
{
    std::unique_lock<std::mutex> hold(meeting);
    std::shared_ptr<together> &place = gathering[key];
    if (!place)
        place = std::make_shared<together>();
    std::shared_ptr<together> mine = place;
    mine->calls.push_back(*call);
    auto begun = [&] {
        auto at = gathering.find(key);
        return at == gathering.end() || at->second != mine;
    };
    if (mine->calls.size() < size)
        met.wait_for(hold, std::chrono::milliseconds(together_ms), begun);
    if (!begun()) { /* the last one, or the first whose patience ended */
        gathering.erase(key);
        mine->result = emu_run(mine->calls.data(), (unsigned)mine->calls.size());
        mine->calls.clear();
        met.notify_all();
    }
    return mine->result;
}

void emu_set_options(const struct emu_options *o)
{
    options = *o;
}

const char *emu_message(void)
{
    return emu.message;
}

void emu_die(void)
{
    fprintf(stderr, "emulated GPU: %s\n", emu.message);
    abort();
}

void emu_fail(const char *format, ...)
{
    char text[384];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const struct fiber *f = emu.current;
    if (!f) {
        snprintf(emu.message, sizeof emu.message, "%s", text);
        emu_die();
    }
    snprintf(emu.message, sizeof emu.message, "CTA (%u, %u, %u), thread %u: %s", f->where.cta[0],
             f->where.cta[1], f->where.cta[2], f->where.thread, text);
    emu.failed = true;
    leave();
}

bool emu_works(void)
{
#if defined(__SANITIZE_THREAD__)
    return false;
#else
    return true;
#endif
}

/* ---- waiting ---- */

void emu_barrier(int line)
{
    struct fiber *f = emu.current;
    struct cta *c = f->cta;
    emu.spins = 0;
    if (c->n_at_barrier && c->barrier_line != line)
        emu_fail("the barrier of line %d, while other threads wait at the one of line %d", line,
                 c->barrier_line);
    c->barrier_line = line;
    f->op = "a barrier";
    if (++c->n_at_barrier < c->n_threads) {
        f->state = AT_BARRIER;
        schedule();
        return;
    }
    c->n_at_barrier = 0;
    c->barriers++;
    for (unsigned i = 0; i < c->n_threads; i++)
        emu.pool[c->first_fiber + i]->state = READY;
}

void emu_warp_op(const char *name, void (*op)(struct emu_slots *s), void *slot, size_t bytes)
{
    struct fiber *f = emu.current;
    unsigned lane = f->where.thread % DEV_WARP, first = f->where.thread - lane;
    struct warp *w = &f->cta->warps[first / DEV_WARP];
    emu.spins = 0;
    if (w->arrived && strcmp(w->op, name) != 0)
        emu_fail("%s, while other lanes of the warp wait at %s", name, w->op);
    w->op = f->op = name;
    if (bytes)
        memcpy(w->slots.lane[lane], slot, bytes);
    if (++w->arrived < DEV_WARP) {
        f->state = AT_WARP;
        schedule();
    } else {
        w->arrived = 0;
        if (op)
            op(&w->slots);
        else
            w->order++; /* warp_sync */
        for (unsigned i = 0; i < DEV_WARP; i++)
            emu.pool[f->cta->first_fiber + first + i]->state = READY;
    }
    if (bytes)
        memcpy(slot, w->slots.lane[lane], bytes);
}

void emu_spin(void)
{
    if (++emu.spins > SPINS)
        emu_fail("waits for something that does not happen (dev_spin)");
    schedule();
}

/* ---- shared memory ---- */

long emu_static_offset(size_t bytes, size_t align, int line)
{
    struct fiber *f = emu.current;
    struct cta *c = f->cta;
    size_t base = (c->call->at.shared + 15) / 16 * 16;
    size_t at = (f->static_top + align - 1) / align * align;
    if (f->n_statics == MAX_STATICS || at + bytes > (size_t)STATIC_LIMIT)
        emu_fail("too much static shared memory: %zu bytes", at + bytes);
    if (f->n_statics == c->n_statics) {
        c->statics[c->n_statics].bytes = bytes;
        c->statics[c->n_statics++].line = line;
        const size_t most = c->call->allowed ? (size_t)SHARED_LIMIT : (size_t)STATIC_LIMIT;
        if (base + at + bytes > most)
            emu_fail("more than %zu bytes of shared memory, static and dynamic: %zu", most,
                     base + at + bytes);
        c->memory.resize(base + at + bytes, 0xff);
        c->shadows.resize((base + at + bytes + 3) / 4, {});
    } else if (c->statics[f->n_statics].line != line || c->statics[f->n_statics].bytes != bytes) {
        emu_fail("shared memory of line %d is declared in another order than by other threads",
                 line);
    }
    f->n_statics++;
    f->static_top = at + bytes;
    return (long)(base + at);
}

long emu_dynamic_offset(size_t offset, size_t bytes)
{
    if (offset + bytes > emu.current->cta->call->at.shared)
        emu_fail("dynamic shared memory [%zu, %zu) of a launch with %zu bytes", offset,
                 offset + bytes, emu.current->cta->call->at.shared);
    return (long)offset;
}

unsigned char *emu_shared_atomic(long at, size_t bytes, long low, long high)
{
    struct cta *c = emu.current->cta;
    if (at < low || at + (long)bytes > high)
        emu_fail("shared memory out of bounds: bytes [%ld, %ld) of [0, %ld)", at - low,
                 at - low + (long)bytes, high - low);
    if (at % (long)bytes)
        emu_fail("shared memory at byte %ld: not a multiple of %zu", at, bytes);
    return c->memory.data() + at;
}

namespace
{

bool same_warp(unsigned a, unsigned b)
{
    return a / DEV_WARP == b / DEV_WARP;
}

/* An access after which nothing has ordered this thread's: made by `other` since the last barrier,
 * and in the same warp since the last dev_warp_sync (`order` of them then). */
bool unordered(const struct cta *c, unsigned other, unsigned barrier, unsigned order,
               unsigned thread)
{
    return barrier == c->barriers &&
           (!same_warp(other, thread) || order == c->warps[thread / DEV_WARP].order);
}

void check_write(const struct cta *c, const struct shadow *s, unsigned thread, long at)
{
    bool race = false;
    if (s->readers == SEVERAL_WARPS)
        race = s->read_barrier == c->barriers;
    else if (s->readers == SOME_OF_WARP || (s->readers == ONE && s->reader != thread))
        race = unordered(c, s->reader, s->read_barrier, s->read_order, thread);
    if (race)
        emu_fail("race: shared byte %ld is written and was read by another thread (%u, say) with "
                 "no barrier since",
                 at, s->reader);
}

void note_read(const struct cta *c, struct shadow *s, unsigned thread)
{
    unsigned order = c->warps[thread / DEV_WARP].order;
    bool fresh = s->readers == NOBODY || s->read_barrier != c->barriers;
    if (!fresh && !same_warp(s->reader, thread))
        s->readers = SEVERAL_WARPS;
    else if (fresh || (s->readers != SEVERAL_WARPS && s->read_order != order))
        s->readers = ONE;
    else if (s->readers == ONE && s->reader != thread)
        s->readers = SOME_OF_WARP;
    s->reader = thread;
    s->read_barrier = c->barriers;
    s->read_order = order;
}

void check_race(struct cta *c, struct shadow *s, unsigned thread, bool write, long at)
{
    if (s->writer >= 0 && s->writer != (int)thread &&
        unordered(c, (unsigned)s->writer, s->write_barrier, s->write_order, thread))
        emu_fail("race: shared byte %ld was written by thread %d, no barrier since", at, s->writer);
    if (!write) {
        note_read(c, s, thread);
        return;
    }
    check_write(c, s, thread, at);
    s->writer = (int)thread;
    s->write_barrier = c->barriers;
    s->write_order = c->warps[thread / DEV_WARP].order;
    s->readers = NOBODY;
}

} // namespace

unsigned char *emu_shared_access(long at, size_t bytes, long low, long high, bool write)
{
    unsigned char *p = emu_shared_atomic(at, bytes, low, high);
    struct fiber *f = emu.current;
    for (long word = at / 4; word <= (at + (long)bytes - 1) / 4; word++) {
        /* halves of a word may have different owners: only whole words are checked */
        if (bytes >= 4)
            check_race(f->cta, &f->cta->shadows[(size_t)word], f->where.thread, write, at);
    }
    return p;
}

/* ---- asynchronous copies ---- */

void emu_copy16(dev_shared<uint4> dst, const void *src, bool valid)
{
    struct fiber *f = emu.current;
    unsigned char *to = dst.access(16, true);
    if (valid)
        emu_check_aligned(src, 16);
#if EMU_ARCH >= 800
    if (f->n_copies == MAX_COPIES)
        emu_fail("more than %d copies in flight", (int)MAX_COPIES);
    memset(to, 0xff, 16);
    f->copies[f->n_copies++] = {dst.at_, dst.low_, dst.high_, valid ? src : nullptr, f->group};
#else
    (void)f;
    if (valid)
        memcpy(to, src, 16);
    else
        memset(to, 0, 16);
#endif
}

void emu_copy_commit(void)
{
    emu.current->group++;
}

void emu_copy_wait(unsigned groups)
{
    struct fiber *f = emu.current;
    unsigned kept = 0;
    for (unsigned i = 0; i < f->n_copies; i++) {
        copy *p = &f->copies[i];
        if (p->group + groups >= f->group) { /* one of the last groups, or not committed */
            f->copies[kept++] = *p;
            continue;
        }
        unsigned char *to = emu_shared_access(p->at, 16, p->low, p->high, true);
        if (p->src)
            memcpy(to, p->src, 16);
        else
            memset(to, 0, 16);
    }
    f->n_copies = kept;
}

/* ---- warp operations ---- */

namespace
{

void ballot_op(struct emu_slots *s)
{
    uint32_t all = 0;
    for (unsigned i = 0; i < DEV_WARP; i++)
        all |= (uint32_t)(s->lane[i][0] != 0) << i;
    for (unsigned i = 0; i < DEV_WARP; i++)
        memcpy(s->lane[i], &all, sizeof all);
}

/* In: 16 bytes. Out: columns 2t, 2t + 1 of row g of the four matrices. */
template <bool TRANSPOSED> void ldmatrix_op(struct emu_slots *s)
{
    uint16_t m[4][8][8];
    for (unsigned i = 0; i < DEV_WARP; i++)
        memcpy(m[i / 8][i % 8], s->lane[i], 16);
    for (unsigned i = 0; i < DEV_WARP; i++)
        for (unsigned j = 0; j < 4; j++) {
            unsigned row = i / 4, col = i % 4 * 2;
            uint16_t pair[2] = {m[j][row][col], m[j][row][col + 1]};
            if (TRANSPOSED) {
                pair[0] = m[j][col][row];
                pair[1] = m[j][col + 1][row];
            }
            memcpy(s->lane[i] + 4 * j, pair, 4);
        }
}

struct mma_slot {
    float c[4];
    uint32_t a[4], b[2];
};
static_assert(sizeof(mma_slot) <= EMU_SLOT, "a slot holds it");

float toward_zero(double v)
{
    float f = (float)v;
    return fabs((double)f) > fabs(v) ? nextafterf(f, 0.0f) : f;
}

template <unsigned K> void mma_op(struct emu_slots *s)
{
    mma_slot lane[DEV_WARP];
    double a[16][K], b[8][K];
    for (unsigned i = 0; i < DEV_WARP; i++) {
        memcpy(&lane[i], s->lane[i], sizeof lane[i]);
        unsigned g = i / 4, t = i % 4;
        for (unsigned half = 0; half < K / 8; half++)
            for (unsigned e = 0; e < 2; e++) {
                unsigned k = 2 * t + e + 8 * half, shift = 16 * e;
                a[g][k] = (double)half_values[lane[i].a[2 * half] >> shift & 0xffff];
                a[g + 8][k] = (double)half_values[lane[i].a[2 * half + 1] >> shift & 0xffff];
                b[g][k] = (double)half_values[lane[i].b[half] >> shift & 0xffff];
            }
    }
    for (unsigned i = 0; i < DEV_WARP; i++) {
        for (unsigned j = 0; j < 4; j++) {
            unsigned row = i / 4 + (j < 2 ? 0 : 8), col = i % 4 * 2 + j % 2;
            double sum = 0;
            for (unsigned k = 0; k < K; k++)
                sum += a[row][k] * b[col][k];
            lane[i].c[j] = toward_zero((double)lane[i].c[j] + sum);
        }
        memcpy(s->lane[i], lane[i].c, sizeof lane[i].c);
    }
}

} // namespace

uint32_t emu_ballot(bool b)
{
    uint32_t v = b;
    emu_warp_op("ballot", ballot_op, &v, sizeof v);
    return v;
}

void emu_ldmatrix4(uint32_t *r, dev_shared<uint4> row, bool transposed)
{
    memcpy(r, row.access(16, false), 16);
    emu_warp_op("ldmatrix", transposed ? ldmatrix_op<true> : ldmatrix_op<false>, r, 16);
}

void emu_mma(unsigned k, float *c, const uint32_t *a, const uint32_t *b)
{
    mma_slot slot = {};
    memcpy(slot.c, c, sizeof slot.c);
    memcpy(slot.a, a, k / 4 * sizeof *a);
    memcpy(slot.b, b, k / 8 * sizeof *b);
    emu_warp_op(k == 16 ? "mma.k16" : "mma.k8", k == 16 ? mma_op<16> : mma_op<8>, &slot,
                sizeof slot);
    memcpy(c, slot.c, sizeof slot.c);
}

/* ---- memory ---- */

namespace
{
std::map<void *, std::pair<void *, size_t>> blocks; /* pointer -> mapping */
}

void *emu_alloc(size_t bytes)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t used = (bytes + 15) / 16 * 16, pages = (used + page - 1) / page * page;
    char *map = (char *)mmap(nullptr, pages + page, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return nullptr;
    if (mprotect(map + pages, page, PROT_NONE) != 0)
        abort();
    memset(map, 0xff, pages);
    void *p = map + pages - used;
    blocks[p] = {map, pages + page};
    return p;
}

void emu_free(void *p)
{
    if (!p)
        return;
    std::lock_guard<std::recursive_mutex> guard(lock);
    auto at = blocks.find(p);
    assert(at != blocks.end() && "not from emu_alloc, or freed before");
    munmap(at->second.first, at->second.second);
    blocks.erase(at);
}
