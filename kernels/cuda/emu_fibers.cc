/* emu_fibers.cc: the threads of the emulated GPU (emu.h): switching between them, and who runs
 * next. Context switches are a dozen instructions on x86-64 and ucontext elsewhere. */
#include "emu_state.h"

#include <cassert>
#include <cstdlib>

#include <sys/mman.h>

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

struct emu_thread emu_now;

std::recursive_mutex emulation::lock;
struct emu_options emulation::options = {0, 1};
struct emulation::schedule_state emulation::emu;
float emulation::half_values[1 << 16];

using namespace emulation;

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

void emulation::switch_to(struct fiber *from, struct fiber *to, bool dying)
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

void emulation::leave()
{
    switch_to(emu.current, nullptr, true);
    abort();
}

namespace
{

const char *state_name(enum state s)
{
    static const char *const names[] = {"idle",     "runs",         "at a warp operation",
                                        "at wgmma", "at a barrier", "returned"};
    return names[s];
}

/* Threads that what it waits for takes. */
unsigned together(const struct fiber *f)
{
    return f->state == AT_WARP    ? (unsigned)DEV_WARP
           : f->state == AT_GROUP ? 4 * (unsigned)DEV_WARP
                                  : (unsigned)MAX_THREADS;
}

/* Nobody can run: says who waits for whom. */
[[noreturn]] void report_stuck()
{
    const struct fiber *a = nullptr, *b = nullptr;
    for (const struct fiber *f : emu.order) {
        if ((f->state == AT_WARP || f->state == AT_GROUP) && (!a || a->state == AT_BARRIER))
            a = f;
        else if (f->state == AT_BARRIER && !a)
            a = f;
    }
    for (const struct fiber *f : emu.order)
        if (a && f->cta == a->cta && f->state != a->state && f->state != IDLE &&
            f->where.thread / together(a) == a->where.thread / together(a))
            b = f;
    if (!a)
        emu_fail("nothing can run");
    if (b)
        emu_fail("thread %u of CTA %u waits at %s, which thread %u does not reach: it %s%s%s",
                 a->where.thread, a->where.cta[0], a->op, b->where.thread, state_name(b->state),
                 b->op ? " " : "", b->op ? b->op : "");
    emu_fail("thread %u of CTA %u waits at %s for ever", a->where.thread, a->where.cta[0], a->op);
}

} // namespace

void emulation::schedule()
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

namespace
{

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
    if (f->wgmma_open || f->wgmma_done != f->wgmma_committed)
        emu_fail("thread %u returns with wgmma in flight that it did not wait for",
                 f->where.thread);
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

} // namespace

void emulation::prepare(struct fiber *f)
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
    f->async_fences = f->wgmma_fences = f->wgmma_committed = f->wgmma_done = 0;
    f->wgmma_open = false;
    f->operands.clear();
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
