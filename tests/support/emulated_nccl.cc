/* emulated_nccl.cc: see emulated_nccl.h. A call returns when the data has moved, as everything does
 * on the emulated GPU. */
#include "tests/support/emulated_nccl.h"

#include <cassert>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/cuda/dev.h"
#include "kernels/cuda/nccl.h"
#include "tests/support/emulated_driver.h"

namespace
{

struct transfer {
    bool sends;
    char *at;
    size_t bytes;
    int peer;
};

/* The ranks of one unique id, meeting. */
struct hub {
    std::vector<const std::vector<transfer> *> given; /* [size], of the running call */
    unsigned size = 0, n_here = 0, generation = 0;
};

std::mutex lock;
std::condition_variable changed;
std::map<uint64_t, std::shared_ptr<hub>> hubs;
uint64_t n_ids;
struct emulated_nccl state;
bool ready;

/* Of this thread, that is, of this rank. */
thread_local std::vector<transfer> group;
thread_local int group_depth;
thread_local struct ncclComm *group_comm, *pending_comm;
thread_local struct CUstream_st *group_stream;

void make_ready()
{
    if (!ready)
        emulated_nccl_reset();
}

bool pending()
{
    return pending_comm != nullptr;
}

} // namespace

struct ncclComm {
    std::shared_ptr<hub> place;
    int rank;
};

namespace
{

int version(int *ret)
{
    *ret = state.version;
    return NCCL_OK;
}

int unique_id(struct nccl_id *ret)
{
    std::lock_guard<std::mutex> hold(lock);
    *ret = {};
    n_ids++;
    memcpy(ret->bytes, &n_ids, sizeof n_ids);
    int error = state.id_error;
    state.id_error = 0;
    return error;
}

int init(struct ncclComm **ret, int size, struct nccl_id id, int rank, struct nccl_config *config)
{
    std::lock_guard<std::mutex> hold(lock);
    assert(config->blocking == 0 && config->size >= sizeof *config);
    if (state.init_error && rank == state.bad_rank) {
        int error = state.init_error;
        state.init_error = 0;
        return error;
    }
    uint64_t number;
    memcpy(&number, id.bytes, sizeof number);
    std::shared_ptr<hub> &place = hubs[number];
    if (!place)
        place = std::make_shared<hub>();
    place->size = (unsigned)size;
    place->given.resize((size_t)size);
    *ret = new ncclComm{place, rank};
    state.n_comms++;
    return NCCL_IN_PROGRESS;
}

int async_error(struct ncclComm *, int *ret)
{
    std::lock_guard<std::mutex> hold(lock);
    *ret = state.async_error ? state.async_error : state.init_hangs ? NCCL_IN_PROGRESS : NCCL_OK;
    return NCCL_OK;
}

int abort_comm(struct ncclComm *c)
{
    std::lock_guard<std::mutex> hold(lock);
    if (pending_comm == c)
        pending_comm = nullptr;
    state.n_comms--;
    state.n_aborted++;
    delete c;
    return NCCL_OK;
}

/* All ranks of the hub have come, twice a call: to give and to take. */
void meet(std::unique_lock<std::mutex> &hold, struct hub *h)
{
    unsigned generation = h->generation;
    if (++h->n_here == h->size) {
        h->n_here = 0;
        h->generation++;
        changed.notify_all();
        return;
    }
    changed.wait(hold, [&] { return h->generation != generation; });
}

/* Moves what this rank sends and receives, when the stream comes to it; `given` is looked at by its
 * peers. */
int move(struct ncclComm *c, const std::vector<transfer> &given, struct CUstream_st *stream)
{
    if (emu_recording(stream))
        return emu_record_add(stream, [=] { return move(c, given, stream); });
    std::unique_lock<std::mutex> hold(lock);
    if (state.calls_hang) {
        pending_comm = c;
        return NCCL_OK;
    }
    struct hub *h = c->place.get();
    h->given[(size_t)c->rank] = &given;
    meet(hold, h);
    std::map<int, size_t> next; /* of a peer's transfers */
    for (const transfer &to : given) {
        if (to.sends)
            continue;
        const std::vector<transfer> &theirs = *h->given[(size_t)to.peer];
        size_t &i = next[to.peer];
        while (i < theirs.size() && !(theirs[i].sends && theirs[i].peer == c->rank))
            i++;
        assert(i < theirs.size() && theirs[i].bytes == to.bytes);
        if (to.at != theirs[i].at)
            memcpy(to.at, theirs[i].at, to.bytes);
        i++;
    }
    meet(hold, h);
    return NCCL_OK;
}

int group_start()
{
    group_depth++;
    return NCCL_OK;
}

int group_end()
{
    assert(group_depth > 0);
    if (--group_depth)
        return NCCL_OK;
    {
        std::lock_guard<std::mutex> hold(lock);
        state.n_groups++;
    }
    std::vector<transfer> given;
    given.swap(group);
    return move(group_comm, given, group_stream);
}

int all_gather(const void *src, void *dst, size_t n, int type, struct ncclComm *c,
               struct CUstream_st *stream)
{
    assert(type == NCCL_HALF && !group_depth);
    std::vector<transfer> given;
    {
        std::lock_guard<std::mutex> hold(lock);
        state.n_gathers += c->rank == 0;
    }
    size_t bytes = n * 2;
    for (int r = 0; r < (int)c->place->size; r++) {
        given.push_back({true, (char *)const_cast<void *>(src), bytes, r});
        given.push_back({false, (char *)dst + (size_t)r * bytes, bytes, r});
    }
    return move(c, given, stream);
}

int send(const void *src, size_t n, int type, int to, struct ncclComm *c,
         struct CUstream_st *stream)
{
    assert(type == NCCL_HALF && group_depth);
    group_comm = c;
    group_stream = stream;
    group.push_back({true, (char *)const_cast<void *>(src), n * 2, to});
    return NCCL_OK;
}

int recv(void *dst, size_t n, int type, int from, struct ncclComm *c, struct CUstream_st *stream)
{
    assert(type == NCCL_HALF && group_depth);
    group_comm = c;
    group_stream = stream;
    group.push_back({false, (char *)dst, n * 2, from});
    return NCCL_OK;
}

const char *error_text(int error)
{
    return error == 1 ? "unhandled cuda error" : error == 6 ? "remote process exited" : "error";
}

const char *last_error(struct ncclComm *)
{
    return "as the test asked for";
}

const struct nccl_library library = {
    version,   unique_id,  init, async_error, abort_comm, group_start,
    group_end, all_gather, send, recv,        error_text, last_error,
};

} // namespace

struct emulated_nccl *emulated_nccl_state(void)
{
    make_ready();
    return &state;
}

void emulated_nccl_reset(void)
{
    int n_comms = state.n_comms;
    state = {};
    state.version = 22809;
    state.n_comms = n_comms;
    ready = true;
}

const struct nccl_library *nccl_find(char *message, size_t size)
{
    std::lock_guard<std::mutex> hold(lock);
    make_ready();
    emulated_driver_state()->pending = pending;
    if (!state.missing)
        return &library;
    snprintf(message, size, "%s", state.missing);
    return nullptr;
}
