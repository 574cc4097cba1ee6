/* config.h: the one configuration of all of glmd's programs.
 *
 * A single YAML file serves coordinator, workers and tools on every host; each reads the parts it
 * needs. The option table in config.c documents every key, its default and its range; `glmd config
 * show` prints it. Order of precedence: defaults, file, flags (config_set).
 */
#ifndef GLMD_BASE_CONFIG_H
#define GLMD_BASE_CONFIG_H

#include "base/conf.h"
#include "base/log.h"

enum config_workers {
    CONFIG_WORKERS_SPAWN,    /* the coordinator starts the ranks on its own host */
    CONFIG_WORKERS_EXTERNAL, /* each rank is a service of its own (systemd, another host) */
};

enum config_activations { /* values equal those of enum k_mode */
                          CONFIG_ACTIVATIONS_FP32,
                          CONFIG_ACTIVATIONS_FP16,
                          CONFIG_ACTIVATIONS_A8,
};

enum config_kv_cache { /* values equal those of enum k_kv_type */
                       CONFIG_KV_CACHE_AUTO,
                       CONFIG_KV_CACHE_FP16,
                       CONFIG_KV_CACHE_INT8,
};

enum config_tls_clients { /* what clients must show where coordinator.tls.ca is set */
                          CONFIG_TLS_CLIENTS_CERTIFICATE,
                          CONFIG_TLS_CLIENTS_NOTHING,
};

/* Certificate files in PEM; empty = plaintext. */
struct config_tls {
    char *ca;   /* certificates that sign the peers' certificates */
    char *cert; /* own certificate chain */
    char *key;  /* its private key */
};

struct config {
    struct {
        char *name;     /* workers of another cluster are refused */
        bool plaintext; /* workers and coordinator need no TLS over a network */
    } cluster;
    struct {
        char *dir;  /* model directory made by `glmd convert` */
        char *name; /* name that clients use; empty = the name in config.json */
    } model;
    struct {
        char *listen;
        char *worker_listen; /* empty = the same port serves workers */
        char *admin_listen;  /* of operators; empty = they use `listen` */
        char *keys;          /* file of API keys; empty = everybody may do everything */
        char *state_dir;     /* empty = $STATE_DIRECTORY, else ~/.local/state/glmd */
        struct config_tls tls;
        int tls_clients; /* enum config_tls_clients */
        struct {
            char *listen; /* empty = none */
            uint64_t max_head_bytes;
            int64_t head_timeout;
            int64_t idle_timeout;
            int64_t body_timeout;
            int64_t heartbeat;
        } http;
        struct {
            uint64_t max_queue;
            uint64_t max_queue_tokens;
            int64_t max_wait;
            uint64_t max_input_bytes;
            uint64_t max_tokens_per_request;
            uint64_t max_masks;
            uint64_t max_choices;
            uint64_t max_connections;
            uint64_t max_groups;
            uint64_t max_ranks;
            uint64_t max_stream_bytes;
        } limits;
        struct {
            int64_t request;
            int64_t max_request;
            int64_t drain;
            int64_t slow_reader;
        } deadlines;
    } coordinator;
    struct {
        char *name;               /* of the group that this host's ranks belong to */
        uint64_t tensor_parallel; /* ranks of a stage */
        uint64_t pipeline_parallel;
        struct conf_list stage_layers; /* whole numbers, one per stage; none: shared out evenly */
        int workers;                   /* enum config_workers */
        uint64_t replicas;             /* groups that spawn starts */
        struct conf_list devices;      /* one per rank; the last one repeats */
        struct {
            uint64_t threads_per_rank;
            char *worker_path;
            int64_t restart_min;
            int64_t restart_max;
        } spawn;
    } group;
    struct {
        char *coordinator;   /* HOST:PORT that ranks dial; empty = coordinator.listen */
        char *listen;        /* address of this rank for its peers on other hosts */
        char *health_listen; /* gRPC health service of this rank; empty = none */
        struct config_tls tls;
        int activations; /* enum config_activations */
        int kv_cache;    /* enum config_kv_cache */
        int collectives; /* enum k_comm_choice */
        bool cuda_graphs;
        uint64_t library_rows;
        bool warpgroups;
        int pin; /* enum k_pin */
        char *cpus;
        uint64_t threads;
        uint64_t slots;
        uint64_t kv_bytes;
        uint64_t kv_blocks;
        uint64_t memory_utilization; /* percent */
        uint64_t max_step_tokens;
        bool verify;
        int64_t reconnect_min;
        int64_t reconnect_max;
    } worker;
    struct {
        int64_t prefill_budget;
    } scheduler;
    struct {
        int64_t step;
        int64_t heartbeat;
        int64_t lease;
        int64_t hello;
    } deadlines;
    struct {
        bool vllm_names; /* besides glmd's own */
    } metrics;
    struct {
        int level;  /* enum log_level */
        int format; /* enum log_format */
        bool prompts;
    } log;

    struct conf_origin origin; /* where the values came from, for messages */
};

enum {
    CONFIG_MAX_GROUP_RANKS = 64, /* tensor_parallel * pipeline_parallel */
    CONFIG_MAX_STAGES = 32,
    CONFIG_MAX_GROUP_NAME = 64, /* bytes of group.name */
    CONFIG_MAX_REPLICAS = 64,
};

extern const struct conf_table config_table;

int config_init(struct config *c); /* defaults; -ENOMEM */
void config_deinit(struct config *c);

/* File over what is there; call before the flags. */
int config_load(struct config *c, const char *file, struct err *e);

/* Flags over everything: the table's path and a text value. */
int config_set(struct config *c, const char *path, const char *value, const char *flag,
               struct err *e);
/* --set path=value */
int config_set_pair(struct config *c, const char *pair, struct err *e);

/* What single options cannot tell: combinations. Call after file and flags. */
int config_check(const struct config *c, struct err *e);

/* What each daemon needs besides: TLS both ways between coordinator and workers wherever they may
 * be reached over a network, unless cluster.plaintext says otherwise. */
int config_check_coordinator(const struct config *c, struct err *e);
int config_check_worker(const struct config *c, struct err *e);

/* Whether an address is reached from this host alone: a Unix socket or the loopback interface. */
bool config_is_local(const char *address);

/* The address that ranks dial, with the defaults applied. */
const char *config_worker_target(const struct config *c);

/* Activations and, where they differ, the KV cache ("fp16", "fp16+kv8"): what all ranks of a group
 * must agree on besides the model. A rank says it in its Hello. */
const char *config_precision(const struct config *c);

/* The device of a rank ("cpu", "cuda:0"): group.devices[rank], the last one repeating. Ranks of
 * spawned replicas count on: rank r of the second of two groups of four is 4 + r. */
const char *config_device(const struct config *c, unsigned rank);

/* Ranks of one group: rank = stage * tensor_parallel + rank within the stage. */
uint32_t config_group_ranks(const struct config *c);

/* group.stage_layers[stage] as a number of layers; 0 when the list is empty. */
uint32_t config_stage_layers(const struct config *c, uint32_t stage);

/* Name of a spawned group; below group.replicas. */
void config_replica_name(const struct config *c, uint32_t replica,
                         char ret_name[CONFIG_MAX_GROUP_NAME + 8]);

/* Letters, digits, '.', '_' and '-', 1 to CONFIG_MAX_GROUP_NAME of them. */
bool config_group_name_ok(const char *name);

#endif
