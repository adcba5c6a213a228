/* SPDX-License-Identifier: MIT
 *
 * The qcow2 format: offsets, masks, decoding, encoding, geometry.  Pure: no I/O, no allocation, no
 * judgement.  "spec" names a section of the format specification (docs/interop/qcow2.txt of QEMU).
 *
 * Decoders take any bytes and never fail on a value, only on bytes that are not there; what a
 * value means and whether it is allowed is for the caller to say. */
#ifndef ENGINE_QCOW2_H
#define ENGINE_QCOW2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- limits ---- */

#define QCOW2_MAGIC UINT32_C(0x514649fb) /* "QFI\xfb" */

enum {
    QCOW2_SECTOR_BYTES = 512,
    QCOW2_MIN_CLUSTER_BITS = 9,
    QCOW2_MAX_CLUSTER_BITS = 21, /* what QEMU opens */
    QCOW2_MIN_CLUSTER_BITS_EXTL2 = 14,
    QCOW2_MAX_REFCOUNT_ORDER = 6,
    QCOW2_V2_HEADER_BYTES = 72,
    QCOW2_V3_HEADER_BYTES = 104,
    QCOW2_MAX_BACKING_NAME = 1023,
    QCOW2_MAX_L1_BYTES = 32 << 20,      /* QEMU */
    QCOW2_MAX_REFTABLE_BYTES = 8 << 20, /* QEMU */
    QCOW2_MAX_SNAPSHOTS = 65536,
    QCOW2_MAX_SNAPSHOT_TABLE_BYTES = 64 << 20,
    QCOW2_MAX_SNAPSHOT_EXTRA = 1024,
    QCOW2_SNAPSHOT_EXTRA_V3 = 16, /* v3 demands the first two fields */
    QCOW2_MAX_BITMAPS = 65535,
    QCOW2_MAX_BITMAP_NAME = 1023,
    QCOW2_MAX_BITMAP_TABLE_ENTRIES = 0x8000000,
    QCOW2_MIN_BITMAP_GRANULARITY_BITS = 9,
    QCOW2_MAX_BITMAP_GRANULARITY_BITS = 31,
    QCOW2_SUBCLUSTERS = 32,
};

/* ---- bytes ---- */

static inline uint16_t load_be16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static inline uint32_t load_be32(const uint8_t *p)
{
    uint32_t v;
    __builtin_memcpy(&v, p, sizeof(v));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

static inline uint64_t load_be64(const uint8_t *p)
{
    uint64_t v;
    __builtin_memcpy(&v, p, sizeof(v));
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline void store_be16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
}

static inline void store_be32(uint8_t *p, uint32_t v)
{
    store_be16(p, (uint16_t)(v >> 16));
    store_be16(p + 2, (uint16_t)v);
}

static inline void store_be64(uint8_t *p, uint64_t v)
{
    store_be32(p, (uint32_t)(v >> 32));
    store_be32(p + 4, (uint32_t)v);
}

/* True and *end = off + length if that fits a file offset; for arithmetic on values from disk. */
static inline bool range_end(uint64_t off, uint64_t length, uint64_t *end)
{
    return !__builtin_add_overflow(off, length, end) && *end <= INT64_MAX;
}

static inline bool ranges_overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
    return a_len && b_len && (a < b ? b - a < a_len : a - b < b_len);
}

/* a + b and a * b; what does not fit is UINT64_MAX. */
static inline uint64_t capped_sum(uint64_t a, uint64_t b)
{
    return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static inline uint64_t capped_product(uint64_t a, uint64_t b)
{
    return b && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

/* ceil(a / b) without overflow; b > 0. */
static inline uint64_t div_up(uint64_t a, uint64_t b)
{
    return a / b + (a % b != 0);
}

/* ---- header (spec: Header) ---- */

enum qcow2_header_off {
    QCOW2_HDR_VERSION = 4,
    QCOW2_HDR_BACKING_OFF = 8,
    QCOW2_HDR_BACKING_LEN = 16,
    QCOW2_HDR_CLUSTER_BITS = 20,
    QCOW2_HDR_SIZE = 24,
    QCOW2_HDR_CRYPT_METHOD = 32,
    QCOW2_HDR_L1_SIZE = 36,
    QCOW2_HDR_L1_OFF = 40,
    QCOW2_HDR_REFTABLE_OFF = 48,
    QCOW2_HDR_REFTABLE_CLUSTERS = 56,
    QCOW2_HDR_SNAPSHOT_COUNT = 60,
    QCOW2_HDR_SNAPSHOTS_OFF = 64,
    QCOW2_HDR_INCOMPATIBLE = 72,
    QCOW2_HDR_COMPATIBLE = 80,
    QCOW2_HDR_AUTOCLEAR = 88,
    QCOW2_HDR_REFCOUNT_ORDER = 96,
    QCOW2_HDR_LENGTH = 100,
    QCOW2_HDR_COMPRESSION = 104,
};

#define QCOW2_INCOMPAT_DIRTY       (UINT64_C(1) << 0)
#define QCOW2_INCOMPAT_CORRUPT     (UINT64_C(1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (UINT64_C(1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C(1) << 3)
#define QCOW2_INCOMPAT_EXTL2       (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN       UINT64_C(0x1f)
#define QCOW2_COMPAT_LAZY          (UINT64_C(1) << 0)
#define QCOW2_COMPAT_KNOWN         UINT64_C(0x1)
#define QCOW2_AUTOCLEAR_BITMAPS    (UINT64_C(1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA   (UINT64_C(1) << 1)
#define QCOW2_AUTOCLEAR_KNOWN      UINT64_C(0x3)

enum qcow2_crypt { QCOW2_CRYPT_NONE, QCOW2_CRYPT_AES, QCOW2_CRYPT_LUKS };
enum qcow2_compression { QCOW2_ZLIB, QCOW2_ZSTD };

/* The header's fields as they stand; for version 2 the later ones have the values the
 * specification assumes (no features, order 4, length 72). */
struct qcow2_header {
    uint32_t magic, version;
    uint64_t backing_off;
    uint32_t backing_len, cluster_bits;
    uint64_t size_bytes; /* of the virtual disk */
    uint32_t crypt_method, l1_size;
    uint64_t l1_off, reftable_off;
    uint32_t reftable_clusters, snapshot_count;
    uint64_t snapshots_off;
    uint64_t incompatible, compatible, autoclear;
    uint32_t refcount_order, header_length;
    uint8_t compression; /* enum qcow2_compression; 0 where the field is absent */
};

/* Decodes `length` bytes from the start of an image.  -ENODATA if they end before the fields of
 * their version do; of the magic and the values nothing is demanded. */
int qcow2_header_decode(const uint8_t *buf, size_t length, struct qcow2_header *header);

/* Writes the fields to buf, which holds max(header_length, 105) bytes; bytes of unknown later
 * fields are left alone. */
void qcow2_header_encode(const struct qcow2_header *header, uint8_t *buf);

/* ---- header extensions (spec: Header extensions) ---- */

enum qcow2_ext_type {
    QCOW2_EXT_END = 0,
    QCOW2_EXT_BACKING_FORMAT = (int)0xe2792aca,
    QCOW2_EXT_FEATURE_NAMES = 0x6803f857,
    QCOW2_EXT_BITMAPS = 0x23852875,
    QCOW2_EXT_CRYPTO = 0x0537be77,
    QCOW2_EXT_DATA_FILE = 0x44415441,
};

struct qcow2_ext {
    uint32_t type;
    uint32_t length;   /* of the data, unpadded */
    uint32_t head_off; /* of the 8-byte head in the first cluster */
    const uint8_t *data;
};

/* Steps through the extensions in `buf`, the first cluster up to `end` (the backing file name, or
 * the cluster's end).  Start with *pos = header_length.  Returns 1 with *ext filled, 0 at the end
 * of the list (end mark, or no room for another head), -ERANGE when an extension's length passes
 * `end`: *ext then has its type and length, no data, and the rest cannot be read. */
int qcow2_ext_next(const uint8_t *buf, size_t end, size_t *pos, struct qcow2_ext *ext);

enum { QCOW2_FEATURE_NAME_BYTES = 48 }; /* one entry of the feature name table: type, bit, name */

struct qcow2_bitmaps_ext {
    uint32_t bitmap_count, reserved;
    uint64_t directory_size, directory_off;
};
enum { QCOW2_BITMAPS_EXT_BYTES = 24, QCOW2_CRYPTO_EXT_BYTES = 16 };

void qcow2_bitmaps_ext_decode(const uint8_t *data, struct qcow2_bitmaps_ext *ext);
void qcow2_bitmaps_ext_encode(const struct qcow2_bitmaps_ext *ext, uint8_t *data);

/* ---- geometry ---- */

/* What follows from cluster size, refcount order and L2 format.  All counts fit: cluster_bits is
 * 9..21 and refcount_order 0..6. */
struct qcow2_geometry {
    unsigned version;
    unsigned cluster_bits;
    uint32_t cluster_size;
    bool extended_l2;
    bool data_file;            /* guest data lives in an external file */
    unsigned l2_entry_size;    /* 8, or 16 with extended L2 */
    unsigned l2_bits;          /* log2 of the entries of an L2 table */
    uint32_t l2_entries;       /* entries of an L2 table */
    uint64_t l2_span;          /* guest bytes under one L2 table */
    unsigned refcount_order;   /* log2 of the bits of a refcount */
    uint64_t refcount_max;     /* 2^bits - 1 */
    unsigned refblock_bits;    /* log2 of the refcounts in a block */
    uint64_t refblock_entries; /* refcounts in a block */
    unsigned compressed_shift; /* x of the compressed descriptor */
};

/* -EINVAL if cluster_bits or refcount_order is out of range, or extended L2 entries come with
 * clusters below 16 KiB. */
int qcow2_geometry_init(const struct qcow2_header *header, struct qcow2_geometry *geo);

static inline uint64_t cluster_of(const struct qcow2_geometry *geo, uint64_t host_off)
{
    return host_off >> geo->cluster_bits;
}

static inline bool cluster_aligned(const struct qcow2_geometry *geo, uint64_t off)
{
    return (off & (geo->cluster_size - 1)) == 0;
}

/* Clusters needed for `bytes` bytes. */
static inline uint64_t clusters_for(const struct qcow2_geometry *geo, uint64_t bytes)
{
    return div_up(bytes, geo->cluster_size);
}

/* L1 entries needed for a disk of `size_bytes`; also the L1 index at which VM state starts. */
static inline uint64_t l1_entries_for(const struct qcow2_geometry *geo, uint64_t size_bytes)
{
    return div_up(size_bytes, geo->l2_span);
}

/* ---- L1 and L2 entries (spec: Cluster mapping, Extended L2 Entries) ---- */

#define QCOW2_ENTRY_COPIED     (UINT64_C(1) << 63)
#define QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define QCOW2_ENTRY_ZERO       (UINT64_C(1) << 0)
#define QCOW2_OFFSET_MASK      UINT64_C(0x00fffffffffffe00)
#define QCOW2_L1_RESERVED      UINT64_C(0x7f000000000001ff)
#define QCOW2_L2_RESERVED      UINT64_C(0x3f000000000001fe)
#define QCOW2_REFTABLE_MASK    UINT64_C(0xfffffffffffffe00)
#define QCOW2_REFTABLE_RSVD    UINT64_C(0x1ff)
#define QCOW2_BITMAP_RESERVED  UINT64_C(0xff000000000001fe) /* of a bitmap table entry */
#define QCOW2_SUBCLUSTER_ALLOC UINT64_C(0x00000000ffffffff)
#define QCOW2_SUBCLUSTER_ZERO  UINT64_C(0xffffffff00000000)

enum qcow2_l2_kind {
    QCOW2_L2_UNALLOCATED, /* reads from the backing file, or zeros */
    QCOW2_L2_ZERO_PLAIN,  /* zero flag, no host cluster */
    QCOW2_L2_ZERO_ALLOC,  /* zero flag, owns a host cluster all the same */
    QCOW2_L2_NORMAL,      /* one host cluster; with extended L2 the bitmap says which parts count */
    QCOW2_L2_COMPRESSED,
};

struct qcow2_l2_entry {
    uint64_t raw;    /* the descriptor */
    uint64_t bitmap; /* the subcluster bitmap, 0 without extended L2 */
    enum qcow2_l2_kind kind;
    bool copied;
    uint64_t host_off; /* offset field: of the cluster, or of the first compressed byte */
    uint32_t length;   /* compressed: bytes to read from host_off; else the cluster size */
};

/* Decodes the entry at `p` (l2_entry_size bytes).  The zero flag counts in every version, as it
 * does for QEMU; with a data file offset 0 is a real one where COPIED is set. */
void qcow2_l2_decode(const struct qcow2_geometry *geo, const uint8_t *p, struct qcow2_l2_entry *e);

/* The descriptor for `length` compressed bytes at `host_off`.  -ERANGE if they do not fit it. */
int qcow2_compressed_encode(
    const struct qcow2_geometry *geo, uint64_t host_off, uint32_t length, uint64_t *raw);

/* ---- refcounts (spec: Host cluster management) ---- */

/* Entry `idx` of a refcount block of 2^order bits an entry; idx < refblock_entries. */
uint64_t qcow2_refcount_get(const uint8_t *block, unsigned order, uint64_t idx);
void qcow2_refcount_set(uint8_t *block, unsigned order, uint64_t idx, uint64_t value);

/* ---- snapshot table (spec: Snapshots) ---- */

enum { QCOW2_SNAPSHOT_HEAD_BYTES = 40 };

/* One record.  The pointers point into the decoded (or encoded from) bytes. */
struct qcow2_snapshot {
    uint64_t l1_off;
    uint32_t l1_size;
    uint16_t id_len, name_len;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec;
    uint32_t vm_state_size32; /* as in the record's head */
    uint32_t extra_len;
    uint64_t vm_state_size; /* the one that counts: from the extra data where present */
    bool has_disk_size, has_icount;
    uint64_t disk_size, icount;
    const uint8_t *extra, *id, *name;
    uint64_t record_len; /* with padding to 8 bytes */
};

/* Decodes the record at buf.  -ENODATA if it does not end within `length` bytes; record_len then
 * tells how many it claims if at least the head was there, else 0. */
int qcow2_snapshot_decode(const uint8_t *buf, size_t length, struct qcow2_snapshot *snapshot);

/* Bytes of the record, from its lengths. */
uint64_t qcow2_snapshot_length(const struct qcow2_snapshot *snapshot);

/* Writes qcow2_snapshot_length() bytes.  `extra` is written as it is: the caller keeps it in step
 * with vm_state_size, disk_size and icount. */
void qcow2_snapshot_encode(const struct qcow2_snapshot *snapshot, uint8_t *buf);

/* ---- bitmaps (spec: Bitmaps) ---- */

enum { QCOW2_BITMAP_HEAD_BYTES = 24 };

#define QCOW2_BITMAP_IN_USE      UINT32_C(1)
#define QCOW2_BITMAP_AUTO        UINT32_C(2)
#define QCOW2_BITMAP_EXTRA_OK    UINT32_C(4)
#define QCOW2_BITMAP_FLAGS_KNOWN UINT32_C(7)
enum { QCOW2_BITMAP_TYPE_DIRTY = 1 };

struct qcow2_bitmap {
    uint64_t table_off;
    uint32_t table_size; /* entries */
    uint32_t flags;
    uint8_t type, granularity_bits;
    uint16_t name_len;
    uint32_t extra_len;
    const uint8_t *name;
    uint64_t record_len; /* with padding to 8 bytes */
};

/* As qcow2_snapshot_decode(), for one entry of the bitmap directory. */
int qcow2_bitmap_decode(const uint8_t *buf, size_t length, struct qcow2_bitmap *bitmap);

/* Bytes of bitmap data for a disk of `size_bytes` at that granularity (bits 0..63). */
uint64_t qcow2_bitmap_bytes(uint64_t size_bytes, unsigned granularity_bits);

#endif
