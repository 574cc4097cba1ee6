/* fit.c: see fit.h. Devices, one layout, the choice among layouts; words are in fit_words.c. */
#include "cli/fit.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "model/shard.h"

enum { MIN_BLOCKS = 2 }; /* of an engine */

/* ---- devices ---- */

static int parse_size(const char *text, size_t n, uint64_t *ret)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1099511627776.0},
                 {"MB", 1e6},      {"GB", 1e9},      {"TB", 1e12}};
    char number[32] = "";
    size_t n_digits = strspn(text, "0123456789.");
    if (n_digits < 1 || n_digits >= n || n >= sizeof number)
        return -EINVAL;
    memcpy(number, text, n);
    const char *unit = number + n_digits;
    char *end;
    double value = strtod(number, &end);
    if (end != unit)
        return -EINVAL;
    for (size_t i = 0; i != ARRAY_LEN(units); i++) {
        double bytes = value * units[i].bytes;
        if (strcmp(unit, units[i].name) == 0 && bytes >= 1 << 20 && bytes <= 64 * 1099511627776.0) {
            *ret = (uint64_t)bytes;
            return 0;
        }
    }
    return -EINVAL;
}

/* "cuda:2x24GiB", of which "cuda:" and "2x" may be absent. */
static int parse_devices(const char *text, size_t n, const struct k_sizes **kind, uint32_t *ret_n,
                         uint64_t *ret_bytes)
{
    const char *end = text + n;
    const char *colon = memchr(text, ':', n);
    if (colon) {
        char name[8] = "";
        if ((size_t)(colon - text) >= sizeof name)
            return -EINVAL;
        memcpy(name, text, (size_t)(colon - text));
        const struct k_sizes *sizes = strcmp(name, "gpu") == 0 ? k_sizes("cuda") : k_sizes(name);
        if (!sizes || (*kind && *kind != sizes))
            return -EINVAL;
        *kind = sizes;
        text = colon + 1;
    }
    if (!*kind)
        *kind = k_sizes("cuda");
    *ret_n = 1;
    const char *times = memchr(text, 'x', (size_t)(end - text));
    if (times) {
        uint32_t count = 0;
        for (const char *p = text; p != times; p++) {
            if (*p < '0' || *p > '9' || count > FIT_MAX_DEVICES)
                return -EINVAL;
            count = count * 10 + (uint32_t)(*p - '0');
        }
        *ret_n = count;
        text = times + 1;
    }
    return *ret_n < 1 || text == end ? -EINVAL : parse_size(text, (size_t)(end - text), ret_bytes);
}

int fit_devices_add(struct fit_devices *d, const char *text, struct err *e)
{
    uint32_t index = 0;
    for (const char *item = text;; item++) {
        size_t length = strcspn(item, ",");
        uint32_t n;
        uint64_t bytes;
        if (parse_devices(item, length, &d->sizes, &n, &bytes) < 0)
            return err_set(e, -EINVAL,
                           "devices \"%s\": expected e.g. 8x24GiB, 2x24GiB,1x48GiB or cpu:64GiB, "
                           "of one kind (cuda or cpu), in MiB, GiB, TiB, MB, GB or TB, found "
                           "\"%.*s\"",
                           text, (int)MIN(length, (size_t)64), item);
        if (n > FIT_MAX_DEVICES - d->n)
            return err_set(e, -EINVAL, "devices \"%s\": a group has at most %d", text,
                           FIT_MAX_DEVICES);
        for (uint32_t i = 0; i != n; i++)
            d->device[d->n++] =
                (struct fit_device){.host = d->n_hosts, .index = index++, .bytes = bytes};
        item += length;
        if (!*item)
            break;
    }
    d->n_hosts++;
    return 0;
}

uint64_t fit_reserve(const struct k_sizes *sizes, uint64_t device_bytes)
{
    return (sizes->host_memory ? FIT_CPU_RESERVE_BYTES : FIT_GPU_RESERVE_BYTES) +
           device_bytes / 100 * FIT_HEAD_ROOM_PERCENT;
}

static uint64_t usable(const struct fit_request *q, uint32_t device)
{
    uint64_t bytes = q->devices->device[device].bytes;
    uint64_t reserve = fit_reserve(q->devices->sizes, bytes);
    return bytes > reserve ? bytes - reserve : 0;
}

/* ---- devices of the stages ---- */

/* Consecutive devices [tp] of one stage. */
struct place {
    uint32_t device[FIT_MAX_DEVICES];
    uint64_t usable; /* of the smallest device */
};

struct places {
    struct place place[FIT_MAX_DEVICES];
    uint32_t n;
};

static void add_place(const struct fit_request *q, const uint32_t *devices, uint32_t tp,
                      struct places *p)
{
    struct place *place = &p->place[p->n++];
    place->usable = UINT64_MAX;
    for (uint32_t i = 0; i != tp; i++) {
        place->device[i] = devices[i];
        place->usable = MIN(place->usable, usable(q, devices[i]));
    }
}

/* Small devices first, so that those of a stage are alike. Stable. */
static void sort_by_size(const struct fit_devices *d, uint32_t *devices, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        uint32_t moved = devices[i], k = i;
        for (; k > 0 && d->device[devices[k - 1]].bytes > d->device[moved].bytes; k--)
            devices[k] = devices[k - 1];
        devices[k] = moved;
    }
}

/* The devices of each host in groups of tp; what remains of a host (its smallest) stays idle. */
static void places_within_hosts(const struct fit_request *q, uint32_t tp, struct places *ret)
{
    const struct fit_devices *d = q->devices;
    ret->n = 0;
    for (uint32_t begin = 0, end; begin < d->n; begin = end) {
        uint32_t devices[FIT_MAX_DEVICES], n = 0;
        for (end = begin; end < d->n && d->device[end].host == d->device[begin].host; end++)
            devices[n++] = end;
        if (tp > 1)
            sort_by_size(d, devices, n);
        for (uint32_t i = n % tp; i < n; i += tp)
            add_place(q, devices + i, tp, ret);
    }
}

static void places_over_hosts(const struct fit_request *q, uint32_t tp, struct places *ret)
{
    uint32_t devices[FIT_MAX_DEVICES];
    ret->n = 0;
    for (uint32_t i = 0; i != q->devices->n; i++)
        devices[i] = i;
    for (uint32_t i = 0; i + tp <= q->devices->n; i += tp)
        add_place(q, devices + i, tp, ret);
}

/* Leaves the roomiest n, in their order. */
static void drop_small(struct places *p, uint32_t n)
{
    while (p->n > n) {
        uint32_t smallest = 0;
        for (uint32_t i = 1; i != p->n; i++)
            smallest = p->place[i].usable < p->place[smallest].usable ? i : smallest;
        p->n--;
        memmove(&p->place[smallest], &p->place[smallest + 1],
                (p->n - smallest) * sizeof p->place[0]);
    }
}

/* ---- bytes ---- */

static int stage_footprint(const struct fit_request *q, uint32_t tp, uint32_t begin, uint32_t end,
                           struct footprint *ret, struct err *e)
{
    struct footprint_rank r = {.arch = q->arch,
                               .scheme = q->scheme,
                               .sizes = q->devices->sizes,
                               .mode = q->mode,
                               .kv_type = q->kv_type,
                               .tp_size = tp,
                               .layer_begin = begin,
                               .layer_end = end};
    struct plan_limits limits;
    footprint_limits(q->arch, q->n_slots, q->max_step_tokens, &limits);
    return footprint_of(&r, &limits, ret, e);
}

static uint64_t scratch_on_device(const struct fit_request *q, const struct footprint *f)
{
    return f->scratch + (q->devices->sizes->host_memory ? f->scratch_host : 0);
}

/* What each stage can carry of layers: its memory without the reserve, the scratch and, at both
 * ends, the embedding. In 2^-30 of the largest. */
static int stage_weights(const struct fit_request *q, uint32_t tp, const struct places *p,
                         uint32_t *ret_weights, struct err *e)
{
    struct footprint first = {0}, all = {0};
    int r = stage_footprint(q, tp, 0, 1, &first, e);
    if (r == 0)
        r = stage_footprint(q, tp, 0, q->arch->n_layers, &all, e);
    if (r < 0)
        return r;
    uint64_t layer = q->arch->n_layers > 1 ? (all.weights - first.weights) / (q->arch->n_layers - 1)
                                           : first.weights;
    uint64_t room[FIT_MAX_DEVICES], most = 1;
    for (uint32_t i = 0; i != p->n; i++) {
        bool at_end = i == 0 || i + 1 == p->n;
        uint64_t fixed = scratch_on_device(q, &first) + (at_end ? first.weights - layer : 0);
        room[i] = p->place[i].usable > fixed ? p->place[i].usable - fixed : 0;
        most = MAX(most, room[i]);
    }
    for (uint32_t i = 0; i != p->n; i++)
        ret_weights[i] = MAX((uint32_t)((double)room[i] / (double)most * (double)(1u << 30)), 1u);
    return 0;
}

/* ---- one layout ---- */

static uint64_t blocks_of(uint32_t tokens)
{
    return (tokens + PLAN_KV_BLOCK_TOKENS - 1) / PLAN_KV_BLOCK_TOKENS;
}

static void judge_rank(const struct fit_request *q, struct fit_rank *rank)
{
    uint64_t room = usable(q, rank->device);
    rank->scratch = rank->need.scratch + rank->need.scratch_host;
    rank->on_device = rank->need.weights + scratch_on_device(q, &rank->need);
    rank->reserve = q->devices->device[rank->device].bytes - room;
    rank->missing = rank->on_device > room ? rank->on_device - room : 0;
    rank->n_blocks = rank->missing ? 0 : (room - rank->on_device) / rank->need.kv_block;
}

/* Fills in the rest, for l->stage_layers. */
static int judge(const struct fit_request *q, const struct places *p, struct fit_layout *l,
                 struct err *e)
{
    l->n_blocks = INT32_MAX;
    l->missing = 0;
    for (uint32_t stage = 0, begin = 0; stage != l->pp; begin += l->stage_layers[stage++]) {
        struct footprint need = {0};
        int r = stage_footprint(q, l->tp, begin, begin + l->stage_layers[stage], &need, e);
        if (r < 0)
            return r;
        for (uint32_t i = 0; i != l->tp; i++) {
            struct fit_rank *rank = &l->ranks[stage * l->tp + i];
            *rank = (struct fit_rank){
                .device = p->place[stage].device[i], .stage = stage, .tp_rank = i, .need = need};
            judge_rank(q, rank);
            l->n_blocks = MIN(l->n_blocks, rank->n_blocks);
            l->missing = MAX(l->missing, rank->missing);
        }
    }
    uint64_t per_sequence = blocks_of(q->context);
    l->needed_blocks = MAX(q->concurrency * per_sequence, (uint64_t)MIN_BLOCKS);
    l->sequences = (uint32_t)MIN(l->n_blocks / per_sequence, (uint64_t)q->n_slots);
    l->fits = l->n_blocks >= l->needed_blocks;
    for (uint32_t i = 0; i != l->tp * l->pp; i++) {
        struct fit_rank *rank = &l->ranks[i];
        rank->kv_bytes = l->n_blocks * rank->need.kv_block;
        uint64_t taken = rank->on_device + rank->kv_bytes, room = usable(q, rank->device);
        rank->free = room > taken ? room - taken : 0;
    }
    return 0;
}

/* ---- layers of the stages ---- */

static bool roomier(const struct fit_layout *a, const struct fit_layout *b)
{
    return a->n_blocks != b->n_blocks ? a->n_blocks > b->n_blocks : a->missing < b->missing;
}

static void split_layers(const struct fit_request *q, const uint32_t *weights, struct fit_layout *l)
{
    for (uint32_t stage = 0; stage != l->pp; stage++) {
        uint32_t begin = 0, end = 0;
        int r = shard_stage_layers(q->arch->n_layers, l->pp, weights, stage, &begin, &end);
        assert(r == 0);
        l->stage_layers[stage] = end - begin;
    }
    l->even = !weights;
}

/* Moves single layers away from the stage that has least room, as long as that gains room. */
static int move_layers(const struct fit_request *q, const struct places *p, struct fit_layout *l,
                       struct err *e)
{
    for (bool moved = true; moved;) {
        moved = false;
        const struct fit_rank *worst = &l->ranks[0];
        for (uint32_t i = 1; i != l->tp * l->pp; i++) {
            const struct fit_rank *rank = &l->ranks[i];
            if (rank->missing > worst->missing ||
                (rank->missing == worst->missing && rank->n_blocks < worst->n_blocks))
                worst = rank;
        }
        uint32_t from = worst->stage;
        struct fit_layout best = *l;
        for (uint32_t to = 0; to != l->pp && l->stage_layers[from] > 1; to++) {
            if (to == from)
                continue;
            struct fit_layout other = *l;
            other.stage_layers[from]--;
            other.stage_layers[to]++;
            int r = judge(q, p, &other, e);
            if (r < 0)
                return r;
            if (roomier(&other, &best)) {
                best = other;
                moved = true;
            }
        }
        *l = best;
    }
    return 0;
}

static bool places_alike(const struct places *p)
{
    for (uint32_t i = 1; i < p->n; i++) {
        if (p->place[i].usable != p->place[0].usable)
            return false;
    }
    return true;
}

int fit_layout(const struct fit_request *q, uint32_t tp, uint32_t pp, struct fit_layout *ret,
               struct err *e)
{
    assert(q->context >= 1 && q->concurrency >= 1 && q->n_slots >= q->concurrency);
    int r = arch_check_tp(q->arch, tp, e);
    if (r < 0)
        return r;
    if (pp < 1 || pp > q->arch->n_layers || (uint64_t)tp * pp > q->devices->n)
        return err_set(e, -EINVAL,
                       "tp %u x pp %u: expected at most %u devices and %u stages (layers)", tp, pp,
                       q->devices->n, q->arch->n_layers);
    struct places p = {0};
    places_within_hosts(q, tp, &p);
    *ret = (struct fit_layout){.tp = tp, .pp = pp, .crosses_hosts = p.n < pp};
    if (ret->crosses_hosts)
        places_over_hosts(q, tp, &p);
    drop_small(&p, pp);

    split_layers(q, NULL, ret);
    r = judge(q, &p, ret, e);
    if (r < 0 || pp == 1 || (places_alike(&p) && ret->fits))
        return r;
    struct fit_layout uneven = *ret;
    uint32_t weights[FIT_MAX_DEVICES];
    r = stage_weights(q, tp, &p, weights, e);
    if (r == 0) {
        split_layers(q, weights, &uneven);
        r = judge(q, &p, &uneven, e);
    }
    if (r == 0)
        r = move_layers(q, &p, &uneven, e);
    if (r == 0 && roomier(&uneven, ret))
        *ret = uneven;
    return r;
}

/* ---- the choice ---- */

/* Whether `a` is to be recommended rather than `b`. */
static bool better(const struct fit_choice *a, const struct fit_choice *b)
{
    if (a->fits != b->fits)
        return a->fits;
    if (!a->fits && a->n_blocks != b->n_blocks)
        return a->n_blocks > b->n_blocks;
    if (!a->fits && a->missing != b->missing)
        return a->missing < b->missing;
    if (a->crosses_hosts != b->crosses_hosts)
        return b->crosses_hosts;
    if (a->tp * a->pp != b->tp * b->pp)
        return a->tp * a->pp > b->tp * b->pp;
    return a->tp > b->tp;
}

static void insert(struct fit_choices *c, const struct fit_layout *l)
{
    struct fit_choice choice = {.tp = l->tp,
                                .pp = l->pp,
                                .n_blocks = l->n_blocks,
                                .missing = l->missing,
                                .sequences = l->sequences,
                                .fits = l->fits,
                                .crosses_hosts = l->crosses_hosts};
    uint32_t at = c->n++;
    for (; at > 0 && better(&choice, &c->choice[at - 1]); at--)
        c->choice[at] = c->choice[at - 1];
    c->choice[at] = choice;
    if (at == 0)
        c->best = *l;
}

/* As many stages as there are devices for, within hosts if that is possible at all. */
static uint32_t most_stages(const struct fit_request *q, uint32_t tp)
{
    struct places p = {0};
    places_within_hosts(q, tp, &p);
    if (p.n == 0)
        places_over_hosts(q, tp, &p);
    return MIN(p.n, q->arch->n_layers);
}

int fit_choose(const struct fit_request *q, struct fit_choices *ret, struct err *e)
{
    struct err first = ERR_INIT;
    int code = 0;
    *ret = (struct fit_choices){0};
    for (uint32_t tp = q->tp ? q->tp : 1; tp <= (q->tp ? q->tp : q->devices->n); tp++) {
        struct fit_layout l = {0};
        struct err error = ERR_INIT;
        uint32_t pp = q->pp ? q->pp : MAX(most_stages(q, tp), 1u);
        int r = fit_layout(q, tp, pp, &l, &error);
        if (r == 0) {
            insert(ret, &l);
        } else if (code == 0) {
            code = r;
            first = error;
        }
    }
    if (ret->n)
        return 0;
    if (e)
        *e = first;
    return code;
}
