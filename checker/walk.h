/* SPDX-License-Identifier: MIT
 *
 * The walk: reads each piece of metadata once, counts who refers to what, and shows every object to
 * the checks of its kind.  This header is for the files of the walk; others call check_image().
 *
 *   walk_read.c      reading, ahead where that is possible
 *   walk_header.c    header and extensions
 *   walk_refcount.c  refcount table and blocks; stored counts; comparison at the end
 *   walk_tree.c      snapshot table: which disks there are
 *   walk_l1.c        L1 tables; the set of L2 tables with their multiplicity
 *   walk_l2.c        first pass over the L2 tables: claims
 *   walk_entry.c     what entries and tables tell by themselves
 *   walk_scan.c      what the fast paths of that pass recognise in one go
 *   walk_bitmap.c    bitmaps, LUKS header
 *   walk_parts.c     judging on several threads
 *   judge.c          second look at what the first pass found unusual
 *   walk_leaks.c     going over leaked clusters
 *   orphan.c         leaked clusters that look like a lost table (orphan_look.c: what that is,
 *                    orphan_left.c: and is none)
 *   deep.c           decoding of compressed clusters
 *   chain.c          data file and backing chain
 *   deploy.c         rules of the pre-deploy gate
 *   sharers.c        which disks have the L2 tables that findings are about
 *
 * Functions return 0 or -errno; an errno is a failure of the machine that ends the check (no
 * memory, interrupted).  Unreadable metadata is none: it is reported and the walk goes on. */
#ifndef CHECKER_WALK_H
#define CHECKER_WALK_H

#include <pthread.h>

#include "census.h"
#include "check.h"
#include "crew.h"
#include "io.h"
#include "qcheck.h"
#include "report.h"

/* One disk: the active one or a snapshot's. */
struct tree {
    uint64_t record_off; /* of a snapshot: where its record lies */
    uint64_t l1_off;
    uint32_t l1_size;
    bool usable;          /* its L1 table is to be read */
    bool disk_size_known; /* false: a snapshot that does not say it */
    uint64_t disk_size;
    uint64_t vm_state_size; /* as the record says */
    uint64_t same_l1;       /* how many disks use this very table; 0: counted with an earlier one */
};

/* One L2 table, however many L1 entries refer to it. */
struct table {
    uint64_t host_off;
    uint64_t refs;                 /* L1 entries that refer to it */
    uint64_t active_refs;          /* those of the active L1 */
    uint32_t l1_idx;               /* of the first reference */
    uint32_t legal;                /* entries below the end of every disk that uses it */
    int legal_tree;                /* the disk that says so */
    int tree;                      /* first disk that uses it; the active one if any does */
    bool copied_set, copied_clear; /* COPIED as seen in active L1 entries */
    bool elsewhere;                /* referred to at another L1 index, too */
    bool below_end;                /* a disk has it at l1_idx, and goes on behind that */
    bool empty;                    /* read, and all zeros */
    bool odd;                      /* judge its entries in the second pass */
    bool skip;                     /* not an L2 table after all: not interpreted */
    bool implausible;
    bool accused;     /* set by the repair: somebody maps it as guest data, and seems to be right */
    bool rather_data; /* set by the repair: it is guest data, and the L1 entry is wrong */
    bool has_compressed;
    int snapshot;           /* the first that has it at l1_idx; 0: none, only the active disk */
    uint64_t absurd, used;  /* when implausible */
    struct l2_shape *shape; /* its entries, where little tells them all; NULL: read them again */
};

struct table_set {
    struct table *items; /* sorted by l1_idx, then host_off, once all are known */
    size_t count, room;
    uint32_t *slots; /* hash by host_off: 1 + index, 0 free */
    size_t slot_count;
};

struct area {
    enum area_kind kind;
    uint64_t host_off, length;
    uint64_t index; /* of the snapshot or bitmap it belongs to, or its own */
    int tree;
};

struct area_list {
    struct area *items; /* sorted by host_off once areas_sort() was called */
    size_t count, room;
};

/* What is known of where the file has holes: all of hole_off .. data_off - 1 is one, nothing of
 * data_off .. data_end - 1. */
struct extent {
    uint64_t hole_off, data_off, data_end;
};

/* Where a cluster whose count is wrong is used first: for the message about it. */
struct owner {
    uint64_t cluster;
    bool found;
    int tree;
    size_t table_idx;
    uint64_t table_off, index, guest_off, guest_len;
};

enum { STORED_PIECE_BITS = 12, STORED_PIECES = 16 };

struct walk {
    struct {
        int first, end;
    } rows[OBJECT_KIND_COUNT]; /* the checks of a kind lie between these */
    struct io *io;
    const struct check_options *options;
    struct report *report;
    const char *filename; /* for names relative to it; may be NULL */

    struct qcow2_header header;
    struct qcow2_geometry geo;
    struct check_view view;
    uint64_t file_size; /* exact; the view's is in whole sectors */
    uint8_t *head;      /* first cluster, or what there is of it */
    size_t head_len;
    uint64_t cluster_end; /* clusters of the file, more if references pass its end a little */

    struct qcow2_bitmaps_ext bitmaps;
    uint64_t crypto_off, crypto_len;
    bool has_bitmaps, has_crypto; /* usable; the extensions as such: */
    bool has_bitmaps_ext, has_crypto_ext;
    struct qcow2_ext backing_format, data_file_name, feature_names; /* data NULL if absent */

    struct census *census;
    uint64_t first_mismatch; /* the first cluster whose count is wrong; UINT64_MAX: none */
    struct area_list areas;
    uint64_t area_clusters; /* claimed for areas, each time it was */
    struct tree *trees;     /* [0] the active disk */
    size_t tree_count;
    uint64_t snapshot_table_len; /* bytes of the records that could be decoded */
    struct table_set tables;
    bool judge_l1; /* something about L1 entries is unusual */

    uint64_t *reftable; /* entries, host byte order */
    size_t reftable_len;
    struct stored_piece {
        uint64_t piece; /* which, counted from cluster 0; UINT64_MAX: none */
        uint8_t bytes[1 << STORED_PIECE_BITS];
    } stored_cache[STORED_PIECES]; /* of refcount blocks */

    struct owner *owners; /* open hash table by cluster */
    size_t owner_slots;
    uint64_t owner_last;         /* the highest cluster among them */
    pthread_mutex_t *owner_lock; /* NULL: only one thread judges */
    size_t table_idx;            /* of the table that is judged: the first that uses it is named */

    uint64_t data_file_end; /* data file: end of what is mapped in it */
    uint64_t orphan_tables; /* L2 tables that no orphaned L1 table explains */
    uint64_t l1_broken;     /* L1 entries that name no table, or that of another place */
    uint64_t l1_holes;
    bool vm_state_asked, vm_state_there; /* behind the end of the active disk */
    bool left;                           /* leaks that look like lost tables are explained */
    bool unreadable;                     /* something could not be read */
    bool no_memory;                      /* something could not be looked at for want of memory */
    bool refs_incomplete;                /* metadata that holds references could not be read */
    struct crew *crew;                   /* NULL: everything is done one after the other */
    struct extent extent;
    uint8_t *buf;                     /* WALK_BUF_BYTES, shared by the stages */
    uint8_t *ahead_buf;               /* as many, of walk_stream() alone; may be NULL */
    bool without_counts;              /* ended early: see stop_without_counts */
    bool judgeable;                   /* the header allowed to go on */
    uint64_t bytes_done, bytes_total; /* of metadata, for the progress line */
};

enum { WALK_BUF_BYTES = 2 << 20 };

/* ---- walk.c ---- */

/* Walks over the image; the caller may look at what was learnt, and closes the walk.  *out is NULL
 * when not even that could be had.  The report is complete but for report_finish(). */
int walk_open(struct io *io, const char *filename, const struct check_options *options,
    struct report *report, struct walk **out);
void walk_close(struct walk *walk); /* NULL is allowed */

/* Shows the subject to all checks of its kind; returns what the worst of the rows hit demands. */
enum after walk_show(struct walk *walk, const struct subject *subject);

/* What the checks said of a subject. */
struct verdicts {
    uint64_t hits;   /* which of them found something; HITS_UNKNOWN at first */
    uint64_t weight; /* of the finding, where there is one */
    bool full;       /* it would only be counted, and so it stays */
};
#define HITS_UNKNOWN UINT64_MAX

/* The same for a subject that no check can tell from an earlier one but for its place: predicates
 * are pure, so what they said then, which *before keeps, they will say now. */
void walk_show_alike(struct walk *walk, const struct subject *subject, struct verdicts *before);

/* The same answer, without reporting anything: for decisions on the way. */
enum after walk_after(const struct walk *walk, const struct subject *subject);

/* Claims the clusters of a piece of metadata and remembers it; one that passes the end of the file
 * by a cluster or more is not counted at all.  *conflict: somebody else had claimed one of them. */
int walk_claim_area(struct walk *walk, const struct area *area, bool *conflict);

/* Somebody else uses a part of the area, too. */
bool walk_area_conflict(const struct walk *walk, const struct area *area);

void walk_sort_areas(struct walk *walk); /* before walk_area_at() can be used */

/* Claims the clusters touched by a range for one owner; *conflict is set if one is taken, and left
 * alone otherwise. */
int walk_claim(struct walk *walk, uint64_t host_off, uint64_t length, uint64_t refs, enum claim how,
    bool *conflict);

/* The piece of metadata a cluster belongs to; L2 tables included.  NULL for L2 tables, whose kind
 * is returned all the same. */
enum area_kind walk_area_at(const struct walk *walk, uint64_t cluster, const struct area **area);

bool walk_wrongly_accused(const struct walk *walk, uint64_t cluster);

/* -EINTR when the user wants to stop; also moves the progress line. */
int walk_pause(struct walk *walk, uint64_t bytes_done);

struct cluster_facts walk_facts(struct walk *walk, uint64_t cluster);

/* Of these the counts alone: for clusters that have one owner or none, or where others do not
 * matter. */
struct cluster_facts walk_counts(struct walk *walk, uint64_t cluster, int64_t balance);

/* ---- walk_read.c ---- */

int walk_open_crew(struct walk *walk); /* once the geometry is known */

/* Reads, what is past the end of the file being zeros.  What cannot be read is zeroed and reported;
 * then *complete becomes false (it is not touched otherwise). */
void walk_read(struct walk *walk, uint64_t host_off, void *buf, size_t length, bool *complete);

/* The same for an L2 table, whose guest range is then part of the report. */
void walk_read_table(struct walk *walk, const struct table *table, void *buf, bool *complete);

/* The same, silently: what fails was reported when it was read first. */
void walk_read_again(struct walk *walk, uint64_t host_off, void *buf, size_t length);

/* Notes that something could be read the first time and no longer: the device fails by now. */
void walk_lost_again(struct walk *walk);

/* Bytes from host_off on that are a hole: zeros that need not be read.  The first asks the device,
 * the second only remembers; so where zeros are rare one asks when they were seen. */
uint64_t walk_hole(struct walk *walk, uint64_t host_off);
uint64_t walk_known_hole(const struct walk *walk, uint64_t host_off);
bool walk_bytes_zero(const uint8_t *bytes, size_t length);

/* Many clusters that are read ahead and used in order. */
struct stream {
    size_t count;   /* items */
    uint32_t bytes; /* of each that are read: a power of two up to a cluster; 0: the cluster */
    void *arg;

    /* The cluster of an item; false if nothing is to be read for it. */
    bool (*place)(const struct walk *walk, const void *arg, size_t item, uint64_t *host_off);

    /* How many items from this one on are to be used at once; NULL: one. */
    size_t (*together)(const struct walk *walk, size_t item);

    /* Items item .. item + count - 1.  A read of length 0 was not done, the cluster being in a hole
     * or none; one whose result is negative failed, or passes the end of the file.  `reads` is NULL
     * for items that belong together and are more than fit the buffer.  May not use walk->buf. */
    int (*use)(
        struct walk *walk, void *arg, size_t item, size_t count, const struct io_read_req *reads);
};
int walk_stream(struct walk *walk, const struct stream *stream);

/* ---- walk_leaks.c ---- */

/* It has a count, and nobody refers to it. */
bool walk_leaked(const struct walk *walk, uint64_t cluster);

/* A leaked cluster; what it looks like is up to those who search. */
struct leak {
    uint64_t cluster;
    uint64_t next_off; /* of the bytes for the next look; LEAK_SEEN: there is none */
    bool l1_table, l2_table, snapshot_table;
    bool in_use;         /* what the table of snapshots begins with is */
    bool zeros;          /* what hangs on it may be nothing but zeros */
    uint64_t data_bytes; /* guest data behind it */
};
#define LEAK_SEEN UINT64_MAX

/* A search through all leaked clusters that have bytes in the file: zeros look like nothing that
 * was lost.  It takes up to three looks at each, the first one at how the cluster begins. */
struct leak_search {
    void *arg;
    struct leak_look {
        uint32_t bytes; /* to be read; a power of two up to a cluster */

        /* May ask for another look by leak->next_off, which is LEAK_SEEN before.  What is in a
         * hole, or cannot be read, is not looked at. */
        void (*look)(struct walk *walk, void *arg, struct leak *leak, const uint8_t *bytes);
    } looks[3];

    /* Each of them, in ascending order; walk->buf is free then.  0 or -errno. */
    int (*end)(struct walk *walk, void *arg, struct leak *leak);
};
int walk_search_leaks(struct walk *walk, const struct leak_search *search);

/* ---- walk_parts.c ---- */

/* Judges first .. end - 1: may report, note owners, read and use walk->buf for a cluster, and
 * change nothing else. */
typedef void walk_part(struct walk *walk, uint64_t first, uint64_t end);

/* There are threads to do that on. */
bool walk_has_parts(const struct walk *walk);

/* Judges 0 .. count - 1, `each` at a time, on the threads that there are; what is reported is the
 * same, and in the same order, as if it had been all at once. */
int walk_in_parts(struct walk *walk, uint64_t count, uint64_t each, walk_part *work);

/* ---- the stages, in order ---- */
int walk_header(struct walk *walk, bool *go_on);
int walk_refcounts(struct walk *walk);
int walk_snapshot_table(struct walk *walk);
int walk_fixed_areas(struct walk *walk); /* header, refcount table, snapshot table, LUKS, bitmaps */
int walk_l1_tables(struct walk *walk);
int walk_l2_tables(struct walk *walk);
int walk_find_orphans(struct walk *walk);
int walk_collect_owners(struct walk *walk);
int walk_judge_tables(struct walk *walk);
int walk_judge_l1(struct walk *walk);
int walk_compare_refcounts(struct walk *walk);
int walk_judge_areas(struct walk *walk);
int walk_deep(struct walk *walk);
int walk_data_file(struct walk *walk);
int walk_backing_chain(struct walk *walk);
int walk_policy(struct walk *walk);
int walk_name_sharers(struct walk *walk);

/* ---- shared pieces ---- */
int walk_bitmaps(struct walk *walk);

/* Where refcount block `table_idx` lies; 0 if there is none that could be used. */
uint64_t walk_block_off(const struct walk *walk, uint64_t table_idx);

/* The stored refcount, read again for a message.  False if it is not to be had. */
bool walk_stored(struct walk *walk, uint64_t cluster, uint64_t *stored);

struct table *table_find(const struct table_set *set, uint64_t host_off);

/* Reads the L1 table of a disk and hands each entry to `visit`; of those that are 0 none, or if
 * `zeros` is set those of the disk.  `complete` is NULL when it is not the first time.  A visitor
 * that returns 1 has seen enough. */
typedef int l1_visitor(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw);
int walk_visit_l1(struct walk *walk, int tree_idx, l1_visitor *visit, bool zeros, bool *complete);

/* What the entries of a cluster tell when they are taken for those of an L2 table. */
struct l2_look {
    uint64_t named;        /* entries that name clusters */
    uint64_t orphaned;     /* of these, whose clusters miss a reference */
    uint64_t marked;       /* of these, with flags that entries of other tables have not */
    uint64_t odd;          /* entries that no program would write, and lost sectors */
    uint64_t lost_sectors; /* full of such entries: nothing of them is counted otherwise */
    uint64_t metadata;     /* entries that name clusters of metadata */
    uint64_t guest_off;    /* data file: where the guest sees the first entry */
};

/* The first entries name blocks in the file, and one of these counts the clusters in its range as
 * they are used: the others may have been lost when the table was written.  It may also be a
 * cluster further on in the table. */
bool walk_looks_like_reftable(struct walk *walk, uint64_t off);

/* No byte is a control character, as in the ID and the name of a snapshot. */
bool walk_is_text(const uint8_t *bytes, size_t length);

/* What the cluster's bytes tell when they are taken for an L2 table's; false when they make no
 * sense as such, or cannot be read.  Uses the walk's buffer, which then holds the cluster. */
bool walk_look_at_l2(struct walk *walk, uint64_t cluster, struct l2_look *look);

/* True if a lost L2 table is what the cluster looks like.  Uses the buffer likewise. */
bool walk_looks_like_l2(struct walk *walk, uint64_t cluster, struct l2_look *look);

/* Entries of the L2 table at l1_idx that lie on the disk. */
uint32_t tree_legal_entries(const struct walk *walk, const struct tree *tree, uint64_t l1_idx);

struct owner *walk_owner(struct walk *walk, uint64_t cluster);

/* The subject refers to the cluster: the first to do so is named when its count is wrong. */
void walk_note_owner(struct walk *walk, uint64_t cluster, const struct subject *subject);

/* ---- walk_scan.c ---- */

/* Entries alike: each maps the cluster behind that of the one before, or none of them has an
 * offset. */
struct l2_run {
    uint32_t idx, length;
    uint64_t raw; /* of its first entry */
};

/* What one look at a whole L2 table tells. */
struct l2_digest {
    uint64_t flags;        /* set in any entry; those of an aligned offset aside */
    uint64_t highest_off;  /* among all entries */
    struct l2_run runs[8]; /* the first long ones */
    uint32_t run_count;
};
void l2_scan(const struct qcow2_geometry *geo, const uint8_t *bytes, struct l2_digest *digest);

/* A table all of whose entries lie in a few runs: whoever wants them a second time need not read
 * them. */
struct l2_shape {
    uint32_t run_count;
    struct l2_run runs[];
};

/* NULL if the table is none of these, or too small to be worth it, or there is no memory; freed by
 * the caller with free(). */
struct l2_shape *l2_shape_of(const struct qcow2_geometry *geo, const struct l2_digest *digest);

/* The entry at `idx`; *run as for l2_run_at(). */
void l2_shape_entry(const struct qcow2_geometry *geo, const struct l2_shape *shape, uint32_t idx,
    struct l2_run *run, struct qcow2_l2_entry *entry);

/* How many entries from `idx` on are such a run.  *run, all zeros at first, keeps the one that was
 * found last: a run is gone through once, however often it is broken by what is wrong with its
 * clusters.  `known` may be those of a digest or a shape.  Not for extended L2 entries. */
uint32_t l2_run_at(const struct qcow2_geometry *geo, const uint8_t *bytes, uint32_t idx,
    const struct l2_run *known, uint32_t known_count, struct l2_run *run);

/* ---- walk_entry.c ---- */

/* An entry that a program may have written: all of it makes sense, and what it names begins in the
 * file (the last cluster of a file need not be whole). */
bool l2_entry_fits(const struct walk *walk, const struct qcow2_l2_entry *e, uint64_t guest_off);

/* One about which, besides, no check can have anything to say as long as the census agrees.
 * (Whether it lies on the disk is another question.) */
bool l2_entry_plain(const struct walk *walk, const struct qcow2_l2_entry *e, uint64_t guest_off);

/* The subcluster bitmap of an entry could as well be an entry of the active disk. */
bool l2_bitmap_like_entry(const struct walk *walk, const struct qcow2_l2_entry *entry);

/* Of so many entries so many are absurd that the others may have come about by chance. */
bool l2_hardly_sane(uint64_t used, uint64_t absurd);

/* Whether the table that was read is one, into its fields. */
void walk_test_plausible(const struct walk *walk, struct table *table, const uint8_t *bytes,
    const struct l2_digest *digest);

#endif
