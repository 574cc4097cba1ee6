/* main.c: glmd-coordinator. */
#include "base/log.h"
#include "coordinator/coordinator.h"
#include "coordinator/options.h"

int main(int argc, char **argv)
{
    struct options o;
    int code = options_parse(argc, argv, &o);
    if (code == OPTIONS_RUN) {
        log_init("coordinator", (enum log_level)o.config.log.level);
        code = coordinator_run(&o);
    }
    options_deinit(&o);
    return code;
}
