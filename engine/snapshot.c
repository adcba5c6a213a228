/* SPDX-License-Identifier: MIT
 *
 * Create, apply, delete.  Each is one commit: a header write that cannot tear, between two
 * barriers.  Before it the image is as it was, with counts too high at worst; after it the rest is
 * giving up space.  The table itself is in snaptable.c, walking trees in tree.c. */
#include "snapshot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "layout.h"
#include "refcount.h"
#include "tree.h"

enum { EXTRA_BYTES = 24 };

/* ---- create -------------------------------------------------------------------------------- */

static bool has_id(const struct image *img, const char *id)
{
    size_t length = strlen(id);
    for (uint32_t i = 0; i < img->snaps.count; i++) {
        const struct qcow2_snapshot *snap = &img->snaps.list[i];
        if (snap->id_len == length && memcmp(snap->id, id, length) == 0)
            return true;
    }
    return false;
}

/* The value of an ID that is a decimal number; 0 for others and for those too large. */
static uint64_t numeric_id(const struct qcow2_snapshot *snap)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < snap->id_len; i++) {
        unsigned digit = (unsigned)snap->id[i] - '0';
        if (digit > 9 || __builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, digit, &value))
            return 0;
    }
    return value;
}

static int next_id(struct image *img, char *id, size_t size)
{
    uint64_t largest = 0;
    for (uint32_t i = 0; i < img->snaps.count; i++) {
        uint64_t value = numeric_id(&img->snaps.list[i]);
        largest = value > largest ? value : largest;
    }
    if (largest == UINT64_MAX)
        return image_fail(img, -EOVERFLOW, "there is no ID after %" PRIu64 "; give one", largest);
    snprintf(id, size, "%" PRIu64, largest + 1);
    return 0;
}

static int check_create(struct image *img, const char *id, const char *name)
{
    if (strlen(id) == 0 || strlen(id) > UINT16_MAX || strlen(name) > UINT16_MAX)
        return image_fail(img, -EINVAL, "an ID has 1 to 65535 bytes, a name up to 65535");
    if (has_id(img, id))
        return image_fail(img, -EEXIST, "there is a snapshot with the ID '%.64s' already", id);
    if (img->snaps.count >= QCOW2_MAX_SNAPSHOTS)
        return image_fail(img, -EFBIG, "an image holds at most %d snapshots", QCOW2_MAX_SNAPSHOTS);
    if (img->geo.refcount_order == 0)
        return image_fail(img, -EOVERFLOW, "refcounts of 1 bit cannot hold a snapshot");
    return 0;
}

static struct qcow2_snapshot make_record(const struct image *img, const struct snapshot_info *info,
    const char *id, uint8_t extra[EXTRA_BYTES])
{
    store_be64(extra, info->vm_state_size);
    store_be64(extra + 8, img->header.size_bytes);
    store_be64(extra + 16, info->icount);
    return (struct qcow2_snapshot){
        .l1_size = img->header.l1_size,
        .id_len = (uint16_t)strlen(id),
        .name_len = (uint16_t)strlen(info->name),
        .date_sec = info->date_sec,
        .date_nsec = info->date_nsec,
        .vm_clock_nsec = info->vm_clock_nsec,
        .vm_state_size32 = info->vm_state_size > UINT32_MAX ? 0 : (uint32_t)info->vm_state_size,
        .extra_len = EXTRA_BYTES,
        .extra = extra,
        .id = (const uint8_t *)id,
        .name = (const uint8_t *)info->name,
    };
}

/* Takes back the counts that a call raised before it failed, and the clusters it took; the device
 * may have only a part of that, or half a block.  If this fails too, they leak. */
static int lower_again(struct image *img, struct tree *tree, uint64_t l1_off, uint32_t l1_size,
    const struct new_table *table)
{
    uint64_t l1_clusters = clusters_for(&img->geo, l1_size * UINT64_C(8));
    tree->limit = tree->done; /* it may have failed half-way */
    int ret = tree_add(img, tree, -1);
    if (ret == 0 && l1_off)
        ret = refcount_add(img, cluster_of(&img->geo, l1_off), l1_clusters, -1);
    if (ret == 0 && table && table->host_off)
        ret = refcount_add(img, cluster_of(&img->geo, table->host_off), table->clusters, -1);
    return ret == 0 ? refcount_write(img) : ret;
}

/* The image becomes what it was: counts, then COPIED flags. */
static void create_undo(struct image *img, struct tree *active, const struct qcow2_snapshot *record,
    const struct new_table *table)
{
    struct image_error why = img->error;
    if (!img->stale && refcount_undo(img)) {
        int ret = lower_again(img, active, record->l1_off, record->l1_size, table);
        if (ret == 0)
            ret = tree_set_copied(img, active);
        img->stale |= ret < 0;
    }
    img->error = why;
}

/* Steps 1 to 3 of snapshot_create(). */
static int create_prepare(struct image *img, struct qcow2_snapshot *record, struct new_table *table)
{
    struct tree active;
    int ret = tree_init(img, img->l1, img->header.l1_size, &active);
    if (ret == 0)
        ret = tree_add(img, &active, +1);
    if (ret == 0)
        ret = tree_write_l1(img, img->l1, img->header.l1_size, &record->l1_off);
    if (ret == 0)
        ret = snapshot_table_write(img, UINT32_MAX, record, table);
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0)
        ret = tree_clear_copied(img, &active);
    if (ret == 0)
        ret = tree_clear_copied_l1(img);
    if (ret < 0)
        create_undo(img, &active, record, table);
    tree_release(&active);
    return ret;
}

/* 0. what was written before is flushed; in memory: +1 on all L2 tables and clusters of the active
 *    disk, so a count that cannot grow ends it here, with nothing written
 * 1. copy of the L1, COPIED cleared, and the new snapshot table, both in new clusters: a full
 *    file system ends it here
 * 2. the raised counts (of a very large disk as memory requires, also before 1.)
 * 3. COPIED cleared in the active L2 tables and the active L1
 *    -- barrier: 1. to 3. are durable before the header makes the second owner known.  Among
 *       themselves they may come in any order: high counts and missing COPIED flags do no harm
 * 4. header 60..71 -- barrier, commit
 * 5. the old table is given up */
int snapshot_create(struct image *img, const struct snapshot_info *info)
{
    char number[24];
    uint8_t extra[EXTRA_BYTES];
    struct new_table table = {0};
    struct cluster_run old_table;
    const char *id = info->id ? info->id : number;
    int ret = image_begin(img, true);
    if (ret == 0 && !info->id)
        ret = next_id(img, number, sizeof(number));
    if (ret == 0)
        ret = check_create(img, id, info->name);
    if (ret == 0)
        ret = image_flush(img);
    if (ret < 0)
        return ret;
    struct qcow2_snapshot record = make_record(img, info, id, extra);
    ret = create_prepare(img, &record, &table);
    if (ret == 0)
        ret = image_barrier(img);
    if (ret == 0)
        ret = snapshot_table_switch(img, &table, &old_table);
    if (ret == 0) {
        image_drop(img, old_table.first, old_table.count);
        img->dropped_durable = img->dropped.count;
        ret = image_settle(img);
    }
    return image_end(img, ret);
}

/* ---- looking ------------------------------------------------------------------------------- */

static int check_idx(struct image *img, uint32_t idx)
{
    return idx < img->snaps.count
               ? 0
               : image_fail(img, -ENOENT, "there is no snapshot number %" PRIu32, idx);
}

/* What changes a snapshot begins with: all that was written before is durable. */
static int change_begin(struct image *img, uint32_t idx)
{
    int ret = image_begin(img, true);
    if (ret == 0)
        ret = image_flush(img);
    return ret < 0 ? ret : check_idx(img, idx);
}

static uint64_t disk_size(const struct image *img, const struct qcow2_snapshot *snap)
{
    return snap->has_disk_size ? snap->disk_size : img->header.size_bytes;
}

static int read_l1(struct image *img, const struct qcow2_snapshot *snap, uint64_t **l1)
{
    if (disk_size(img, snap) > INT64_MAX ||
        l1_entries_for(&img->geo, disk_size(img, snap)) > snap->l1_size)
        return image_fail(
            img, -EUCLEAN, "the snapshot's L1 table is too short for its disk; run qcheck");
    return image_read_words(img, snap->l1_off, snap->l1_size, l1);
}

int snapshot_view(struct image *img, uint32_t idx, struct view *out)
{
    uint64_t *l1;
    int ret = image_begin(img, false);
    if (ret == 0)
        ret = image_needs_plain_data(img);
    if (ret == 0)
        ret = check_idx(img, idx);
    if (ret == 0)
        ret = read_l1(img, &img->snaps.list[idx], &l1);
    if (ret == 0)
        *out =
            (struct view){l1, img->snaps.list[idx].l1_size, disk_size(img, &img->snaps.list[idx])};
    return ret;
}

void view_close(struct view *view)
{
    free((void *)view->l1);
    view->l1 = NULL;
}

/* ---- apply --------------------------------------------------------------------------------- */

struct apply {
    struct tree snap, old;
    uint64_t *l1; /* the new active one */
    uint32_t l1_size;
    uint64_t l1_off, size_bytes;
    struct cluster_run old_l1;
};

static struct cluster_run l1_clusters(const struct image *img, uint64_t l1_off, uint32_t l1_size)
{
    return (struct cluster_run){
        cluster_of(&img->geo, l1_off), clusters_for(&img->geo, l1_size * UINT64_C(8))};
}

static int apply_prepare(struct image *img, const struct qcow2_snapshot *snap, struct apply *ap)
{
    uint64_t *l1 = NULL;
    ap->size_bytes = disk_size(img, snap);
    int ret = bitmap_check_resize(img, ap->size_bytes);
    if (ret == 0)
        ret = read_l1(img, snap, &l1);
    if (ret < 0 || !l1)
        return ret;
    ap->l1 = l1;
    ap->l1_size = snap->l1_size;
    for (uint32_t i = 0; i < ap->l1_size; i++)
        ap->l1[i] &= QCOW2_OFFSET_MASK; /* no flags, whatever they were */
    ret = tree_init(img, ap->l1, ap->l1_size, &ap->snap);
    if (ret == 0)
        ret = tree_init(img, img->l1, img->header.l1_size, &ap->old);
    ap->snap.other = &ap->old;
    ap->old.other = &ap->snap;
    if (ret == 0)
        ret = bitmap_mark_all(img);
    if (ret == 0)
        ret = tree_add(img, &ap->snap, +1);
    if (ret == 0)
        ret = tree_write_l1(img, ap->l1, ap->l1_size, &ap->l1_off);
    if (ret == 0)
        ret = refcount_write(img);
    return ret == 0 ? tree_clear_copied(img, &ap->snap) : ret;
}

static int apply_commit(struct image *img, struct apply *ap)
{
    struct qcow2_header *h = &img->header;
    uint8_t fields[24];
    store_be64(fields, ap->size_bytes);
    store_be32(fields + 8, h->crypt_method);
    store_be32(fields + 12, ap->l1_size);
    store_be64(fields + 16, ap->l1_off);
    int ret = image_write_header(img, QCOW2_HDR_SIZE, fields, sizeof(fields));
    if (ret == 0)
        ret = image_barrier(img); /* commit */
    if (ret < 0) {
        img->stale = true; /* which disk is it? */
        return ret;
    }
    uint64_t *old_l1 = img->l1;
    ap->old_l1 = l1_clusters(img, h->l1_off, h->l1_size);
    h->size_bytes = ap->size_bytes;
    h->l1_size = ap->l1_size;
    h->l1_off = ap->l1_off;
    img->l1 = ap->l1;
    ap->l1 = old_l1; /* ap->old goes on using it */
    return 0;
}

/* Explains an error that no longer means "nothing happened". */
static int committed(struct image *img, const char *what, int ret)
{
    struct image_error why = img->error;
    return ret == 0 ? 0
                    : image_fail(img, ret,
                          "%s, but freeing space failed (%.100s): qcheck --repair gets it back",
                          what, why.text);
}

/* Gives up what tells whose a tree was, once the tree's lowered counts are durable: before that,
 * what is left of it would look like a loss. */
static void drop_last(struct image *img, struct cluster_run clusters)
{
    image_drop(img, clusters.first, clusters.count);
    if (!img->unflushed) /* the tree was empty */
        img->dropped_durable = img->dropped.count;
}

/* Lowers the counts of the tree that is gone, and then that of its L1 table. */
static int release(struct image *img, struct tree *gone, struct cluster_run l1)
{
    int ret = tree_add(img, gone, -1);
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0)
        drop_last(img, l1);
    return ret;
}

/* 0. what was written before is flushed; bitmaps are filled, with their barrier
 * 1. the new active L1: a copy of the snapshot's, COPIED cleared, in new clusters
 * 2. counts +1 on the snapshot's tree
 * 3. COPIED cleared in the snapshot's L2 tables: they get a second owner
 *    -- barrier: all durable before the header points there; no order needed among them
 * 4. header 24..47: size, L1 size, L1 place, in one write -- barrier, commit
 * 5. counts -1 on the old tree, what is free offered to the host
 *    -- the next barrier, whoever needs it: then the old L1 is given up
 * An L2 table that both disks share keeps its counts throughout and is not touched. */
int snapshot_apply(struct image *img, uint32_t idx)
{
    struct apply ap = {0};
    int ret = change_begin(img, idx);
    if (ret < 0)
        return ret;
    ret = apply_prepare(img, &img->snaps.list[idx], &ap);
    if (ret < 0 && !img->stale && refcount_undo(img)) {
        struct image_error why = img->error;
        (void)lower_again(img, &ap.snap, ap.l1_off, ap.l1_size, NULL);
        img->error = why;
    }
    if (ret == 0)
        ret = image_barrier(img);
    if (ret == 0)
        ret = apply_commit(img, &ap);
    if (ret == 0)
        ret = committed(img, "the snapshot is applied", release(img, &ap.old, ap.old_l1));
    tree_release(&ap.snap);
    tree_release(&ap.old);
    free(ap.l1);
    return image_end(img, ret);
}

/* ---- delete -------------------------------------------------------------------------------- */

/* Step 3 and 4 of snapshot_delete().  With other snapshots the old table shows that this one was
 * deleted, and stays as long as the L1; of the last one the header tells, until image_settle(). */
static int delete_release(
    struct image *img, struct tree *gone, struct cluster_run l1, struct cluster_run old_table)
{
    bool last = img->header.snapshot_count == 0;
    int ret = last ? refcount_add(img, old_table.first, old_table.count, -1) : 0;
    if (ret == 0)
        ret = release(img, gone, l1);
    if (ret == 0 && !last)
        drop_last(img, old_table);
    return ret == 0 ? tree_set_copied(img, gone) : ret;
}

/* 0. what was written before is flushed
 * 1. the snapshot table without the entry, in new clusters, and their counts
 *    -- barrier: durable before the header points there
 * 2. header 60..71 -- barrier, commit: only now may anything of the snapshot be freed.  Without
 *    snapshots the table's place says nothing to anybody: there it is that of the L1 that goes
 * 3. counts -1 on its tree, what is free offered to the host
 * 4. COPIED set again where the active disk is the only owner left
 *    -- the next barrier, whoever needs it: then its L1 and the old table are given up */
int snapshot_delete(struct image *img, uint32_t idx)
{
    struct tree gone = {0};
    struct new_table table = {0};
    struct cluster_run old_table, old_l1 = {0};
    uint64_t *l1 = NULL;
    int ret = change_begin(img, idx);
    if (ret < 0)
        return ret;
    struct qcow2_snapshot snap = img->snaps.list[idx];
    ret = image_read_words(img, snap.l1_off, snap.l1_size, &l1);
    if (ret == 0)
        ret = tree_init(img, l1, snap.l1_size, &gone);
    if (ret == 0)
        ret = snapshot_table_write(img, idx, NULL, &table);
    if (ret == 0)
        ret = refcount_write(img);
    if (ret == 0 && img->unflushed)
        ret = image_barrier(img);
    if (snap.l1_size > 0)
        old_l1 = l1_clusters(img, snap.l1_off, snap.l1_size);
    if (table.count == 0 && snap.l1_size > 0)
        table.host_off = snap.l1_off;
    if (ret == 0)
        ret = snapshot_table_switch(img, &table, &old_table);
    if (ret == 0)
        ret = committed(
            img, "the snapshot is deleted", delete_release(img, &gone, old_l1, old_table));
    tree_release(&gone);
    free(l1);
    return image_end(img, ret);
}
