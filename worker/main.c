/* main.c: glmd-worker. */
#include "base/log.h"
#include "worker/daemon.h"
#include "worker/exit.h"

int main(int argc, char **argv)
{
    struct worker_options o;
    enum options_result parsed = options_parse(&o, argc, argv, stdout, stderr);
    int code = parsed == OPTIONS_EXIT_OK ? WORKER_EXIT_OK : WORKER_EXIT_CONFIG;
    if (parsed == OPTIONS_RUN) {
        char name[32];
        snprintf(name, sizeof name, "worker/%u", o.rank);
        log_init(name, (enum log_level)o.config.log.level, (enum log_format)o.config.log.format);
        log_set_fields(LOG(.group = o.config.group.name, .rank = &o.rank));
        code = daemon_run(&o);
    }
    options_deinit(&o);
    return code;
}
