/* test_mailbox.c: several threads post to one loop: nothing is lost, each thread's order is kept.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/mailbox.h"

enum { N_THREADS = 4, N_ITEMS = 20000 };

struct message {
    struct mailbox_item item; /* first member */
    unsigned thread, number;
};

struct inbox {
    struct mailbox mailbox;
    unsigned next[N_THREADS]; /* number expected from each thread */
    unsigned n_received, n_closed;
    struct message again; /* posted from on_message */
};

struct sender {
    pthread_t thread;
    struct inbox *inbox;
    unsigned index;
    struct message messages[N_ITEMS];
};

static void on_closed(struct mailbox *m)
{
    ((struct inbox *)m->context)->n_closed++;
}

static void on_message(struct mailbox *m, struct mailbox_item *item)
{
    struct inbox *inbox = m->context;
    struct message *message = (struct message *)item;
    assert_int_equal(message->number, inbox->next[message->thread]);
    inbox->next[message->thread]++;
    if (++inbox->n_received == N_THREADS * N_ITEMS)
        uv_stop(inbox->mailbox.async.loop);
}

static void *send_all(void *context)
{
    struct sender *s = context;
    for (unsigned i = 0; i < N_ITEMS; i++) {
        s->messages[i] = (struct message){.thread = s->index, .number = i};
        mailbox_post(&s->inbox->mailbox, &s->messages[i].item);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct inbox inbox = {0};
    struct sender *senders = calloc(N_THREADS, sizeof *senders);
    assert_non_null(senders);
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(mailbox_init(&inbox.mailbox, &loop, on_message, &inbox), 0);
    for (unsigned i = 0; i < N_THREADS; i++) {
        senders[i].inbox = &inbox;
        senders[i].index = i;
        assert_int_equal(pthread_create(&senders[i].thread, NULL, send_all, &senders[i]), 0);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    for (unsigned i = 0; i < N_THREADS; i++) {
        pthread_join(senders[i].thread, NULL);
        assert_int_equal(inbox.next[i], N_ITEMS);
    }
    mailbox_close(&inbox.mailbox, on_closed);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(inbox.n_closed, 1);
    assert_int_equal(uv_loop_close(&loop), 0);
    free(senders);
}

static void on_message_post_again(struct mailbox *m, struct mailbox_item *item)
{
    (void)item;
    struct inbox *inbox = m->context;
    if (++inbox->n_received < 3)
        mailbox_post(m, item); /* the item is the receiver's */
}

static void test_close_delivers(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct inbox inbox = {0};
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(mailbox_init(&inbox.mailbox, &loop, on_message_post_again, &inbox), 0);
    mailbox_post(&inbox.mailbox, &inbox.again.item);
    assert_int_equal(inbox.n_received, 0);
    mailbox_close(&inbox.mailbox, on_closed);
    assert_int_equal(inbox.n_received, 3); /* what was queued, and what that posted */
    assert_int_equal(inbox.n_closed, 0);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(inbox.n_closed, 1);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_close_delivers),
    };
    return cmocka_run_group_tests_name("mailbox", tests, NULL, NULL);
}
