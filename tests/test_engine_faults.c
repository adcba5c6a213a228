/* SPDX-License-Identifier: MIT
 *
 * Every engine call over a device whose n-th call fails, and with an allocator whose n-th call
 * does, for n = 1, 2, 3 ... until nothing fires.  After each: an error or success with the content
 * before or after, a sound image, and a handle that goes on, or, after a failed flush, reads on. */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "fault_io.h"
#include "image.h"
#include "proc.h"
#include "qcheck.h"
#include "snapshot.h"

/* ---- an allocator that fails: not under sanitizers, which have their own ------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_ALLOCATOR 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define OWN_ALLOCATOR 0
#endif
#endif
#ifndef OWN_ALLOCATOR
#define OWN_ALLOCATOR 1
#endif

static unsigned long alloc_left;
static bool alloc_fired;

/* From now on the n-th allocation returns NULL; 0 ends it. */
static void fault_alloc_arm(unsigned long n)
{
    alloc_left = n;
    alloc_fired &= n == 0;
}

static bool fault_alloc_fired(void)
{
    return alloc_fired;
}

static bool fault_alloc_works(void)
{
    return OWN_ALLOCATOR;
}

#if OWN_ALLOCATOR
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);

static bool alloc_fires(void)
{
    if (alloc_left == 0 || --alloc_left > 0)
        return false;
    alloc_fired = true;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    return alloc_fires() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return alloc_fires() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return alloc_fires() ? NULL : __libc_realloc(old, size);
}
#endif

enum { DISK = 200 * 1024 };

struct kind {
    const char *name;
    struct image_options options;
    const char *by_qemu; /* or: a shell command that makes the base image, %s its path */
    uint64_t memory;     /* for refcount blocks; 0: as usual */
};

static const struct kind kinds[] = {
    {"512-byte clusters", {DISK, 512, 16, 3, false, false, QCOW2_ZLIB}, NULL, 0},
    {"512-byte clusters, 64-bit refcounts", {DISK, 512, 64, 3, false, false, QCOW2_ZLIB}, NULL, 0},
    {"short of memory", {DISK, 512, 64, 3, false, false, QCOW2_ZLIB}, NULL, 1024},
    {"lazy refcounts, version 3", {DISK, 4096, 16, 3, false, true, QCOW2_ZLIB}, NULL, 0},
    {"version 2", {DISK, 1024, 16, 2, false, false, QCOW2_ZLIB}, NULL, 0},
    {"extended L2", {DISK, 16384, 16, 3, true, false, QCOW2_ZLIB}, NULL, 0},
    {"compressed, with a bitmap", {0},
        "qemu-img create -q -f qcow2 -o cluster_size=1k %s 200k && "
        "qemu-io -c 'write -q -c -P 7 8k 1k' -c 'write -q -c -P 8 9k 1k' "
        "-c 'write -q -z 12k 2k' %s && qemu-img bitmap --add -g 1k %s b",
        0},
};

static void must(struct image *img, int ret)
{
    ck_assert_msg(ret == 0, "%s", image_error(img));
}

static struct image *open_image(struct io *io)
{
    struct image *img;
    struct image_error why;
    ck_assert_msg(image_open(io, IMAGE_WRITE, &img, &why) == 0, "%s", why.text);
    return img;
}

static void put(struct image *img, uint64_t off, int byte, size_t length)
{
    uint8_t *buf = malloc(length);
    memset(buf, byte, length);
    must(img, image_write(img, off, buf, length));
    free(buf);
}

static int snap(struct image *img, const char *name)
{
    return snapshot_create(img, &(struct snapshot_info){.name = name, .icount = UINT64_MAX});
}

static struct io *make_base(const struct kind *kind)
{
    struct io *io, *file;
    if (kind->by_qemu) {
        char *dir = proc_mkdir(), path[256], command[1024];
        snprintf(path, sizeof(path), "%s/base.qcow2", dir);
        snprintf(command, sizeof(command), kind->by_qemu, path, path, path);
        ck_assert_int_eq(proc_exit("%s", command), 0);
        ck_assert_int_eq(io_file_open(path, 0, &file, NULL), 0);
        ck_assert_int_eq(io_mem_load(file, &io), 0);
        io_close(file);
        proc_rmdir(dir);
    } else {
        ck_assert_int_eq(io_mem_open(0, &io), 0);
        ck_assert_int_eq(image_create(io, &kind->options, NULL), 0);
    }
    struct image *img = open_image(io);
    put(img, 1000, 1, 7000);
    must(img, snap(img, "one"));
    put(img, 3000, 2, 4000);
    must(img, image_discard(img, 0, 2048));
    must(img, snap(img, "two"));
    put(img, 5000, 3, 1000);
    put(img, 40000, 4, 2000);
    put(img, 150000, 5, 3000);
    ck_assert_int_eq(image_close(img), 0);
    return io;
}

/* ---- operations ---------------------------------------------------------------------------- */

static int op_write_new(struct image *img)
{
    uint8_t buf[40000]; /* enough for another refcount block of 64-bit counts */
    memset(buf, 0x51, sizeof(buf));
    return image_write(img, 100000, buf, sizeof(buf));
}

static int op_write_shared(struct image *img)
{
    uint8_t buf[5000];
    memset(buf, 0x52, sizeof(buf));
    int ret = image_write(img, 2100, buf, sizeof(buf));
    return ret < 0 ? ret : image_flush(img);
}

static int op_write_in_place(struct image *img)
{
    uint8_t buf[1500];
    memset(buf, 0x53, sizeof(buf));
    return image_write(img, 40100, buf, sizeof(buf));
}

static int op_write_compressed(struct image *img)
{
    uint8_t buf[1000];
    memset(buf, 0x54, sizeof(buf));
    return image_write(img, 8700, buf, sizeof(buf));
}

static int op_discard(struct image *img)
{
    int ret = image_discard(img, 2048, 60000);
    return ret < 0 ? ret : image_flush(img);
}

static int op_grow(struct image *img)
{
    return image_resize(img, DISK * 3);
}

static int op_shrink(struct image *img)
{
    return image_resize(img, 40448);
}

static int op_create(struct image *img)
{
    return snap(img, "three");
}

static int op_apply(struct image *img)
{
    return snapshot_apply(img, 0);
}

static int op_delete(struct image *img)
{
    return snapshot_delete(img, 0);
}

static int op_delete_both(struct image *img)
{
    int ret = snapshot_delete(img, 1);
    return ret < 0 ? ret : snapshot_delete(img, 0);
}

static const struct op {
    const char *name;
    int (*run)(struct image *img);
    bool mixes; /* sectors old or new, one by one */
    bool steps; /* may stop between two commits */
    bool frees; /* sets COPIED last, or not at all */
} ops[] = {
    {"write new", op_write_new, true, false, false},
    {"write shared", op_write_shared, true, false, false},
    {"write in place", op_write_in_place, true, false, false},
    {"write compressed", op_write_compressed, true, false, false},
    {"discard", op_discard, true, false, false},
    {"grow", op_grow, false, false, false},
    {"shrink", op_shrink, false, false, false},
    {"create", op_create, false, false, false},
    {"apply", op_apply, false, false, false},
    {"delete", op_delete, false, false, true},
    {"delete both", op_delete_both, false, true, true},
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]), OPS = sizeof(ops) / sizeof(ops[0]) };

/* ---- the loop ------------------------------------------------------------------------------ */

struct trial {
    const struct kind *kind;
    const struct op *op;
    struct io *base;
    struct content before, after;
    bool alloc; /* the allocator fails, not the device */
    unsigned long n;
};

static void fail_trial(const struct trial *t, const char *what)
{
    ck_abort_msg("%s: %s, %s %lu: %s", t->kind->name, t->op->name,
        t->alloc ? "allocation" : "device call", t->n, what);
}

/* Clean but for leaks, and for what an interrupted operation may leave behind: COPIED flags that
 * differ from the stored count while the true count is what they say (going on shows that they do
 * no harm), and tables that nothing points to yet or any more (for the checker they could be lost
 * ones). */
static void check_sound(const struct trial *t, struct io *io)
{
    static const struct check_options options = {.threads = 1};
    static const enum check_id harmless[] = {
        CHECK_l1_copied_set,
        CHECK_l1_copied_clear,
        CHECK_l2_copied_set,
        CHECK_l2_copied_clear,
        CHECK_orphan_l2_table,
        CHECK_orphan_l1_table,
        CHECK_orphan_snapshot_table,
        CHECK_l1_hole,
    };
    struct report report;
    report_init(&report, 10000);
    check_image(io, NULL, &options, &report);
    enum verdict verdict = report_verdict(&report);
    uint64_t allowed = 0;
    for (size_t i = 0; i < report.sorted.count; i++) {
        const struct finding *f = &report.sorted.items[i];
        for (size_t k = 0; k < sizeof(harmless) / sizeof(harmless[0]); k++) {
            bool copied = k < 4;
            if (f->check == harmless[k] && (!copied || t->op->frees))
                allowed += f->weight;
        }
    }
    if (verdict != VERDICT_CLEAN && verdict != VERDICT_LEAKS &&
        (verdict != VERDICT_CORRUPT || report.corruptions != allowed)) {
        report_print(&report, "image", &(struct report_style){.verbose = true}, stdout);
        fail_trial(t, "the image is not sound");
    }
    report_release(&report);
}

static void check_content(const struct trial *t, struct image *img, int ret)
{
    struct content now;
    content_read(img, &now);
    bool after = content_same_disk(&now, &t->after) && content_same_snapshots(&now, &t->after);
    bool before = content_same_disk(&now, &t->before) && content_same_snapshots(&now, &t->before);
    if (t->op->mixes)
        before |=
            content_same_snapshots(&now, &t->before) && content_mixes(&now, &t->before, &t->after);
    if (t->op->steps)
        before |= content_same_disk(&now, &t->before) && now.snap_count == 1;
    if (!after && (ret == 0 || !before))
        fail_trial(t, ret == 0 ? "success, but not the content after" : "content is a mixture");
    content_free(&now);
}

/* The same handle works: on mapped and unmapped clusters, and snapshots; and no snapshot changes.
 */
static void go_on(const struct trial *t, struct image *img)
{
    struct content then, now;
    content_read(img, &then);
    put(img, 3500, 0x61, 2500);
    put(img, 20000, 0x62, 3000);
    must(img, snap(img, "on"));
    put(img, 3600, 0x63, 700);
    must(img, snapshot_apply(img, 0));
    uint32_t idx;
    must(img, snapshot_find(img, "on", &idx));
    must(img, snapshot_delete(img, idx));
    content_read(img, &now);
    if (!content_same_snapshots(&then, &now))
        fail_trial(t, "a snapshot changed when the work went on");
    content_free(&then);
    content_free(&now);
}

/* A flush failed: nothing is written or promised any more, and the device stays as it is. */
static void refuse(const struct trial *t, struct fault_io *fault, struct image *img)
{
    unsigned long writes = fault->writes, flushes = fault->flushes;
    uint8_t byte = 0x64;
    bool refused = image_write(img, 40100, &byte, 1) == -EIO && snap(img, "on") == -EIO &&
                   image_discard(img, 0, 8192) == -EIO && snapshot_apply(img, 0) == -EIO &&
                   snapshot_delete(img, 0) == -EIO && image_resize(img, DISK * 4) == -EIO &&
                   image_flush(img) == -EIO;
    if (!refused || !strstr(image_error(img), "open the image again"))
        fail_trial(t, "a failed flush was forgotten");
    if (image_close(img) != -EIO)
        fail_trial(t, "closed well though a flush had failed");
    if (fault->writes != writes || fault->flushes != flushes)
        fail_trial(t, "something was written after a failed flush");
}

/* Opened anew it goes on, unless the dirty bit says no. */
static struct image *open_again(const struct trial *t, struct io *io)
{
    struct image *img = open_image(io);
    if (!(img->header.incompatible & QCOW2_INCOMPAT_DIRTY))
        go_on(t, img);
    return img;
}

/* One trial; false when the fault did not fire any more. */
static bool try_once(const struct trial *t)
{
    struct io *io;
    struct fault_io fault;
    ck_assert_int_eq(io_mem_branch(t->base, &io), 0);
    fault_io_init(&fault, io);
    struct image *img = open_image(&fault.io);
    if (t->kind->memory)
        img->refblock_bytes = t->kind->memory;
    fault.tear = t->n % 2;
    if (t->alloc)
        fault_alloc_arm(t->n);
    else
        fault.left = t->n;
    int ret = t->op->run(img);
    bool fired = t->alloc ? fault_alloc_fired() && ret < 0 : fault.fired;
    bool more = t->alloc ? fault_alloc_fired() : fault.fired;
    fault_alloc_arm(0);
    fault.left = 0;
    if (ret < 0 && !image_error(img)[0])
        fail_trial(t, "an error without a word");
    check_content(t, img, ret);
    if (fired)
        check_sound(t, io);
    if (fault.flush_fired) {
        refuse(t, &fault, img);
        img = open_again(t, io);
    } else if (fired) {
        go_on(t, img);
    }
    ret = image_close(img);
    if (ret < 0 && !fault.flush_fired)
        fail_trial(t, "not closed well");
    if (fired)
        check_sound(t, io);
    io_close(io);
    return more;
}

static void prepare(struct trial *t)
{
    struct io *io;
    struct image *img = open_image(t->base);
    content_read(img, &t->before);
    image_abandon(img);
    ck_assert_int_eq(io_mem_branch(t->base, &io), 0);
    img = open_image(io);
    must(img, t->op->run(img));
    content_read(img, &t->after);
    ck_assert_int_eq(image_close(img), 0);
    io_close(io);
}

static void run_kind(const struct kind *kind, bool alloc)
{
    struct io *base = make_base(kind);
    for (size_t i = 0; i < OPS; i++) {
        struct trial t = {.kind = kind, .op = &ops[i], .base = base, .alloc = alloc};
        bool sized = ops[i].run == op_grow || ops[i].run == op_shrink;
        if (kind->by_qemu && sized) /* refused: it has a bitmap */
            continue;
        prepare(&t);
        for (t.n = 1; try_once(&t); t.n++)
            ck_assert_uint_lt(t.n, 10000);
        if (getenv("FAULTS_VERBOSE"))
            printf("%s, %s: %lu\n", kind->name, ops[i].name, t.n - 1);
        ck_assert_uint_gt(t.n, alloc ? 1 : 3);
        content_free(&t.before);
        content_free(&t.after);
    }
    io_close(base);
}

START_TEST(the_nth_device_call_fails)
{
    run_kind(&kinds[_i], false);
}
END_TEST

START_TEST(the_nth_allocation_fails)
{
    if (fault_alloc_works())
        run_kind(&kinds[_i], true);
}
END_TEST

Suite *test_engine_faults(void);
Suite *test_engine_faults(void)
{
    Suite *suite = suite_create("engine_faults");
    TCase *tc = tcase_create("faults");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, the_nth_device_call_fails, 0, KINDS);
    tcase_add_loop_test(tc, the_nth_allocation_fails, 0, KINDS);
    suite_add_tcase(suite, tc);
    return suite;
}
