/* SPDX-License-Identifier: MIT
 *
 * Internal snapshots. */
#ifndef ENGINE_SNAPSHOT_H
#define ENGINE_SNAPSHOT_H

#include "image.h"

struct snapshot_info {
    const char *name;
    const char *id; /* NULL: one more than the largest */
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec, vm_state_size;
    uint64_t icount; /* UINT64_MAX: none */
};

/* The snapshots, in the order of the table; valid until the next call that changes them.  Strings
 * in there are not NUL-terminated. */
const struct qcow2_snapshot *snapshot_list(const struct image *img, uint32_t *count);

/* By ID, else by name.  -ENOENT; -ENOTUNIQ when several have that name. */
int snapshot_find(struct image *img, const char *id_or_name, uint32_t *idx);

int snapshot_create(struct image *img, const struct snapshot_info *info);
int snapshot_apply(struct image *img, uint32_t idx);
int snapshot_delete(struct image *img, uint32_t idx);

/* A snapshot's disk, for view_read(), diff and export; changes nothing.  Free with view_close(). */
int snapshot_view(struct image *img, uint32_t idx, struct view *out);
/* The active disk the same way; valid until the image changes. */
struct view image_view(const struct image *img);
void view_close(struct view *view); /* of snapshot_view() only */
/* Guest bytes of a view; -ERANGE when the range passes its end. */
int view_read(
    struct image *img, const struct view *view, uint64_t guest_off, void *buf, size_t length);

/* ---- shared by the parts of the engine ----------------------------------------------------- */

int snapshot_load(struct image *img);
void snapshot_release(struct image *img);

/* snaptable.c: a new table of the old one's records without `without` (or UINT32_MAX) and with
 * `added` (or NULL) at the end, in new clusters: allocated and written, not yet pointed to.  After
 * an error out->host_off tells what was allocated, if anything.  One of no records has no clusters,
 * and may have any place. */
struct new_table {
    uint64_t host_off, clusters;
    uint32_t count;
};
int snapshot_table_write(
    struct image *img, uint32_t without, const struct qcow2_snapshot *added, struct new_table *out);

/* The commit: header bytes 60..71 in one write, and its barrier.  Reads the table again.  *old:
 * where the table was, for the caller to give up. */
int snapshot_table_switch(
    struct image *img, const struct new_table *table, struct cluster_run *old);

#endif
