/* front_log.h: what a request said and got, for operators who asked for it (log.prompts). */
#ifndef GLMD_COORDINATOR_FRONT_LOG_H
#define GLMD_COORDINATOR_FRONT_LOG_H

#include "coordinator/request.h"

struct tokenizer;

/* The prompt and the outputs of a request that has ended, at level info; long ones are cut. */
void front_log_texts(const struct tokenizer *t, const struct request *r, const char *trace);

#endif
