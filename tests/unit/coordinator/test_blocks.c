/* test_blocks.c: reference counts, leases and copy-on-write of KV blocks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "coordinator/blocks.h"

static void test_reserve_and_take(void **state)
{
    (void)state;
    struct blocks b;
    assert_int_equal(blocks_init(&b, 10), 0);
    struct block_lease lease = {0}, other = {0};
    assert_true(blocks_reserve(&b, &lease, 7));
    assert_false(blocks_reserve(&b, &other, 4));
    assert_true(blocks_reserve(&b, &other, 3));
    assert_int_equal(blocks_available(&b), 0);

    struct block_table t;
    assert_int_equal(block_table_init(&t, 100), 0);
    assert_int_equal(t.capacity, 7);
    block_table_extend(&b, &lease, &t, 33);
    assert_int_equal(t.n, 3);
    assert_int_equal(lease.left, 4);
    block_table_extend(&b, &lease, &t, 48); /* still three blocks */
    assert_int_equal(t.n, 3);
    assert_true(blocks_consistent(&b));
    assert_int_equal(blocks_used(&b), 3);

    block_table_release(&b, &lease, &t);
    assert_int_equal(lease.left, 7);
    blocks_end_lease(&b, &lease);
    blocks_end_lease(&b, &other);
    assert_int_equal(blocks_available(&b), 10);
    assert_true(blocks_consistent(&b));
    block_table_deinit(&t);
    blocks_deinit(&b);
}

static void test_fork_shares_whole_blocks(void **state)
{
    (void)state;
    struct blocks b;
    assert_int_equal(blocks_init(&b, 10), 0);
    struct block_lease lease = {0};
    assert_true(blocks_reserve(&b, &lease, 10));
    struct block_table a, c, d;
    assert_int_equal(block_table_init(&a, 80), 0);
    assert_int_equal(block_table_init(&c, 80), 0);
    assert_int_equal(block_table_init(&d, 80), 0);
    block_table_extend(&b, &lease, &a, 37);

    struct plan_copy copy;
    assert_true(block_table_fork(&b, &lease, &c, &a, 37, &copy));
    assert_int_equal(c.n, 3);
    assert_int_equal(c.ids[0], a.ids[0]);
    assert_int_equal(c.ids[1], a.ids[1]);
    assert_int_not_equal(c.ids[2], a.ids[2]);
    assert_int_equal(copy.src, a.ids[2]);
    assert_int_equal(copy.dst, c.ids[2]);
    assert_false(block_table_fork(&b, &lease, &d, &a, 32, &copy)); /* ends at a block's border */
    assert_int_equal(d.n, 2);
    assert_int_equal(blocks_used(&b), 4);

    block_table_release(&b, &lease, &a);
    assert_int_equal(blocks_used(&b), 3); /* two are still shared */
    block_table_release(&b, &lease, &c);
    block_table_release(&b, &lease, &d);
    assert_int_equal(blocks_used(&b), 0);
    assert_int_equal(lease.left, 10);
    assert_true(blocks_consistent(&b));
    blocks_end_lease(&b, &lease);
    block_table_deinit(&a);
    block_table_deinit(&c);
    block_table_deinit(&d);
    blocks_deinit(&b);
}

static void evict_second(void *context)
{
    struct blocks *b = context;
    blocks_uncache(b, 1);
}

/* Cached blocks outlive their tables, count as available, and go when they are needed. */
static void test_idle_blocks(void **state)
{
    (void)state;
    struct blocks b;
    struct block_lease lease = {0}, other = {0};
    struct block_table t, u;
    assert_int_equal(blocks_init(&b, 3), 0);
    b.evict = evict_second;
    b.evict_context = &b;
    assert_int_equal(block_table_init(&t, 48), 0);
    assert_int_equal(block_table_init(&u, 48), 0);
    assert_true(blocks_reserve(&b, &lease, 2));
    block_table_extend(&b, &lease, &t, 32);
    blocks_cache(&b, t.ids[0]);
    blocks_cache(&b, t.ids[1]);
    block_table_release(&b, &lease, &t);
    blocks_end_lease(&b, &lease);
    assert_int_equal(b.n_idle, 2);
    assert_int_equal(blocks_used(&b), 0);
    assert_int_equal(blocks_available(&b), 3);
    assert_true(blocks_consistent(&b));

    assert_true(blocks_reserve(&b, &lease, 1));
    assert_true(blocks_reserve(&b, &other, 2));
    assert_int_equal(blocks_available(&b), 0);
    block_table_share(&b, &lease, &t, (const uint32_t[]){0}, 1); /* idle: it is paid for */
    assert_int_equal(lease.left, 0);
    assert_true(blocks_consistent(&b));
    block_table_extend(&b, &other, &u, 32); /* the free one, then the idle one */
    assert_int_equal(u.ids[0], 2);
    assert_int_equal(u.ids[1], 1);
    assert_int_equal(b.n_idle, 0);
    assert_true(blocks_consistent(&b));

    block_table_release(&b, &other, &u);
    block_table_share(&b, &other, &u, (const uint32_t[]){0}, 1); /* in use: for nothing */
    assert_int_equal(other.left, 2);
    block_table_release(&b, &lease, &t);
    assert_int_equal(lease.left, 0);
    blocks_end_lease(&b, &lease);
    block_table_release(&b, &other, &u); /* the last one gets it */
    assert_int_equal(other.left, 3);
    assert_int_equal(b.n_idle, 1);
    assert_true(blocks_consistent(&b));
    blocks_end_lease(&b, &other);
    assert_int_equal(blocks_available(&b), 3);
    blocks_uncache(&b, 0);
    assert_true(blocks_consistent(&b));
    block_table_deinit(&t);
    block_table_deinit(&u);
    blocks_deinit(&b);
}

static void test_consistency_check_sees_errors(void **state)
{
    (void)state;
    struct blocks b;
    assert_int_equal(blocks_init(&b, 4), 0);
    assert_true(blocks_consistent(&b));
    b.refs[2] = 1; /* in use, but on the free stack */
    assert_false(blocks_consistent(&b));
    b.refs[2] = 0;
    b.n_reserved = 5;
    assert_false(blocks_consistent(&b));
    blocks_deinit(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reserve_and_take),
        cmocka_unit_test(test_fork_shares_whole_blocks),
        cmocka_unit_test(test_idle_blocks),
        cmocka_unit_test(test_consistency_check_sees_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
