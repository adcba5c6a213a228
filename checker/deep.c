/* SPDX-License-Identifier: MIT
 *
 * --deep: every compressed cluster decodes to exactly one cluster. */
#include <errno.h>
#include <stdlib.h>

#include "codec.h"
#include "walk.h"

struct deep {
    struct codec *codec;
    uint8_t *packed, *plain, *table;
};

static int decode_entry(struct walk *walk, struct deep *deep, const struct table *table,
    uint32_t idx, const struct qcow2_l2_entry *e)
{
    const struct qcow2_geometry *geo = &walk->geo;
    bool complete = true;
    walk_read(walk, e->host_off, deep->packed, e->length, &complete);
    if (!complete)
        return 0;
    int result = codec_decode(deep->codec, deep->packed, e->length, deep->plain, geo->cluster_size);
    if (result == 0 || result == -ENOMEM)
        return result;
    struct subject subject = {
        .kind = OBJECT_COMPRESSED,
        .tree = table->tree,
        .has_host = true,
        .host_off = e->host_off,
        .length = e->length,
        .has_table = true,
        .table_off = table->host_off,
        .index = idx,
        .guest_off = ((uint64_t)table->l1_idx << geo->l2_bits | idx) << geo->cluster_bits,
        .guest_len = geo->cluster_size,
        .weight = table->refs,
        .compressed.result = result,
    };
    walk_show(walk, &subject);
    return 0;
}

static int decode_table(struct walk *walk, struct deep *deep, const struct table *table)
{
    const struct qcow2_geometry *geo = &walk->geo;
    walk_read_again(walk, table->host_off, deep->table, geo->cluster_size);
    int ret = 0;
    for (uint32_t i = 0; ret == 0 && i < geo->l2_entries; i++) {
        struct qcow2_l2_entry e;
        qcow2_l2_decode(geo, deep->table + (size_t)i * geo->l2_entry_size, &e);
        if (e.kind != QCOW2_L2_COMPRESSED || e.bitmap ||
            check_outside(&walk->view, e.host_off, e.length))
            continue;
        ret = decode_entry(walk, deep, table, i, &e);
        if (ret == 0)
            ret = walk_pause(walk, 0);
    }
    return ret;
}

int walk_deep(struct walk *walk)
{
    struct deep deep = {0};
    if (!walk->options->deep || walk->geo.data_file || walk->header.compression > QCOW2_ZSTD)
        return 0;
    /* The descriptor's count of sectors may make a range of almost two clusters and a sector. */
    size_t size = walk->geo.cluster_size, most = size * 2 + QCOW2_SECTOR_BYTES;
    deep.packed = malloc(most);
    deep.plain = malloc(size);
    deep.table = malloc(size);
    int ret = deep.packed && deep.plain && deep.table ? 0 : -ENOMEM;
    if (ret == 0)
        ret = codec_open((enum qcow2_compression)walk->header.compression, &deep.codec);
    for (size_t i = 0; ret == 0 && i < walk->tables.count; i++) {
        const struct table *table = &walk->tables.items[i];
        if (table->has_compressed && !table->skip)
            ret = decode_table(walk, &deep, table);
    }
    codec_close(deep.codec);
    free(deep.packed);
    free(deep.plain);
    free(deep.table);
    return ret;
}
