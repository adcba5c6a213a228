/* SPDX-License-Identifier: MIT
 *
 * Ways through engine and checker that need an image or a device of their own, and that no suite
 * about something else comes by: one row each. */
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "corpus.h"
#include "desk.h"
#include "engine_kit.h"
#include "recipe.h"
#include "repair.h"

/* ---- programs ------------------------------------------------------------------------------ */

/* Time, and memory where no sanitizer takes more of it. */
#if defined(__SANITIZE_ADDRESS__)
#define BOUNDED "ulimit -t 5; "
#else
#define BOUNDED "ulimit -t 5; ulimit -v 300000; "
#endif

static const struct row {
    const char *recipe, *command; /* the image is `a` */
    int exit_code;
    const char *out, *err;
} rows[] = {
    /* each kind of edit, as a dry run tells it */
    {"image\ndata 0 256k\ndamage l2[0][1] = l2[0][0]\ndamage refcount[@l2[0][2]] = 0\n",
        "qcheck --repair -n a", 0, "refcounts of block 0 raised", ""},
    {"image cluster=4k\ndata 0 16k\ndamage l2[0][16] = l2[0][1]\n"
     "damage refcount[@l2[0][1]] = 2\n",
        "qcheck --repair --lossy -n a", 0, "copy of the cluster at 0x", ""},
    {"image cluster=4k\ndata 0 16k\ndamage l2[0][16] = l2[0][1]\n"
     "damage refcount[@l2[0][1]] = 2\n",
        "qcheck --repair --lossy -n a", 0, " falls by 1", ""},
    {"image cluster=4k\ndata 0 16k\ndamage l2[0][16] = l2[0][1]\n"
     "damage refcount[@l2[0][1]] = 2\n",
        "qcheck --repair --lossy -n a", 0, " becomes 1", ""},
    {"image\ndata 0 64k\ndamage header.reftable_offset = 0\ndamage fill reftable.offset 64k 0\n",
        "qcheck --repair -n a", 0, "new table of 65536 bytes", ""},
    /* what is asked for and not there */
    {"image\n", "qcheck --rollback gone a", 1, "the undo log gone cannot be opened: No such", ""},
    {"image\n", "qsnap export a gone b", 1, "", "no snapshot"},
    {"image\n", "mkfifo f && (printf x > f & qsnap write a 0 4k --from f)", 1, "",
        "f: shorter than the range"},
    {"image\n", "qsnap write a 0 4k --pattern x", 1, "", "not a size"},
    {"image\n", "qcheck -j 257 a", 1, "", "257: not a number of threads"},
    {"image\n", "qcheck -j 2 gone a", 1, "gone: incomplete", ""},
    {"image\n", "qcheck -j 2 --repair a gone a", 1, "gone: incomplete", ""},
    /* what an image names is not opened to see what it is: who waits at the FIFO goes on to wait */
    {"image data_file=f\n",
        "rm -f f; mkfifo f; sh -c 'echo x > f' & w=\\$!; sleep 0.2; qcheck a; kill \\$w && echo "
        "waits",
        0, "data-file-missing (1)\n", ""},
    {"image data_file=f\n",
        "rm -f f; mkfifo f; sh -c 'echo x > f' & w=\\$!; sleep 0.2; qcheck -q a; kill \\$w && echo "
        "waits",
        0, "waits\n", ""},
    {"image size=4M l1_size=4194304 backing=a backing_format=qcow2\n", BOUNDED "qsnap read a 0 16",
        1, "", "the backing chain is a loop"},
    {"image\n", "touch -a -d '3 days ago' a; stat -c %x a >t; qcheck -q a; stat -c %x a | cmp - t",
        0, "", ""},
    /* one image by several names: each is repaired when it is its turn, and none is in use */
    {"image cluster=512 size=4M\ndata 0 4M\ndamage fill reftable.offset 512 0\n",
        "ln a b; ln -s a c; qcheck -j 4 --repair a b c ./a ./b ./c a b && qcheck a", 0,
        "c: clean\n", ""},
    {"image\ndata 0 64k\ndamage refcount[@l2[0][0]] = 0\n",
        "ulimit -t 20; qcheck --max-findings 18446744073709551615 a", 2, "refcount-too-low (1)",
        ""},
    {"image\ndata 0 64k\ndamage refcount[@l2[0][0]] = 0\n",
        "(ulimit -f 0; qcheck --repair --undo u a; echo \\$? | cat) | cat; ls u", 2,
        "the undo log u cannot be made: File too large; nothing was changed\n1\n", ""},
    /* the repair: what is damaged and what leaves no room fit each other badly */
    {"image cluster=64k size=1M\ndata 0 64k\nsnapshot id=1 name=s\n"
     "damage snapshot[0].extra_length = 0x20000\ndamage truncate 2M\n",
        "qcheck -q --repair a && qsnap list a", 0, "1         s   ", ""},
    {"image cluster=4k compression=zstd\ndata 0 4k\ncompressed 4k 4k seed=1\n"
     "damage l2[0][5] = 0x8000000000000000 | (l2[0][1] & 0xfff000)\ndamage header.compression = 9\n"
     "damage fill (l2[0][1] & 0xfff000) 4k 0x5a\n",
        "qcheck --repair a", 2, "guest 0x5000 gets its own copy of the cluster", ""},
    {"image cluster=4k compression=zstd\ndata 0 4k\ncompressed 4k 4k seed=1\n"
     "damage header.length = 106\n",
        "qcheck --repair a", 0, "a: clean\n", ""},
    {"image cluster=512 size=64k backing=b backing_format=raw\ndata 32k 4k\n"
     "damage fill l2[1].offset 512 0xa5\n",
        "head -c 64k /dev/zero | tr '\\\\0' x >b; qcheck -q --repair --lossy a && "
        "qsnap read a 40000 2 | od -An -tx1",
        0, " 00 00\n", ""},
    {"image backing=b backing_format=raw size=128k\ndata 0 64k\n"
     "damage refcount[@l2[0][0]] = 0\ndamage l2[0][0] = 0x800000f000000000\n",
        "printf yes >b; qcheck -q --repair --lossy a && qsnap read a 0 2 | od -An -tx1", 0,
        " 00 00\n", ""},
    {"image cluster=512 size=96k\ndata 0 512\ndata 32k 4k\ndata 64k 4k\n"
     "damage fill l2[1].offset 512 0xa5\n"
     "damage l2[2][1] = 0x8000000000000000 | l2[1].offset\n",
        "qcheck --repair --lossy a && qsnap read a 66048 2 | od -An -tx1", 0, " a5 a5\n", ""},
    {"image cluster=4k\ndata 0 4k\ndata 8k 4k\ndamage header.incompatible = 4\n"
     "damage l2[0][2] = 0\n",
        "qcheck --repair --lossy a", 2, "2 leaked clusters", ""},
    {"image cluster=512 size=1M\ndata 0 123k\nsnapshot id=1\n"
     "damage fill snapshots.offset 512 0xee\n",
        "qcheck -q --repair --lossy a && qsnap list a", 0, "recovered-1", ""},
    {"image cluster=512 size=1M\ndata 0 123k\nsnapshot id=1\n"
     "damage fill snapshots.offset 512 0xee\ndamage l2[0][0] = 0x8000000000400000\n",
        "qcheck -q --repair --lossy a && qsnap list a", 0, "recovered-1", ""},
    {"image cluster=4k size=8M\ndata 0 16k\ndamage l1[1] = l1[0]\ndamage reftable[0] = 0\n",
        "qcheck --repair --lossy a && qsnap read a 0 16k | cksum >c && qsnap read a 2M 16k | "
        "cksum | cmp - c",
        0, "a: clean\n", ""},
    {"image cluster=512 size=64k\ndata 32k 4k\ndata 0 512\ndamage l1[1] = 0x8000000000000000\n",
        "qcheck --repair a", 0, "is put back for guest 0x8000 of the disk", ""},
    /* the log is not, or no longer, of this image */
    {"image\ndata 0 64k\ndamage refcount[@l2[0][0]] = 0\n",
        "qcheck -q --repair --undo u a && printf x | dd of=a bs=1 seek=131082 conv=notrunc "
        "status=none; cp a b; qcheck --rollback u a; r=\\$?; cmp a b && exit \\$r",
        1, "the image was changed after the repair that made u; nothing was changed", ""},
    {"image\ndata 0 64k\n", "head -c 4096 a > u; qcheck --rollback u a", 1,
        "u is no undo log of this image; nothing was changed", ""},
    /* names of files */
    {"image\n",
        "b=\\\"\\$(printf 'b\\\\033[2J')\\\"; mv a \\\"\\$b\\\" && "
        "qcheck --repair -n --progress b*",
        0, "b\\x1b[2J: nothing was written", ""},
    {"image\n", "qcheck --rollback \\\"\\$(printf 'u\\\\033[2J')\\\" a", 1,
        "the undo log u\\x1b[2J cannot", ""},
    {"image\n",
        "u=\\\"\\$(printf 'u\\\\033[2J')\\\"; mkdir \\\"\\$u\\\"; qcheck --repair --undo "
        "\\\"\\$u\\\" a",
        1, "the undo log u\\x1b[2J cannot", ""},
    /* snapshots */
    {"image\nsnapshot icount=7\n", "qsnap list a", 0, "          7\n", ""},
    {"image\nsnapshot icount=7\n", "qsnap list --output=json a", 0, "\"icount\": 7", ""},
    {"image cluster=512\nsnapshot name=a\ndamage u8[&snapshot[0].name] = 0xff\n",
        "qsnap list --output=json a", 0, "\"id\": \"1\"", ""},
    {"image cluster=512\n",
        "for i in \\$(seq 40); do qsnap create a n\\$i || exit; done; "
        "qsnap list --output=json a > /dev/full",
        1, "", "a: Input/output error"},
    {"image\nsnapshot id=1\ndata 0 64k\n", "qsnap diff a 1", 0, "0x0 0x10000\n", ""},
    {"image\nsnapshot id=1\ndata 0 64k\n", "qsnap create a b && qsnap diff a b 1", 0,
        "0x0 0x10000\n", ""},
    /* bitmaps that the engine does not understand */
    {"image\nbitmap auto extra=8\n", "qsnap write a 0 4k", 1, "", "extra data of unknown meaning"},
    {"image cluster=4k\ndata 0 4k\nbitmap auto granularity=4k fill=none\n"
     "damage bitmap[0].table[0] = 0x100000000000000\n",
        "qsnap write a 0 4k", 1, "", "a bitmap table has reserved bits"},
    /* backing files */
    {"image backing=b backing_format=raw\next 0xabcdef01 00112233\n",
        "printf yes > b && qsnap read a 0 3", 0, "yes", ""},
    {"image backing=b\next 0xabcdef01 00112233\next 0xe2792aca \"raw\"\n",
        "printf yes > b && qsnap read a 0 3", 0, "yes", ""},
    {"image backing=b backing_format=raw\ndamage header.backing_offset = 1M\n",
        "printf yes > b && qsnap read a 0 3", 1, "", "the backing file is misplaced"},
    {"image backing=b backing_format=qcow2\n",
        "qsnap new b 1M && printf '\\\\377\\\\000\\\\000\\\\000\\\\000\\\\001' | dd of=b bs=1 "
        "seek=196608 conv=notrunc status=none && "
        "qsnap read a 0 3",
        1, "", "cannot read the backing file b: L1 entry 0xff"},
    {"image version=2 backing=b backing_format=raw size=128k\ndata 0 64k\n",
        "truncate -s 128k b && qsnap discard a 0 128k && qcheck -q a", 0, "", ""},
    {"image backing=b backing_format=raw size=128k\nzero 0 64k\n",
        "truncate -s 128k b && qsnap discard a 0 64k && qcheck -q a", 0, "", ""},
    {"image extended_l2 cluster=16k\ncompressed 0 16k\n", "qsnap discard a 0 8k && qcheck -q a", 0,
        "", ""},
};

START_TEST(a_way)
{
    const struct row *row = &rows[_i];
    struct desk desk = desk_open();
    corpus_make(desk.dir, "a", row->recipe);
    desk_want(&desk, row->command, row->exit_code, row->out, row->err);
    desk_close(&desk);
}
END_TEST

/* ---- the engine's own refusals ------------------------------------------------------------- */

START_TEST(new_images_that_cannot_be)
{
    struct image_options odd = image_options_default(1000), version = image_options_default(1024);
    struct image_error why;
    struct io *io;
    version.version = 4;
    ck_assert_int_eq(io_mem_open(0, &io), 0);
    ck_assert_int_eq(image_create(io, &odd, &why), -EINVAL);
    ck_assert_str_eq(why.text, "the size of a disk is a multiple of 512 bytes");
    ck_assert_int_eq(image_create(io, &version, &why), -EINVAL);
    ck_assert_str_eq(why.text, "compat must be 0.10 or 1.1");
    io_close(io);
}
END_TEST

/* ---- a repair that is stopped -------------------------------------------------------------- */

/* A device that is asked to stop, as by a signal, with its first write. */
struct stopper {
    struct io io;
    struct io *next;
    volatile sig_atomic_t stop;
};

static int stopper_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    return io_read(((struct stopper *)io)->next, host_off, buf, length);
}

static int stopper_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    ((struct stopper *)io)->stop = 1;
    return io_write(((struct stopper *)io)->next, host_off, buf, length);
}

static int stopper_flush(struct io *io)
{
    return io_flush(((struct stopper *)io)->next);
}

static int stopper_size(struct io *io, uint64_t *size_bytes)
{
    return io_size(((struct stopper *)io)->next, size_bytes);
}

static const struct io_ops stopper_ops = {
    .read = stopper_read, .write = stopper_write, .flush = stopper_flush, .size = stopper_size};

static int repair_on(struct io *io, const volatile sig_atomic_t *stop, struct report *report)
{
    const struct repair_options how = {0};
    struct check_options options = {.threads = 1, .stop = stop};
    report_init(report, 10);
    return repair_image(io, NULL, &options, &how, report);
}

START_TEST(stopped_at_a_safe_point)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe;
    struct report report;
    ck_assert_int_eq(
        recipe_text("stop", "image\ndata 0 64k\ndamage reftable[0] = 0\n", &recipe, error), 0);
    struct stopper stopper = {.io = {.ops = &stopper_ops}, .next = recipe_io(recipe)};
    ck_assert_int_eq(repair_on(&stopper.io, &stopper.stop, &report), -EINTR);
    ck_assert_int_eq(report_exit_code(&report), 1);
    ck_assert_ptr_nonnull(strstr(report.problem, "stopped"));
    report_release(&report);
    ck_assert_int_eq(repair_on(recipe_io(recipe), NULL, &report), 0);
    ck_assert_int_eq(report_exit_code(&report), 0);
    report_release(&report);
    recipe_free(recipe);
}
END_TEST

Suite *test_paths(void);
Suite *test_paths(void)
{
    Suite *suite = suite_create("paths");
    TCase *tc = tcase_create("paths");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, a_way, 0, (int)(sizeof(rows) / sizeof(rows[0])));
    tcase_add_test(tc, new_images_that_cannot_be);
    tcase_add_test(tc, stopped_at_a_safe_point);
    suite_add_tcase(suite, tc);
    return suite;
}
