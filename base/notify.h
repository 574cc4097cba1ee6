/* notify.h: tells the service manager how this process is (sd_notify(3)'s protocol: one datagram to
 * $NOTIFY_SOCKET). Without that variable every call is a no-op. Calls come from one thread.
 */
#ifndef GLMD_BASE_NOTIFY_H
#define GLMD_BASE_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* Reads and removes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from the environment, so that
 * children do not speak in this process's name. Call once, before threads start. */
void notify_init(void);
void notify_deinit(void);

/* Whether somebody listens. */
bool notify_enabled(void);

/* How often WATCHDOG=1 has to arrive at least, halved as advised; 0 = no watchdog. */
int64_t notify_watchdog_interval_ns(void);

/* "READY=1", "STATUS=...", "WATCHDOG=1", several separated by newlines; at most 1 KiB. A manager
 * that is gone is not an error. */
void notify_send(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
