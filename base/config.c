/* config.c: glmd's option table, and the checks that span several options. See config.h. */
#include "base/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/util.h"

#define AT(field) offsetof(struct config, field)
#define MS        ((uint64_t)NSEC_PER_MSEC)
#define SEC       ((uint64_t)NSEC_PER_SEC)
#define HOUR      (3600 * SEC)
#define KIB       ((uint64_t)1 << 10)
#define MIB       ((uint64_t)1 << 20)
#define GIB       ((uint64_t)1 << 30)
#define TIB       ((uint64_t)1 << 40)

enum { MAX_STAGE_LAYERS = 9999 };

static const char *const workers_choices[] = {"spawn", "external", NULL};
static const char *const activations_choices[] = {"fp32", "fp16", "a8", NULL};
static const char *const kv_cache_choices[] = {"auto", "fp16", "int8", NULL};
static const char *const pin_choices[] = {"auto", "on", "off", NULL};
static const char *const collectives_choices[] = {"auto", "nccl", "peer", "host", NULL};
static const char *const tls_clients_choices[] = {"certificate", "nothing", NULL};
static const char *const level_choices[] = {"error", "warn", "info", "debug", NULL};
static const char *const format_choices[] = {"auto", "text", "json", "journal", NULL};

static const struct conf_option options[] = {
    {"cluster.name", CONF_STRING, AT(cluster.name), "glmd", 1, 64, NULL,
     "Name of this installation. A worker that was started for another name is refused."},

    {"cluster.plaintext", CONF_BOOL, AT(cluster.plaintext), "false", 0, 0, NULL,
     "Lets workers and coordinator speak without TLS over a network. Only where every host on it "
     "is "
     "trusted: whoever reaches the address can pose as a worker and read what clients send."},

    {"model.dir", CONF_STRING, AT(model.dir), "", 0, 0, NULL,
     "Model directory made by `glmd convert`: config.json, tokenizer and safetensors files. The "
     "coordinator and every host with a rank need the same one (at the same path, or with --model "
     "there)."},
    {"model.name", CONF_STRING, AT(model.name), "", 0, 64, NULL,
     "Name that clients ask for. Empty: the name in the model's config.json."},

    {"coordinator.listen", CONF_STRING, AT(coordinator.listen), "127.0.0.1:8130", 1, 255, NULL,
     "Address for clients (gRPC), and for workers unless worker_listen is set: HOST:PORT, "
     "[IPV6]:PORT or unix:/PATH. Port 0 picks a free one. Set keys and tls before others than this "
     "host reach it."},
    {"coordinator.worker_listen", CONF_STRING, AT(coordinator.worker_listen), "", 0, 255, NULL,
     "A separate address for workers. Empty: workers come through coordinator.listen."},
    {"coordinator.admin_listen", CONF_STRING, AT(coordinator.admin_listen), "", 0, 255, NULL,
     "A separate address for operators: unix:/PATH, or HOST:PORT on the loopback interface. Set: "
     "Drain, Abort and Why are served there alone; through a Unix socket without an API key, its "
     "file "
     "permissions decide. Empty: they are served at coordinator.listen, if that is such an "
     "address or keys are in force."},
    {"coordinator.keys", CONF_STRING, AT(coordinator.keys), "", 0, 1024, NULL,
     "File of API keys, made with `glmd keys`: who may use the server, and how much. It is read "
     "again when it changes. Empty: everybody who reaches the server may do everything."},
    {"coordinator.state_dir", CONF_STRING, AT(coordinator.state_dir), "", 0, 1024, NULL,
     "Folder for the epoch file, which must survive restarts. Empty: $STATE_DIRECTORY (set by "
     "systemd), else $XDG_STATE_HOME/glmd, else ~/.local/state/glmd."},
    {"coordinator.tls.ca", CONF_STRING, AT(coordinator.tls.ca), "", 0, 1024, NULL,
     "Certificates (PEM) that sign the peers' certificates. Set: every client and worker must show "
     "one."},
    {"coordinator.tls.cert", CONF_STRING, AT(coordinator.tls.cert), "", 0, 1024, NULL,
     "The coordinator's certificate chain (PEM). Empty: plaintext."},
    {"coordinator.tls.key", CONF_STRING, AT(coordinator.tls.key), "", 0, 1024, NULL,
     "Private key of coordinator.tls.cert (PEM)."},
    {"coordinator.tls.clients", CONF_ENUM, AT(coordinator.tls_clients), "certificate", 0, 0,
     tls_clients_choices,
     "What clients of coordinator.listen must show when coordinator.tls.ca is set: certificate, or "
     "nothing (API keys then say who they are). Workers always show a certificate: nothing needs "
     "coordinator.worker_listen."},
    {"coordinator.http.listen", CONF_STRING, AT(coordinator.http.listen), "127.0.0.1:8000", 0, 255,
     NULL,
     "Address for clients over HTTP (OpenAI's API and the page): HOST:PORT, [IPV6]:PORT or "
     "unix:/PATH. Port 0 picks a free one. Over TLS where coordinator.tls.cert is set. Empty: "
     "none. "
     "Set keys and tls before others than this host reach it."},
    {"coordinator.http.max_head_bytes", CONF_SIZE, AT(coordinator.http.max_head_bytes), "16KiB",
     KIB, 256 * KIB, NULL, "Longest head of an HTTP request: its first line and its fields."},
    {"coordinator.http.head_timeout", CONF_DURATION, AT(coordinator.http.head_timeout), "15s", SEC,
     HOUR, NULL, "Time from a connection to the whole head of its first request."},
    {"coordinator.http.idle_timeout", CONF_DURATION, AT(coordinator.http.idle_timeout), "75s", SEC,
     HOUR, NULL,
     "Time from an answer to the whole head of the next request; and how long an answer waits for "
     "a "
     "client that does not read."},
    {"coordinator.http.body_timeout", CONF_DURATION, AT(coordinator.http.body_timeout), "60s", SEC,
     HOUR, NULL, "Time from the head of a request to its whole body."},
    {"coordinator.http.heartbeat", CONF_DURATION, AT(coordinator.http.heartbeat), "15s", 100 * MS,
     HOUR, NULL,
     "A stream that has nothing to say for so long says a comment, so that nothing on the way "
     "takes "
     "it for dead."},
    {"coordinator.limits.max_queue", CONF_UINT, AT(coordinator.limits.max_queue), "256", 1, 100000,
     NULL, "Requests that may wait; one more is refused with RESOURCE_EXHAUSTED."},
    {"coordinator.limits.max_queue_tokens", CONF_UINT, AT(coordinator.limits.max_queue_tokens), "0",
     0, UINT32_MAX, NULL,
     "Tokens of the prompts that may wait; more is refused with RESOURCE_EXHAUSTED. 0: any "
     "number."},
    {"coordinator.limits.max_wait", CONF_DURATION, AT(coordinator.limits.max_wait), "0", 0,
     24 * HOUR, NULL,
     "A request whose first token would take longer, as far as one can tell from the queue, is "
     "refused with RESOURCE_EXHAUSTED. 0: any time."},
    {"coordinator.limits.max_input_bytes", CONF_SIZE, AT(coordinator.limits.max_input_bytes),
     "256KiB", 64, 4 * MIB, NULL, "Largest text of a request."},
    {"coordinator.limits.max_tokens_per_request", CONF_UINT,
     AT(coordinator.limits.max_tokens_per_request), "2048", 1, 1048576, NULL,
     "Most new tokens that a request may ask for; the model's context length bounds it too."},
    {"coordinator.limits.max_masks", CONF_UINT, AT(coordinator.limits.max_masks), "64", 1, 4096,
     NULL, "Most masks in a text."},
    {"coordinator.limits.max_choices", CONF_UINT, AT(coordinator.limits.max_choices), "256", 1,
     4096, NULL, "Most choices of a Score request."},
    {"coordinator.limits.max_connections", CONF_UINT, AT(coordinator.limits.max_connections),
     "1024", 1, 65536, NULL, "Calls of clients open at once; one more is refused."},
    {"coordinator.limits.max_groups", CONF_UINT, AT(coordinator.limits.max_groups), "64", 1, 64,
     NULL, "Groups (copies of the model) at once; a rank that names one more is refused."},
    {"coordinator.limits.max_ranks", CONF_UINT, AT(coordinator.limits.max_ranks), "512", 1, 4096,
     NULL, "Ranks of all groups together."},
    {"coordinator.limits.max_stream_bytes", CONF_SIZE, AT(coordinator.limits.max_stream_bytes),
     "256KiB", 4 * KIB, 64 * MIB, NULL,
     "Output that may wait for a slow reader before its request is cancelled (see "
     "deadlines.slow_reader)."},
    {"coordinator.deadlines.request", CONF_DURATION, AT(coordinator.deadlines.request), "10m",
     100 * MS, 24 * HOUR, NULL, "Deadline of a request that brings none."},
    {"coordinator.deadlines.max_request", CONF_DURATION, AT(coordinator.deadlines.max_request),
     "1h", 100 * MS, 24 * HOUR, NULL, "Longest deadline that is honoured; later ones are cut."},
    {"coordinator.deadlines.drain", CONF_DURATION, AT(coordinator.deadlines.drain), "30s", 0, HOUR,
     NULL, "After SIGTERM: time for running requests to finish."},
    {"coordinator.deadlines.slow_reader", CONF_DURATION, AT(coordinator.deadlines.slow_reader),
     "30s", 100 * MS, HOUR, NULL,
     "A stream whose unread output stays above limits.max_stream_bytes for this long is cancelled "
     "with RESOURCE_EXHAUSTED."},

    {"group.name", CONF_STRING, AT(group.name), "0", 1, CONFIG_MAX_GROUP_NAME, NULL,
     "Name of the group that this host's ranks belong to: letters, digits, dot, dash, underscore. "
     "A group holds one copy of the model; ranks of one group may live on several hosts, and a "
     "coordinator drives many groups, of different sizes. Names of spawned replicas are NAME, or "
     "NAME-0, NAME-1, ... where there are several (0, 1, ... for the default name)."},
    {"group.tensor_parallel", CONF_UINT, AT(group.tensor_parallel), "1", 1, 64, NULL,
     "Ranks that share each layer. Must divide the model's heads, hidden size, inner size and "
     "vocabulary."},
    {"group.pipeline_parallel", CONF_UINT, AT(group.pipeline_parallel), "1", 1, CONFIG_MAX_STAGES,
     NULL,
     "Stages that share the layers. A group has tensor_parallel x pipeline_parallel ranks, at most "
     "64: rank = stage * tensor_parallel + number within the stage."},
    {"group.stage_layers", CONF_LIST, AT(group.stage_layers), "", 0, CONFIG_MAX_STAGES, NULL,
     "Layers of each stage, first to last, as [24, 24, 22]; their sum is the model's. Empty: "
     "shared out evenly; what does not divide goes to the stages in the middle."},
    {"group.workers", CONF_ENUM, AT(group.workers), "spawn", 0, 0, workers_choices,
     "spawn: the coordinator starts all ranks on its own host. external: each rank is started by "
     "itself, with systemd (glmd-worker@RANK) or on another host; ranks say which group they "
     "belong to and what its shape is: groups of any shape may join and leave."},
    {"group.replicas", CONF_UINT, AT(group.replicas), "1", 1, CONFIG_MAX_REPLICAS, NULL,
     "Groups of this shape that spawn starts on the coordinator's host."},
    {"group.devices", CONF_LIST, AT(group.devices), "cpu", 1, 64, NULL,
     "Device of each rank: cpu, or cuda:N. The last one counts for all further ranks. Spawned "
     "replicas go on where the group before them ended. fake, or fake:step_us=20000:end=0.01, "
     "computes nothing and makes tokens up, for tests and benchmarks."},
    {"group.spawn.threads_per_rank", CONF_UINT, AT(group.spawn.threads_per_rank), "0", 0, 1024,
     NULL,
     "CPU threads of a spawned rank. 0: worker.threads if that is set, else the CPUs allowed, "
     "or as many as a control group's limit gives time for, divided by the ranks of all "
     "replicas."},
    {"group.spawn.worker_path", CONF_STRING, AT(group.spawn.worker_path), "", 0, 1024, NULL,
     "Program to start. Empty: glmd-worker beside glmd-coordinator."},
    {"group.spawn.restart_min", CONF_DURATION, AT(group.spawn.restart_min), "200ms", 10 * MS, HOUR,
     NULL, "Pause before a dead rank is started again; doubles with every further death."},
    {"group.spawn.restart_max", CONF_DURATION, AT(group.spawn.restart_max), "30s", 10 * MS, HOUR,
     NULL, "Longest such pause."},

    {"worker.coordinator", CONF_STRING, AT(worker.coordinator), "", 0, 255, NULL,
     "Address that ranks dial: HOST:PORT. Empty: coordinator.worker_listen or coordinator.listen."},
    {"worker.listen", CONF_STRING, AT(worker.listen), "127.0.0.1:0", 1, 255, NULL,
     "Address where a rank's peers on other hosts reach it (activations, tensor parallel over "
     "TCP): an address of this host that they can route to; port 0 picks a free one. Not used when "
     "all ranks share a host."},
    {"worker.health_listen", CONF_STRING, AT(worker.health_listen), "127.0.0.1:0", 0, 255, NULL,
     "Address of this rank's own gRPC server, which has the standard health and reflection "
     "services "
     "and nothing else. Port 0 picks a free one, which the log names. Empty: no server."},
    {"worker.tls.ca", CONF_STRING, AT(worker.tls.ca), "", 0, 1024, NULL,
     "Certificates (PEM) that sign the coordinator's certificate. Empty: plaintext."},
    {"worker.tls.cert", CONF_STRING, AT(worker.tls.cert), "", 0, 1024, NULL,
     "The worker's certificate chain (PEM), for coordinators that ask for one."},
    {"worker.tls.key", CONF_STRING, AT(worker.tls.key), "", 0, 1024, NULL,
     "Private key of worker.tls.cert (PEM)."},
    {"worker.activations", CONF_ENUM, AT(worker.activations), "fp16", 0, 0, activations_choices,
     "Precision of activations. fp16 is as faithful as the original and fast; fp32 equals the "
     "references token for token and is slow; a8 "
     "computes INT4 and INT8 products with 8-bit activations, where the device has them. All ranks "
     "must agree."},
    {"worker.kv_cache", CONF_ENUM, AT(worker.kv_cache), "auto", 0, 0, kv_cache_choices,
     "How keys and values are kept. auto: as activations are (fp32, otherwise fp16). int8: with a "
     "scale per token and head; half the memory of fp16, so that kv_bytes hold nearly twice the "
     "tokens, for a small loss of quality. All ranks must agree."},
    {"worker.collectives", CONF_ENUM, AT(worker.collectives), "auto", 0, 0, collectives_choices,
     "What adds up activations over the ranks of a stage that are on GPUs; the results are the "
     "same "
     "bit for bit. nccl: NCCL, a GPU for each rank. peer: the GPUs' memory as they see it from "
     "each "
     "other, or page-locked memory, on one host. host: through the CPUs, which always works and is "
     "slow. auto: peer for small sums and nccl for large ones, as far as they are there, else "
     "host; ranks report what it came to. All ranks must agree."},
    {"worker.cuda_graphs", CONF_BOOL, AT(worker.cuda_graphs), "true", 0, 0, NULL,
     "On GPUs, record the launches of a decode step as a CUDA graph and run that for those that "
     "follow. false: launch them one by one; the results are the same bit for bit. Without use "
     "where sums over ranks go through the host."},
    {"worker.library_rows", CONF_UINT, AT(worker.library_rows), "0", 0, 65536, NULL,
     "On GPUs: products of at least so many tokens expand the weights to FP16 and go through "
     "cuBLASLt. It adds up in an order of its own for every number of tokens, so that what a "
     "prompt "
     "gives then depends, in the last bits, on what is computed beside it. 0: never. `gpu-speed` "
     "shows from where on it pays."},
    {"worker.warpgroups", CONF_BOOL, AT(worker.warpgroups), "true", 0, 0, NULL,
     "On GPUs of compute capability 9.0 (H100, H200), run products of 33 tokens and more on "
     "warpgroups, where a test at the start finds that they give the same bits. false: never, nor "
     "the test."},
    {"worker.threads", CONF_UINT, AT(worker.threads), "0", 0, 1024, NULL,
     "CPU threads of a rank. 0: all CPUs allowed, or as many as the limit of a control group "
     "(cpu.max, a container's --cpus) gives time for; for spawned ranks see group.spawn."},
    {"worker.pin", CONF_ENUM, AT(worker.pin), "auto", 0, 0, pin_choices,
     "Which CPUs a rank's threads stay on. auto: one each, where the rank has as many threads as "
     "CPUs it may use. on: the first of the CPUs it may use, one per core before a core's second; "
     "where no other rank has the same. off: as the kernel places them."},
    {"worker.cpus", CONF_STRING, AT(worker.cpus), "", 0, 1023, NULL,
     "CPUs that a rank computes on, as 0-7,16-23. Empty: those that the process may use; spawned "
     "ranks on a host with several NUMA nodes get those of a node each, or share nodes, so that "
     "memory is near. Not used by ranks on GPUs."},
    {"worker.slots", CONF_UINT, AT(worker.slots), "32", 1, 1024, NULL,
     "Sequences at once: a request takes one for each choice or beam."},
    {"worker.kv_bytes", CONF_SIZE, AT(worker.kv_bytes), "0", 0, 64 * TIB, NULL,
     "Memory of a rank for keys and values. 0: room for `slots` sequences of full length, on a GPU "
     "as far as memory_utilization allows."},
    {"worker.kv_blocks", CONF_UINT, AT(worker.kv_blocks), "0", 0, INT32_MAX, NULL,
     "Blocks of 16 tokens that the KV cache holds, the same on every rank of a group, whatever the "
     "layers of its stage; `glmd plan` says how many fit. 0: what kv_bytes has room for."},
    {"worker.memory_utilization", CONF_UINT, AT(worker.memory_utilization), "90", 1, 100, NULL,
     "Percent of a GPU's memory that a rank may take, with weights, scratch and whatever else is "
     "on "
     "the GPU; sizes the KV cache where neither kv_bytes nor kv_blocks does. Not used on CPUs."},
    {"worker.max_step_tokens", CONF_UINT, AT(worker.max_step_tokens), "0", 0, 65536, NULL,
     "Most tokens in a step; sizes the scratch memory. 0: the model's context length. A "
     "bidirectional context runs as one piece, so that it also bounds the prompt."},
    {"worker.verify", CONF_BOOL, AT(worker.verify), "true", 0, 0, NULL,
     "Check the checksum of every tensor while loading."},
    {"worker.reconnect_min", CONF_DURATION, AT(worker.reconnect_min), "100ms", 10 * MS, HOUR, NULL,
     "Pause before a rank dials again after it lost the coordinator; doubles with every failure."},
    {"worker.reconnect_max", CONF_DURATION, AT(worker.reconnect_max), "5s", 10 * MS, HOUR, NULL,
     "Longest such pause."},

    {"scheduler.prefill_budget", CONF_DURATION, AT(scheduler.prefill_budget), "100ms", MS, 60 * SEC,
     NULL,
     "Time that prompts may add to a step while streams run, for each request that waits for its "
     "first token (at most ten count): longer ones are cut, so that tokens keep coming. More is "
     "better for the first token, less for the others."},
    {"deadlines.step", CONF_DURATION, AT(deadlines.step), "10s", 100 * MS, HOUR, NULL,
     "A step that takes longer means that a rank hangs: the group is taken down and formed again. "
     "Steps with long prompts get more time in proportion to the steps seen so far."},
    {"deadlines.heartbeat", CONF_DURATION, AT(deadlines.heartbeat), "250ms", 10 * MS, 60 * SEC,
     NULL, "Interval of the heartbeats between coordinator and ranks."},
    {"deadlines.lease", CONF_DURATION, AT(deadlines.lease), "5s", 100 * MS, HOUR, NULL,
     "A rank that was not heard of for this long is taken for dead; a rank that does not hear of "
     "the coordinator for four fifths of it stops by itself."},
    {"deadlines.hello", CONF_DURATION, AT(deadlines.hello), "30m", SEC, 24 * HOUR, NULL,
     "Time for a rank to load its part of the model and to answer the known-answer step."},

    {"metrics.vllm_names", CONF_BOOL, AT(metrics.vllm_names), "true", 0, 0, NULL,
     "Give the metrics under the names of vLLM besides glmd's own, so that dashboards, autoscalers "
     "and gateways made for it work."},

    {"log.level", CONF_ENUM, AT(log.level), "info", 0, 0, level_choices,
     "error, warn, info or debug. Prompts and outputs are logged at no level, unless log.prompts "
     "says so."},
    {"log.format", CONF_ENUM, AT(log.format), "auto", 0, 0, format_choices,
     "text or json: lines on standard error; journal: entries with fields to journald. auto: "
     "journal under systemd, else text."},
    {"log.prompts", CONF_BOOL, AT(log.prompts), "false", 0, 0, NULL,
     "Log what clients send and get: prompts and outputs, at level info. For debugging; the log is "
     "as confidential as they are then."},
};

const struct conf_table config_table = {options, ARRAY_LEN(options)};

int config_init(struct config *c)
{
    *c = (struct config){0};
    int r = conf_defaults(&config_table, c);
    if (r < 0)
        config_deinit(c);
    return r;
}

void config_deinit(struct config *c)
{
    conf_deinit(&config_table, c);
    *c = (struct config){0};
}

int config_load(struct config *c, const char *file, struct err *e)
{
    return conf_read_file(&config_table, c, file, &c->origin, e);
}

/* A flag replaces what the file said: messages must not point at the file's line any more. */
static void forget_origin(struct config *c, const char *path, size_t n)
{
    for (size_t i = 0; i != config_table.n; i++) {
        if (strlen(options[i].path) == n && memcmp(options[i].path, path, n) == 0)
            c->origin.line[i] = 0;
    }
}

int config_set(struct config *c, const char *path, const char *value, const char *flag,
               struct err *e)
{
    int r = conf_set(&config_table, c, path, value, flag, e);
    if (r == 0)
        forget_origin(c, path, strlen(path));
    return r;
}

int config_set_pair(struct config *c, const char *pair, struct err *e)
{
    int r = conf_set_pair(&config_table, c, pair, "--set", e);
    if (r == 0)
        forget_origin(c, pair, strcspn(pair, "="));
    return r;
}

static int check_pair(const struct config *c, const struct config_tls *tls, const char *cert_path,
                      const char *key_path, struct err *e)
{
    if (*tls->cert && !*tls->key)
        return conf_error(&config_table, &c->origin, cert_path, e,
                          "a certificate needs its private key: set %s too", key_path);
    if (*tls->key && !*tls->cert)
        return conf_error(&config_table, &c->origin, key_path, e,
                          "a private key needs its certificate: set %s too", cert_path);
    return 0;
}

static int check_devices(const struct config *c, struct err *e)
{
    for (size_t i = 0; i != c->group.devices.n; i++) {
        const char *d = c->group.devices.items[i];
        size_t digits = strncmp(d, "cuda:", 5) == 0 ? strspn(d + 5, "0123456789") : 0;
        bool fake = strcmp(d, "fake") == 0 || strncmp(d, "fake:", 5) == 0;
        if (strcmp(d, "cpu") != 0 && !fake && !(digits && digits <= 3 && d[5 + digits] == '\0'))
            return conf_error(&config_table, &c->origin, "group.devices", e,
                              "expected cpu, cuda:N or fake[:KEY=VALUE...], found \"%.64s\"", d);
    }
    uint64_t n_ranks = config_group_ranks(c) * c->group.replicas;
    if (c->group.devices.n > n_ranks)
        return conf_error(&config_table, &c->origin, "group.devices", e,
                          "expected at most one device for each of the %llu ranks "
                          "(group.tensor_parallel x pipeline_parallel x replicas), found %zu",
                          (unsigned long long)n_ranks, c->group.devices.n);
    return 0;
}

static int check_group(const struct config *c, struct err *e)
{
    if (!config_group_name_ok(c->group.name))
        return conf_error(&config_table, &c->origin, "group.name", e,
                          "expected letters, digits, '.', '_' and '-', found \"%.64s\"",
                          c->group.name);
    char last[CONFIG_MAX_GROUP_NAME + 8];
    config_replica_name(c, (uint32_t)c->group.replicas - 1, last);
    if (!config_group_name_ok(last))
        return conf_error(&config_table, &c->origin, "group.name", e,
                          "too long for the names of %llu replicas",
                          (unsigned long long)c->group.replicas);
    if (c->group.tensor_parallel * c->group.pipeline_parallel > CONFIG_MAX_GROUP_RANKS)
        return conf_error(&config_table, &c->origin, "group.pipeline_parallel", e,
                          "expected at most %d ranks (tensor_parallel x pipeline_parallel), found "
                          "%llu x %llu",
                          CONFIG_MAX_GROUP_RANKS, (unsigned long long)c->group.tensor_parallel,
                          (unsigned long long)c->group.pipeline_parallel);
    size_t n = c->group.stage_layers.n;
    if (n && n != c->group.pipeline_parallel)
        return conf_error(&config_table, &c->origin, "group.stage_layers", e,
                          "expected a number of layers for each of the %llu stages "
                          "(group.pipeline_parallel), found %zu",
                          (unsigned long long)c->group.pipeline_parallel, n);
    for (uint32_t i = 0; i != n; i++) {
        if (config_stage_layers(c, i) == 0)
            return conf_error(&config_table, &c->origin, "group.stage_layers", e,
                              "expected whole numbers from 1 to %d, found \"%.32s\"",
                              MAX_STAGE_LAYERS, c->group.stage_layers.items[i]);
    }
    return 0;
}

bool config_is_local(const char *address)
{
    static const char *const local[] = {"unix:", "localhost:", "[::1]:"};
    for (size_t i = 0; i != ARRAY_LEN(local); i++) {
        if (strncmp(address, local[i], strlen(local[i])) == 0)
            return true;
    }
    /* Numbers: 127.example.com is a name, which may mean any host. */
    return strncmp(address, "127.", 4) == 0 && address[strspn(address, "0123456789.")] == ':';
}

static bool is_mutual(const struct config_tls *t)
{
    return *t->ca && *t->cert && *t->key;
}

int config_check_coordinator(const struct config *c, struct err *e)
{
    bool separate = *c->coordinator.worker_listen;
    const char *address = separate ? c->coordinator.worker_listen : c->coordinator.listen;
    const char *path = separate ? "coordinator.worker_listen" : "coordinator.listen";
    if (c->cluster.plaintext || config_is_local(address) || is_mutual(&c->coordinator.tls))
        return 0;
    return conf_error(&config_table, &c->origin, path, e,
                      "workers come through \"%.64s\", which others than this host may reach: set "
                      "coordinator.tls.ca, cert and key%s, or cluster.plaintext on a network of "
                      "trusted hosts",
                      address, separate ? "" : ", or coordinator.worker_listen to a local address");
}

int config_check_worker(const struct config *c, struct err *e)
{
    const char *target = config_worker_target(c);
    if (c->cluster.plaintext || config_is_local(target) || is_mutual(&c->worker.tls))
        return 0;
    return conf_error(&config_table, &c->origin, "worker.coordinator", e,
                      "the coordinator at \"%.64s\" is reached over a network: set worker.tls.ca, "
                      "cert and key, or cluster.plaintext on a network of trusted hosts",
                      target);
}

static int check_listeners(const struct config *c, struct err *e)
{
    if (*c->coordinator.admin_listen && !config_is_local(c->coordinator.admin_listen))
        return conf_error(&config_table, &c->origin, "coordinator.admin_listen", e,
                          "expected unix:/PATH or an address of the loopback interface, found "
                          "\"%.64s\"",
                          c->coordinator.admin_listen);
    if (c->coordinator.tls_clients == CONFIG_TLS_CLIENTS_NOTHING && *c->coordinator.tls.ca &&
        !*c->coordinator.worker_listen)
        return conf_error(&config_table, &c->origin, "coordinator.tls.clients", e,
                          "workers must show a certificate: give them an address of their own, "
                          "coordinator.worker_listen");
    return 0;
}

static int check_cpus(const struct config *c, struct err *e)
{
    struct cpus cpus;
    struct err why = ERR_INIT;
    if (cpus_parse(c->worker.cpus, &cpus, &why) < 0)
        return conf_error(&config_table, &c->origin, "worker.cpus", e, "%s", why.message);
    return 0;
}

int config_check(const struct config *c, struct err *e)
{
    int r = check_pair(c, &c->coordinator.tls, "coordinator.tls.cert", "coordinator.tls.key", e);
    if (r == 0)
        r = check_pair(c, &c->worker.tls, "worker.tls.cert", "worker.tls.key", e);
    if (r == 0)
        r = check_listeners(c, e);
    if (r == 0)
        r = check_group(c, e);
    if (r == 0)
        r = check_devices(c, e);
    if (r < 0)
        return r;
    if (*c->coordinator.tls.ca && !*c->coordinator.tls.cert)
        return conf_error(&config_table, &c->origin, "coordinator.tls.ca", e,
                          "needs coordinator.tls.cert and coordinator.tls.key: without them the "
                          "server speaks plaintext");
    r = check_cpus(c, e);
    if (r < 0)
        return r;
    if (c->deadlines.lease < 4 * c->deadlines.heartbeat)
        return conf_error(&config_table, &c->origin, "deadlines.lease", e,
                          "expected at least four heartbeats (deadlines.heartbeat is %lld ms), "
                          "found %lld ms",
                          (long long)(c->deadlines.heartbeat / NSEC_PER_MSEC),
                          (long long)(c->deadlines.lease / NSEC_PER_MSEC));
    if (c->coordinator.deadlines.request > c->coordinator.deadlines.max_request)
        return conf_error(&config_table, &c->origin, "coordinator.deadlines.request", e,
                          "expected at most coordinator.deadlines.max_request");
    if (c->group.spawn.restart_min > c->group.spawn.restart_max)
        return conf_error(&config_table, &c->origin, "group.spawn.restart_min", e,
                          "expected at most group.spawn.restart_max");
    if (c->worker.reconnect_min > c->worker.reconnect_max)
        return conf_error(&config_table, &c->origin, "worker.reconnect_min", e,
                          "expected at most worker.reconnect_max");
    return 0;
}

const char *config_worker_target(const struct config *c)
{
    if (*c->worker.coordinator)
        return c->worker.coordinator;
    return *c->coordinator.worker_listen ? c->coordinator.worker_listen : c->coordinator.listen;
}

const char *config_device(const struct config *c, unsigned rank)
{
    const struct conf_list *l = &c->group.devices;
    return l->n == 0 ? "cpu" : l->items[MIN((size_t)rank, l->n - 1)];
}

uint32_t config_group_ranks(const struct config *c)
{
    return (uint32_t)(c->group.tensor_parallel * c->group.pipeline_parallel);
}

uint32_t config_stage_layers(const struct config *c, uint32_t stage)
{
    if (stage >= c->group.stage_layers.n)
        return 0;
    const char *text = c->group.stage_layers.items[stage];
    size_t n = strspn(text, "0123456789");
    return n >= 1 && n <= 4 && text[n] == '\0' ? (uint32_t)strtoul(text, NULL, 10) : 0;
}

bool config_group_name_ok(const char *name)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = strspn(name, allowed);
    return n >= 1 && n <= CONFIG_MAX_GROUP_NAME && name[n] == '\0';
}

void config_replica_name(const struct config *c, uint32_t replica,
                         char ret_name[CONFIG_MAX_GROUP_NAME + 8])
{
    const size_t size = CONFIG_MAX_GROUP_NAME + 8;
    if (c->group.replicas == 1)
        snprintf(ret_name, size, "%s", c->group.name);
    else if (strcmp(c->group.name, "0") == 0)
        snprintf(ret_name, size, "%u", replica);
    else
        snprintf(ret_name, size, "%s-%u", c->group.name, replica);
}

const char *config_precision(const struct config *c)
{
    static const char *const names[][3] = {
        [CONFIG_ACTIVATIONS_FP32] = {"fp32", "fp32+kv16", "fp32+kv8"},
        [CONFIG_ACTIVATIONS_FP16] = {"fp16", "fp16", "fp16+kv8"},
        [CONFIG_ACTIVATIONS_A8] = {"a8", "a8", "a8+kv8"},
    };
    return names[c->worker.activations][c->worker.kv_cache];
}
