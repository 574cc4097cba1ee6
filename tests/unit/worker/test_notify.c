#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/notify.h"

/* A service manager: a datagram socket under an abstract name. */
static int manager_new(char *ret_name, size_t size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(ret_name, size, "@glmd-test-notify-%d", (int)getpid());
    memcpy(address.sun_path + 1, ret_name + 1, strlen(ret_name) - 1);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(ret_name));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, length), 0);
    return fd;
}

static void says_nothing_without_a_manager(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    setenv("WATCHDOG_USEC", "1000000", 1);
    notify_init();
    assert_false(notify_enabled());
    assert_int_equal(notify_watchdog_interval_ns(), 0);
    notify_send("READY=1");
    setenv("NOTIFY_SOCKET", "relative/path", 1);
    notify_init();
    assert_false(notify_enabled());
    setenv("NOTIFY_SOCKET", "/nobody/listens/here", 1);
    notify_init();
    assert_false(notify_enabled());
    notify_deinit();
}

static void speaks_to_the_manager(void **state)
{
    (void)state;
    char name[64], text[64], pid[16];
    int fd = manager_new(name, sizeof name);
    setenv("NOTIFY_SOCKET", name, 1);
    setenv("WATCHDOG_USEC", "3000000", 1);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    notify_init();
    assert_true(notify_enabled());
    assert_int_equal(notify_watchdog_interval_ns(), 1500 * NSEC_PER_MSEC);
    assert_null(getenv("NOTIFY_SOCKET")); /* not for children */
    assert_null(getenv("WATCHDOG_USEC"));
    notify_send("STATUS=%d of %d", 1, 2);
    ssize_t n = recv(fd, text, sizeof text - 1, 0);
    assert_true(n > 0);
    text[n] = 0;
    assert_string_equal(text, "STATUS=1 of 2");
    close(fd);
    notify_send("READY=1"); /* nobody left: no signal, no error */
    notify_deinit();
}

static void ignores_a_watchdog_for_others_or_nonsense(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"1000000", "1"}, {"0", NULL}, {"-5", NULL}, {"x", NULL}, {"99999999999999999999", NULL}};
    char name[64];
    int fd = manager_new(name, sizeof name);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        setenv("NOTIFY_SOCKET", name, 1);
        setenv("WATCHDOG_USEC", cases[i][0], 1);
        if (cases[i][1])
            setenv("WATCHDOG_PID", cases[i][1], 1);
        notify_init();
        assert_true(notify_enabled());
        assert_int_equal(notify_watchdog_interval_ns(), 0);
    }
    notify_deinit();
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_nothing_without_a_manager),
        cmocka_unit_test(speaks_to_the_manager),
        cmocka_unit_test(ignores_a_watchdog_for_others_or_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
