/* SPDX-License-Identifier: MIT
 *
 * A device whose content changes while it is read, behind everybody's back: from the n-th read on
 * it is that of another image, for each n.  Nothing that was judged may be trusted when it is read
 * again; whatever is said then, the program lives, and what it says is one of its verdicts.  And a
 * device that keeps nothing of what is written, and one with counts that nobody can read. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bomb.h"
#include "image.h"
#include "io_unreadable.h"
#include "recipe.h"
#include "repair.h"
#include "snapshot.h"

struct fickle {
    struct io io;
    struct io *first, *then;
    unsigned long left; /* reads until it changes */
    bool forgets;       /* what is written is not kept, and success is reported */
    unsigned writes;
};

static struct fickle *self(struct io *io)
{
    return (struct fickle *)io;
}

static struct io *now(struct fickle *fickle)
{
    return fickle->left > 0 ? fickle->first : fickle->then;
}

/* The length is that of the longer one: a device that shrinks is another suite's. */
static int fickle_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    struct io *device = now(self(io));
    self(io)->left -= self(io)->left > 0;
    return io_read_padded(device, host_off, buf, length);
}

static int fickle_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    self(io)->writes++;
    if (self(io)->forgets)
        return 0;
    int ret = io_write(self(io)->first, host_off, buf, length);
    return ret < 0 ? ret : io_write(self(io)->then, host_off, buf, length);
}

static int fickle_flush(struct io *io)
{
    (void)io;
    return 0;
}

static int fickle_size(struct io *io, uint64_t *size_bytes)
{
    uint64_t other = 0;
    int ret = io_size(self(io)->first, size_bytes);
    if (ret == 0)
        ret = io_size(self(io)->then, &other);
    *size_bytes = other > *size_bytes ? other : *size_bytes;
    return ret;
}

static const struct io_ops fickle_ops = {
    .read = fickle_read, .write = fickle_write, .flush = fickle_flush, .size = fickle_size};

/* Pairs: what an image is at first, and becomes. */
#define TREE "image cluster=4k size=1M\ndata 0 32k\ncompressed 32k 8k seed=1\nsnapshot id=1\n"
#define TWO  TREE "data 0 8k\nsnapshot id=2 name=second\ndata 8k 8k\n"
static const char *const pairs[][2] = {
    {TWO, "image cluster=512 size=64k\ndata 0 8k\n"},
    {TWO, TWO "damage l1[0] = 0x8000000000001000\ndamage l2[0][0] = 0xffffffffffffffff\n"},
    {TWO "damage snapshot[0].extra_length = 0\n", TWO "damage snapshot[0].extra_length = 0x400\n"},
    {TWO "damage snapshot[1].extra_length = 0x500\n", TWO "damage snapshot[1].id_length = 65535\n"},
    {TWO "damage snapshot[1].id_length = 0\n", TWO "damage snapshot[0].l1_size = 0xffffffff\n"},
    {TREE "bitmap name=a\nbitmap name=b\ndamage bitmap[0].flags = 0x80\n",
        TREE "bitmap name=a\nbitmap name=b\ndamage bitmap[0].extra_length = 0xffffffff\n"},
    {TREE "damage l2[0][8] |= 0x3c00000000000000\n", TREE "damage l2[0][8] = 0x7fffffffffffffff\n"},
    {TREE "damage reftable[0] = 0\n", TREE "damage header.refcount_order = 0\n"},
    {TREE "damage l2[0][1] = l2[0][0]\n", TREE "damage l2[0][1] = 0x4fffffffffffffff\n"},
};

static struct io *build(const char *text)
{
    struct recipe *recipe = bomb_text(text);
    struct io *io;
    ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &io), 0);
    recipe_free(recipe);
    return io;
}

static void judge(struct io *io)
{
    struct check_options options = {.threads = 1, .deep = true};
    struct report report;
    report_init(&report, 10);
    check_image(io, NULL, &options, &report);
    int code = report_exit_code(&report);
    ck_assert(code == 0 || code == 1 || code == 2 || code == 3 || code == 63);
    report_release(&report);
}

static struct report repair_on(struct io *io, bool lossy)
{
    const struct repair_options how = {.lossy = lossy};
    struct check_options options = {.threads = 1};
    struct report report;
    report_init(&report, 10);
    repair_image(io, NULL, &options, &how, &report);
    return report;
}

static void mend(struct io *io)
{
    struct report report = repair_on(io, true);
    report_release(&report);
}

static void use(struct io *io)
{
    struct snapshot_info info = {.name = "fickle"};
    struct image *img;
    uint32_t count;
    if (image_open(io, IMAGE_WRITE, &img, NULL) < 0)
        return;
    (void)snapshot_create(img, &info);
    (void)image_write(img, 4096, "fickle", 6);
    snapshot_list(img, &count);
    if (count > 0)
        (void)snapshot_apply(img, 0);
    if (count > 1)
        (void)snapshot_delete(img, 1);
    image_close(img);
}

START_TEST(another_image_from_the_nth_read_on)
{
    static void (*const works[])(struct io *) = {judge, mend, use};
    enum { MOST_READS = 400 };
    for (size_t w = 0; w < sizeof(works) / sizeof(works[0]); w++) {
        bool all = false;
        for (unsigned long n = 0; !all && n < MOST_READS; n++) {
            struct fickle fickle = {.io = {.ops = &fickle_ops},
                .first = build(pairs[_i][0]),
                .then = build(pairs[_i][1]),
                .left = n};
            works[w](&fickle.io);
            all = n > 0 && fickle.left > 0; /* it was over before the change */
            io_close(fickle.first);
            io_close(fickle.then);
        }
    }
}
END_TEST

/* A repair of a device that keeps nothing of it comes to an end, and the verdict is the device's.
 */
static const char *const broken[] = {
    TREE "damage l2[0][0] = 0\n",
    TREE "damage refcount[@l2[0][0]] = 0\n",
    TREE "damage l2[0][1] = l2[0][0]\n",
    TREE "damage reftable[0] = 0\n",
    TREE "damage l1[0] |= 0x200\n",
    TREE "damage header.l1_offset ^= 0x100000\n",
    TWO "damage snapshot[0].id_length = 0\n",
    TREE "bitmap name=a\ndamage bitmap[0].extra_length = 0xffffffff\n",
};

START_TEST(a_device_that_keeps_nothing)
{
    enum { MOST_WRITES = 200 };
    for (unsigned lossy = 0; lossy < 2; lossy++) {
        struct fickle fickle = {
            .io = {.ops = &fickle_ops}, .first = build(broken[_i]), .forgets = true};
        struct check_options options = {.threads = 1};
        struct report before, after;
        fickle.then = fickle.first;
        report_init(&before, 10);
        check_image(&fickle.io, NULL, &options, &before);
        after = repair_on(&fickle.io, lossy);
        ck_assert_int_eq(report_exit_code(&after), report_exit_code(&before));
        ck_assert_int_ne(report_exit_code(&after), 0);
        ck_assert_uint_gt(fickle.writes, 0);
        ck_assert_uint_lt(fickle.writes, MOST_WRITES);
        report_release(&before);
        report_release(&after);
        io_close(fickle.first);
    }
}
END_TEST

static uint64_t read_entry(struct io *io, uint64_t host_off)
{
    uint8_t bytes[8];
    ck_assert_int_eq(io_read(io, host_off, bytes, sizeof(bytes)), 0);
    return load_be64(bytes);
}

static void expect_same(struct io *io, uint64_t off, struct io *other, uint64_t other_off)
{
    uint8_t bytes[2][512];
    ck_assert_int_eq(io_read(io, off, bytes[0], sizeof(bytes[0])), 0);
    ck_assert_int_eq(io_read(other, other_off, bytes[1], sizeof(bytes[1])), 0);
    ck_assert_mem_eq(bytes[0], bytes[1], sizeof(bytes[0]));
}

/* Nothing is said of them, nor are they set; who shares a cluster gets a copy of its own all the
 * same, and the verdict is that not all is known. */
START_TEST(counts_that_cannot_be_read)
{
    static const char text[] =
        "image cluster=512 size=256k\ndata 0 128k\ndiscard 4k 4k\ndata 160k 512 seed=1\n"
        "data 161k 512 seed=2\ndamage l2[5][2] = l2[5][0]\n";
    struct recipe *recipe = bomb_text(text);
    struct io *image, *device;
    uint64_t block_off = bomb_eval(recipe, "refblock[1].offset");
    ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &image), 0);
    ck_assert_int_eq(io_unreadable_open(image, block_off, 512, &device), 0);
    struct report report = repair_on(device, _i);
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_uint_eq(report.corruptions, 0);
    ck_assert_uint_eq(report.corruptions_fixed, 2);
    report_release(&report);
    uint64_t first = read_entry(image, bomb_eval(recipe, "&l2[5][0]"));
    uint64_t second = read_entry(image, bomb_eval(recipe, "&l2[5][2]"));
    ck_assert_uint_eq(first, bomb_eval(recipe, "l2[5][0]"));
    ck_assert_uint_ne(first, second);
    expect_same(image, first & QCOW2_OFFSET_MASK, image, second & QCOW2_OFFSET_MASK);
    expect_same(image, block_off, recipe_io(recipe), block_off);
    io_close(device);
    recipe_free(recipe);
}
END_TEST

/* A block of counts is said to lie on guest data, and what cannot be read keeps all from being made
 * anew: the data stays as it is, and is not taken for settled. */
START_TEST(counts_that_lie_on_data)
{
    static const char text[] = "image cluster=512 size=256k\ndata 0 128k seed=1\n"
                               "damage reftable[0] = l2[0][0].offset\n";
    struct recipe *recipe = bomb_text(text);
    struct io *image, *device;
    uint64_t data_off = bomb_eval(recipe, "l2[0][0].offset");
    uint64_t table_off = bomb_eval(recipe, "l2[3].offset");
    ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &image), 0);
    ck_assert_int_eq(io_unreadable_open(image, table_off, 512, &device), 0);
    struct report report = repair_on(device, _i);
    ck_assert_int_eq(report_exit_code(&report), 1);
    report_release(&report);
    expect_same(image, data_off, recipe_io(recipe), data_off);
    io_close(device);
    recipe_free(recipe);
}
END_TEST

/* A place that cannot be read for some time. */
struct sulky {
    struct io io, *below;
    uint64_t host_off;
    unsigned left; /* reads of it that fail */
};

static int sulky_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    struct sulky *sulky = (struct sulky *)io;
    bool meets = ranges_overlap(host_off, length, sulky->host_off, 512);
    if (meets && sulky->left > 0) {
        sulky->left--;
        return -EIO;
    }
    return io_read(sulky->below, host_off, buf, length);
}

static int sulky_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    return io_write(((struct sulky *)io)->below, host_off, buf, length);
}

static int sulky_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(((struct sulky *)io)->below, size_bytes);
}

/* However long that is: all is mended, or the repair says that it did not see all. */
START_TEST(a_place_that_can_be_read_in_the_end)
{
    enum { LONGEST = 24 };
    static const struct io_ops ops = {
        .read = sulky_read, .write = sulky_write, .flush = fickle_flush, .size = sulky_size};
    unsigned told = 0;
    for (unsigned n = 0; n < LONGEST; n++) {
        struct recipe *recipe = bomb_text(TREE "damage refcount[@l2[0][3]] = 0\n");
        struct sulky sulky = {.io = {.ops = &ops}, .left = n};
        ck_assert_int_eq(io_mem_branch(recipe_io(recipe), &sulky.below), 0);
        sulky.host_off = bomb_eval(recipe, "l2[0].offset");
        struct report report = repair_on(&sulky.io, _i);
        told += strstr(report.problem, "could not be completed") != NULL;
        ck_assert_msg(report_exit_code(&report) == (n == 0 ? 0 : report.incomplete),
            "%u reads fail: exit %d", n, report_exit_code(&report));
        report_release(&report);
        io_close(sulky.below);
        recipe_free(recipe);
    }
    ck_assert_uint_gt(told, 0);
}
END_TEST

Suite *test_fickle(void);
Suite *test_fickle(void)
{
    Suite *suite = suite_create("fickle");
    TCase *tc = tcase_create("fickle");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(
        tc, another_image_from_the_nth_read_on, 0, (int)(sizeof(pairs) / sizeof(pairs[0])));
    tcase_add_loop_test(
        tc, a_device_that_keeps_nothing, 0, (int)(sizeof(broken) / sizeof(broken[0])));
    tcase_add_loop_test(tc, counts_that_cannot_be_read, 0, 2);
    tcase_add_loop_test(tc, counts_that_lie_on_data, 0, 2);
    tcase_add_loop_test(tc, a_place_that_can_be_read_in_the_end, 0, 2);
    suite_add_tcase(suite, tc);
    return suite;
}
