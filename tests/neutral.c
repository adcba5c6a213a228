/* SPDX-License-Identifier: MIT */
#include "neutral.h"

#include <errno.h>
#include <stdlib.h>

#include "qcow2.h"

enum { MAX_L1_ENTRIES = QCOW2_MAX_L1_BYTES / 8 };

static int read_header(struct io *image, struct qcow2_header *header)
{
    uint8_t head[QCOW2_V3_HEADER_BYTES + 8];
    int err = io_read_padded(image, 0, head, sizeof(head));
    return err ? err : qcow2_header_decode(head, sizeof(head), header);
}

static int put(struct io *image, uint64_t host_off, uint64_t value, size_t width)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    int err = io_write(image, host_off, bytes + 8 - width, width);
    return err ? err : 1;
}

/* ---- L1 entries ---------------------------------------------------------------------------------
 */

/* One L1 table: where it is and where that is written down. */
struct l1_place {
    uint64_t l1_off;
    uint32_t l1_size;
    uint64_t record_off; /* of the snapshot's record; 0: the header */
};

typedef int l1_visitor(struct io *image, const struct l1_place *place, uint64_t host_off);

/* Calls `visit` for the L1 table of the disk and of each snapshot; the sum of what it returns. */
static int for_each_l1(struct io *image, l1_visitor *visit, uint64_t host_off)
{
    struct qcow2_header header;
    int err = read_header(image, &header);
    if (err)
        return err;
    struct l1_place place = {.l1_off = header.l1_off, .l1_size = header.l1_size};
    int changed = visit(image, &place, host_off);
    uint64_t record_off = header.snapshots_off;
    for (uint32_t i = 0; i < header.snapshot_count && i < 1000 && changed >= 0; i++) {
        uint8_t record[QCOW2_SNAPSHOT_HEAD_BYTES];
        struct qcow2_snapshot snapshot;
        err = io_read_padded(image, record_off, record, sizeof(record));
        if (err)
            return err;
        qcow2_snapshot_decode(record, sizeof(record), &snapshot);
        place = (struct l1_place){snapshot.l1_off, snapshot.l1_size, record_off};
        int more = visit(image, &place, host_off);
        changed = more < 0 ? more : changed + more;
        record_off += snapshot.record_len;
    }
    return changed;
}

/* Which entries go: those with flags alone when host_off is 0. */
static int drop_entries(struct io *image, const struct l1_place *place, uint64_t host_off)
{
    uint64_t size, end, entries = place->l1_size;
    int err = io_size(image, &size), dropped = 0;
    if (err)
        return err;
    if (entries > MAX_L1_ENTRIES || place->l1_off >= size ||
        !range_end(place->l1_off, entries * 8, &end))
        return 0;
    if (end > size)
        entries = (size - place->l1_off) / 8;
    uint8_t *table = malloc(entries * 8 + 1);
    if (!table)
        return -ENOMEM;
    err = io_read_padded(image, place->l1_off, table, entries * 8);
    for (uint64_t i = 0; i < entries && err == 0; i++) {
        uint64_t raw = load_be64(table + i * 8);
        if (raw == 0 || (raw & QCOW2_OFFSET_MASK) != host_off)
            continue;
        int ret = put(image, place->l1_off + i * 8, 0, 8);
        err = ret < 0 ? ret : 0;
        dropped++;
    }
    free(table);
    return err ? err : dropped;
}

static int drop_l1(struct io *image, const struct l1_place *place, uint64_t host_off)
{
    enum { MAX_CLUSTER = 1 << QCOW2_MAX_CLUSTER_BITS };
    uint64_t size;
    if (place->l1_off != host_off || place->l1_size == 0)
        return 0;
    if (place->record_off)
        return put(image, place->record_off + 8, 0, 4);
    int err = io_size(image, &size);
    uint64_t l1_off = div_up(size, MAX_CLUSTER) * MAX_CLUSTER; /* aligned for every cluster size */
    if (err == 0)
        err = io_resize(image, l1_off + div_up(place->l1_size * 8ull, MAX_CLUSTER) * MAX_CLUSTER);
    return err ? err : put(image, QCOW2_HDR_L1_OFF, l1_off, 8);
}

int neutral_drop_l2(struct io *image, uint64_t host_off)
{
    return host_off ? for_each_l1(image, drop_entries, host_off) : 0;
}

int neutral_drop_l1(struct io *image, uint64_t host_off)
{
    return for_each_l1(image, drop_l1, host_off);
}

int neutral_drop_active_l1(struct io *image)
{
    struct qcow2_header header;
    int err = read_header(image, &header);
    if (err)
        return err;
    struct l1_place place = {.l1_off = header.l1_off, .l1_size = header.l1_size};
    return drop_l1(image, &place, header.l1_off);
}

int neutral_drop_bare_flags(struct io *image)
{
    return for_each_l1(image, drop_entries, 0);
}

/* ---- header fields ------------------------------------------------------------------------------
 */

int neutral_drop_reftable(struct io *image)
{
    struct qcow2_header header;
    int err = read_header(image, &header);
    if (err || header.reftable_off != 0)
        return err;
    return put(image, QCOW2_HDR_REFTABLE_OFF, UINT64_C(1) << 50, 8);
}

int neutral_drop_bitmaps(struct io *image)
{
    struct qcow2_header header;
    int err = read_header(image, &header);
    if (err || header.version < 3 || !(header.autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return err;
    return put(image, QCOW2_HDR_AUTOCLEAR, header.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS, 8);
}

int neutral_drop_snapshots(struct io *image)
{
    struct qcow2_header header;
    int err = read_header(image, &header);
    if (err || (header.snapshot_count == 0 && header.snapshots_off == 0))
        return err;
    err = put(image, QCOW2_HDR_SNAPSHOT_COUNT, 0, 4);
    return err < 0 ? err : put(image, QCOW2_HDR_SNAPSHOTS_OFF, 0, 8);
}

int neutral_drop_backing(struct io *image)
{
    struct qcow2_header header;
    int err = read_header(image, &header);
    if (err || (header.backing_off == 0 && header.backing_len == 0))
        return err;
    err = put(image, QCOW2_HDR_BACKING_OFF, 0, 8);
    return err < 0 ? err : put(image, QCOW2_HDR_BACKING_LEN, 0, 4);
}
