/* SPDX-License-Identifier: MIT
 *
 * The first cluster: header, extensions, backing file name. */
#include <string.h>

#include "recipe_impl.h"

static void add_ext(struct recipe *r, uint32_t type, const void *data, size_t length)
{
    r->exts = recipe_grow(r, r->exts, r->ext_count, sizeof(*r->exts));
    r->exts[r->ext_count++] =
        (struct recipe_ext){.type = type, .length = (uint32_t)length, .data = data};
}

static void add_known_exts(struct recipe *r)
{
    if (r->backing_format)
        add_ext(
            r, (uint32_t)QCOW2_EXT_BACKING_FORMAT, r->backing_format, strlen(r->backing_format));
    if (r->data_name)
        add_ext(r, QCOW2_EXT_DATA_FILE, r->data_name, strlen(r->data_name));
    if (r->crypto_len) {
        uint8_t *data = recipe_alloc(r, 1, QCOW2_CRYPTO_EXT_BYTES);
        store_be64(data, r->crypto_off);
        store_be64(data + 8, r->crypto_len);
        add_ext(r, QCOW2_EXT_CRYPTO, data, QCOW2_CRYPTO_EXT_BYTES);
    }
    if (r->bitmap_count) {
        const struct recipe_bitmap *last = &r->bitmaps[r->bitmap_count - 1];
        uint64_t last_len = QCOW2_BITMAP_HEAD_BYTES + last->extra_len + strlen(last->name);
        struct qcow2_bitmaps_ext ext = {.bitmap_count = (uint32_t)r->bitmap_count,
            .directory_off = r->bitmap_dir_off,
            .directory_size =
                last->record_off + ((last_len + 7) & ~UINT64_C(7)) - r->bitmap_dir_off};
        uint8_t *data = recipe_alloc(r, 1, QCOW2_BITMAPS_EXT_BYTES);
        qcow2_bitmaps_ext_encode(&ext, data);
        add_ext(r, QCOW2_EXT_BITMAPS, data, QCOW2_BITMAPS_EXT_BYTES);
    }
    if (r->features_len)
        add_ext(r, QCOW2_EXT_FEATURE_NAMES, r->features, r->features_len);
}

int recipe_write_header(struct recipe *r)
{
    struct recipe_ext *own = r->exts; /* those the recipe spelled out come after the known ones */
    size_t own_count = r->ext_count;
    r->exts = NULL;
    r->ext_count = 0;
    add_known_exts(r);
    for (size_t i = 0; i < own_count; i++)
        add_ext(r, own[i].type, own[i].data, own[i].length);

    uint8_t *buf = recipe_alloc(r, r->geo.cluster_size, 1);
    uint64_t pos = r->header.header_length;
    for (size_t i = 0; i < r->ext_count; i++) {
        struct recipe_ext *ext = &r->exts[i];
        ext->head_off = pos;
        uint64_t end = pos + 8 + ((ext->length + UINT64_C(7)) & ~UINT64_C(7));
        if (end + 8 > r->geo.cluster_size)
            return recipe_fail(r, "the extensions do not fit the first cluster");
        store_be32(buf + pos, ext->type);
        store_be32(buf + pos + 4, ext->length);
        memcpy(buf + pos + 8, ext->data, ext->length);
        pos = end;
    }
    pos += 8; /* end mark */
    if (r->backing_name) {
        r->header.backing_off = pos;
        r->header.backing_len = (uint32_t)strlen(r->backing_name);
        if (pos + r->header.backing_len > r->geo.cluster_size)
            return recipe_fail(r, "the backing file name does not fit the first cluster");
        memcpy(buf + pos, r->backing_name, r->header.backing_len);
    }
    r->header.l1_off = r->active.host_off;
    r->header.l1_size = r->active.size;
    qcow2_header_encode(&r->header, buf);
    return io_write(r->io, 0, buf, r->geo.cluster_size);
}
