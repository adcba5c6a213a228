/* SPDX-License-Identifier: MIT
 *
 * Clusters that bitmaps use. */
#include <inttypes.h>

#include "oracle_impl.h"

static bool find_extension(
    const struct oracle *o, const struct state *state, struct qcow2_bitmaps_ext *out)
{
    size_t end = o->geo.cluster_size, pos = o->header.header_length;
    const uint8_t *cluster = state_at(state, 0, end);
    struct qcow2_ext ext;
    bool found = false;
    if (o->header.backing_off > pos && o->header.backing_off < end)
        end = (size_t)o->header.backing_off;
    while (cluster && qcow2_ext_next(cluster, end, &pos, &ext) > 0) {
        if (ext.type != QCOW2_EXT_BITMAPS || ext.length < QCOW2_BITMAPS_EXT_BYTES)
            continue;
        qcow2_bitmaps_ext_decode(ext.data, out);
        found = true;
    }
    return found;
}

static bool look_table(struct oracle *o, const struct state *state,
    const struct qcow2_bitmap *bitmap, struct breach *breach)
{
    if (!oracle_claim(o, bitmap->table_off, bitmap->table_size * UINT64_C(8), OWNER_BITMAP,
            bitmap->table_off, breach))
        return false;
    for (uint64_t i = 0; i < bitmap->table_size; i++) {
        const uint8_t *bytes = state_at(state, bitmap->table_off + i * 8, 8);
        uint64_t entry = bytes ? load_be64(bytes) : 0, host_off = entry & QCOW2_OFFSET_MASK;
        if (entry & QCOW2_BITMAP_RESERVED || (host_off && entry & 1))
            return breach_note(
                breach, INVARIANT_OPENS, "bitmap table entry %" PRIu64 " is wrong", i);
        if (host_off &&
            !oracle_claim(o, host_off, o->geo.cluster_size, OWNER_BITMAP, host_off, breach))
            return false;
    }
    return true;
}

bool oracle_look_bitmaps(struct oracle *o, const struct state *state, struct breach *breach)
{
    struct qcow2_bitmaps_ext ext;
    if (o->header.version < 3 || !(o->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS) ||
        !find_extension(o, state, &ext))
        return true;
    if (!oracle_claim(
            o, ext.directory_off, ext.directory_size, OWNER_BITMAP, ext.directory_off, breach))
        return false;
    uint64_t at = ext.directory_off, end = ext.directory_off + ext.directory_size;
    for (uint32_t i = 0; i < ext.bitmap_count; i++) {
        struct qcow2_bitmap bitmap;
        const uint8_t *bytes = state_at(state, at, at <= end ? end - at : 0);
        if (!bytes || at > end || qcow2_bitmap_decode(bytes, (size_t)(end - at), &bitmap) < 0)
            return breach_note(breach, INVARIANT_OPENS, "the bitmap directory is cut short");
        if (!look_table(o, state, &bitmap, breach))
            return false;
        at += bitmap.record_len;
    }
    return true;
}
