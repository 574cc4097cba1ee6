/* main.c: glmd-coordinator. */
#include "base/log.h"
#include "coordinator/daemon.h"

int main(int argc, char **argv)
{
    struct options o;
    int code = options_parse(argc, argv, &o);
    if (code == OPTIONS_RUN) {
        log_init("coordinator", (enum log_level)o.config.log.level,
                 (enum log_format)o.config.log.format);
        code = daemon_run(&o);
    }
    options_deinit(&o);
    return code;
}
