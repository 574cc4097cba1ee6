/* nccl_log.h: what NCCL says of its network. No call tells which network a communicator uses; its
 * log does. So a process whose environment says nothing about that log has it written to memory,
 * and the few lines that name the network and the ways between ranks are picked out of it when
 * `glmd status` wants them.
 *
 * Linked into programs (nccl_log_prepare) and into libglmd_cuda.so (the rest); the environment
 * carries the one to the other.
 */
#ifndef GLMD_KERNELS_CUDA_NCCL_LOG_H
#define GLMD_KERNELS_CUDA_NCCL_LOG_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { NCCL_LOG_WORD = 32, NCCL_LOG_WAYS = 6 };

struct nccl_log_facts {
    char network[NCCL_LOG_WORD];             /* "IB", "Socket", a plugin's name; "": not known */
    char ways[NCCL_LOG_WAYS][NCCL_LOG_WORD]; /* "P2P/CUMEM", "NET/IB/0", each once */
    int n_ways;
};

/* In main, before there are threads: sets NCCL_DEBUG, NCCL_DEBUG_SUBSYS and NCCL_DEBUG_FILE. Does
 * nothing where one of them is set, or where there is no such memory: then the log is where NCCL
 * puts it, and its facts stay unknown. */
void nccl_log_prepare(void);

/* Whether this variable of the environment ("NAME=VALUE") is of nccl_log_prepare's making. */
bool nccl_log_is_own(const char *variable);

/* Forgets what was logged until now: another communicator begins. */
void nccl_log_restart(void);
/* What has been logged since then. Any thread. */
void nccl_log_read(struct nccl_log_facts *ret);

/* One line, hostile or not, without its end. */
void nccl_log_line(struct nccl_log_facts *f, const char *line);

#ifdef __cplusplus
}
#endif

#endif
