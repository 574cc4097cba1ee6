/* device.c: see device.h. */
#include "worker/engine/comm/device.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/util.h"

/* NCCL takes some seconds to find its ways between many GPUs; a rank that has died is seen earlier.
 */
#define LEAST_JOIN_NS (30 * NSEC_PER_SEC)

static int all_gather(void *context, const void *src, size_t bytes, void *dst)
{
    struct comm *host = context;
    return host->ops->all_gather(host, src, bytes, dst);
}

static int state(void *context)
{
    struct comm *host = context;
    return host->ops->state(host);
}

int comm_device_open(struct comm_device *d, enum k_comm_choice choice, const struct k_ops *ops,
                     struct k_ctx *ctx, struct comm *host, uint32_t max_rows, uint32_t cols,
                     struct err *e)
{
    comm_device_close(d);
    if (host->size == 1) {
        snprintf(d->words, sizeof d->words, "none: one rank in a stage");
        return 0;
    }
    if (!ops->comm) {
        assert(choice == K_COMM_AUTO || choice == K_COMM_HOST); /* engine_open */
        snprintf(d->words, sizeof d->words, "host: %s", host->ops->name);
        return 0;
    }
    const struct k_comm_group group = {.rank = host->rank,
                                       .size = host->size,
                                       .timeout_ns = host->timeout_ns,
                                       .join_timeout_ns = MAX(host->timeout_ns, LEAST_JOIN_NS),
                                       .context = host,
                                       .all_gather = all_gather,
                                       .state = state};
    char why[COMM_DEVICE_WORDS - 64] = "";
    int r = ops->comm->open(ctx, choice, &group, max_rows, cols, &d->comm, why, sizeof why);
    if (r == 0) {
        d->ops = ops->comm;
        (void)comm_device_words(d);
        return 0;
    }
    d->comm = NULL;
    if (r != -ENOTSUP) {
        if (r != -EINVAL && r != -ENODEV) /* those come to all ranks alike */
            host->ops->abort(host);
        return err_set(e, r, "collectives: %s", why);
    }
    snprintf(d->words, sizeof d->words, "host: %s; %s", host->ops->name, why);
    return 0;
}

void comm_device_close(struct comm_device *d)
{
    struct k_comm_times past;
    comm_device_times(d, &past);
    if (d->comm)
        d->ops->close(d->comm);
    *d = (struct comm_device){.past = past};
}

void comm_device_times(const struct comm_device *d, struct k_comm_times *ret)
{
    struct k_comm_times t = {0};
    if (d->comm)
        d->ops->times(d->comm, &t);
    *ret = (struct k_comm_times){.n_sums = d->past.n_sums + t.n_sums,
                                 .sum_ns = d->past.sum_ns + t.sum_ns,
                                 .n_gathers = d->past.n_gathers + t.n_gathers,
                                 .gather_ns = d->past.gather_ns + t.gather_ns};
}

const char *comm_device_words(struct comm_device *d)
{
    if (d->comm)
        snprintf(d->words, sizeof d->words, "%s", d->ops->describe(d->comm));
    return d->words;
}

int comm_device_wait(struct comm_device *d, struct comm *host, struct err *e)
{
    char why[256] = "";
    int r = d->comm ? d->ops->wait(d->comm, why, sizeof why) : 0;
    if (r == 0)
        return 0;
    host->ops->abort(host);
    return err_set(e, r, "sums over %d ranks: %s", host->size, why);
}
