/* mailbox.h: messages from other threads to a libuv loop.
 *
 * Many threads post, one loop thread receives, in the order of posting. The queue is a list through
 * the messages themselves: posting takes a mutex for two pointer writes, never allocates and cannot
 * fail, so that a completion-queue or engine thread can always hand over what it has. Bounding the
 * number of messages under way is up to the senders (each has a fixed set of them).
 */
#ifndef GLMD_BASE_MAILBOX_H
#define GLMD_BASE_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <uv.h>

/* Embedded in every message. Belongs to the mailbox from post until on_message has it. */
struct mailbox_item {
    struct mailbox_item *next;
};

/* Must not move between init and on_closed. */
struct mailbox {
    uv_async_t async; /* loop thread */
    void (*on_message)(struct mailbox *m, struct mailbox_item *item);
    void (*on_closed)(struct mailbox *m);
    void *context; /* the owner's; not touched by the mailbox */
    bool closing;  /* loop thread */

    pthread_mutex_t mutex; /* guards the list */
    struct mailbox_item *head, *tail;
};

/* On the loop thread. `on_message` runs on the loop thread and may post, free the item, or post it
 * again. The mailbox keeps the loop alive until it is closed. Negative errno value on failure,
 * nothing to undo then. */
int mailbox_init(struct mailbox *m, uv_loop_t *loop,
                 void (*on_message)(struct mailbox *m, struct mailbox_item *item), void *context);

/* From any thread; the item must not be in a mailbox already. The receiver gets the pointer back
 * and finds its message around it (mailbox_item as first member, or container_of). */
void mailbox_post(struct mailbox *m, struct mailbox_item *item);

/* On the loop thread, once nobody posts from another thread any more. What is still queued is
 * delivered from inside this call; then the handle closes and `on_closed` (may be NULL) runs from
 * the loop: after that the memory is the owner's again. */
void mailbox_close(struct mailbox *m, void (*on_closed)(struct mailbox *m));

#endif
