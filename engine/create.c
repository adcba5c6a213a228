/* SPDX-License-Identifier: MIT
 *
 * New images. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

struct image_options image_options_default(uint64_t size_bytes)
{
    return (struct image_options){
        .size_bytes = size_bytes,
        .cluster_size = 65536,
        .refcount_bits = 16,
        .version = 3,
    };
}

static int refuse(struct image_error *why, int err, const char *text)
{
    if (why)
        snprintf(why->text, sizeof(why->text), "%s", text);
    return err;
}

static bool power_of_two(uint64_t v, uint64_t min, uint64_t max)
{
    return v >= min && v <= max && (v & (v - 1)) == 0;
}

static int check_options(const struct image_options *o, struct image_error *why)
{
    if (!power_of_two(o->cluster_size, 512, 2 << 20))
        return refuse(why, -EINVAL, "cluster_size must be a power of two from 512 to 2M");
    if (!power_of_two(o->refcount_bits, 1, 64))
        return refuse(why, -EINVAL, "refcount_bits must be a power of two from 1 to 64");
    if (o->size_bytes % QCOW2_SECTOR_BYTES)
        return refuse(why, -EINVAL, "the size of a disk is a multiple of 512 bytes");
    if (o->version != 2 && o->version != 3)
        return refuse(why, -EINVAL, "compat must be 0.10 or 1.1");
    if (o->version == 2 && (o->refcount_bits != 16 || o->extended_l2 || o->lazy_refcounts ||
                               o->compression != QCOW2_ZLIB))
        return refuse(why, -EINVAL, "compat 0.10 has refcounts of 16 bits and no further features");
    if (o->extended_l2 && o->cluster_size < 1u << QCOW2_MIN_CLUSTER_BITS_EXTL2)
        return refuse(why, -EINVAL, "extended_l2 needs clusters of 16k or more");
    return 0;
}

/* Where things go: header, refcount table, refcount blocks, L1, each in clusters. */
struct plan {
    struct qcow2_geometry geo;
    uint64_t table, blocks, l1, total;
};

static struct plan make_plan(const struct qcow2_header *h, struct qcow2_geometry geo)
{
    struct plan p = {.geo = geo, .table = 1, .blocks = 1};
    p.l1 = clusters_for(&geo, h->l1_size * UINT64_C(8));
    for (;;) {
        p.total = 1 + p.table + p.blocks + p.l1;
        uint64_t blocks = div_up(p.total, geo.refblock_entries);
        uint64_t table = clusters_for(&geo, blocks * 8);
        if (blocks <= p.blocks && table <= p.table)
            return p;
        p.blocks = blocks > p.blocks ? blocks : p.blocks;
        p.table = table > p.table ? table : p.table;
    }
}

static struct qcow2_header make_header(const struct image_options *o)
{
    struct qcow2_header h = {
        .magic = QCOW2_MAGIC,
        .version = o->version,
        .cluster_bits = (unsigned)__builtin_ctz(o->cluster_size),
        .size_bytes = o->size_bytes,
        .refcount_order = (unsigned)__builtin_ctz(o->refcount_bits),
        .header_length = o->version >= 3 ? QCOW2_HDR_COMPRESSION + 8 : QCOW2_V2_HEADER_BYTES,
        .compatible = o->lazy_refcounts ? QCOW2_COMPAT_LAZY : 0,
        .compression = (uint8_t)o->compression,
    };
    h.incompatible |= o->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0;
    h.incompatible |= o->compression != QCOW2_ZLIB ? QCOW2_INCOMPAT_COMPRESSION : 0;
    return h;
}

/* 1. everything but the header's cluster -- barrier: the header never promises what is not there
 * 2. the header's cluster -- barrier */
static int write_image(struct io *io, const struct plan *p, const struct qcow2_header *h)
{
    const struct qcow2_geometry *geo = &p->geo;
    uint8_t *bytes = calloc(1, (size_t)(p->total << geo->cluster_bits));
    if (!bytes)
        return -ENOMEM;
    uint8_t *table = bytes + geo->cluster_size;
    uint8_t *blocks = table + (p->table << geo->cluster_bits);
    for (uint64_t i = 0; i < p->blocks; i++)
        store_be64(table + i * 8, (1 + p->table + i) << geo->cluster_bits);
    for (uint64_t i = 0; i < p->total; i++) {
        uint8_t *block = blocks + ((i >> geo->refblock_bits) << geo->cluster_bits);
        qcow2_refcount_set(block, geo->refcount_order, i & (geo->refblock_entries - 1), 1);
    }
    qcow2_header_encode(h, bytes);
    int ret = io_resize(io, 0);
    if (ret == 0)
        ret = io_write(io, geo->cluster_size, bytes + geo->cluster_size,
            (size_t)((p->total - 1) << geo->cluster_bits));
    if (ret == 0)
        ret = io_flush(io);
    if (ret == 0)
        ret = io_write(io, 0, bytes, geo->cluster_size);
    if (ret == 0)
        ret = io_flush(io);
    free(bytes);
    return ret;
}

int image_create(struct io *io, const struct image_options *options, struct image_error *why)
{
    struct qcow2_geometry geo;
    int ret = check_options(options, why);
    if (ret < 0)
        return ret;
    struct qcow2_header h = make_header(options);
    qcow2_geometry_init(&h, &geo); /* the options are in range */
    uint64_t l1_size = l1_entries_for(&geo, options->size_bytes);
    if (options->size_bytes > INT64_MAX - geo.l2_span || l1_size * 8 > QCOW2_MAX_L1_BYTES)
        return refuse(why, -EFBIG, "the disk is too large for this cluster size");
    h.l1_size = l1_size ? (uint32_t)l1_size : 1;
    struct plan p = make_plan(&h, geo);
    h.reftable_off = geo.cluster_size;
    h.reftable_clusters = (uint32_t)p.table;
    h.l1_off = (1 + p.table + p.blocks) << geo.cluster_bits;
    ret = write_image(io, &p, &h);
    return ret < 0 ? refuse(why, ret, strerror(-ret)) : 0;
}
