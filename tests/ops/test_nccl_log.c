/* test_nccl_log.c: the network and the ways between ranks, read from NCCL's log in memory; lines of
 * any kind; an environment that says something of the log is left alone. */
#include "harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "kernels/cuda/nccl_log.h"

static void forget_environment(void)
{
    unsetenv("NCCL_DEBUG");
    unsetenv("NCCL_DEBUG_SUBSYS");
    unsetenv("NCCL_DEBUG_FILE");
}

static void test_lines(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "",
        "host:12:34 [0] NCCL INFO Using network ",
        "host:12:34 [0] NCCL INFO Using network an;escape\x1b[31m",
        "host:12:34 [0] NCCL INFO Using network IB",
        "host:12:34 [0] NCCL INFO Using network AnythingThatIsLongerThanTheRoomThatThereIsForIt",
        "host:12:34 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM",
        "host:12:34 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM",
        "host:12:34 [0] NCCL INFO Channel 00/0 : 1[1] -> 2[0] [send] via NET/IB/0(1)/GDRDMA",
        "host:12:34 [0] NCCL INFO somebody came via nowhere",
        "host:12:34 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct",
    };
    struct nccl_log_facts f = {.n_ways = 0};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        nccl_log_line(&f, lines[i]);
    assert_string_equal(f.network, "IB");
    assert_int_equal(f.n_ways, 3);
    assert_string_equal(f.ways[0], "P2P/CUMEM");
    assert_string_equal(f.ways[1], "NET/IB/0");
    assert_string_equal(f.ways[2], "SHM/direct/direct");
    for (int i = 0; i < 100; i++) {
        char text[64];
        snprintf(text, sizeof text, "Channel 0 : via W%d", i);
        nccl_log_line(&f, text);
    }
    assert_int_equal(f.n_ways, NCCL_LOG_WAYS);
}

static void test_environment_is_respected(void **state)
{
    (void)state;
    static const char *const given[] = {"NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"};
    for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
        forget_environment();
        setenv(given[i], "WARN", 1);
        nccl_log_prepare();
        for (size_t j = 0; j < sizeof given / sizeof *given; j++) {
            const char *found = getenv(given[j]);
            assert_string_equal(found ? found : "", i == j ? "WARN" : "");
        }
        struct nccl_log_facts f;
        nccl_log_read(&f);
        assert_string_equal(f.network, "");
        assert_false(nccl_log_is_own("NCCL_DEBUG=INFO"));
    }
    forget_environment();
    setenv("NCCL_DEBUG_FILE", "/proc/self/fd/0", 1); /* a descriptor, but not ours */
    struct nccl_log_facts f;
    nccl_log_read(&f);
    assert_string_equal(f.network, "");
    forget_environment();
}

static void test_log(void **state)
{
    (void)state;
    forget_environment();
    nccl_log_prepare();
    const char *path = getenv("NCCL_DEBUG_FILE");
    if (!path)
        skip(); /* no such memory here */
    assert_string_equal(getenv("NCCL_DEBUG"), "INFO");
    assert_true(nccl_log_is_own("NCCL_DEBUG=INFO") &&
                nccl_log_is_own("NCCL_DEBUG_SUBSYS=INIT,NET"));
    assert_false(nccl_log_is_own("NCCL_DEBUG=WARN") || nccl_log_is_own("NCCL_NET=IB"));
    FILE *log = fopen(path, "w"); /* as NCCL does */
    struct nccl_log_facts f;
    assert_non_null(log);
    setvbuf(log, NULL, _IONBF, 0);
    fputs("NCCL INFO Using netw", log); /* a line in two pieces */
    nccl_log_read(&f);
    assert_string_equal(f.network, "");
    fputs("ork Socket\nNCCL INFO Channel 00 : 0 -> 1 via NET/Socket/0\n", log);
    nccl_log_read(&f);
    assert_string_equal(f.network, "Socket");
    assert_int_equal(f.n_ways, 1);
    for (int i = 0; i < 200000; i++) /* without an end, and longer than a line may be */
        fputc('x', log);
    fputs(" Using network No\nNCCL INFO Using network IB\n", log);
    fwrite("a\0b\n", 1, 4, log);
    nccl_log_read(&f);
    assert_string_equal(f.network, "IB");
    struct stat st;
    assert_int_equal(fstat(fileno(log), &st), 0);
    assert_true(st.st_size > 200000);
    if (st.st_blocks * 512 > 8192) /* what was read is given back */
        fail_msg("%lld bytes are kept", (long long)st.st_blocks * 512);
    nccl_log_restart();
    nccl_log_read(&f);
    assert_string_equal(f.network, "");
    assert_int_equal(f.n_ways, 0);
    fputs("NCCL INFO Using network IB\n", log); /* of the next communicator */
    nccl_log_read(&f);
    assert_string_equal(f.network, "IB");
    fclose(log);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_environment_is_respected),
        cmocka_unit_test(test_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
