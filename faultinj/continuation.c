/* SPDX-License-Identifier: MIT
 *
 * See continuation.h. */
#include "continuation.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "snapshot.h"

enum { OVERWRITES_MAX = 24, GROWTH_CLUSTERS = 256, MARK_BYTES = 96 };

void continuation_init(struct continuation *c)
{
    *c = (struct continuation){0};
}

void continuation_release(struct continuation *c)
{
    oracle_release(&c->oracle);
    state_close(c->state);
    *c = (struct continuation){0};
}

/* One run: the engine on a copy of the crash image. */
struct going_on {
    struct continuation *c;
    struct image *img;
    const struct model *before;
    struct breach *breach;
    uint64_t written[OVERWRITES_MAX + 2]; /* guest sectors that were written to */
    unsigned written_count;
};

static int failed(struct going_on *g, const char *what, int err)
{
    if (err == -ENOMEM)
        return err;
    breach_note(g->breach, INVARIANT_CONTINUES, "%s fails: %s", what,
        g->img ? image_error(g->img) : strerror(-err));
    return 1;
}

/* I1 to I4 on the device.  Positive: something broke. */
static int look(struct going_on *g, const char *when)
{
    struct breach breach = {0};
    if (oracle_look(&g->c->oracle, g->c->state, &breach))
        return 0;
    if (g->c->oracle.no_memory)
        return -ENOMEM;
    breach_note(g->breach, INVARIANT_CONTINUES, "%s: %s", when, breach.text);
    return 1;
}

/* The snapshots that were there are as they were, but for the first `skip`. */
static int same_snapshots(struct going_on *g, uint32_t skip, const char *when)
{
    const struct model *now = &g->c->oracle.model;
    uint64_t sector;
    for (uint32_t i = skip; i < g->before->snapshot_count; i++) {
        if (i - skip >= now->snapshot_count ||
            now->snapshots[i - skip].record_hash != g->before->snapshots[i].record_hash) {
            breach_note(
                g->breach, INVARIANT_CONTINUES, "%s: snapshot %" PRIu32 " is gone", when, i);
            return 1;
        }
        if (!disk_same(&now->snapshots[i - skip].disk, &g->before->snapshots[i].disk, &sector)) {
            breach_note(g->breach, INVARIANT_CONTINUES,
                "%s: snapshot number %" PRIu32 " has changed at guest sector %" PRIu64, when, i,
                sector);
            return 1;
        }
    }
    return 0;
}

static bool was_written(const struct going_on *g, uint64_t sector)
{
    for (unsigned i = 0; i < g->written_count; i++) {
        if (g->written[i] == sector)
            return true;
    }
    return false;
}

/* What was not written is as it was in `old`. */
static int same_disk(struct going_on *g, const struct disk_model *old, const char *when)
{
    const struct disk_model *now = &g->c->oracle.model.active;
    size_t i = 0, j = 0;
    while (i < old->count || j < now->count) {
        uint64_t a = i < old->count ? old->list[i].sector : UINT64_MAX;
        uint64_t b = j < now->count ? now->list[j].sector : UINT64_MAX;
        uint64_t sector = a < b ? a : b;
        bool same = a == b && old->list[i].hash == now->list[j].hash;
        if (!same && !was_written(g, sector)) {
            breach_note(g->breach, INVARIANT_CONTINUES,
                "%s: the active disk has changed at guest sector %" PRIu64, when, sector);
            return 1;
        }
        i += a == sector, j += b == sector;
    }
    return 0;
}

static int write_mark(struct going_on *g, uint64_t sector, unsigned round)
{
    uint8_t mark[MARK_BYTES];
    uint64_t guest_off = sector * STATE_SECTOR + round;
    memset(mark, (int)(0xc0 + round), sizeof(mark));
    if (guest_off + sizeof(mark) > image_size(g->img))
        return 0;
    if (!was_written(g, sector) && g->written_count < sizeof(g->written) / sizeof(g->written[0]))
        g->written[g->written_count++] = sector;
    int ret = image_write(g->img, guest_off, mark, sizeof(mark));
    return ret < 0 ? failed(g, "a guest write", ret) : 0;
}

/* Over mapped clusters of the active disk, one sector each, and to one place that is free. */
static int write_over(struct going_on *g, const struct disk_model *disk, unsigned round)
{
    uint32_t per_cluster = g->img->geo.cluster_size / STATE_SECTOR;
    uint64_t last = UINT64_MAX, gap = 0;
    unsigned count = 0;
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < disk->count && count < OVERWRITES_MAX; i++) {
        uint64_t cluster = disk->list[i].sector / per_cluster;
        if (cluster == last)
            continue;
        if (cluster == gap)
            gap++;
        last = cluster;
        count++;
        ret = write_mark(g, disk->list[i].sector, round);
    }
    return ret == 0 ? write_mark(g, gap * per_cluster, round) : ret;
}

static int first_round(struct going_on *g)
{
    int ret = write_over(g, &g->before->active, 1);
    if (ret == 0) {
        ret = image_flush(g->img);
        ret = ret < 0 ? failed(g, "a flush", ret) : 0;
    }
    if (ret == 0)
        ret = look(g, "after guest writes");
    if (ret == 0)
        ret = same_snapshots(g, 0, "after guest writes");
    return ret == 0 ? same_disk(g, &g->before->active, "after guest writes") : ret;
}

static int second_round(struct going_on *g)
{
    struct snapshot_info info = {.name = "\1go on", .icount = UINT64_MAX};
    int ret = snapshot_create(g->img, &info);
    if (ret == -EOVERFLOW)
        return 0; /* refcounts of one bit, or all used up */
    if (ret < 0)
        return failed(g, "a create", ret);
    ret = write_over(g, &g->before->active, 2);
    if (ret == 0 && g->before->snapshot_count > 0) {
        ret = snapshot_apply(g->img, 0);
        ret = ret == -ENOTSUP ? 0 : ret < 0 ? failed(g, "an apply", ret) : 0;
        if (ret == 0)
            ret = write_over(g, &g->before->snapshots[0].disk, 3);
    }
    if (ret == 0) {
        ret = image_flush(g->img);
        ret = ret < 0 ? failed(g, "a flush", ret) : 0;
    }
    if (ret == 0)
        ret = look(g, "after create and apply");
    return ret == 0 ? same_snapshots(g, 0, "after create and apply") : ret;
}

static int third_round(struct going_on *g)
{
    if (g->before->snapshot_count == 0)
        return 0;
    int ret = snapshot_delete(g->img, 0);
    if (ret < 0)
        return failed(g, "a delete", ret);
    ret = write_over(g, &g->before->snapshots[0].disk, 4);
    if (ret == 0) {
        ret = image_flush(g->img);
        ret = ret < 0 ? failed(g, "a flush", ret) : 0;
    }
    if (ret == 0)
        ret = look(g, "after a delete");
    return ret == 0 ? same_snapshots(g, 1, "after a delete") : ret;
}

/* The crash image, with room to go on. */
static int make_copy(struct continuation *c, const struct state *crash)
{
    uint32_t bits = load_be32(crash->bytes + QCOW2_HDR_CLUSTER_BITS);
    uint64_t growth = (uint64_t)GROWTH_CLUSTERS
                      << (bits <= QCOW2_MAX_CLUSTER_BITS ? bits : QCOW2_MIN_CLUSTER_BITS);
    int ret = 0;
    if (!c->state || c->state->room_bytes < crash->room_bytes + growth) {
        state_close(c->state);
        c->state = NULL;
        ret = state_open(crash->room_bytes + growth, &c->state);
    }
    if (ret == 0) {
        state_allow_writes(c->state);
        state_copy(c->state, crash);
    }
    return ret;
}

/* A create and an apply have an L1 table made each, as long as the longest there is. */
static int make_room(struct continuation *c, const struct state *crash, const struct image *img)
{
    enum { TABLES = 3 }; /* and counts for two */
    uint64_t entries = img->header.l1_size;
    for (uint32_t i = 0; i < img->snaps.count; i++) {
        if (entries < img->snaps.list[i].l1_size)
            entries = img->snaps.list[i].l1_size;
    }
    uint64_t growth = (uint64_t)GROWTH_CLUSTERS << img->geo.cluster_bits;
    return state_make_room(c->state, crash->room_bytes + growth + TABLES * 8 * entries);
}

int continuation_run(struct continuation *c, const struct state *crash, const struct model *model,
    struct breach *breach)
{
    struct going_on g = {.c = c, .before = model, .breach = breach};
    struct image_error why;
    c->refused = false;
    int ret = make_copy(c, crash);
    if (ret < 0)
        return ret;
    ret = image_open(&c->state->io, IMAGE_WRITE, &g.img, &why);
    if (ret < 0 && ret != -ENOMEM) {
        breach_note(breach, INVARIANT_CONTINUES, "the engine refuses the image: %s", why.text);
        ret = 1;
    } else if (ret == 0 && g.img->header.incompatible & QCOW2_INCOMPAT_DIRTY) {
        c->refused = true;
    } else if (ret == 0) {
        ret = make_room(c, crash, g.img);
        if (ret == 0)
            ret = first_round(&g);
        if (ret == 0)
            ret = second_round(&g);
        if (ret == 0)
            ret = third_round(&g);
    }
    image_abandon(g.img);
    return ret < 0 ? ret : 0;
}
