/* identity.h: who this process is, for Hello, and the socket where its peers find it. */
#ifndef GLMD_WORKER_IDENTITY_H
#define GLMD_WORKER_IDENTITY_H

#include <stdint.h>

#include "base/err.h"

struct identity { /* listen_fd is owned, -1 = none */
    uint8_t instance[16];
    uint32_t pid;
    char boot_id[64];
    char hostname[256];
    char shm_domain[128];
    int listen_fd;
    char listen_address[300]; /* HOST:PORT as peers should dial it */
};

/* `listen`: HOST:PORT or [IPV6]:PORT, port 0 = any. An address that means "all interfaces" is
 * reported under the host's name. -EADDRINUSE, -EADDRNOTAVAIL, -EINVAL name the address. */
int identity_init(struct identity *id, const char *listen, struct err *e);
void identity_deinit(struct identity *id);

#endif
