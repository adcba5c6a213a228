/* SPDX-License-Identifier: MIT
 *
 * Header fields.  The right value of some follows from the rest of the image; for others the few
 * possible ones are tried (repair_try.c). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

enum { MAX_TRIES = 64 };

/* Every value of a small field. */
static int try_values(
    struct repair *repair, enum check_id why, uint64_t off, uint32_t first, uint32_t last)
{
    struct patch patches[MAX_TRIES];
    size_t count = 0;
    for (uint32_t value = first; value <= last && count < MAX_TRIES; value++)
        patches[count++] = patch_be32(off, value);
    return repair_take_best(repair, why, patches, count);
}

static int mend_crypt_method(struct repair *repair, enum check_id why)
{
    bool luks = repair->walk->has_crypto;
    uint32_t method = luks ? QCOW2_CRYPT_LUKS : QCOW2_CRYPT_NONE;
    if (!luks && !repair->lossy)
        return 0;
    return plan_be32(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_CRYPT_METHOD, method);
}

/* The name cannot be read where the header says.  Giving it up is a loss: what was never written
 * to the image came from there.  No bytes at a place where none can be are no name. */
static int drop_backing_name(struct repair *repair, enum check_id why)
{
    uint8_t zeros[12] = {0};
    bool named = repair->walk->header.backing_len > 0;
    if (named && !repair->lossy)
        return 0;
    int ret = named ? plan_remark(&repair->plan, "lost: the name of the backing file") : 0;
    for (unsigned at = 0; ret == 0 && at < sizeof(zeros); at += 4)
        ret = plan_bytes(&repair->plan, PHASE_SWITCH, why, QCOW2_HDR_BACKING_OFF + at, zeros, 4);
    return ret;
}

/* Cuts the list of extensions off where it cannot be read any more. */
static int end_extensions(struct repair *repair, const struct finding *f)
{
    if (!repair->lossy)
        return 0;
    int ret = plan_remark(&repair->plan, "lost: the header extensions from 0x%llx on",
        (unsigned long long)f->host_off);
    return ret < 0 ? ret : plan_be64(&repair->plan, PHASE_SWITCH, f->check, f->host_off, 0);
}

/* The image's own table of names has one for an incompatible bit that is set: it is a feature. */
static bool names_unknown_bit(const struct walk *walk)
{
    enum { ENTRY_BYTES = 48, INCOMPATIBLE = 0 };
    const struct qcow2_ext *names = &walk->feature_names;
    uint64_t unknown = walk->header.incompatible & ~QCOW2_INCOMPAT_KNOWN;
    for (uint64_t at = 0; names->data && at + ENTRY_BYTES <= names->length; at += ENTRY_BYTES) {
        const uint8_t *entry = names->data + at;
        if (entry[0] == INCOMPATIBLE && entry[1] < 64 && (unknown >> entry[1] & 1))
            return true;
    }
    return false;
}

/* Such an image has not been walked: nobody has looked at its extensions yet. */
static bool names_data_file(const struct walk *walk)
{
    struct qcow2_ext ext;
    size_t pos = walk->header.header_length;
    while (qcow2_ext_next(walk->head, walk->head_len, &pos, &ext) == 1) {
        if (ext.type == QCOW2_EXT_DATA_FILE)
            return true;
    }
    return false;
}

/* These may be the known bits of the image, by what else its header says: without guest data in the
 * file there is little that could be wrong with it, but who has a data file names it. */
static bool fits_header(const struct walk *walk, uint64_t bits)
{
    uint64_t now = walk->header.incompatible;
    bool typed = walk->header.compression != QCOW2_ZLIB;
    return (!(bits & QCOW2_INCOMPAT_DATA_FILE) || (now & QCOW2_INCOMPAT_DATA_FILE) ||
               names_data_file(walk)) &&
           !(bits & QCOW2_INCOMPAT_COMPRESSION) == !typed;
}

/* Every combination of the bits that are known.  Unknown ones may be a feature of another
 * program's: if it says so hands off, if not the image must make sense without them. */
static int mend_incompatible(struct repair *repair, enum check_id why)
{
    struct patch patches[QCOW2_INCOMPAT_KNOWN + 1];
    size_t count = 0;
    if (!repair->lossy || names_unknown_bit(repair->walk))
        return 0;
    uint64_t features = repair->walk->header.incompatible;
    /* One bit is damage to that bit alone; with others data may seem to make more sense. */
    bool alone = __builtin_popcountll(features & ~QCOW2_INCOMPAT_KNOWN) == 1;
    for (uint64_t bits = 0; bits <= QCOW2_INCOMPAT_KNOWN; bits++) {
        if (alone ? bits == (features & QCOW2_INCOMPAT_KNOWN) : fits_header(repair->walk, bits))
            patches[count++] = patch_be64(QCOW2_HDR_INCOMPATIBLE, bits);
    }
    int ret = repair_take_best(repair, why, patches, count);
    return ret < 0 || repair->plan.count == 0
               ? ret
               : plan_remark(&repair->plan,
                     "choice: the unknown feature bits 0x%llx are cleared: nothing names them",
                     (unsigned long long)(repair->walk->header.incompatible &
                                          ~(uint64_t)QCOW2_INCOMPAT_KNOWN));
}

/* Extensions that follow each other from there to the end of the list. */
static size_t count_exts(const struct walk *walk, size_t pos)
{
    struct qcow2_ext ext;
    size_t count = 0;
    int ret;
    while ((ret = qcow2_ext_next(walk->head, walk->head_len, &pos, &ext)) == 1)
        count++;
    return ret < 0 ? 0 : count;
}

/* With the compression type or without: right is what finds the extensions; where the type is
 * spoken of it is there. */
static int mend_length(struct repair *repair, enum check_id why)
{
    const struct walk *walk = repair->walk;
    struct patch lengths[] = {patch_be32(QCOW2_HDR_LENGTH, QCOW2_V3_HEADER_BYTES),
        patch_be32(QCOW2_HDR_LENGTH, QCOW2_V3_HEADER_BYTES + 8)};
    size_t without = count_exts(walk, QCOW2_V3_HEADER_BYTES);
    size_t with = count_exts(walk, QCOW2_V3_HEADER_BYTES + 8);
    if (walk->header.incompatible & QCOW2_INCOMPAT_COMPRESSION)
        return repair_take_best(repair, why, &lengths[1], 1);
    return with == without ? repair_take_best(repair, why, lengths, 2)
                           : repair_take_best(repair, why, &lengths[with > without], 1);
}

uint64_t repair_ext_off(const struct walk *walk, uint32_t type, uint32_t length)
{
    struct qcow2_ext ext;
    size_t pos = walk->header.header_length;
    while (qcow2_ext_next(walk->head, walk->head_len, &pos, &ext) == 1) {
        if (ext.type == type && ext.length == length)
            return ext.head_off + 8;
    }
    return 0;
}

/* Extensions of fixed length: that is what the field must say.  Names of features are as many as
 * programs write; of others a bit may be wrong. */
static int mend_ext(struct repair *repair, const struct finding *f)
{
    enum { BITS = 32, MOST_NAMES = 16, NAME_BYTES = 48 };
    struct patch patches[BITS];
    size_t count = 0;
    uint64_t head;
    int ret = plan_peek(&repair->plan, f->host_off, &head);
    uint64_t type = head >> 32, off = f->host_off + 4;
    if (ret == 0 && type == QCOW2_EXT_CRYPTO)
        return plan_be32(&repair->plan, PHASE_SWITCH, f->check, off, QCOW2_CRYPTO_EXT_BYTES);
    if (ret == 0 && type == QCOW2_EXT_BITMAPS)
        return plan_be32(&repair->plan, PHASE_SWITCH, f->check, off, QCOW2_BITMAPS_EXT_BYTES);
    for (unsigned bit = 0; type != QCOW2_EXT_FEATURE_NAMES && bit < BITS; bit++)
        patches[count++] = patch_be32(off, (uint32_t)head ^ UINT32_C(1) << bit);
    for (uint32_t names = 1; type == QCOW2_EXT_FEATURE_NAMES && names <= MOST_NAMES; names++)
        patches[count++] = patch_be32(off, names * NAME_BYTES);
    if (ret == 0 && repair->lossy)
        ret = repair_take_better(repair, f->check, patches, count, repair_wrong(&repair->report));
    return ret < 0 || repair->plan.count > 0 || f->check != CHECK_ext_truncated
               ? ret
               : end_extensions(repair, f);
}

static int mend_field(struct repair *repair, const struct finding *f)
{
    bool lossy = repair->lossy;
    switch (f->check) {
    case CHECK_header_magic: {
        struct patch magic = patch_be32(0, QCOW2_MAGIC);
        return lossy ? repair_take_best(repair, f->check, &magic, 1) : 0;
    }
    case CHECK_header_version:
        return lossy ? try_values(repair, f->check, QCOW2_HDR_VERSION, 2, 3) : 0;
    case CHECK_header_incompatible_unknown:
        return mend_incompatible(repair, f->check);
    case CHECK_header_cluster_bits:
        return repair_cluster_bits(repair, f->check);
    case CHECK_header_refcount_order:
        return try_values(repair, f->check, QCOW2_HDR_REFCOUNT_ORDER, 0, QCOW2_MAX_REFCOUNT_ORDER);
    case CHECK_header_length:
        return mend_length(repair, f->check);
    case CHECK_header_compression_type:
    case CHECK_header_compression_bit:
        return repair_compression(repair, f->check);
    case CHECK_header_crypt_method:
    case CHECK_header_crypto_missing:
    case CHECK_ext_crypto_unexpected:
        return mend_crypt_method(repair, f->check);
    case CHECK_header_backing_name:
        return drop_backing_name(repair, f->check);
    case CHECK_ext_bitmaps_reserved:
        return plan_be32(&repair->plan, PHASE_SWITCH, f->check, f->host_off + 8 + 4, 0);
    case CHECK_ext_truncated:
    case CHECK_ext_length:
        return mend_ext(repair, f);
    default:
        return 0;
    }
}

/* How the data is encrypted says the LUKS header, too: first that must have been found. */
static bool is_about_encryption(enum check_id check)
{
    return check == CHECK_header_crypt_method || check == CHECK_header_crypto_missing ||
           check == CHECK_ext_crypto_unexpected;
}

/* One field a round: each changes what the others mean. */
int repair_header_fields(struct repair *repair)
{
    int ret = 0;
    for (int last = 0; last < 2; last++) {
        for (size_t i = 0; ret == 0 && repair->plan.count == 0 && i < repair->findings.count; i++) {
            const struct finding *f = &repair->findings.items[i];
            enum object_kind kind = check_rows[f->check].kind;
            if ((kind == OBJECT_HEADER || kind == OBJECT_EXTENSION) &&
                is_about_encryption(f->check) == last)
                ret = mend_field(repair, f);
        }
    }
    return ret == 0 && repair->plan.count == 0 ? repair_geometry(repair) : ret;
}
