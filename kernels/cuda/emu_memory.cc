/* emu_memory.cc: the memory of the emulated GPU (emu.h): shared memory with its bounds and races,
 * asynchronous copies into it, and device memory. */
#include "emu_state.h"

#include <cassert>
#include <cstdlib>
#include <map>

#include <sys/mman.h>
#include <unistd.h>

using namespace emulation;

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
    s->write_fences = emu.current->async_fences;
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

const unsigned char *emulation::async_access(long at)
{
    struct cta *c = emu.current->cta;
    for (long word = at / 4; word < (at + 16) / 4 && word < (long)c->shadows.size(); word++) {
        const struct shadow *s = &c->shadows[(size_t)word];
        if (s->writer >= 0 &&
            emu.pool[c->first_fiber + (unsigned)s->writer]->async_fences <= s->write_fences)
            emu_fail("wgmma reads shared byte %ld, written by thread %d without dev_async_fence "
                     "since",
                     word * 4, s->writer);
    }
    return emu_shared_access(at, 16, 0, (long)c->memory.size(), false);
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
