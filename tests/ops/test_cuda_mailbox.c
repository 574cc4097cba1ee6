/* test_cuda_mailbox.c: mailboxes are not freed, and not used again, while a process has them open,
 * and are as soon as it has closed them or died. Peers are descriptors of this process, except
 * where one has to die. */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/mailbox.h"
#include "tests/support/emulated_driver.h"

enum { BYTES = 2 << 20 };

static struct k_ctx *open_device(void)
{
    char message[256] = "";
    struct k_ctx *c = NULL;
    const struct k_open_params p = {
        .device = "cuda:0", .mode = K_MODE_FP16, .max_rows = 4, .max_cols = 64, .max_seq = 16};
    emulated_driver_reset();
    if (cuda_open(&p, &c, message, sizeof message))
        fail_msg("cuda_open: %s", message);
    return c;
}

static struct cuda_mailbox *get(struct k_ctx *c, size_t bytes)
{
    struct cuda_mailbox *b = NULL;
    assert_int_equal(mailbox_get(c, bytes, true, &b), 0);
    return b;
}

static int hold(const struct cuda_mailbox *b)
{
    int fd = -1;
    assert_int_equal(mailbox_hold(b->name, &fd), 0);
    return fd;
}

static uint32_t n_mailboxes(const struct k_ctx *c)
{
    uint32_t n = 0;
    for (int i = 0; i < CUDA_MAX_MAILBOXES; i++)
        n += c->mailboxes[i].memory != NULL;
    return n;
}

/* One that nobody has open serves the next epoch, or makes room for one of another size. */
static void test_used_again(void **state)
{
    (void)state;
    struct k_ctx *c = open_device();
    uint64_t before = emulated_driver_state()->allocated;
    struct cuda_mailbox *b = get(c, BYTES);
    void *memory = b->memory;
    int fd = hold(b);
    char name[sizeof b->name];
    memcpy(name, b->name, sizeof name);
    mailbox_unlink(b);
    close(fd);
    b = get(c, BYTES);
    assert_ptr_equal(b->memory, memory);
    assert_string_not_equal(b->name, name); /* who comes late to the old epoch does not get in */
    assert_int_equal(mailbox_hold(name, &fd), -ENOENT);
    get(c, 2 * BYTES);
    assert_int_equal(n_mailboxes(c), 1);
    assert_int_equal(emulated_driver_state()->allocated - before, 2 * BYTES);
    cuda_close(c);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* Those that are open elsewhere are let alone, up to a number of them; closed ones go. */
static void test_open_elsewhere(void **state)
{
    (void)state;
    struct k_ctx *c = open_device();
    struct cuda_mailbox *b = NULL;
    int fds[CUDA_MAX_MAILBOXES];
    void *seen[CUDA_MAX_MAILBOXES];
    for (int i = 0; i < CUDA_MAX_MAILBOXES; i++) {
        b = get(c, BYTES);
        seen[i] = b->memory;
        for (int j = 0; j < i; j++)
            assert_ptr_not_equal(seen[j], seen[i]);
        fds[i] = hold(b);
        mailbox_unlink(b);
    }
    assert_int_equal(mailbox_get(c, BYTES, true, &b), -EBUSY);
    assert_int_equal(mailbox_get(c, 2 * BYTES, true, &b), -EBUSY);
    close(fds[2]);
    assert_ptr_equal(get(c, BYTES)->memory, seen[2]);
    for (int i = 0; i < CUDA_MAX_MAILBOXES; i++)
        if (i != 2)
            close(fds[i]);
    get(c, 2 * BYTES);
    assert_int_equal(n_mailboxes(c), 1);
    cuda_close(c);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* The end of a context does not wait for ever, and does not free what is open. */
static void test_never_closed(void **state)
{
    (void)state;
    struct k_ctx *c = open_device();
    struct cuda_mailbox *b = get(c, BYTES);
    void *memory = b->memory;
    int fd = hold(b);
    mailbox_unlink(b);
    c->mailbox_wait_ns = 20000000;
    cuda_close(c);
    assert_int_equal(emulated_driver_state()->allocated, BYTES);
    close(fd);
    assert_int_equal(cuda_driver_table()->free(memory), 0);
}

static void *close_context(void *c)
{
    cuda_close(c);
    return NULL;
}

/* The end of a context waits for the peers. */
static void test_closed_meanwhile(void **state)
{
    (void)state;
    struct k_ctx *c = open_device();
    struct cuda_mailbox *b = get(c, BYTES);
    int fd = hold(b);
    mailbox_unlink(b);
    c->mailbox_wait_ns = INT64_C(60000000000);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, close_context, c), 0);
    assert_true(emulated_driver_state()->allocated >= BYTES);
    close(fd);
    pthread_join(thread, NULL);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

/* A peer that dies with a mailbox open has closed it. */
static void test_peer_dies(void **state)
{
    (void)state;
    struct k_ctx *c = open_device();
    struct cuda_mailbox *b = get(c, BYTES);
    void *memory = b->memory;
    int pipes[2];
    char word = 0;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int fd;
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* nor does it outlive a test that fails */
        word = mailbox_hold(b->name, &fd) == 0 ? 'y' : 'n';
        close(b->lock); /* the parent's */
        if (write(pipes[1], &word, 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    assert_int_equal(read(pipes[0], &word, 1), 1);
    assert_int_equal(word, 'y');
    mailbox_unlink(b);
    b = get(c, BYTES);
    assert_ptr_not_equal(b->memory, memory);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    get(c, 2 * BYTES); /* both of the other size go */
    assert_int_equal(n_mailboxes(c), 1);
    cuda_close(c);
    close(pipes[0]);
    close(pipes[1]);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

static void test_short_of_memory(void **state)
{
    (void)state;
    struct k_ctx *c = open_device();
    struct cuda_mailbox *b = NULL;
    assert_int_equal(mailbox_get(c, (size_t)1 << 40, true, &b), -ENOMEM);
    get(c, BYTES);
    cuda_close(c);
    assert_int_equal(emulated_driver_state()->allocated, 0);
}

int main(void)
{
    if (!emulated_driver_works())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_used_again),   cmocka_unit_test(test_open_elsewhere),
        cmocka_unit_test(test_never_closed), cmocka_unit_test(test_closed_meanwhile),
        cmocka_unit_test(test_peer_dies),    cmocka_unit_test(test_short_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
