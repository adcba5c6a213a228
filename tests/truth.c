/* SPDX-License-Identifier: MIT */
#include "truth.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SNAPSHOTS = 64 };

/* ---- reading ----------------------------------------------------------------------------------
 */

static void *grown(void *items, size_t count, size_t size)
{
    items = realloc(items, count * size);
    if (!items)
        abort();
    return items;
}

static void add_run(struct truth_disk *disk, const struct truth_run *run)
{
    if (disk->count == disk->room) {
        disk->room = disk->room ? disk->room * 2 : 64;
        disk->runs = grown(disk->runs, disk->room, sizeof(*disk->runs));
    }
    disk->runs[disk->count++] = *run;
}

static void add_unreadable(struct truth_disk *disk, uint64_t guest_idx, uint64_t end)
{
    if (guest_idx < end)
        add_run(disk,
            &(struct truth_run){
                .guest_idx = guest_idx, .count = end - guest_idx, .digest = TRUTH_UNREADABLE});
}

static uint64_t digest(const uint8_t *bytes, size_t length)
{
    uint64_t sum = 0, any = 0, word;
    for (size_t i = 0; i < length; i += sizeof(word)) {
        memcpy(&word, bytes + i, sizeof(word));
        any |= word;
        sum = (sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        sum ^= sum >> 29;
    }
    return any ? (sum >> 1) | 2 : 0;
}

static bool past_end(const struct guest_disk *disk, const struct qcow2_l2_entry *e)
{
    uint64_t size;
    return e->kind == QCOW2_L2_NORMAL && io_size(disk->data ? disk->data : disk->io, &size) == 0 &&
           e->host_off >= size && cluster_aligned(&disk->geo, e->host_off);
}

static void read_one(struct guest_disk *guest, const struct truth *content, struct truth_disk *disk,
    uint64_t guest_idx, uint8_t *buf)
{
    struct qcow2_l2_entry e;
    struct truth_run run = {.guest_idx = guest_idx, .count = 1};
    if (guest_entry(guest, guest_idx, &e, run.at) < 0) {
        run.digest = TRUTH_UNREADABLE;
    } else if (e.kind == QCOW2_L2_UNALLOCATED && !(e.bitmap & QCOW2_SUBCLUSTER_ZERO)) {
        run.digest = content->background;
    } else {
        run.digest = guest_cluster(guest, &e, buf) < 0 ? TRUTH_UNREADABLE
                                                       : digest(buf, guest->geo.cluster_size);
        if (!past_end(guest, &e) && (e.kind == QCOW2_L2_NORMAL || e.kind == QCOW2_L2_COMPRESSED)) {
            run.host_off = e.host_off;
            run.length = e.length;
        }
    }
    if (run.digest != content->background || run.length)
        add_run(disk, &run);
}

static void read_disk(
    struct guest_disk *guest, const struct truth *content, struct truth_disk *disk)
{
    const struct qcow2_geometry *geo = &guest->geo;
    uint64_t file_size = 0, step = geo->l2_entries;
    io_size(guest->io, &file_size);
    uint64_t in_file = guest->l1_off < file_size ? (file_size - guest->l1_off) / 8 : 0;
    uint8_t *buf = grown(NULL, geo->cluster_size, 1);
    for (uint64_t l1_idx = 0; l1_idx < guest->l1_size; l1_idx++) {
        uint64_t idx = l1_idx * step, end = idx + step;
        uint8_t entry[8];
        if (end > disk->cluster_count)
            end = disk->cluster_count;
        if (idx >= end)
            break;
        /* Nobody has the header for a table. */
        if (l1_idx >= in_file || guest->l1_off == 0 || !cluster_aligned(geo, guest->l1_off)) {
            add_unreadable(disk, idx, disk->cluster_count);
            break;
        }
        if (io_read(guest->io, guest->l1_off + 8 * l1_idx, entry, 8) < 0) {
            add_unreadable(disk, idx, end);
            continue;
        }
        uint64_t l2_off = load_be64(entry) & QCOW2_OFFSET_MASK;
        if (!cluster_aligned(geo, l2_off) || l2_off >= file_size)
            add_unreadable(disk, idx, end);
        else if (l2_off)
            for (; idx < end; idx++)
                read_one(guest, content, disk, idx, buf);
    }
    free(buf);
}

static bool known(const struct truth *content, const char *label)
{
    for (size_t i = 0; i < content->disk_count; i++) {
        if (strcmp(content->disks[i].label, label) == 0)
            return true;
    }
    return false;
}

void truth_read(struct io *io, struct io *data, uint64_t most_bytes, struct truth *out)
{
    *out = (struct truth){0};
    for (unsigned nth = 0; nth <= MAX_SNAPSHOTS; nth++) {
        struct guest_disk guest;
        struct truth_disk disk = {0};
        if (guest_open(&guest, io, data, NULL, nth, disk.label) < 0)
            break;
        if (nth == 0) {
            out->cluster_bits = guest.geo.cluster_bits;
            out->l2_entry_size = guest.geo.l2_entry_size;
            out->data_file = guest.data;
            out->background = guest.header.backing_off && guest.header.backing_len;
        }
        if (known(out, disk.label))
            continue;
        uint64_t size = guest.size_bytes < most_bytes ? guest.size_bytes : most_bytes;
        disk.cluster_count = clusters_for(&guest.geo, size);
        disk.names_off = guest.names_off;
        disk.names_len = guest.names_len;
        read_disk(&guest, out, &disk);
        out->disks = grown(out->disks, out->disk_count + 1, sizeof(disk));
        out->disks[out->disk_count++] = disk;
    }
}

void truth_free(struct truth *content)
{
    for (size_t i = 0; i < content->disk_count; i++)
        free(content->disks[i].runs);
    free(content->disks);
    *content = (struct truth){0};
}

uint64_t truth_size(const struct truth *content)
{
    uint64_t most = 0;
    for (size_t i = 0; i < content->disk_count; i++) {
        if (content->disks[i].cluster_count > most)
            most = content->disks[i].cluster_count;
    }
    return most << content->cluster_bits;
}

/* ---- comparing --------------------------------------------------------------------------------
 */

static bool same_geometry(const struct truth *a, const struct truth *b)
{
    return a->cluster_bits == b->cluster_bits && a->l2_entry_size == b->l2_entry_size;
}

/* NULL: not there, or with clusters of another size, which nobody can read. */
static const struct truth_disk *counterpart(
    const struct truth *truth, const struct truth *other, const char *label)
{
    for (size_t i = 0; i < other->disk_count && same_geometry(truth, other); i++) {
        if (strcmp(other->disks[i].label, label) == 0)
            return &other->disks[i];
    }
    return NULL;
}

/* "ID/name": one of both is the same. */
static bool half_named(const char *a, const char *b)
{
    const char *a_end = strchr(a, '/'), *b_end = strchr(b, '/');
    if (!a_end || !b_end)
        return false;
    bool same_id = a_end - a == b_end - b && memcmp(a, b, (size_t)(a_end - a)) == 0;
    return same_id || strcmp(a_end, b_end) == 0;
}

/* The same, also when its ID or its name was damaged: a guest's data is there all the same. */
static const struct truth_disk *whoever_it_is(
    const struct truth *truth, const struct truth *other, const char *label)
{
    const struct truth_disk *disk = counterpart(truth, other, label);
    for (size_t i = 0; i < other->disk_count && !disk && same_geometry(truth, other); i++) {
        const struct truth_disk *candidate = &other->disks[i];
        if (half_named(candidate->label, label) &&
            !counterpart(other, truth, candidate->label)) /* it is nobody else */
            disk = candidate;
    }
    return disk;
}

/* The run that has the guest cluster; NULL: none. */
static const struct truth_run *run_with(const struct truth_disk *disk, uint64_t guest_idx)
{
    size_t low = 0, high = disk->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (disk->runs[middle].guest_idx + disk->runs[middle].count <= guest_idx)
            low = middle + 1;
        else
            high = middle;
    }
    return low < disk->count && disk->runs[low].guest_idx <= guest_idx ? &disk->runs[low] : NULL;
}

static uint64_t digest_at(
    const struct truth *content, const struct truth_disk *disk, uint64_t guest_idx)
{
    if (!disk || guest_idx >= disk->cluster_count)
        return TRUTH_UNREADABLE;
    const struct truth_run *run = run_with(disk, guest_idx);
    return run ? run->digest : content->background;
}

static bool same_bytes(struct io *a, struct io *b, uint64_t host_off, uint64_t length)
{
    uint8_t *x = grown(NULL, length + 1, 1), *y = grown(NULL, length + 1, 1);
    bool same = io_read_padded(a, host_off, x, length) == 0 &&
                io_read_padded(b, host_off, y, length) == 0 && memcmp(x, y, length) == 0;
    free(x);
    free(y);
    return same;
}

/* Of the entries that share its sector at least one is as it was, or it was the only one: it can be
 * damaged alone. */
static bool sector_is_left(
    const struct truth *truth, struct io *healthy, struct io *damaged, uint64_t entry_off)
{
    static const uint8_t empty[16] = {0};
    uint8_t old[QCOW2_SECTOR_BYTES], now[QCOW2_SECTOR_BYTES];
    uint64_t start = entry_off / QCOW2_SECTOR_BYTES * QCOW2_SECTOR_BYTES, size = 0;
    unsigned others = 0, left = 0, step = truth->l2_entry_size;
    io_size(damaged, &size);
    if (entry_off >= size || io_read_padded(healthy, start, old, sizeof(old)) < 0 ||
        io_read_padded(damaged, start, now, sizeof(now)) < 0)
        return false;
    for (unsigned at = 0; at < sizeof(old); at += step) {
        bool other = start + at != entry_off && memcmp(old + at, empty, step) != 0;
        others += other;
        left += other && memcmp(old + at, now + at, step) == 0;
    }
    return others == 0 || left > 0;
}

/* An entry of this or another disk still leads to the data, or one that may be mended. */
static bool is_known(
    const struct truth *truth, struct io *healthy, struct io *damaged, const struct truth_run *run)
{
    for (size_t i = 0; i < truth->disk_count; i++) {
        const struct truth_run *twin = run_with(&truth->disks[i], run->guest_idx);
        if (twin && twin->guest_idx == run->guest_idx && twin->length > 0 &&
            twin->host_off == run->host_off && sector_is_left(truth, healthy, damaged, twin->at[1]))
            return true;
    }
    return false;
}

void truth_kept(const struct truth *truth, struct io *healthy, struct io *damaged,
    const struct truth *after, struct truth_share *share)
{
    uint64_t bytes = UINT64_C(1) << truth->cluster_bits;
    *share = (struct truth_share){0};
    for (size_t i = 0; i < truth->disk_count; i++) {
        const struct truth_disk *disk = &truth->disks[i];
        const struct truth_disk *other = whoever_it_is(truth, after, disk->label);
        bool named = same_bytes(healthy, damaged, disk->names_off, disk->names_len);
        share->snapshots += i > 0;
        share->snapshots_kept += i > 0 && counterpart(truth, after, disk->label);
        for (size_t k = 0; k < disk->count; k++) {
            const struct truth_run *run = &disk->runs[k];
            /* Zeros are no data: no file need hold them. */
            if (run->length == 0 || run->digest == 0 ||
                (!truth->data_file && !same_bytes(healthy, damaged, run->host_off, run->length)))
                continue;
            bool kept = digest_at(after, other, run->guest_idx) == run->digest;
            bool placed = named && same_bytes(healthy, damaged, run->at[1], truth->l2_entry_size);
            bool mapped = placed && same_bytes(healthy, damaged, run->at[0], 8);
            bool is_there = is_known(truth, healthy, damaged, run);
            share->in_file += bytes;
            share->kept += kept ? bytes : 0;
            share->known += is_there ? bytes : 0;
            share->known_kept += is_there && kept ? bytes : 0;
            share->placed += placed ? bytes : 0;
            share->placed_kept += placed && kept ? bytes : 0;
            share->mapped += mapped ? bytes : 0;
            share->mapped_kept += mapped && kept ? bytes : 0;
        }
    }
}

/* Counts clusters of the runs of `places` that were right and are not any more. */
static uint64_t worse_at(const struct truth *contents[3], const struct truth_disk *disks[3],
    const struct truth_disk *places, FILE *why)
{
    uint64_t worse = 0;
    for (size_t k = 0; k < places->count; k++) {
        uint64_t idx = places->runs[k].guest_idx;
        uint64_t right = digest_at(contents[0], disks[0], idx);
        if (right == TRUTH_UNREADABLE || digest_at(contents[1], disks[1], idx) != right ||
            digest_at(contents[2], disks[2], idx) == right)
            continue;
        if (worse++ == 0 && why)
            fprintf(why, "disk \"%s\": guest cluster %" PRIu64 " was readable and is %s\n",
                places->label, idx,
                digest_at(contents[2], disks[2], idx) == TRUTH_UNREADABLE ? "unreadable" : "wrong");
    }
    return worse;
}

static bool wholly_sound(const struct truth *truth, const struct truth_disk *disk,
    const struct truth *before, const struct truth_disk *old)
{
    for (size_t k = 0; k < disk->count; k++) {
        if (digest_at(before, old, disk->runs[k].guest_idx) != disk->runs[k].digest)
            return false;
    }
    for (size_t k = 0; k < old->count; k++) {
        uint64_t idx = old->runs[k].guest_idx;
        if (idx < disk->cluster_count && digest_at(truth, disk, idx) != old->runs[k].digest)
            return false;
    }
    return old->cluster_count == disk->cluster_count;
}

uint64_t truth_worse(const struct truth *truth, const struct truth *before,
    const struct truth *after, bool whole, FILE *why)
{
    uint64_t worse = 0;
    const struct truth *contents[3] = {truth, before, after};
    for (size_t i = 0; i < truth->disk_count; i++) {
        const struct truth_disk *disk = &truth->disks[i];
        const struct truth_disk *old = counterpart(truth, before, disk->label);
        const struct truth_disk *new = counterpart(truth, after, disk->label);
        const struct truth_disk *disks[3] = {disk, old, new};
        if (!old || (whole && !wholly_sound(truth, disk, before, old)))
            continue;
        if (!new) {
            worse++;
            if (why)
                fprintf(why, "disk \"%s\" was there and is gone\n", disk->label);
            continue;
        }
        worse += worse_at(contents, disks, disk, why);
        worse += worse_at(contents, disks, new, why);
    }
    return worse;
}

/* What the three contents have at one place. */
static void digests_at(const struct truth *contents[3], const struct truth_disk *disks[3],
    uint64_t guest_idx, uint64_t digests[3])
{
    for (int i = 0; i < 3; i++)
        digests[i] = digest_at(contents[i], disks[i], guest_idx);
}

/* Looks at the runs of `places`; a disk that one of the two does not have may be anything. */
static uint64_t strange_at(const struct truth *contents[3], const struct truth_disk *disks[3],
    const struct truth_disk *places, bool lossy, FILE *why)
{
    uint64_t strange = 0;
    for (size_t k = 0; k < places->count; k++) {
        uint64_t idx = places->runs[k].guest_idx, digests[3];
        digests_at(contents, disks, idx, digests);
        if (digests[2] == digests[0] || digests[2] == digests[1] ||
            (lossy && digests[2] == TRUTH_UNREADABLE))
            continue;
        if (strange++ == 0)
            fprintf(why, "disk \"%s\": guest cluster %" PRIu64 " is %s", places->label, idx,
                digests[2] == TRUTH_UNREADABLE ? "unreadable" : "neither old nor new");
    }
    return strange;
}

uint64_t truth_between(
    const struct truth *a, const struct truth *b, const struct truth *now, bool lossy, FILE *why)
{
    uint64_t strange = 0;
    const struct truth *contents[3] = {a, b, now};
    for (size_t i = 0; i < a->disk_count; i++) {
        const char *label = a->disks[i].label;
        const struct truth_disk *disks[3] = {
            &a->disks[i], counterpart(a, b, label), counterpart(a, now, label)};
        if (!disks[1])
            continue;
        for (int k = 0; k < 3 && disks[2] && strange == 0; k++)
            strange += strange_at(contents, disks, disks[k], lossy, why);
        if (!disks[2] && strange++ == 0)
            fprintf(why, "disk \"%s\" is gone", label);
    }
    return strange;
}

static uint64_t foreign_at(const struct truth *contents[3], const struct truth_disk *disks[3],
    const struct truth_disk *places, bool lossy, FILE *why)
{
    uint64_t foreign = 0;
    for (size_t k = 0; k < places->count; k++) {
        uint64_t idx = places->runs[k].guest_idx, digests[3];
        digests_at(contents, disks, idx, digests);
        if (digests[2] == digests[0] || digests[2] == digests[1] ||
            digests[2] == TRUTH_UNREADABLE ||
            (lossy && (digests[2] == 0 || digests[2] == contents[2]->background)))
            continue;
        if (foreign++ == 0)
            fprintf(why, "disk \"%s\": guest cluster %" PRIu64 " was %s and is %s\n",
                disks[2]->label, idx, digests[1] == TRUTH_UNREADABLE ? "unreadable" : "readable",
                digests[2] == 0 ? "zeros" : "neither right nor as before");
    }
    return foreign;
}

uint64_t truth_foreign(const struct truth *truth, const struct truth *before,
    const struct truth *after, bool lossy, FILE *why)
{
    uint64_t foreign = 0;
    const struct truth *contents[3] = {truth, before, after};
    for (size_t i = 0; i < after->disk_count; i++) {
        const char *label = after->disks[i].label;
        const struct truth_disk *disks[3] = {
            counterpart(after, truth, label), counterpart(after, before, label), &after->disks[i]};
        if (!disks[0] && !disks[1] && foreign++ == 0)
            fprintf(why, "disk \"%s\" is new\n", label);
        for (int k = 0; disks[0] && k < 3; k++) {
            if (disks[k])
                foreign += foreign_at(contents, disks, disks[k], lossy, why);
        }
    }
    return foreign;
}
