/* options.c: see options.h. */
#include "coordinator/options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

static const char usage[] =
    "usage: glmd-coordinator [--config FILE] [OPTIONS]\n"
    "\n"
    "Serves a model over gRPC and HTTP: takes requests, plans the steps, drives the ranks.\n"
    "\n"
    "  --config FILE       configuration (YAML); `glmd config show` prints all keys\n"
    "  --set KEY=VALUE     override one key; may be repeated\n"
    "  --model DIR         model directory                       (model.dir)\n"
    "  --listen HOST:PORT  address for clients and workers       (coordinator.listen)\n"
    "  --http HOST:PORT    address for clients over HTTP         (coordinator.http.listen)\n"
    "  --state-dir DIR     where the epoch is kept               (coordinator.state_dir)\n"
    "  --workers HOW       spawn or external                     (group.workers)\n"
    "  --tp N              ranks of a group                      (group.tensor_parallel)\n"
    "  --log-level LEVEL   error, warn, info or debug            (log.level)\n"
    "  --port-file FILE    write the port here once it is bound\n"
    "  --http-port-file FILE\n"
    "                      likewise, the port of HTTP\n"
    "  --help, --version\n";

enum {
    OPT_CONFIG = 256,
    OPT_SET,
    OPT_PORT_FILE,
    OPT_HTTP_PORT_FILE,
    OPT_HELP,
    OPT_VERSION,
    OPT_FIRST_NAMED
};

static const struct {
    const char *name, *path;
} named[] = {
    {"model", "model.dir"},
    {"listen", "coordinator.listen"},
    {"http", "coordinator.http.listen"},
    {"state-dir", "coordinator.state_dir"},
    {"workers", "group.workers"},
    {"tp", "group.tensor_parallel"},
    {"log-level", "log.level"},
};

static const struct option long_options[] = {
    {"config", required_argument, NULL, OPT_CONFIG},
    {"set", required_argument, NULL, OPT_SET},
    {"port-file", required_argument, NULL, OPT_PORT_FILE},
    {"http-port-file", required_argument, NULL, OPT_HTTP_PORT_FILE},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {"model", required_argument, NULL, OPT_FIRST_NAMED + 0},
    {"listen", required_argument, NULL, OPT_FIRST_NAMED + 1},
    {"http", required_argument, NULL, OPT_FIRST_NAMED + 2},
    {"state-dir", required_argument, NULL, OPT_FIRST_NAMED + 3},
    {"workers", required_argument, NULL, OPT_FIRST_NAMED + 4},
    {"tp", required_argument, NULL, OPT_FIRST_NAMED + 5},
    {"log-level", required_argument, NULL, OPT_FIRST_NAMED + 6},
    {0},
};

static int remember(struct options *o, const char *path, const char *value)
{
    struct buf pair = {0};
    int r = buf_printf(&pair, "%s=%s", path, value);
    if (r == 0)
        r = conf_list_append(&o->sets, pair.data);
    buf_deinit(&pair);
    return r;
}

/* First pass over the arguments: the file. Second: flags over it. */
static int scan(int argc, char **argv, struct options *o, bool flags, struct err *e)
{
    optind = 0;
    for (int c; (c = getopt_long(argc, argv, "h", long_options, NULL)) != -1;) {
        int r = 0;
        if (c == '?')
            return err_set(e, -EINVAL, "`glmd-coordinator --help` lists the options");
        if (c == OPT_CONFIG) {
            o->config_file = optarg;
        } else if (c == OPT_PORT_FILE) {
            o->port_file = optarg;
        } else if (c == OPT_HTTP_PORT_FILE) {
            o->http_port_file = optarg;
        } else if (!flags) {
            continue;
        } else if (c == OPT_SET) {
            r = config_set_pair(&o->config, optarg, e);
            if (r == 0 && conf_list_append(&o->sets, optarg) < 0)
                r = err_set(e, -ENOMEM, "out of memory");
        } else if (c >= OPT_FIRST_NAMED) {
            char flag[32];
            const char *path = named[c - OPT_FIRST_NAMED].path;
            snprintf(flag, sizeof flag, "--%s", named[c - OPT_FIRST_NAMED].name);
            r = config_set(&o->config, path, optarg, flag, e);
            if (r == 0 && remember(o, path, optarg) < 0)
                r = err_set(e, -ENOMEM, "out of memory");
        }
        if (r < 0)
            return r;
    }
    if (optind < argc)
        return err_set(e, -EINVAL, "unexpected argument \"%.64s\"", argv[optind]);
    return 0;
}

static bool has_flag(int argc, char **argv, const char *flag)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], flag) == 0)
            return true;
    }
    return false;
}

static int set_state_dir(struct options *o, struct err *e)
{
    const char *dir = o->config.coordinator.state_dir, *base = "", *below = "";
    if (!*dir) {
        const char *systemd = getenv("STATE_DIRECTORY"), *xdg = getenv("XDG_STATE_HOME");
        const char *home = getenv("HOME");
        if (systemd && *systemd) {
            base = systemd;
        } else if (xdg && *xdg) {
            base = xdg;
            below = "/glmd";
        } else if (home && *home) {
            base = home;
            below = "/.local/state/glmd";
        } else {
            return err_set(e, -EINVAL,
                           "coordinator.state_dir: set it: neither STATE_DIRECTORY, XDG_STATE_HOME "
                           "nor HOME is set");
        }
        dir = base;
    }
    int n = snprintf(o->state_dir, sizeof o->state_dir, "%s%s", dir, below);
    if (n < 0 || (size_t)n >= sizeof o->state_dir)
        return err_set(e, -ENAMETOOLONG, "coordinator.state_dir: the path is too long");
    return 0;
}

int options_parse(int argc, char **argv, struct options *o)
{
    *o = (struct options){0};
    struct err e = ERR_INIT;
    if (has_flag(argc, argv, "--help") || has_flag(argc, argv, "-h")) {
        fputs(usage, stdout);
        return 0;
    }
    if (has_flag(argc, argv, "--version")) {
        puts("glmd-coordinator " GLMD_VERSION);
        return 0;
    }
    int r = config_init(&o->config);
    if (r < 0)
        err_set(&e, r, "out of memory");
    if (r == 0)
        r = scan(argc, argv, o, false, &e);
    if (r == 0 && o->config_file)
        r = config_load(&o->config, o->config_file, &e);
    if (r == 0)
        r = scan(argc, argv, o, true, &e);
    if (r == 0)
        r = config_check(&o->config, &e);
    if (r == 0)
        r = config_check_coordinator(&o->config, &e);
    if (r == 0 && !*o->config.model.dir)
        r = err_set(&e, -EINVAL,
                    "model.dir: expected the model directory: set it in the "
                    "configuration or with --model DIR");
    if (r == 0)
        r = set_state_dir(o, &e);
    if (r == 0)
        return OPTIONS_RUN;
    fprintf(stderr, "glmd-coordinator: %s\n", e.message);
    return EXIT_CONFIG;
}

void options_deinit(struct options *o)
{
    config_deinit(&o->config);
    conf_list_clear(&o->sets);
}
