/* group.c: see group.h. */
#include "worker/engine/comm/group.h"

#include <errno.h>
#include <stdio.h>

enum { NAME_BYTES = 256 }; /* more than a segment's name may have, which is checked there */

static int check(const struct comm_group_config *c, struct err *e)
{
    if (c->tp_size < 1 || c->tp_size > COMM_MAX_RANKS || c->pp_size < 1 ||
        c->pp_size > COMM_MAX_STAGES)
        return err_set(e, -EINVAL,
                       "a group of %d stages of %d ranks: expected 1..%d stages of 1..%d ranks",
                       c->pp_size, c->tp_size, COMM_MAX_STAGES, COMM_MAX_RANKS);
    if (c->rank < 0 || c->rank >= c->tp_size * c->pp_size)
        return err_set(e, -EINVAL, "rank %d: expected a rank below %d", c->rank,
                       c->tp_size * c->pp_size);
    if (c->tp_size > 1 && c->within_stage == COMM_SELF)
        return err_set(e, -EINVAL, "a stage of %d ranks needs a transport", c->tp_size);
    if (c->pp_size > 1 && c->between_stages == COMM_SELF)
        return err_set(e, -EINVAL, "a group of %d stages needs a transport between them",
                       c->pp_size);
    return 0;
}

static int open_stage(const struct comm_group_config *c, struct comm **ret, struct err *e)
{
    int stage = c->rank / c->tp_size;
    int rank = c->rank % c->tp_size;
    if (c->within_stage == COMM_TCP)
        return comm_tcp_new(c->listen_fd, c->peers + stage * c->tp_size, c->token, rank, c->tp_size,
                            c->timeout_ns, ret, e);
    char name[NAME_BYTES];
    if (c->pp_size == 1)
        snprintf(name, sizeof name, "%s", c->name);
    else
        snprintf(name, sizeof name, "%s-stage%d", c->name, stage);
    return comm_shm_new(name, c->token, rank, c->tp_size, c->piece_bytes, c->timeout_ns, ret, e);
}

static int open_links(const struct comm_group_config *c, struct comm **ret, struct err *e)
{
    int stage = c->rank / c->tp_size;
    int rank = c->rank % c->tp_size;
    if (c->between_stages == COMM_TCP) {
        const char *peers[COMM_MAX_STAGES];
        for (int s = 0; s != c->pp_size; s++)
            peers[s] = c->peers[s * c->tp_size + rank];
        return comm_tcp_links_new(c->listen_fd, peers, c->token, stage, c->pp_size, c->link_bytes,
                                  c->timeout_ns, ret, e);
    }
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s-column%d", c->name, rank);
    return comm_shm_links_new(name, c->token, stage, c->pp_size, c->link_bytes, c->timeout_ns, ret,
                              e);
}

int comm_group_new(const struct comm_group_config *config, struct comm **ret, struct err *e)
{
    struct comm *stage = NULL;
    struct comm *links = NULL;
    int r = check(config, e);
    if (r == 0 && config->tp_size * config->pp_size == 1)
        return comm_self_new(ret);
    if (r == 0 && config->tp_size > 1)
        r = open_stage(config, &stage, e);
    if (r == 0 && config->pp_size > 1)
        r = open_links(config, &links, e);
    if (r < 0) {
        comm_close(stage);
        return r;
    }
    if (stage && links)
        return comm_grid_new(stage, links, ret);
    *ret = stage ? stage : links;
    return 0;
}
