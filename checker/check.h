/* SPDX-License-Identifier: MIT
 *
 * What a check is, what it may look at, and what it finds.
 *
 * A check is a row of checks.def and a predicate of the same name.  The predicate sees one object
 * of the image and a const view of what is around it; it answers whether the object is wrong and
 * fills in what it got and what it wanted.  It cannot read, print, count or fix, and does not know
 * its own name, severity or repair: those are columns of its row. */
#ifndef CHECKER_CHECK_H
#define CHECKER_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2.h"

/* ---- rows ---- */

/* How bad a finding is; the words of the JSON output. */
enum severity {
    SEVERITY_NOTE,   /* worth knowing, no harm; never changes the verdict */
    SEVERITY_WASTE,  /* space is lost, nothing else */
    SEVERITY_DANGER, /* all can be read now, but a later write may destroy data */
    SEVERITY_DAMAGE, /* guest data is lost or ambiguous */
    SEVERITY_COUNT
};

/* What the walk does with the object after a hit. */
enum after {
    AFTER_GO_ON,
    AFTER_SKIP,        /* what the object points to is not looked at through it */
    AFTER_STOP,        /* nothing below can be trusted: the check of this image ends here */
    AFTER_UNSUPPORTED, /* the same, and the image is not ours to judge (exit 63) */
};

enum repair_class { REPAIR_NONE, REPAIR_SAFE, REPAIR_LOSSY };

/* What a finding adds to the two counters of `qemu-img check`.  "QEMU": that program counts this
 * condition too (each object of a finding once); "OWN": only qcheck knows it. */
enum tally {
    TALLY_NONE,
    TALLY_CORRUPTION_QEMU,
    TALLY_CORRUPTION_OWN,
    TALLY_LEAK_QEMU,
    TALLY_LEAK_OWN,
};

enum object_kind {
    OBJECT_HEADER,
    OBJECT_EXTENSION,
    OBJECT_REFTABLE_ENTRY,
    OBJECT_CLUSTER, /* a host cluster: stored refcount against references */
    OBJECT_L1_ENTRY,
    OBJECT_L2_TABLE,
    OBJECT_L2_ENTRY,
    OBJECT_COMPRESSED, /* the bytes of a compressed cluster, decoded */
    OBJECT_SNAPSHOT_TABLE,
    OBJECT_SNAPSHOT,
    OBJECT_BITMAP_DIRECTORY,
    OBJECT_BITMAP,
    OBJECT_BITMAP_ENTRY,
    OBJECT_AREA, /* a contiguous piece of metadata as such */
    OBJECT_DATA_FILE,
    OBJECT_BACKING,
    OBJECT_ORPHAN, /* leaked clusters that look like a lost table */
    OBJECT_FILE,
    OBJECT_REGION, /* something that could not be read */
    OBJECT_POLICY, /* the image as such, for the pre-deploy gate */
    OBJECT_KIND_COUNT
};

enum check_id {
#define CHECK(name, ...) CHECK_##name,
#include "checks.def"
#undef CHECK
    CHECK_COUNT
};

struct subject;
struct check_view;
struct finding;

typedef bool check_predicate(
    const struct check_view *view, const struct subject *subject, struct finding *finding);

struct check_row {
    const char *name; /* with underscores; see check_name() */
    enum object_kind kind;
    enum severity severity;
    enum after after;
    enum repair_class repair;
    enum tally tally;
    const char *sentence; /* what is wrong, as a clause: "reserved bits are set" */
    const char *meaning;  /* for --explain: what it endangers and what can be done */
    check_predicate *hit;
};

extern const struct check_row check_rows[CHECK_COUNT];

enum { CHECK_NAME_BYTES = 48 };

/* The name users see: with dashes. */
void check_name(enum check_id check, char out[CHECK_NAME_BYTES]);

/* The row of that name (with dashes), -1 if there is none. */
int check_find(const char *name);

const char *severity_name(enum severity severity);
const char *repair_class_name(enum repair_class repair);
const char *object_kind_name(enum object_kind kind);

#define CHECK(name, ...) check_predicate check_##name;
#include "checks.def"
#undef CHECK

/* ---- metadata areas ---- */

enum area_kind {
    AREA_NONE, /* not metadata as far as anything says */
    AREA_HEADER,
    AREA_REFCOUNT_TABLE,
    AREA_REFCOUNT_BLOCK,
    AREA_L1_TABLE,
    AREA_SNAPSHOT_TABLE,
    AREA_SNAPSHOT_L1_TABLE,
    AREA_CRYPTO_HEADER,
    AREA_BITMAP_DIRECTORY,
    AREA_BITMAP_TABLE,
    AREA_BITMAP_DATA,
    AREA_L2_TABLE,
};

const char *area_kind_name(enum area_kind kind);

static inline bool area_is_bitmap(enum area_kind kind)
{
    return kind == AREA_BITMAP_DIRECTORY || kind == AREA_BITMAP_TABLE || kind == AREA_BITMAP_DATA;
}

/* ---- what a predicate may look at ---- */

enum { TREE_NONE = -1, TREE_ACTIVE = 0 }; /* others: 1 + index of the snapshot */

/* What holds for the whole image. */
struct check_view {
    uint64_t file_size; /* bytes in the image file */
    const struct qcow2_header *header;
    const struct qcow2_geometry *geo; /* NULL until the header allows it */
    bool has_backing;
};

/* Things known about a host cluster when everything has been counted. */
struct cluster_facts {
    bool stored_known; /* false: its refcount block is missing or could not be used */
    uint64_t stored;   /* refcount in the image */
    uint64_t refs;     /* references found; 64-bit, not capped at what the width can hold */
    bool conflict;     /* claimed by owners that cannot share it */
    enum area_kind area;
};

struct subject {
    enum object_kind kind;
    /* Where and whose it is; copied into the finding. */
    uint64_t host_off, length;     /* the cluster or range concerned */
    uint64_t table_off, index;     /* table that holds the entry, and which entry */
    uint64_t guest_off, guest_len; /* guest range concerned; guest_len 0: none */
    int tree;                      /* TREE_... */
    bool has_host, has_table;
    bool risk_counted; /* its guest range is counted as data at risk with something else */
    uint64_t weight;   /* how often the object counts (an L2 table in n disks: n); 0 means 1 */

    union {
        struct {
            const uint8_t *bytes; /* first cluster, or what there is of it */
            size_t length;
            struct qcow2_ext feature_names; /* data NULL if there is none */
            bool has_bitmaps_ext, has_crypto_ext;
        } header;
        struct {
            struct qcow2_ext ext;
            bool truncated, repeated;
        } ext;
        struct {
            uint64_t raw;
            uint64_t refs_seen; /* references of the block's cluster up to and with this entry */
        } reftable;
        struct {
            struct cluster_facts facts; /* the counts: owners are not told apart here */
            bool past_end;              /* beyond the last cluster of the file */
        } cluster;
        struct {
            uint64_t raw;
            bool active;
            bool past_end;       /* lies past the disk's end and is no VM state of a snapshot */
            bool elsewhere;      /* the same table hangs on another place of an L1, too */
            bool hole_by_orphan; /* empty, while an orphaned L2 table would fit */
            uint64_t holes;      /* how many there are like it for the orphans, at least */
            uint64_t orphans;    /* tables that belong into one of them */
            struct cluster_facts facts;
        } l1;
        struct {
            bool implausible;
            uint64_t absurd, used; /* entries that cannot be, entries not zero */
        } l2_table;
        struct {
            struct qcow2_l2_entry entry;
            uint64_t active_refs; /* how often the active disk has it: COPIED counts only there */
            bool past_end;
            int past_end_tree;          /* the disk that ends before it */
            struct cluster_facts facts; /* of the host cluster; of the first one if compressed */
            bool bitmap_leaked;         /* taken for an entry its bitmap maps a leaked cluster */
            bool compressed_conflict;   /* a cluster of the compressed range is claimed otherwise */
            enum area_kind compressed_area;
        } l2;
        struct {
            int result; /* of codec_decode() */
        } compressed;
        struct {
            uint64_t count;    /* as the header says */
            uint64_t readable; /* records that could be decoded */
            bool truncated, too_large;
        } snapshot_table;
        struct {
            const struct qcow2_snapshot *record;
            uint64_t disk_size; /* with the default where the record has none */
            bool id_repeated, name_shadows_id;
        } snapshot;
        struct {
            uint64_t count, readable; /* entries: as the extension says, decoded */
            uint64_t size, used;      /* directory bytes: as the extension says, taken by entries */
            bool truncated;
        } bitmap_directory;
        struct {
            const struct qcow2_bitmap *record;
            bool name_repeated;
        } bitmap;
        struct {
            uint64_t raw;
            struct cluster_facts facts;
        } bitmap_entry;
        struct {
            enum area_kind kind;
            bool conflict;
        } area;
        struct {
            const uint8_t *name; /* as the image has it, any bytes; NULL: none */
            size_t name_len;
            bool unsafe_name, missing;
            uint64_t size, wanted; /* bytes there, bytes needed */
        } data_file;
        struct {
            const uint8_t *name;
            size_t name_len;
            bool unsafe_name, missing, wrong_format, loop, too_deep, damaged;
            uint64_t size, wanted;
        } backing;
        struct {
            enum area_kind kind; /* what it looks like */
            bool left;           /* by a snapshot operation that did not come to its end */
            bool copy;           /* then: of the L1 table that a disk has */
            uint64_t data_bytes; /* guest data that hangs on it */
        } orphan;
        struct {
            uint64_t size;     /* exact */
            uint64_t used_end; /* end of the last cluster that is referenced or counted */
        } file;
        struct {
            int error; /* errno, positive */
        } region;
        struct {
            uint64_t max_size, largest; /* of the virtual disk; 0: any; of it and of snapshots */
            uint64_t unknown;           /* features, fields, extensions not known here */
            uint64_t leaks;
            uint64_t metadata, metadata_limit; /* bytes */
            uint64_t file_limit, used_end;
            const uint8_t *backing, *data_file; /* names as the image has them; NULL: none */
            size_t backing_len, data_file_len;
            bool has_bitmaps, trailing;
        } policy;
    };
};

/* ---- findings ---- */

struct finding {
    enum check_id check;
    bool has_host, has_table, has_got, has_want;
    uint64_t host_off, length;
    uint64_t table_off, index;
    uint64_t guest_off, guest_len; /* guest_len 0: no guest range */
    int tree;
    uint64_t got, want;
    uint64_t weight; /* what it adds to the counters */
    bool fixed;
    char detail[64]; /* a name or a few words, "" if none; may hold any bytes */
};

#define CHECK_FN(name) \
    bool check_##name( \
        const struct check_view *view, const struct subject *subject, struct finding *finding)

static inline void finding_got_want(struct finding *finding, uint64_t got, uint64_t want)
{
    finding->has_got = finding->has_want = true;
    finding->got = got;
    finding->want = want;
}

static inline void finding_got(struct finding *finding, uint64_t got)
{
    finding->has_got = true;
    finding->got = got;
}

/* The usual last line of a predicate: on a hit, say which value it is. */
static inline bool wrong(struct finding *finding, bool hit, uint64_t got)
{
    if (hit)
        finding_got(finding, got);
    return hit;
}

/* The same where the right value is known. */
static inline bool wrong_want(struct finding *finding, bool hit, uint64_t got, uint64_t want)
{
    if (hit)
        finding_got_want(finding, got, want);
    return hit;
}

/* True if the range passes the end of the file by a cluster or more: the last cluster in use may be
 * cut short, but not be missing. */
static inline bool check_outside(const struct check_view *view, uint64_t off, uint64_t length)
{
    uint64_t end;
    return !range_end(off, length, &end) ||
           (end > view->file_size && end - view->file_size >= view->geo->cluster_size);
}

#endif
