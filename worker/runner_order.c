/* runner_order.c: orders and their memory, whichever runner works them off. See runner.h. */
#include <stdlib.h>

#include "worker/runner.h"

struct runner_order *runner_order_new(enum runner_kind kind)
{
    struct runner_order *o = calloc(1, sizeof *o);
    if (o)
        o->kind = kind;
    return o;
}

void runner_order_free(struct runner_order *o)
{
    if (!o)
        return;
    wire_free_coordinator_message(o->message);
    buf_deinit(&o->bytes);
    free(o);
}
