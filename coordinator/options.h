/* options.h: command line and configuration file of glmd-coordinator. */
#ifndef GLMD_COORDINATOR_OPTIONS_H
#define GLMD_COORDINATOR_OPTIONS_H

#include "base/config.h"

struct options {
    struct config config;
    const char *config_file;    /* borrowed from argv; NULL: defaults */
    const char *port_file;      /* borrowed; NULL: none */
    const char *http_port_file; /* likewise */
    /* Every flag that changed the configuration, as "path=value": spawned ranks get the same. */
    struct conf_list sets;
    char state_dir[1100]; /* config.coordinator.state_dir, or its default */
};

enum { OPTIONS_RUN = -1, EXIT_CONFIG = 64 };

/* OPTIONS_RUN, or the code to exit with (0 after --help); messages go to stderr. Call
 * options_deinit in any case. */
int options_parse(int argc, char **argv, struct options *o);
void options_deinit(struct options *o);

#endif
