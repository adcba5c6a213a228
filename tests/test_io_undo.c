/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"

enum { SIZE = 20000 };

static void fill(struct io *io, uint64_t off, int byte, size_t length)
{
    uint8_t *buf = malloc(length + 1);
    memset(buf, byte, length);
    ck_assert_int_eq(io_write(io, off, buf, length), 0);
    free(buf);
}

static struct io *mem(uint64_t size)
{
    struct io *io;
    ck_assert_int_eq(io_mem_open(size, &io), 0);
    return io;
}

static struct io *branch(struct io *src)
{
    struct io *io;
    ck_assert_int_eq(io_mem_branch(src, &io), 0);
    return io;
}

static bool same(struct io *a, struct io *b)
{
    uint64_t a_size, b_size;
    io_size(a, &a_size), io_size(b, &b_size);
    if (a_size != b_size)
        return false;
    uint8_t *x = malloc(a_size + 1), *y = malloc(a_size + 1);
    io_read(a, 0, x, a_size), io_read(b, 0, y, a_size);
    bool equal = memcmp(x, y, a_size) == 0;
    free(x), free(y);
    return equal;
}

/* An image with content, and a changed copy of it with the log of how it came about. */
struct story {
    struct io *before, *after, *log;
};

static void random_change(struct io *io, unsigned *seed)
{
    unsigned kind = (unsigned)rand_r(seed) % 8;
    uint64_t off = (unsigned)rand_r(seed) % (SIZE + 3000);
    uint64_t size;
    ck_assert_int_eq(io_size(io, &size), 0);
    if (kind == 0)
        ck_assert_int_eq(io_resize(io, off), 0);
    else if (kind == 1)
        ck_assert_int_eq(io_discard(io, off, 5000), 0);
    else
        fill(io, off, rand_r(seed) & 255, (unsigned)rand_r(seed) % 3000);
}

static struct story tell(unsigned seed, int changes)
{
    struct story s = {.before = mem(SIZE), .log = NULL};
    for (unsigned i = 0; i < 20; i++)
        fill(s.before, i * 1000, (int)(i + seed), 900);
    struct io *image = branch(s.before), *log = mem(0), *undo;
    ck_assert_int_eq(io_undo_open(image, log, &undo), 0);
    for (int i = 0; i < changes; i++)
        random_change(undo, &seed);
    s.after = branch(image);
    s.log = branch(log);
    io_close(undo);
    return s;
}

static void story_end(struct story *s)
{
    io_close(s->before), io_close(s->after), io_close(s->log);
}

START_TEST(rollback_restores_bytes_and_size)
{
    for (unsigned seed = 1; seed <= 60; seed++) {
        struct story s = tell(seed, (int)(seed % 12));
        ck_assert_msg(io_undo_rollback(s.log, s.after) == 0, "seed %u", seed);
        ck_assert_msg(same(s.before, s.after), "seed %u", seed);
        ck_assert_int_eq(io_undo_rollback(s.log, s.after), 0); /* again: nothing to do */
        ck_assert(same(s.before, s.after));
        story_end(&s);
    }
}
END_TEST

START_TEST(a_log_cut_anywhere_restores_what_it_knows)
{
    struct io *image = mem(8192), *log = mem(0), *undo;
    fill(image, 0, 1, 8192);
    struct io *before = branch(image);
    ck_assert_int_eq(io_undo_open(image, log, &undo), 0);
    uint64_t one, two;
    fill(undo, 1000, 2, 100);
    io_size(log, &one);
    struct io *after_one = branch(image);
    fill(undo, 1050, 3, 2000);
    io_size(log, &two);
    for (uint64_t cut = one; cut < two; cut += 7) { /* the second write never happened */
        struct io *torn = branch(log), *now = branch(after_one);
        ck_assert_int_eq(io_resize(torn, cut), 0);
        ck_assert_int_eq(io_undo_rollback(torn, now), 0);
        ck_assert(same(now, before));
        io_close(torn), io_close(now);
    }
    struct io *torn = branch(log), *now = branch(image); /* it did, the log says it did not */
    ck_assert_int_eq(io_resize(torn, one), 0);
    ck_assert_int_eq(io_undo_rollback(torn, now), -ESTALE);
    ck_assert(same(now, image));
    io_close(torn), io_close(now), io_close(after_one), io_close(before), io_close(undo);
}
END_TEST

START_TEST(other_images_and_later_changes_are_refused)
{
    struct story s = tell(3, 0);
    io_close(s.log);
    struct io *image = branch(s.before), *log = mem(0), *undo;
    ck_assert_int_eq(io_undo_open(image, log, &undo), 0);
    fill(undo, 4096, 9, 1000);

    struct io *other = branch(image);
    fill(other, 4500, 8, 1); /* in a place of the log */
    ck_assert_int_eq(io_undo_rollback(log, other), -ESTALE);
    io_close(other);
    other = branch(image);
    fill(other, 0, 8, 1); /* another first sector */
    ck_assert_int_eq(io_undo_rollback(log, other), -EILSEQ);
    io_close(other);
    other = branch(image);
    ck_assert_int_eq(io_resize(other, SIZE - 1), 0);
    ck_assert_int_eq(io_undo_rollback(log, other), -ESTALE);
    io_close(other);
    other = mem(100); /* no log at all */
    ck_assert_int_eq(io_undo_rollback(other, image), -EILSEQ);
    io_close(other);
    ck_assert_int_eq(io_undo_open(image, log, &other), -EEXIST);

    s.log = branch(log);
    io_close(undo);
    story_end(&s);
}
END_TEST

/* What lies behind the old end is cut off: not with what somebody wrote there since. */
START_TEST(later_writes_behind_the_old_end_are_refused)
{
    enum { GROWN = 3 * 4096 };
    static const uint64_t places[] = {4096, 4096 + 700, 2 * 4096 + 100, GROWN - 1};
    struct io *image = mem(4096), *log = mem(0), *undo;
    ck_assert_int_eq(io_undo_open(image, log, &undo), 0);
    fill(undo, 4096, 9, 3000);
    ck_assert_int_eq(io_resize(undo, GROWN), 0);
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct io *other = branch(image);
        fill(other, places[i], 8, 1);
        struct io *changed = branch(other);
        ck_assert_int_eq(io_undo_rollback(log, other), -ESTALE);
        ck_assert(same(other, changed));
        io_close(other), io_close(changed);
    }
    ck_assert_int_eq(io_undo_rollback(log, image), 0);
    io_close(undo);
}
END_TEST

/* A power cut leaves any mixture of old and new sectors. */
START_TEST(torn_writes_are_explained)
{
    struct story s = tell(5, 0);
    io_close(s.log);
    struct io *image = branch(s.before), *log = mem(0), *undo;
    ck_assert_int_eq(io_undo_open(image, log, &undo), 0);
    fill(undo, 700, 0x77, 6000);
    fill(undo, 900, 0x78, 3000);
    unsigned seed = 1;
    for (int round = 0; round < 50; round++) {
        struct io *torn = branch(s.before);
        for (uint64_t at = 0; at < 8192; at += 512) {
            uint8_t sector[512];
            if (rand_r(&seed) & 64) {
                io_read(image, at, sector, sizeof(sector));
                io_write(torn, at, sector, sizeof(sector));
            }
        }
        ck_assert_int_eq(io_undo_rollback(log, torn), 0);
        ck_assert(same(torn, s.before));
        io_close(torn);
    }
    s.log = branch(log);
    io_close(undo);
    story_end(&s);
}
END_TEST

Suite *test_io_undo(void);
Suite *test_io_undo(void)
{
    Suite *suite = suite_create("io_undo");
    TCase *tc = tcase_create("io_undo");
    tcase_add_test(tc, rollback_restores_bytes_and_size);
    tcase_add_test(tc, a_log_cut_anywhere_restores_what_it_knows);
    tcase_add_test(tc, other_images_and_later_changes_are_refused);
    tcase_add_test(tc, later_writes_behind_the_old_end_are_refused);
    tcase_add_test(tc, torn_writes_are_explained);
    suite_add_tcase(suite, tc);
    return suite;
}
