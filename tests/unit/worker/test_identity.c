#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker/identity.h"

static void listens_where_it_says(void **state)
{
    (void)state;
    struct identity id, other;
    struct err e = ERR_INIT;
    if (identity_init(&id, "127.0.0.1:0", &e))
        fail_msg("%s", e.message);
    unsigned port = 0;
    assert_int_equal(sscanf(id.listen_address, "127.0.0.1:%u", &port), 1);
    assert_in_range(port, 1, 65535);
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)port),
                                        .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    /* the port is taken now */
    assert_int_equal(identity_init(&other, id.listen_address, &e), -EADDRINUSE);
    assert_non_null(strstr(e.message, id.listen_address));
    assert_int_equal(other.listen_fd, -1);
    identity_deinit(&id);
    assert_int_equal(id.listen_fd, -1);
}

static void every_start_is_another_instance(void **state)
{
    (void)state;
    struct identity a, b;
    struct err e = ERR_INIT;
    assert_int_equal(identity_init(&a, "127.0.0.1:0", &e), 0);
    assert_int_equal(identity_init(&b, "127.0.0.1:0", &e), 0);
    assert_memory_not_equal(a.instance, b.instance, sizeof a.instance);
    assert_string_equal(a.boot_id, b.boot_id);
    assert_string_equal(a.shm_domain, b.shm_domain);
    assert_true(*a.hostname);
    identity_deinit(&a);
    identity_deinit(&b);
}

static void all_interfaces_go_by_the_host_name(void **state)
{
    (void)state;
    struct identity id;
    struct err e = ERR_INIT;
    assert_int_equal(identity_init(&id, "0.0.0.0:0", &e), 0);
    assert_int_equal(strncmp(id.listen_address, id.hostname, strlen(id.hostname)), 0);
    assert_int_equal(id.listen_address[strlen(id.hostname)], ':');
    identity_deinit(&id);
}

static void refuses_what_is_no_address(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",      "localhost",        ":80",           "127.0.0.1:", "::1:80",
        "[::1]", "127.0.0.1:123456", "127.0.0.1:http"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct identity id;
        struct err e = ERR_INIT;
        int r = identity_init(&id, bad[i], &e);
        if (r != -EINVAL || !*e.message)
            fail_msg("\"%s\": expected -EINVAL, found %d \"%s\"", bad[i], r, e.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(listens_where_it_says),
        cmocka_unit_test(every_start_is_another_instance),
        cmocka_unit_test(all_interfaces_go_by_the_host_name),
        cmocka_unit_test(refuses_what_is_no_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
