/* SPDX-License-Identifier: MIT
 *
 * Repair: findings become a plan, the plan is applied phase by phase, and a fresh check of the
 * device says what is next, until nothing is left that may be repaired.
 *
 *   repair.c           rounds, marks, the verdict
 *   repair_ask.c       what stages ask about a round
 *   repair_header.c    what the header must have been
 *   repair_geometry.c  how large clusters, counts and L2 entries are
 *   repair_try.c       values tried out on a copy
 *   repair_records.c   the snapshot table found and read again
 *   repair_disk.c      where a disk's L1 table lies
 *   repair_size.c      how large disks, VM states and L1 tables are
 *   repair_field.c     single fields and flags
 *   repair_refcount.c  counts: raised, lowered, or the whole structure made anew
 *   repair_structure.c refcount table and blocks found again
 *   repair_doubt.c     whether a cluster is a table or guest data
 *   repair_fakes.c     tables that are not believed, so that what they hide is seen
 *   repair_l1*.c       lost L2 tables put back
 *   repair_l2*.c       lost data clusters put back into damaged L2 entries
 *   repair_holes.c     and into empty ones
 *   repair_missing.c   which clusters they may have been
 *   repair_shared.c    cross-linked clusters: every owner gets its own
 *   repair_snapshot.c  snapshot records and bitmaps that are broken
 *   repair_lossy.c     what is given up with --lossy */
#ifndef CHECKER_REPAIR_H
#define CHECKER_REPAIR_H

#include <stdio.h>

#include "plan.h"
#include "qcheck.h"

struct repair_options {
    bool lossy;      /* also what must give something up */
    bool leaks_only; /* nothing but lowering of refcounts */
    FILE *edits;     /* gets a line for every edit; NULL: not */
    FILE *remarks;   /* gets every choice made and every loss; NULL: not */
};

/* Repairs the image on `io`, then checks it again: `report` (from report_init()) is about the state
 * after the repair, and says how many corruptions and leaks are gone.  Whatever fails makes the
 * verdict incomplete, and the image is then no worse than before; the result says why, 0 or -errno,
 * when it was the machine. */
int repair_image(struct io *io, const char *filename, const struct check_options *check,
    const struct repair_options *options, struct report *report);

/* ---- for the files of the repair ---- */

struct finding_set {
    struct finding *items;
    size_t count, room;
};

/* How much compressed data a repair decodes to see what an entry is, in bytes or in clusters: a
 * file of some megabytes can name one cluster that takes long a hundred thousand times. */
#define REPAIR_MOST_DECODED (UINT64_C(512) << 20)
enum { REPAIR_MOST_CLUSTERS = 1024 };
struct repair_decoding {
    uint64_t bytes; /* made so far */
    bool given_up;  /* more were asked for: nothing that follows from the answer may be done */
    bool no_memory; /* for something to look at, that was not looked at then */
};

/* Of what is tried: though less is wrong with the patched image, it cannot be that. */
struct repair;
typedef bool repair_refusal(
    const struct repair *repair, struct io *patched, const struct report *report);

enum { REPAIR_MOST_FAKES = 16 };

/* What lost tables name, ascending. */
struct lost_names {
    uint64_t *offs;
    size_t count;
};

struct repair {
    struct io *io;
    struct io_watch *watch; /* not owned: `io`, or what lies under it */
    const char *filename;
    struct check_options check;
    const struct repair_options *options;
    unsigned trials;         /* patches that were tried out so far; each costs a check */
    uint64_t trial_findings; /* of these checks */
    bool version_tried, width_tried, geometry_tried;
    bool other_width; /* L2 entries may have, where that was not mended: leaks may be theirs */
    bool lowered;     /* counts: COPIED flags may be stale by that */
    repair_refusal *refuses;          /* while something is tried, or NULL */
    bool orphans_may_show;            /* by what is tried: lost tables that were not seen as such */
    uint64_t least_mapped;            /* by a geometry that is tried, in bytes */
    uint64_t copied, most_copied;     /* bytes of clusters that several share */
    bool copies_given_up;             /* there are more to copy */
    uint64_t compared;                /* counts that were looked at so far, to find lost blocks */
    struct repair_decoding *decoding; /* not owned: for those who only look, too */
    unsigned lasting_failures;        /* reads of a round that failed when tried again, too */
    /* One round: */
    unsigned failed_reads; /* so far, as it began */
    struct report report;
    struct finding_set findings; /* all but those about refcounts, by check and host offset */
    uint64_t *damaged;           /* offsets of tables with damaged entries, in order */
    size_t damaged_count;
    struct walk *walk;
    struct plan plan;
    struct lost_names lost_names;
    struct no_table fakes[REPAIR_MOST_FAKES]; /* not to be believed */
    size_t fake_count;
    bool believing;       /* they are, in this round, and little is done */
    bool careful;         /* what may be no table is left alone */
    bool lossy;           /* for the stage that runs: choices may be made, and things given up */
    bool void_counts;     /* what is stored as counts lies on something else, and makes no sense */
    bool no_reftable;     /* repair_is_no_reftable() */
    bool counts_made;     /* by this repair, since they were: what leaks is no evidence then */
    bool fake_tables;     /* an L1 entry names guest data: what that says is not looked at */
    bool fake_root;       /* the same of where the L1 table of a disk is said to be */
    bool fake_records;    /* and of the table of snapshots */
    bool doubtful_root;   /* half of what is said to be the active L1 table makes no sense */
    bool lost_references; /* something unresolved may explain a leak */
    uint64_t file_size;   /* as the round began */
    uint64_t
        named_end; /* the lowest offset behind the file that an entry names; UINT64_MAX: none */
    uint64_t records_end; /* the same of tables of records */
};

/* What was allocated for a look at something; without it that is taken for not there, which is
 * remembered: nothing that follows from it is written. */
static inline void *repair_memory(const struct repair *repair, void *allocated)
{
    repair->decoding->no_memory |= !allocated;
    return allocated;
}

/* A stage adds edits to the round's plan; the first stage with any wins the round. */
typedef int repair_stage(struct repair *repair);
repair_stage repair_find_structure;
repair_stage repair_header_fields, repair_records, repair_disks, repair_fields, repair_l1,
    repair_l2, repair_holes, repair_rebuild, repair_raise, repair_shared, repair_snapshots,
    repair_lossy, repair_lower, repair_copied;

/* A change of one field that might be what the image needs. */
struct patch {
    uint64_t off;
    uint8_t bytes[8];
    size_t length;
};

static inline struct patch patch_be32(uint64_t off, uint32_t value)
{
    struct patch patch = {.off = off, .length = 4};
    store_be32(patch.bytes, value);
    return patch;
}

static inline struct patch patch_be64(uint64_t off, uint64_t value)
{
    struct patch patch = {.off = off, .length = 8};
    store_be64(patch.bytes, value);
    return patch;
}

/* Plans the patch under which the image makes most sense; among equals the one that changes the
 * fewest bits; none if there is no single best one, or too many were tried in this repair. */
int repair_take_best(
    struct repair *repair, enum check_id why, const struct patch *patches, size_t count);

/* Damage of some kind is found there more often than in this round. */
bool repair_shows_more(const struct repair *repair, const struct report *report);

/* How much is wrong: four times the corruptions, and the leaks; less than REPAIR_WRONG_UNREAD,
 * which is for what could not be judged. */
#define REPAIR_WRONG_UNREAD (UINT64_C(1) << 62)
uint64_t repair_wrong(const struct report *report);

/* The same, if less than `below` is wrong then. */
int repair_take_better(struct repair *repair, enum check_id why, const struct patch *patches,
    size_t count, uint64_t below);

/* Plans the other width of L2 entries (the header's bit for extended ones) where it is theirs. Once
 * a repair. */
int repair_l2_width(struct repair *repair);

/* repair_geometry.c: the first of these fields that is found wrong; and clusters of a size that
 * cannot be. */
int repair_geometry(struct repair *repair);
int repair_cluster_bits(struct repair *repair, enum check_id why);

/* repair_compression.c: compression type and its bit contradict each other, or it is unknown. */
int repair_compression(struct repair *repair, enum check_id why);

/* Carries out one stage alone, as often as it finds something, on a view of the image to which
 * only the caller looks. */
int repair_on_view(const struct repair *repair, struct io *view, repair_stage *stage);

/* What is stored as counts says nothing about the image as it is. */
bool repair_counts_nothing(const struct repair *repair);

/* The table of snapshots is lost, but not all L1 tables that it named: plans a new one with these,
 * under new names.  Nothing is planned where there are none; -ENOSPC: no room for it yet. */
int repair_adopt_snapshots(struct repair *repair, enum check_id why);

/* At the beginning of a round: finds what lost tables name, and the L2 tables that are rather guest
 * data (rather_data). */
int repair_find_doubtful(struct repair *repair);

/* The L2 tables of the round that are not to be believed, into repair->fakes.  0 or -errno. */
int repair_find_fakes(struct repair *repair);

/* The neighbours of the L2 entry that the finding is about map what lies beside what it names. */
bool repair_goes_on(const struct repair *repair, const struct finding *finding);

/* Half of the entries of the disk's L1 table make no sense: it may lie elsewhere. */
bool repair_doubts_root(const struct repair *repair, const struct tree *tree);

/* What a lost table names is no L1 table, and no table of snapshots. */
bool repair_is_no_root(const struct repair *repair, uint64_t host_off);

/* Not only L2 entries lost something: what an L1 entry or a bitmap lost misses a reference, too. */
bool repair_lost_others(const struct repair *repair);

/* Where an L2 table of zeros lies that may have lost what leaks, 0 if none does.  A table whose
 * entries a crash kept from being written looks just so, but has not that much behind it. */
uint64_t repair_emptied_table(const struct repair *repair);

/* Half of what the refcount table says makes no sense: it may be guest data to which the header has
 * come to point, and is made anew elsewhere. */
bool repair_is_no_reftable(const struct repair *repair);

/* The entries of the L2 table in `table` leave out clusters *first to *end - 1, this one among
 * them, with as many of them empty: it, too, lost data there. */
bool repair_leaves_out(const struct repair *repair, const uint8_t *table, uint64_t cluster,
    uint64_t *first, uint64_t *end);

/* The cluster may be data of a disk, by what its neighbours map; also where too many tables would
 * have to be read. */
bool repair_fills_gap(const struct repair *repair, uint64_t host_off);

/* So many patches more may be tried in this repair. */
bool repair_may_try(const struct repair *repair, size_t count);

/* Begins the plan anew. */
void repair_new_plan(struct repair *repair);

/* Plans a new refcount structure that reaches a good piece beyond the end of the file. */
int repair_make_room(struct repair *repair);

/* The round has a finding of that check. */
bool repair_has(const struct repair *repair, enum check_id check);

/* One about that host offset. */
bool repair_has_at(const struct repair *repair, enum check_id check, uint64_t host_off);

/* Where the entry lies that a finding is about. */
uint64_t repair_entry_off(const struct repair *repair, const struct finding *finding);

/* The stored count is higher than the references found: somebody's reference is missing. */
bool repair_deficit(const struct repair *repair, uint64_t host_off);

/* There is a stored count for the cluster. */
bool repair_counted(const struct repair *repair, uint64_t host_off);

/* The entry is one bit of an offset, and what it names is counted once: of the active disk an empty
 * one with a bit wrong, since the entry of that owner would have COPIED. */
bool repair_is_stray_bit(const struct repair *repair, uint64_t raw);

/* The file once went on there: what points there is right, the file was cut off. */
bool repair_was_cut_off(const struct repair *repair, uint64_t host_off);

/* Orders uint64_t. */
int repair_compare_offsets(const void *a, const void *b);

/* Collects for the round what repair_has_damaged_entries() is asked for each of 65536 disks.
 * -ENOMEM. */
int repair_note_damaged(struct repair *repair);

/* An entry of the L1 table that the disk has is damaged. */
bool repair_has_damaged_entries(const struct repair *repair, const struct tree *tree);

/* The entry names what metadata lies on, and it is the latter that makes no sense: a refcount
 * structure, that is made anew elsewhere first, or an L1 table, that is found elsewhere. */
bool repair_on_nonsense(const struct repair *repair, const struct finding *finding);

/* What lies there does not look like the L2 table for which an L1 entry takes it: it is the entry
 * that is wrong. */
bool repair_names_no_table(const struct repair *repair, uint64_t host_off);

/* The refcount table's entry that the finding is about would name a block without the reserved
 * bits that are set in it.  Where not, the table is made anew. */
bool repair_names_block(const struct repair *repair, const struct finding *finding);

/* Where the data of the header extension lies; 0 if it is not there in that length. */
uint64_t repair_ext_off(const struct walk *walk, uint32_t type, uint32_t length);

/* The compressed data of the entry makes a whole cluster.  Once too much was decoded the answer is
 * no, and the stage that asked comes to nothing. */
bool repair_decodes(const struct repair *repair, const struct qcow2_l2_entry *entry);

/* The same, were `type` the compression type (of which unknown ones decode nothing). */
bool repair_decodes_as(
    const struct repair *repair, uint32_t type, const struct qcow2_l2_entry *entry);

/* Gives a compressed entry the shortest length with which its data makes a whole cluster; false if
 * there is none. */
bool repair_shorten(const struct repair *repair, uint64_t *raw);

/* Every cluster that the entry touches misses a reference, or is in the range that the entry which
 * it would replace claims; compressed data decodes. */
bool repair_entry_missed(const struct repair *repair, const struct qcow2_l2_entry *e,
    uint64_t own_off, uint64_t own_len);

/* Takes the clusters of an entry (16 bytes are read), and sets COPIED in it where that is right. */
int repair_take_entry(struct repair *repair, const struct table *table, uint8_t *entry);

/* The same, and plans it. */
int repair_put_entry(struct repair *repair, enum check_id why, const struct table *table,
    uint64_t entry_off, const uint8_t *entry);

/* Clusters that miss references, the first of them; a hundred thousand entries ask for them. */
struct missing {
    struct missing_cluster {
        uint64_t cluster;
        uint64_t packed; /* for who looks whether it decodes; 0: nobody did */
    } * items;
    size_t count;
};
int repair_find_missing(const struct repair *repair, size_t most, struct missing *missing);

/* The host offset of the only cluster of the image that misses its reference; 0: several, or none.
 */
uint64_t repair_only_leak(const struct repair *repair);

/* The first one, from number *at on, that still does, NULL if there is none; *at goes behind it. */
struct missing_cluster *repair_next_missing(
    const struct repair *repair, struct missing *missing, size_t *at);

/* From now on the missing reference is accounted for. */
int repair_take(struct repair *repair, uint64_t host_off, uint64_t refs);

#endif
