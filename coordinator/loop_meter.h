/* loop_meter.h: what the loop's thread spends its processor time on. Parts may be entered from
 * inside other parts: time is charged to the innermost one. Reading the clock of a thread takes
 * 0.2 us; a step has about ten such readings. Loop thread.
 *
 *   enum loop_part outer = loop_meter_enter(m, LOOP_PLAN);
 *   ...
 *   loop_meter_leave(m, outer);
 */
#ifndef GLMD_COORDINATOR_LOOP_METER_H
#define GLMD_COORDINATOR_LOOP_METER_H

#include <stdint.h>

#include "base/clock.h"

enum loop_part {
    LOOP_OTHER, /* not counted */
    LOOP_RESULT,
    LOOP_PLAN,
    LOOP_TELL,
    LOOP_N_PARTS,
};

struct loop_meter { /* zero-initialised */
    enum loop_part part;
    int64_t since_ns; /* of the thread's clock; not of LOOP_OTHER */
    int64_t cpu_ns[LOOP_N_PARTS];
};

static inline void loop_meter_leave(struct loop_meter *m, enum loop_part outer)
{
    int64_t now_ns = clock_thread_ns();
    if (m->part != LOOP_OTHER)
        m->cpu_ns[m->part] += now_ns - m->since_ns;
    m->part = outer;
    m->since_ns = now_ns;
}

/* Returns the part that was under way, for loop_meter_leave. */
static inline enum loop_part loop_meter_enter(struct loop_meter *m, enum loop_part part)
{
    enum loop_part outer = m->part;
    loop_meter_leave(m, part);
    return outer;
}

#endif
