/* SPDX-License-Identifier: MIT
 *
 * The device model itself: which states a few requests may leave. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"

static void add(struct recording *r, uint64_t host_off, int byte, size_t length)
{
    uint8_t *data = malloc(length);
    memset(data, byte, length);
    struct request write = {
        .kind = REQUEST_WRITE, .host_off = host_off, .length = length, .data = data};
    ck_assert_int_eq(recording_add(r, &write), 0);
    free(data);
}

static struct state *blank(uint64_t size)
{
    struct state *state;
    struct io *mem;
    ck_assert_int_eq(state_open(16384, &state), 0);
    ck_assert_int_eq(io_mem_open(size, &mem), 0);
    ck_assert_int_eq(state_load(state, mem), 0);
    io_close(mem);
    return state;
}

START_TEST(a_unit_keeps_all_its_versions)
{
    struct recording r = {0};
    struct state *durable = blank(4096);
    struct epoch epoch;
    add(&r, 0, 1, 512);    /* A at version 1 */
    add(&r, 512, 9, 512);  /* B */
    add(&r, 0, 2, 512);    /* A at version 2: (A1, B) is legal */
    add(&r, 0, 1, 512);    /* the first one again: no new version */
    add(&r, 1024, 0, 512); /* zeros over zeros: unchanged */
    ck_assert_int_eq(epoch_build(&r, 0, r.count, durable, 512, &epoch), 0);
    ck_assert_uint_eq(epoch.unit_count, 2);
    ck_assert_uint_eq(epoch.touched, 3);
    ck_assert_uint_eq(epoch.units[0].count, 3);
    ck_assert_uint_eq(epoch.units[1].count, 2);
    ck_assert_uint_eq(epoch_product(&epoch), 6);
    epoch_release(&epoch);
    state_close(durable);
    recording_release(&r);
}
END_TEST

START_TEST(forced_writes_are_there)
{
    struct recording r = {0};
    struct state *durable = blank(4096);
    struct epoch epoch;
    add(&r, 0, 1, 512);
    add(&r, 0, 2, 1024); /* with FUA */
    add(&r, 512, 3, 512);
    r.list[1].fua = true;
    ck_assert_uint_eq(epoch_cut(&r, 0), 2); /* power may be cut behind it */
    ck_assert(!epoch_ends(&r, 2));
    ck_assert_uint_eq(epoch_cut(&r, 2), 3);
    ck_assert_int_eq(epoch_build(&r, 0, 2, durable, 512, &epoch), 0);
    ck_assert_uint_eq(epoch_product(&epoch), 3 * 2); /* not completed: anything */
    epoch_release(&epoch);
    ck_assert_int_eq(epoch_build(&r, 0, 3, durable, 512, &epoch), 0);
    ck_assert_uint_eq(epoch_product(&epoch), 2); /* only the last one may be lost */
    ck_assert_uint_eq(epoch.unit_count, 2);
    ck_assert_uint_eq(epoch.units[0].versions[0].bytes[0], 2);
    ck_assert_uint_eq(epoch.units[1].versions[0].bytes[0], 2);
    ck_assert_uint_eq(epoch.units[1].versions[1].bytes[0], 3);
    epoch_release(&epoch);
    state_close(durable);
    recording_release(&r);
}
END_TEST

START_TEST(the_size_is_a_choice_of_its_own)
{
    struct recording r = {0};
    struct state *durable = blank(512);
    struct epoch epoch;
    add(&r, 512, 1, 512);
    add(&r, 4096, 2, 1024);
    ck_assert_int_eq(epoch_build(&r, 0, r.count, durable, 512, &epoch), 0);
    ck_assert_uint_eq(epoch.size_count, 3); /* 512, 1024, 5120 */
    ck_assert_uint_eq(epoch_product(&epoch), 2 * 2 * 2 * 3);
    epoch_release(&epoch);
    ck_assert_int_eq(epoch_build(&r, 0, r.count, durable, 4096, &epoch), 0);
    ck_assert_uint_eq(epoch_product(&epoch), 2 * 2 * 3);
    epoch_release(&epoch);
    state_close(durable);
    recording_release(&r);
}
END_TEST

static int count_visit(void *arg, const unsigned *choice)
{
    (void)choice;
    ++*(unsigned *)arg;
    return 0;
}

START_TEST(restrictions_are_small)
{
    struct recording r = {0};
    struct state *durable = blank(8192);
    struct epoch epoch;
    unsigned prefix = 0, torn = 0, omit = 0, atomic = 0;
    add(&r, 0, 1, 1024);
    add(&r, 2048, 2, 1024);
    add(&r, 512, 3, 1024);
    ck_assert_int_eq(epoch_build(&r, 0, r.count, durable, 512, &epoch), 0);
    ck_assert_int_eq(fault_prefix(&epoch, count_visit, &prefix), 0);
    ck_assert_int_eq(fault_torn(&epoch, count_visit, &torn), 0);
    ck_assert_int_eq(fault_omit_one(&epoch, count_visit, &omit), 0);
    ck_assert_int_eq(fault_atomic(&epoch, count_visit, &atomic), 0);
    ck_assert_uint_eq(prefix, 4);
    ck_assert_uint_eq(torn, 1 + 3 * 4);
    ck_assert_uint_eq(omit, 4);
    ck_assert_uint_eq(atomic, 8);
    epoch_release(&epoch);
    state_close(durable);
    recording_release(&r);
}
END_TEST

START_TEST(worse_devices_add_versions)
{
    struct recording r = {0};
    struct state *durable = blank(1024);
    fault_extend *const extends[] = {fault_garbage, fault_shorn, fault_unreadable, fault_stale};
    add(&r, 0, 1, 512);
    add(&r, 1024, 2, 512);
    for (unsigned i = 0; i < 4; i++) {
        struct epoch epoch;
        ck_assert_int_eq(epoch_build(&r, 0, r.count, durable, 512, &epoch), 0);
        ck_assert_int_eq(extends[i](&epoch, &r, 1), 0);
        ck_assert_uint_eq(epoch.units[0].count, i == 3 ? 2 : 3); /* stale: only what is new */
        ck_assert_uint_ge(epoch.units[1].count, 3);
        epoch_release(&epoch);
    }
    state_close(durable);
    recording_release(&r);
}
END_TEST

static struct io *faulty(struct fault_plan *plan)
{
    struct io *mem, *io;
    ck_assert_int_eq(io_mem_open(8192, &mem), 0);
    ck_assert_int_eq(fault_error_open(mem, plan, &io), 0);
    return io;
}

START_TEST(the_nth_call_fails)
{
    struct fault_plan once = {.call = FAULT_WRITE, .mode = FAULT_ONCE, .n = 2, .error = -EIO};
    struct fault_plan good = {
        .call = FAULT_FLUSH, .mode = FAULT_FOR_GOOD, .n = 1, .error = -ENOSPC};
    struct fault_plan cut = {.call = FAULT_WRITE, .mode = FAULT_SHORT, .n = 1, .error = -ENOSPC};
    uint8_t data[1024], back[1024];
    memset(data, 7, sizeof(data));
    struct io *io = faulty(&once);
    ck_assert_int_eq(io_write(io, 0, data, 512), 0);
    ck_assert_int_eq(io_write(io, 0, data, 512), -EIO);
    ck_assert_int_eq(io_write(io, 0, data, 512), 0);
    io_close(io);
    io = faulty(&good);
    ck_assert_int_eq(io_write(io, 0, data, 512), 0);
    ck_assert_int_eq(io_flush(io), -ENOSPC);
    ck_assert_int_eq(io_flush(io), -ENOSPC);
    io_close(io);
    io = faulty(&cut);
    ck_assert_int_eq(io_write(io, 0, data, 1024), -ENOSPC);
    ck_assert_int_eq(io_read(io, 0, back, 1024), 0);
    ck_assert_mem_eq(back, data, 512);
    ck_assert_uint_eq(back[512], 0);
    io_close(io);
}
END_TEST

START_TEST(a_stopped_device_stays_stopped)
{
    struct fault_plan stop = {.call = FAULT_FLUSH, .mode = FAULT_STOP, .n = 1, .error = -EIO};
    uint8_t byte = 0;
    struct io *io = faulty(&stop);
    ck_assert_int_eq(io_flush(io), -EIO);
    ck_assert_int_eq(io_write(io, 0, &byte, 1), -EIO);
    ck_assert_int_eq(io_read(io, 0, &byte, 1), -EIO);
    io_close(io);
}
END_TEST

/* The device under the engine has memory of its own. */
START_TEST(allocations_of_the_device_do_not_fail)
{
    struct fault_plan plan = {.call = FAULT_ALLOC, .n = 1, .error = -ENOMEM};
    static const uint8_t data[8192] = {1};
    struct io *io = faulty(&plan);
    fault_alloc_arm(1);
    int ret = io_write(io, 0, data, sizeof(data));
    unsigned left = fault_alloc_left();
    fault_alloc_arm(0);
    ck_assert_int_eq(ret, 0);
    ck_assert_uint_eq(left, 1);
    io_close(io);
}
END_TEST

Suite *test_fault(void);
Suite *test_fault(void)
{
    Suite *suite = suite_create("fault");
    TCase *tcase = tcase_create("fault");
    tcase_add_test(tcase, a_unit_keeps_all_its_versions);
    tcase_add_test(tcase, forced_writes_are_there);
    tcase_add_test(tcase, the_size_is_a_choice_of_its_own);
    tcase_add_test(tcase, restrictions_are_small);
    tcase_add_test(tcase, worse_devices_add_versions);
    tcase_add_test(tcase, the_nth_call_fails);
    tcase_add_test(tcase, a_stopped_device_stays_stopped);
    tcase_add_test(tcase, allocations_of_the_device_do_not_fail);
    suite_add_tcase(suite, tcase);
    return suite;
}
