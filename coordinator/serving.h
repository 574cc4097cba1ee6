/* serving.h: what the standard health service tells, and to the driver: which names there are, and
 * what serves. Loop thread.
 *
 *   ""                              a group takes requests, and the server does not drain
 *   each client service, the model  the same
 *   glmd.v1.Cluster, glmd.v1.Worker the server answers
 *   group/NAME                      the group is ready and does not drain
 *   rank/NAME/RANK                  a process holds the rank, has its weights and does not leave;
 * its group may still be down because of another rank
 */
#ifndef GLMD_COORDINATOR_SERVING_H
#define GLMD_COORDINATOR_SERVING_H

#include <stdint.h>

struct coordinator;

void serving_start(struct coordinator *c); /* once the servers have started */
void serving_changed(struct coordinator *c);
void serving_group(struct coordinator *c, uint32_t group); /* and serving_changed */
void serving_rank(struct coordinator *c, uint32_t group, uint32_t rank);
void serving_gone(struct coordinator *c, const char *group_name);

#endif
