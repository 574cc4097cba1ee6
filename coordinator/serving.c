/* serving.c: see serving.h. */
#include "coordinator/serving.h"

#include <stdio.h>

#include "base/util.h"
#include "coordinator/coordinator.h"

enum { NAME_BYTES = CONFIG_MAX_GROUP_NAME + 24 };

static enum rpc_serving state_of(bool serving)
{
    return serving ? RPC_SERVING : RPC_NOT_SERVING;
}

/* While everything stops, ranks may leave behind the clients' server. */
static void tell(struct coordinator *c, const char *name, enum rpc_serving state)
{
    if (c->server)
        rpc_health_set(c->server, name, state);
}

void serving_changed(struct coordinator *c)
{
    static const char *const services[] = {"", "glmd.v1.Inference",
                                           "inference.GRPCInferenceService"};
    bool serving = fleet_any_ready(c->fleet) && !c->draining;
    for (size_t i = 0; i != ARRAY_LEN(services); i++)
        tell(c, services[i], state_of(serving));
    tell(c, c->model_name, state_of(serving));
    c->ops->health(c->ops_context, serving);
}

static void set_group(struct coordinator *c, uint32_t group)
{
    char name[NAME_BYTES];
    bool serving = fleet_is_ready(c->fleet, group) && !fleet_is_draining(c->fleet, group);
    snprintf(name, sizeof name, "group/%s", fleet_name(c->fleet, group));
    tell(c, name, state_of(serving));
}

void serving_group(struct coordinator *c, uint32_t group)
{
    set_group(c, group);
    serving_changed(c);
}

void serving_rank(struct coordinator *c, uint32_t group, uint32_t rank)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "rank/%s/%u", fleet_name(c->fleet, group), rank);
    tell(c, name, state_of(fleet_rank_serves(c->fleet, group, rank)));
}

void serving_gone(struct coordinator *c, const char *group_name)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "group/%s", group_name);
    tell(c, name, RPC_SERVING_UNKNOWN);
    for (uint32_t i = 0; i != CONFIG_MAX_GROUP_RANKS; i++) {
        snprintf(name, sizeof name, "rank/%s/%u", group_name, i);
        tell(c, name, RPC_SERVING_UNKNOWN);
    }
}

void serving_start(struct coordinator *c)
{
    tell(c, "glmd.v1.Cluster", RPC_SERVING);
    if (c->worker_server == c->server)
        tell(c, "glmd.v1.Worker", RPC_SERVING);
    for (uint32_t i = 0; i != fleet_max_groups(c->fleet); i++) {
        if (!fleet_name(c->fleet, i))
            continue;
        set_group(c, i);
        for (uint32_t k = 0; k != fleet_n_ranks(c->fleet, i); k++)
            serving_rank(c, i, k);
    }
    serving_changed(c);
}
