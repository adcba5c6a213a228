/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dmlog.h"
#include "proc.h"
#include "run.h"

static void put(struct io *log, uint64_t host_off, uint64_t value)
{
    uint8_t bytes[8];
    for (unsigned i = 0; i < 8; i++, value >>= 8)
        bytes[i] = (uint8_t)value;
    ck_assert_int_eq(io_write(log, host_off, bytes, 8), 0);
}

static struct io *log_with(uint64_t sector, uint64_t entries)
{
    struct io *log;
    ck_assert_int_eq(io_mem_open(sector, &log), 0);
    put(log, 0, UINT64_C(0x6a736677736872));
    put(log, 8, 1);
    put(log, 16, entries);
    put(log, 24, sector);
    return log;
}

/* An entry at `at`; returns where the next one goes. */
static uint64_t entry(struct io *log, uint64_t at, uint64_t sector_bytes, uint64_t sector,
    uint64_t count, uint64_t flags)
{
    uint8_t *data = calloc(1, (size_t)(sector_bytes * (count + 1)));
    bool has_data = !(flags & 12);
    size_t length = (size_t)(sector_bytes * (has_data ? count + 1 : 1));
    memset(data, 0x55, length);
    ck_assert_int_eq(io_write(log, at, data, length), 0);
    put(log, at, sector);
    put(log, at + 8, count);
    put(log, at + 16, flags);
    put(log, at + 24, 0);
    free(data);
    return at + length;
}

START_TEST(entries_of_all_kinds)
{
    uint64_t sector = _i ? 4096 : 32, at = sector;
    struct io *log = log_with(sector, 5);
    struct recording r;
    at = entry(log, at, sector, 3, 2, 0);
    at = entry(log, at, sector, 0, 0, 8);     /* mark */
    at = entry(log, at, sector, 5, 1, 1 | 2); /* flush, then a write */
    at = entry(log, at, sector, 7, 9, 4);     /* discard: no data */
    at = entry(log, at, sector, 0, 0, 1);
    entry(log, at, sector, 1, 1, 16); /* beyond the count */
    ck_assert_int_eq(dmlog_read(log, &r), 0);
    static const enum request_kind kinds[] = {
        REQUEST_WRITE, REQUEST_FLUSH, REQUEST_WRITE, REQUEST_DISCARD, REQUEST_FLUSH, REQUEST_WRITE};
    ck_assert_uint_eq(r.count, 6);
    for (unsigned i = 0; i < 6; i++)
        ck_assert_int_eq(r.list[i].kind, kinds[i]);
    ck_assert_uint_eq(r.list[0].host_off, 3 * sector);
    ck_assert_uint_eq(r.list[0].length, 2 * sector);
    ck_assert(!r.list[0].fua && r.list[2].fua);
    ck_assert_uint_eq(r.list[3].length, 9 * sector);
    recording_release(&r);
    io_close(log);
}
END_TEST

/* Flushes in a row are one step, also with a mark or a discard of nothing between them. */
START_TEST(nothing_between_flushes)
{
    struct io *log = log_with(512, 5);
    struct recording r;
    uint64_t at = 512;
    static const uint64_t flags[] = {1, 4, 1, 8, 1};
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
        at = entry(log, at, 512, 0, 0, flags[i]);
    ck_assert_int_eq(dmlog_read(log, &r), 0);
    ck_assert_uint_eq(r.count, 1);
    ck_assert_int_eq(r.list[0].kind, REQUEST_FLUSH);
    recording_release(&r);
    io_close(log);
}
END_TEST

START_TEST(broken_logs_are_refused)
{
    struct recording r;
    struct io *log = log_with(512, 2);
    entry(log, 512, 512, 0, 1, 0);
    ck_assert_int_eq(dmlog_read(log, &r), -ENODATA); /* the second one is not there */
    io_close(log);
    log = log_with(512, 1);
    entry(log, 512, 512, 0, 1, 0);
    put(log, 512 + 8, UINT64_MAX / 256); /* a length that overflows */
    ck_assert_int_eq(dmlog_read(log, &r), -ENODATA);
    io_close(log);
    log = log_with(500, 0);
    ck_assert_int_eq(dmlog_read(log, &r), -EILSEQ);
    io_close(log);
    ck_assert_int_eq(io_mem_open(10, &log), 0);
    ck_assert_int_eq(dmlog_read(log, &r), -EILSEQ);
    io_close(log);
}
END_TEST

/* The sum of what a recording holds; no length may lie about its data. */
static uint64_t bytes_in(const struct recording *r)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < r->count; i++) {
        for (uint64_t b = 0; r->list[i].data && b < r->list[i].length; b++)
            sum += r->list[i].data[b];
    }
    return sum;
}

/* A log of an engine's run, cut off or with bytes changed, mostly in heads of entries. */
START_TEST(damaged_logs_do_no_harm)
{
    struct history h;
    struct io *good, *log;
    uint64_t size, read = 0, refused = 0, sum = 0;
    ck_assert_int_eq(run_history("create", "c512", false, NULL, &h), 0);
    ck_assert_int_eq(io_mem_open(0, &good), 0);
    ck_assert_int_eq(dmlog_write(&h.recording, h.base, good), 0);
    ck_assert_int_eq(io_size(good, &size), 0);
    for (uint64_t round = 0; round < 4000; round++) {
        struct recording back = {0};
        uint64_t r = state_mix(round + 1);
        uint8_t noise[8];
        store_be64(noise, r & 1 ? state_mix(r) : UINT64_C(1) << (r >> 8 & 63));
        ck_assert_int_eq(io_mem_branch(good, &log), 0);
        if (round < 1000)
            ck_assert_int_eq(io_resize(log, (r >> 16) % size), 0);
        else
            ck_assert_int_eq(
                io_write(log, (r >> 16) % (size / 512) * 512 + (r >> 3) % 32, noise, 8), 0);
        int ret = dmlog_read(log, &back);
        read += ret == 0, refused += ret < 0;
        sum += bytes_in(&back);
        recording_release(&back);
        io_close(log);
    }
    ck_assert_uint_gt(read, 100);
    ck_assert_uint_gt(refused, 100);
    ck_assert_uint_gt(sum, 0);
    io_close(good);
    history_release(&h);
}
END_TEST

/* A few sectors of log may claim to be written at the end of the world. */
START_TEST(far_writes_are_refused)
{
    uint8_t sector[512] = {0};
    const struct request far = {
        .kind = REQUEST_WRITE, .host_off = UINT64_C(1) << 59, .length = 512, .data = sector};
    struct io *base, *log = log_with(512, 1);
    struct recording r = {0};
    struct history h;
    entry(log, 512, 512, UINT64_C(1) << 50, 1, 0);
    ck_assert_int_eq(dmlog_read(log, &r), -EFBIG);
    ck_assert_int_eq(recording_add(&r, &far), 0);
    ck_assert_int_eq(run_build_image("c512", &base), 0);
    ck_assert_int_eq(history_foreign("x", base, &r, 0, &h), -EFBIG);
    io_close(base);
    io_close(log);
}
END_TEST

START_TEST(what_is_written_is_read)
{
    struct history h;
    struct recording back;
    struct io *log;
    ck_assert_int_eq(run_history("mixed", "c512", false, NULL, &h), 0);
    ck_assert_int_eq(io_mem_open(0, &log), 0);
    ck_assert_int_eq(dmlog_write(&h.recording, h.base, log), 0);
    ck_assert_int_eq(dmlog_read(log, &back), 0);
    struct state *x, *y;
    ck_assert_int_eq(state_open(h.room_bytes, &x), 0);
    ck_assert_int_eq(state_open(h.room_bytes, &y), 0);
    ck_assert_int_eq(state_load(x, h.base), 0);
    ck_assert_int_eq(state_load(y, h.base), 0);
    ck_assert_int_eq(epoch_apply_all(&h.recording, 0, h.recording.count, x), 0);
    ck_assert_int_eq(epoch_apply_all(&back, 0, back.count, y), 0);
    ck_assert_mem_eq(x->bytes, y->bytes, x->size_bytes);
    io_close(log);
    state_close(x), state_close(y);
    recording_release(&back);
    history_release(&h);
}
END_TEST

#define BLKLOG                                                                     \
    "driver=qcow2,file.driver=blklogwrites,file.file.driver=file,"                 \
    "file.file.filename=%s/v.qcow2,file.log.driver=file,file.log.filename=%s/log," \
    "file.log-sector-size=%d"

/* QEMU's own log of its own snapshot, examined. */
START_TEST(a_log_of_qemu)
{
    static const int sectors[] = {32, 512, 4096};
    char *dir = proc_mkdir(), base[256], log[256];
    struct run_options options = {.explore = explore_options_default()};
    struct output output = {.style = OUTPUT_TAP, .out = fopen("/dev/null", "w")};
    snprintf(base, sizeof(base), "%s/base", dir);
    snprintf(log, sizeof(log), "%s/log", dir);
    if (proc_exit("cd %s && qemu-img create -q -f qcow2 -o cluster_size=4096 v.qcow2 256k && "
                  "qemu-io -c 'write -P 1 0 16k' v.qcow2 && cp v.qcow2 base",
            dir) == 0 &&
        proc_exit("cd %s && : > log && qemu-img snapshot -c s --image-opts " BLKLOG, dir, dir, dir,
            sectors[_i]) == 0) {
        options.base = base;
        options.log = log;
        ck_assert_int_eq(run_explore(&options, &output), 0);
        ck_assert_uint_eq(output.story_count, 0);
        ck_assert_uint_gt(output.total.executed, 10);
    }
    output_release(&output);
    fclose(output.out);
    proc_rmdir(dir);
}
END_TEST

Suite *test_dmlog(void);
Suite *test_dmlog(void)
{
    Suite *suite = suite_create("dmlog");
    TCase *tcase = tcase_create("dmlog");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, entries_of_all_kinds, 0, 2);
    tcase_add_test(tcase, nothing_between_flushes);
    tcase_add_test(tcase, broken_logs_are_refused);
    tcase_add_test(tcase, damaged_logs_do_no_harm);
    tcase_add_test(tcase, far_writes_are_refused);
    tcase_add_test(tcase, what_is_written_is_read);
    tcase_add_loop_test(tcase, a_log_of_qemu, 0, 3);
    suite_add_tcase(suite, tcase);
    return suite;
}
