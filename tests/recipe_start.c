/* SPDX-License-Identifier: MIT
 *
 * The first statement of a recipe: image or raw, and the feature name table. */
#include <errno.h>
#include <string.h>

#include "recipe_impl.h"

enum { MAX_LUKS_BYTES = 64 << 20 };

static int log2_of(struct recipe *r, const char *what, uint64_t value, unsigned *bits)
{
    if (value == 0 || (value & (value - 1)))
        return recipe_fail(r, "%s is a power of two", what);
    *bits = (unsigned)__builtin_ctzll(value);
    return 0;
}

int recipe_add_feature(struct recipe *r, uint8_t type, uint8_t bit, const char *name)
{
    size_t length = strlen(name);
    if (length > QCOW2_FEATURE_NAME_BYTES - 2)
        return recipe_fail(r, "a feature's name has up to 46 bytes");
    uint8_t *table = recipe_alloc(r, r->features_len + QCOW2_FEATURE_NAME_BYTES, 1);
    if (r->features_len)
        memcpy(table, r->features, r->features_len);
    uint8_t *entry = table + r->features_len;
    entry[0] = type;
    entry[1] = bit;
    memcpy(entry + 2, name, length);
    r->features = table;
    r->features_len += QCOW2_FEATURE_NAME_BYTES;
    return 0;
}

static void add_known_features(struct recipe *r)
{
    static const struct {
        uint8_t type, bit;
        const char *name;
    } known[] = {{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"}, {2, 1, "raw external data"}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        recipe_add_feature(r, known[i].type, known[i].bit, known[i].name);
}

/* What the image statement can say beside the header's numbers. */
struct image_args {
    uint64_t version, cluster, refcount_bits, size, header_length, luks, l1_entries, reftable;
    const char *compression;
    bool extended_l2, lazy, aes, raw_data;
};

static int read_image_args(struct cursor *c, struct image_args *a)
{
    struct recipe *r = c->r;
    const struct arg args[] = {
        {"version", ARG_NUMBER, &a->version},
        {"cluster", ARG_NUMBER, &a->cluster},
        {"refcount_bits", ARG_NUMBER, &a->refcount_bits},
        {"size", ARG_NUMBER, &a->size},
        {"header_length", ARG_NUMBER, &a->header_length},
        {"compression", ARG_TEXT, &a->compression},
        {"extended_l2", ARG_FLAG, &a->extended_l2},
        {"lazy_refcounts", ARG_FLAG, &a->lazy},
        {"l1_size", ARG_NUMBER, &a->l1_entries},
        {"reftable_clusters", ARG_NUMBER, &a->reftable},
        {"backing", ARG_TEXT, &r->backing_name},
        {"backing_format", ARG_TEXT, &r->backing_format},
        {"data_file", ARG_TEXT, &r->data_name},
        {"data_file_raw", ARG_FLAG, &a->raw_data},
        {"luks", ARG_NUMBER, &a->luks},
        {"aes", ARG_FLAG, &a->aes},
        {"feature_names", ARG_FLAG, &r->feature_names},
    };
    return read_args(c, args, sizeof(args) / sizeof(args[0]));
}

static int fill_header(struct recipe *r, const struct image_args *a)
{
    bool zstd = strcmp(a->compression, "zstd") == 0;
    if (!zstd && strcmp(a->compression, "zlib") != 0)
        return recipe_fail(r, "compression is zlib or zstd");
    struct qcow2_header h = {.magic = QCOW2_MAGIC,
        .version = (uint32_t)a->version,
        .size_bytes = a->size,
        .compression = zstd ? QCOW2_ZSTD : QCOW2_ZLIB,
        .crypt_method = a->luks  ? QCOW2_CRYPT_LUKS
                        : a->aes ? QCOW2_CRYPT_AES
                                 : QCOW2_CRYPT_NONE,
        .compatible = a->lazy ? QCOW2_COMPAT_LAZY : 0,
        .autoclear = a->raw_data ? QCOW2_AUTOCLEAR_RAW_DATA : 0,
        .incompatible = (zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
                        (a->extended_l2 ? QCOW2_INCOMPAT_EXTL2 : 0) |
                        (r->data_name ? QCOW2_INCOMPAT_DATA_FILE : 0),
        .header_length = (uint32_t)(a->version < 3 ? QCOW2_V2_HEADER_BYTES : a->header_length)};
    unsigned bits = 0, order = 0;
    int ret = log2_of(r, "cluster", a->cluster, &bits);
    if (ret == 0)
        ret = log2_of(r, "refcount_bits", a->refcount_bits, &order);
    if (ret < 0)
        return ret;
    h.cluster_bits = bits;
    h.refcount_order = order;
    if (a->version != 2 && a->version != 3)
        return recipe_fail(r, "version is 2 or 3");
    if (a->version == 2 && (h.incompatible || h.compatible || h.autoclear || order != 4))
        return recipe_fail(r, "version 2 has no features and 16-bit refcounts");
    if (zstd && h.header_length <= QCOW2_HDR_COMPRESSION)
        return recipe_fail(r, "zstd needs header_length above 104");
    if (h.header_length % 8 || h.header_length + 8 > a->cluster)
        return recipe_fail(r, "header_length is a multiple of 8 and fits the first cluster");
    r->header = h;
    if (qcow2_geometry_init(&h, &r->geo) < 0)
        return recipe_fail(r, "no image can be like that");
    return 0;
}

/* Places what every image has: header, refcount table, first refcount block, L1 table. */
static int place_first(struct recipe *r, const struct image_args *a)
{
    uint64_t entries = l1_entries_for(&r->geo, a->size);
    if (entries < a->l1_entries)
        entries = a->l1_entries;
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return recipe_fail(r, "the disk is too large for its clusters");
    build_alloc(r, 1);
    r->header.reftable_clusters = (uint32_t)a->reftable;
    r->header.reftable_off = build_alloc(r, a->reftable);
    build_alloc(r, 1);
    build_l1_resize(r, &r->active, (uint32_t)entries);
    if (!a->luks)
        return 0;
    if (a->luks > MAX_LUKS_BYTES)
        return recipe_fail(r, "the encryption header is too large");
    r->crypto_len = a->luks;
    r->crypto_off = build_alloc(r, clusters_for(&r->geo, a->luks));
    struct recipe_pattern pattern = {.seeded = true, .value = 0x4c554b53};
    uint8_t *buf = recipe_alloc(r, a->luks, 1);
    recipe_pattern_fill(&pattern, r->crypto_off, buf, a->luks);
    memcpy(buf, "LUKS\xba\xbe\0\1", a->luks < 8 ? a->luks : 8);
    return io_write(r->io, r->crypto_off, buf, a->luks);
}

int recipe_start(struct cursor *c)
{
    struct recipe *r = c->r;
    struct image_args a = {.version = 3,
        .cluster = 64 << 10,
        .refcount_bits = 16,
        .size = 1 << 20,
        .header_length = 112,
        .reftable = 1,
        .compression = "zlib"};
    if (r->started)
        return recipe_fail(r, "one image is enough");
    int ret = read_image_args(c, &a);
    if (ret == 0)
        ret = fill_header(r, &a);
    if (ret == 0)
        ret = io_mem_open(0, &r->io);
    if (ret == 0 && r->data_name)
        ret = io_mem_open(0, &r->data);
    if (ret == 0)
        ret = place_first(r, &a);
    if (ret == 0 && r->feature_names)
        add_known_features(r);
    r->started = ret == 0;
    return ret;
}

int recipe_start_raw(struct cursor *c)
{
    struct recipe *r = c->r;
    const struct arg args[] = {{"size", ARG_NUMBER, &r->header.size_bytes}};
    if (r->started)
        return recipe_fail(r, "one image is enough");
    int ret = read_args(c, args, 1);
    if (ret == 0)
        ret = io_mem_open(r->header.size_bytes, &r->io);
    r->raw_image = r->started = ret == 0;
    return ret;
}
