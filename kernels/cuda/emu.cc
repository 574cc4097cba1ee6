/* emu.cc: the emulated GPU (emu.h): launches, the CTAs that are in flight, and messages. */
#include "emu_state.h"

#include <atomic>
#include <cassert>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

using namespace emulation;

namespace
{

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
    c->groups.assign(at->threads / DEV_WARP / 4, {});
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

/* ---- recording ---- */

struct emu_record {
    std::vector<std::function<int()>> all;
};

namespace
{
std::mutex recording; /* guards `records` */
std::map<const struct CUstream_st *, std::unique_ptr<emu_record>> records;
std::atomic<int (*)(void)> record_hook;
std::atomic<uint64_t> n_launches;
thread_local bool from_record;
} // namespace

uint64_t emu_n_launches(void)
{
    return n_launches;
}

void emu_count_launch(void)
{
    n_launches += !from_record;
}

void emu_record_begin(struct CUstream_st *stream)
{
    std::lock_guard<std::mutex> hold(recording);
    records[stream] = std::make_unique<emu_record>();
}

struct emu_record *emu_record_end(struct CUstream_st *stream)
{
    std::lock_guard<std::mutex> hold(recording);
    auto at = records.find(stream);
    if (at == records.end())
        return nullptr;
    emu_record *r = at->second.release();
    records.erase(at);
    return r;
}

bool emu_recording(const struct CUstream_st *stream)
{
    std::lock_guard<std::mutex> hold(recording);
    return !records.empty() && records.count(stream);
}

int emu_record_add(struct CUstream_st *stream, std::function<int()> what)
{
    int (*hook)(void) = record_hook;
    int e = hook ? hook() : 0;
    if (e)
        return e;
    std::lock_guard<std::mutex> hold(recording);
    records[stream]->all.push_back(std::move(what));
    return 0;
}

int emu_record_run(const struct emu_record *r)
{
    int e = 0;
    from_record = true;
    for (const std::function<int()> &what : r->all)
        if ((e = what()) != 0)
            break;
    from_record = false;
    return e;
}

void emu_record_free(struct emu_record *r)
{
    delete r;
}

void emu_set_record_hook(int (*hook)(void))
{
    record_hook = hook;
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
