/* SPDX-License-Identifier: MIT
 *
 * First stage: header and header extensions.  Decides whether the image can be judged at all. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

static struct subject header_subject(const struct walk *walk)
{
    return (struct subject){
        .kind = OBJECT_HEADER,
        .tree = TREE_NONE,
        .has_host = true,
        .length = walk->header.header_length ? walk->header.header_length : QCOW2_V2_HEADER_BYTES,
        .header = {.bytes = walk->head,
            .length = walk->head_len,
            .has_bitmaps_ext = walk->has_bitmaps_ext,
            .has_crypto_ext = walk->has_crypto_ext,
            .feature_names = walk->feature_names},
    };
}

/* The extensions end at the backing file name if that is where it should be, else with the
 * cluster. */
static size_t ext_area_end(const struct walk *walk)
{
    const struct qcow2_header *header = &walk->header;
    size_t end = walk->head_len;
    if (header->backing_off > header->header_length && header->backing_off < end)
        end = (size_t)header->backing_off;
    return end;
}

static bool ext_seen_before(const struct walk *walk, size_t end, const struct qcow2_ext *ext)
{
    struct qcow2_ext other;
    size_t pos = walk->header.header_length;
    while (qcow2_ext_next(walk->head, end, &pos, &other) == 1 && other.head_off < ext->head_off) {
        if (other.type == ext->type)
            return true;
    }
    return false;
}

static void remember_ext(struct walk *walk, const struct qcow2_ext *ext)
{
    switch (ext->type) {
    case QCOW2_EXT_BITMAPS:
        walk->has_bitmaps_ext = true;
        if (ext->length == QCOW2_BITMAPS_EXT_BYTES) {
            qcow2_bitmaps_ext_decode(ext->data, &walk->bitmaps);
            /* Without the bit the data is not to be interpreted (spec: Bitmaps extension). */
            walk->has_bitmaps = walk->header.autoclear & QCOW2_AUTOCLEAR_BITMAPS;
        }
        break;
    case QCOW2_EXT_CRYPTO:
        walk->has_crypto_ext = true;
        walk->has_crypto = true;
        walk->crypto_off = load_be64(ext->data);
        walk->crypto_len = load_be64(ext->data + 8);
        break;
    case QCOW2_EXT_DATA_FILE:
        walk->data_file_name = *ext;
        break;
    case (uint32_t)QCOW2_EXT_BACKING_FORMAT:
        walk->backing_format = *ext;
        break;
    default:
        break;
    }
}

static void forget_ext(struct walk *walk, uint32_t type)
{
    if (type == QCOW2_EXT_BITMAPS)
        walk->has_bitmaps = false;
    else if (type == QCOW2_EXT_CRYPTO)
        walk->has_crypto = false;
}

/* An area of extensions has at most a cluster / 8 of them, and each is compared with those before
 * it: bounded, but quadratic in a crafted 2 MiB cluster full of empty ones. */
enum { MAX_EXTENSIONS = 1000 };

static void walk_extensions(struct walk *walk)
{
    size_t end = ext_area_end(walk), pos = walk->header.header_length;
    struct qcow2_ext ext;
    int ret = 1;
    for (unsigned n = 0; n < MAX_EXTENSIONS && ret == 1; n++) {
        ret = qcow2_ext_next(walk->head, end, &pos, &ext);
        if (ret == 0 && pos < end && end - pos < 8) { /* QEMU wants an end mark or nothing */
            ext = (struct qcow2_ext){.head_off = (uint32_t)pos};
            ret = -ERANGE;
        }
        if (ret == 0)
            return;
        struct subject subject = {
            .kind = OBJECT_EXTENSION,
            .tree = TREE_NONE,
            .has_host = true,
            .host_off = ext.head_off,
            .length = 8 + (uint64_t)ext.length,
            .ext = {.ext = ext,
                .truncated = ret < 0,
                .repeated = ret == 1 && ext_seen_before(walk, end, &ext)},
        };
        if (!subject.ext.repeated && ret == 1 &&
            (ext.type != QCOW2_EXT_CRYPTO || ext.length == QCOW2_CRYPTO_EXT_BYTES))
            remember_ext(walk, &ext);
        if (walk_show(walk, &subject) == AFTER_SKIP && !subject.ext.repeated)
            forget_ext(walk, ext.type);
    }
    if (ret == 1)
        report_problem(walk->report, "more than %d header extensions: the rest was not looked at",
            MAX_EXTENSIONS);
}

/* The feature name table is wanted early: it names unknown feature bits. */
static void find_feature_names(struct walk *walk)
{
    size_t end = walk->head_len, pos = walk->header.header_length;
    struct qcow2_ext ext;
    for (unsigned n = 0; n < MAX_EXTENSIONS && qcow2_ext_next(walk->head, end, &pos, &ext) == 1;
         n++) {
        if (ext.type == QCOW2_EXT_FEATURE_NAMES) {
            walk->feature_names = ext;
            return;
        }
    }
}

/* Reads the first cluster, or what a file has of it. */
static int read_head(struct walk *walk)
{
    size_t length = (size_t)1 << QCOW2_MAX_CLUSTER_BITS;
    if (walk->file_size < length)
        length = (size_t)walk->file_size;
    uint8_t first[QCOW2_HDR_COMPRESSION + 8] = {0};
    size_t first_len = length < sizeof(first) ? length : sizeof(first);
    bool complete = true;
    walk_read(walk, 0, first, first_len, &complete);
    struct qcow2_header header = {0};
    if (qcow2_header_decode(first, first_len, &header) == 0 && header.magic == QCOW2_MAGIC &&
        header.cluster_bits >= QCOW2_MIN_CLUSTER_BITS &&
        header.cluster_bits < QCOW2_MAX_CLUSTER_BITS && length > UINT32_C(1) << header.cluster_bits)
        length = (size_t)1 << header.cluster_bits;
    else if (header.magic != QCOW2_MAGIC)
        length = first_len;
    walk->head = malloc(length + 1); /* never of size 0 */
    if (!walk->head)
        return -ENOMEM;
    walk->head_len = length;
    if (!complete)
        return -EIO;
    walk_read(walk, 0, walk->head, length, &complete);
    memcpy(walk->head, first, first_len); /* known, whatever the second reading came to */
    return 0;
}

static void show_header(struct walk *walk, bool *go_on)
{
    struct subject subject = header_subject(walk);
    enum after after = walk_show(walk, &subject);
    walk->report->unsupported = after == AFTER_UNSUPPORTED;
    if (after == AFTER_SKIP || after == AFTER_STOP) /* a whole table stays unread */
        walk->report->incomplete = true;
    *go_on = after < AFTER_STOP;
}

/* Judges what must hold before anything else can be decoded: rows that stop come first in the
 * table.  Needs no geometry, and there is none. */
static bool can_be_judged(struct walk *walk)
{
    struct qcow2_header *header = &walk->header;
    int ret = qcow2_header_decode(walk->head, walk->head_len, header);
    if (ret < 0 && walk->head_len >= 4)
        header->magic = load_be32(walk->head);
    if (ret < 0) /* a file that ends before the version is cut short, whatever version it was */
        header->version = walk->head_len >= 8 ? load_be32(walk->head + QCOW2_HDR_VERSION) : 3;
    if (ret == 0)
        find_feature_names(walk);
    bool fine = ret == 0 && header->magic == QCOW2_MAGIC &&
                (header->version == 2 || header->version == 3) &&
                !(header->incompatible & ~QCOW2_INCOMPAT_KNOWN) &&
                qcow2_geometry_init(header, &walk->geo) == 0;
    walk->view.header = header;
    return fine;
}

int walk_header(struct walk *walk, bool *go_on)
{
    *go_on = false;
    int ret = io_size(walk->io, &walk->file_size);
    if (ret == 0)
        ret = read_head(walk);
    if (ret < 0)
        return ret;
    walk->view.file_size = walk->file_size;
    if (!can_be_judged(walk)) {
        show_header(walk, go_on);
        *go_on = false;
        return 0;
    }
    walk->view.geo = &walk->geo;
    walk->view.has_backing = walk->header.backing_off != 0 && walk->header.backing_len != 0;
    walk->report->image_known = true;
    /* QEMU sees a file as whole sectors. */
    uint64_t sectors = div_up(walk->file_size, QCOW2_SECTOR_BYTES);
    walk->view.file_size = sectors * QCOW2_SECTOR_BYTES;
    walk->cluster_end = clusters_for(&walk->geo, walk->view.file_size);
    walk->report->total_clusters =
        clusters_for(&walk->geo, walk->header.size_bytes / QCOW2_SECTOR_BYTES * QCOW2_SECTOR_BYTES);
    walk->buf = malloc(WALK_BUF_BYTES);
    if (!walk->buf)
        return -ENOMEM;
    walk_extensions(walk);
    show_header(walk, go_on);
    ret = walk_open_crew(walk);
    return ret < 0 ? ret : census_open(walk->cluster_end, &walk->census);
}
