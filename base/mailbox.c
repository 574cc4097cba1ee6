/* mailbox.c: see mailbox.h. One uv_async handle wakes the loop; the list says why, because wake-ups
 * coalesce. */
#include "base/mailbox.h"

#include <assert.h>

static void deliver(struct mailbox *m)
{
    pthread_mutex_lock(&m->mutex);
    struct mailbox_item *item = m->head;
    m->head = m->tail = NULL;
    pthread_mutex_unlock(&m->mutex);
    while (item) {
        struct mailbox_item *next = item->next; /* the item may be gone after the call */
        m->on_message(m, item);
        item = next;
    }
}

static void on_async(uv_async_t *async)
{
    deliver(async->data);
}

int mailbox_init(struct mailbox *m, uv_loop_t *loop,
                 void (*on_message)(struct mailbox *m, struct mailbox_item *item), void *context)
{
    *m = (struct mailbox){.on_message = on_message, .context = context};
    int r = -pthread_mutex_init(&m->mutex, NULL);
    if (r)
        return r;
    r = uv_async_init(loop, &m->async, on_async); /* on this platform uv errors are errno values */
    if (r) {
        pthread_mutex_destroy(&m->mutex);
        return r;
    }
    m->async.data = m;
    return 0;
}

void mailbox_post(struct mailbox *m, struct mailbox_item *item)
{
    item->next = NULL;
    pthread_mutex_lock(&m->mutex);
    bool was_empty = !m->head;
    if (was_empty)
        m->head = item;
    else
        m->tail->next = item;
    m->tail = item;
    /* Inside the lock: once the item is out, its receiver may close the mailbox. A list that was
     * not empty has its wake-up under way already. */
    if (was_empty)
        uv_async_send(&m->async);
    pthread_mutex_unlock(&m->mutex);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct mailbox *m = handle->data;
    assert(!m->head);
    pthread_mutex_destroy(&m->mutex);
    if (m->on_closed)
        m->on_closed(m);
}

void mailbox_close(struct mailbox *m, void (*on_closed)(struct mailbox *m))
{
    assert(!m->closing);
    m->closing = true;
    m->on_closed = on_closed;
    while (m->head)
        deliver(m);
    uv_close((uv_handle_t *)&m->async, on_handle_closed);
}
