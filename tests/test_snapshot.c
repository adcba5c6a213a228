/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "diff.h"
#include "engine_kit.h"
#include "write.h"

START_TEST(create_apply_delete_keep_every_disk)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "cluster_size=512", &io);
    kit_put(img, 1000, 1, 5000);
    kit_snap(img, "a");
    kit_put(img, 2000, 2, 9000);
    kit_snap(img, "b");
    kit_put(img, 2000, 3, 100);
    kit_must(img, snapshot_apply(img, kit_find(img, "a")));
    ck_assert(kit_is(img, 1000, 1, 5000) && kit_is(img, 6000, 0, 9000));
    ck_assert(kit_snap_is(img, "b", 2000, 2, 9000));
    kit_must(img, snapshot_delete(img, kit_find(img, "a")));
    ck_assert(kit_is(img, 1000, 1, 5000));
    kit_must(img, snapshot_delete(img, kit_find(img, "b")));
    uint32_t count;
    snapshot_list(img, &count);
    ck_assert_uint_eq(count, 0);
    kit_close(img, io);
}
END_TEST

static int create(struct image *img, const char *id, const char *name)
{
    return snapshot_create(img, &(struct snapshot_info){.id = id, .name = name});
}

START_TEST(ids_and_names)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "cluster_size=512", &io);
    uint32_t idx, count;
    kit_must(img, create(img, "7", "x"));
    kit_must(img, create(img, NULL, "7"));
    kit_must(img, create(img, "word", "x"));
    ck_assert_int_eq(create(img, "7", "y"), -EEXIST);
    ck_assert_int_eq(create(img, "", "y"), -EINVAL);
    const struct qcow2_snapshot *list = snapshot_list(img, &count);
    ck_assert_uint_eq(count, 3);
    ck_assert(list[1].id_len == 1 && list[1].id[0] == '8');
    ck_assert_uint_eq(kit_find(img, "7"), 0); /* the ID comes before the name */
    ck_assert_int_eq(snapshot_find(img, "x", &idx), -ENOTUNIQ);
    ck_assert_int_eq(snapshot_find(img, "y", &idx), -ENOENT);
    kit_must(img, create(img, "18446744073709551615", "last"));
    ck_assert_int_eq(create(img, NULL, "more"), -EOVERFLOW);
    char *name = malloc(65537);
    memset(name, 'n', 65536);
    name[65536] = '\0';
    ck_assert_int_eq(create(img, "n", name), -EINVAL);
    name[65535] = '\0';
    kit_must(img, create(img, "n", name));
    kit_must(img, snapshot_delete(img, kit_find(img, name)));
    free(name);
    kit_close(img, io);
}
END_TEST

/* A record as another program might have written it: 40 bytes of extra data. */
START_TEST(unknown_extra_data_survives)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "", &io);
    kit_snap(img, "a");
    struct qcow2_snapshot snap = img->snaps.list[0];
    uint8_t extra[40], bytes[200];
    memset(extra, 0xee, sizeof(extra));
    store_be64(extra, 0);
    store_be64(extra + 8, 1 << 20);
    uint8_t id = '1', name = 'a';
    snap.extra = extra, snap.extra_len = sizeof(extra), snap.id = &id, snap.name = &name;
    qcow2_snapshot_encode(&snap, bytes);
    ck_assert_int_eq(
        io_write(io, img->header.snapshots_off, bytes, (size_t)qcow2_snapshot_length(&snap)), 0);
    ck_assert_int_eq(image_close(img), 0);
    img = kit_open(io);
    kit_snap(img, "b");
    kit_snap(img, "c");
    kit_must(img, snapshot_delete(img, kit_find(img, "b")));
    ck_assert_uint_eq(img->snaps.list[0].extra_len, 40);
    ck_assert_mem_eq(img->snaps.list[0].extra, extra, 40);
    kit_close(img, io);
}
END_TEST

START_TEST(narrow_refcounts_end_create_before_anything_is_written)
{
    static const char *const options[] = {"refcount_bits=1", "refcount_bits=2"};
    for (int i = 0; i < 2; i++) {
        struct io *io, *before;
        struct image *img = kit_new(1 << 20, options[i], &io);
        kit_put(img, 0, 1, 1000);
        for (int n = 0; n < i * 2; n++)
            kit_snap(img, "s");
        kit_must(img, image_flush(img));
        ck_assert_int_eq(io_mem_branch(io, &before), 0);
        ck_assert_int_eq(create(img, NULL, "too many"), -EOVERFLOW);
        uint64_t size;
        ck_assert_int_eq(io_size(io, &size), 0);
        uint8_t *a = malloc(size), *b = malloc(size);
        ck_assert_int_eq(io_read(io, 0, a, size), 0);
        ck_assert_int_eq(io_read(before, 0, b, size), 0);
        ck_assert_mem_eq(a, b, size);
        free(a), free(b);
        io_close(before);
        kit_put(img, 500, 2, 1000);
        kit_close(img, io);
    }
}
END_TEST

START_TEST(snapshots_of_other_sizes)
{
    struct io *io;
    struct image *img = kit_new(300 * 512, "cluster_size=512", &io);
    kit_put(img, 0, 1, 300 * 512);
    kit_snap(img, "small");
    kit_must(img, image_resize(img, 3000 * 512)); /* a longer L1 */
    ck_assert(kit_is(img, 300 * 512, 0, 2700 * 512));
    kit_put(img, 2000 * 512, 2, 1000 * 512);
    kit_snap(img, "large");
    kit_must(img, snapshot_apply(img, kit_find(img, "small")));
    ck_assert_uint_eq(image_size(img), 300 * 512);
    ck_assert(kit_is(img, 0, 1, 300 * 512));
    kit_must(img, snapshot_apply(img, kit_find(img, "large")));
    ck_assert_uint_eq(image_size(img), 3000 * 512);
    ck_assert(kit_is(img, 2000 * 512, 2, 1000 * 512));
    ck_assert(kit_snap_is(img, "small", 0, 1, 300 * 512));
    kit_close(img, io);
}
END_TEST

/* VM state is guest data behind the disk's end. */
START_TEST(vm_state_is_kept_and_restored)
{
    struct io *io;
    struct image *img = kit_new(64 * 512, "cluster_size=512", &io);
    uint64_t behind = 64 * 512;
    uint8_t state[1024];
    memset(state, 0x77, sizeof(state));
    kit_must(img, image_resize(img, behind + 32768)); /* an L1 with room */
    kit_must(img, image_resize(img, behind));
    kit_must(img, image_begin(img, true));
    kit_must(img, image_end(img, write_range(img, behind, state, sizeof(state))));
    struct snapshot_info info = {.name = "vm", .vm_state_size = sizeof(state), .icount = 5};
    kit_must(img, snapshot_create(img, &info));
    kit_put(img, 0, 1, 512);
    kit_must(img, image_resize(img, behind + 32768));
    ck_assert(kit_is(img, behind, 0, 32768));
    kit_must(img, snapshot_apply(img, 0));
    ck_assert_uint_eq(img->snaps.list[0].vm_state_size, sizeof(state));
    ck_assert_uint_eq(image_size(img), behind);
    struct view view = image_view(img);
    view.size_bytes = behind + sizeof(state);
    uint8_t back[1024];
    kit_must(img, view_read(img, &view, behind, back, sizeof(back)));
    ck_assert_mem_eq(back, state, sizeof(back));
    kit_must(img, image_resize(img, behind + 512)); /* and it does not come to light */
    ck_assert(kit_is(img, behind, 0, 512));
    kit_close(img, io);
}
END_TEST

struct found {
    unsigned count;
    uint64_t off[8], length[8];
};

static int note(void *arg, uint64_t guest_off, uint64_t length)
{
    struct found *f = arg;
    if (f->count < 8)
        f->off[f->count] = guest_off, f->length[f->count] = length;
    f->count++;
    return 0;
}

START_TEST(diff_tells_exact_ranges)
{
    struct io *io;
    struct image *img = kit_new(1 << 20, "cluster_size=4k", &io);
    kit_put(img, 0, 1, 100000);
    kit_snap(img, "a");
    kit_put(img, 512, 2, 512);
    kit_put(img, 8192, 3, 9000);
    kit_put(img, 50000, 1, 5000); /* a copy with the same bytes */
    struct view a, now = image_view(img);
    struct found f = {0};
    kit_must(img, snapshot_view(img, 0, &a));
    kit_must(img, diff_views(img, &a, &now, note, &f));
    ck_assert_uint_eq(f.count, 2);
    ck_assert_uint_eq(f.off[0], 512);
    ck_assert_uint_eq(f.length[0], 512);
    ck_assert_uint_eq(f.off[1], 8192);
    ck_assert_uint_eq(f.length[1], 9216); /* whole sectors */
    kit_must(img, image_resize(img, 2 << 20));
    f.count = 0;
    now = image_view(img);
    kit_must(img, diff_views(img, &a, &now, note, &f));
    ck_assert_uint_eq(f.count, 3);
    ck_assert_uint_eq(f.off[2], 1 << 20);
    view_close(&a);
    kit_close(img, io);
}
END_TEST

START_TEST(export_is_sparse_and_equal)
{
    struct io *io, *raw;
    struct image *img = kit_new(8 << 20, "", &io);
    kit_put(img, 3 << 20, 5, 70000);
    kit_put(img, 5 << 20, 0, 70000); /* zeros that are stored */
    kit_snap(img, "a");
    kit_put(img, 0, 1, 1 << 20);
    struct view view;
    kit_must(img, snapshot_view(img, 0, &view));
    ck_assert_int_eq(io_mem_open(0, &raw), 0);
    kit_must(img, export_raw(img, &view, raw));
    view_close(&view);
    uint64_t size, start, end;
    ck_assert_int_eq(io_size(raw, &size), 0);
    ck_assert_uint_eq(size, 8 << 20);
    ck_assert_int_eq(io_extents(raw, 0, &start, &end), 0);
    ck_assert_uint_eq(start, 3 << 20);
    ck_assert_uint_eq(end, (3 << 20) + 73728);
    ck_assert_int_eq(io_extents(raw, end, &start, &end), 0);
    ck_assert_uint_eq(start, size);
    io_close(raw);
    kit_close(img, io);
}
END_TEST

Suite *test_snapshot(void);
Suite *test_snapshot(void)
{
    Suite *suite = suite_create("snapshot");
    TCase *tc = tcase_create("snapshot");
    tcase_add_test(tc, create_apply_delete_keep_every_disk);
    tcase_add_test(tc, ids_and_names);
    tcase_add_test(tc, unknown_extra_data_survives);
    tcase_add_test(tc, narrow_refcounts_end_create_before_anything_is_written);
    tcase_add_test(tc, snapshots_of_other_sizes);
    tcase_add_test(tc, vm_state_is_kept_and_restored);
    tcase_add_test(tc, diff_tells_exact_ranges);
    tcase_add_test(tc, export_is_sparse_and_equal);
    suite_add_tcase(suite, tc);
    return suite;
}
