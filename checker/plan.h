/* SPDX-License-Identifier: MIT
 *
 * A repair plan: edits in the order in which they may safely become durable.
 *
 * A plan is made from one finished walk and holds for the image as that walk saw it.  Its phases
 * are separated by flushes, so that a power cut between any two writes leaves an image that is no
 * worse than before and that can be repaired again:
 *
 *   NEW      copies and tables in clusters that nobody uses, counts that go up, COPIED cleared
 *   TAKE     counts of those clusters: a counted cluster always has its content, so that one left
 *            over by a power cut cannot be taken for lost data with other content
 *   SWITCH   pointers: to what the phase before made, or to what was lost and found
 *   RELEASE  counts that go down, COPIED set, marks cleared
 *
 * Clusters are allocated only where stored count and census both say that nobody uses them. */
#ifndef CHECKER_PLAN_H
#define CHECKER_PLAN_H

#include <stdio.h>

#include "walk.h"

enum phase { PHASE_NEW, PHASE_TAKE, PHASE_SWITCH, PHASE_RELEASE, PHASE_COUNT };

enum edit_kind {
    EDIT_BYTES,    /* a field */
    EDIT_DATA,     /* a table or a cluster */
    EDIT_COPY,     /* a cluster as it is at the time */
    EDIT_REFCOUNT, /* one stored count, in the block that is there */
    EDIT_LOWER,    /* the same, by so many references: see plan_falls_by() */
    EDIT_REFBLOCK, /* all counts of a block, from the census */
};

enum { EDIT_FIELD_BYTES = 16 };

struct edit {
    enum edit_kind kind;
    enum phase phase;
    enum check_id why;
    uint64_t host_off, length;
    union {
        uint8_t bytes[EDIT_FIELD_BYTES];
        uint8_t *data; /* owned by the plan */
        uint64_t src_off;
        struct {
            uint64_t cluster, value;
        } count;
        struct {
            uint64_t table_idx;
            bool lower; /* down to the references; else only up to them */
        } block;
    };
};

/* A choice that was made, or what is given up: told to the user. */
struct remark {
    char text[200];
};

struct plan {
    struct walk *walk;
    struct edit *edits;
    size_t count, room;
    struct remark *remarks;
    size_t remark_count, remark_room;
    uint64_t alloc_next;           /* clusters below it are taken or were tried */
    uint64_t alloc_end;            /* host offset behind which nothing is put */
    uint64_t run_first, run_count; /* clusters of a new refcount structure, counted as used once */
    bool void_counts;              /* then: what is stored tells nothing */
    bool rebuild;                  /* refcounts are made anew: see repair_refcount.c */
    bool careful;                  /* no field is changed in a table that may be none */
    bool needs_mark; /* not every prefix of it can simply be followed by running it again */
};

/* Entries of a file that was cut off still name `alloc_end` or what is behind it, UINT64_MAX: none
 * do.  Were the file to grow to there they would show what is put there, or zeros as if nothing had
 * been lost. */
void plan_init(struct plan *plan, struct walk *walk, uint64_t alloc_end);
void plan_release(struct plan *plan);

/* False where a refcount structure or a bitmap lies on what somebody else uses, too: as long as it
 * is not known whose the bytes are, nothing is written there. */
bool plan_writable(const struct plan *plan, uint64_t host_off);

/* The L1 table of a snapshot there lies on what L2 entries name, and on no other metadata: either
 * of them may be wrong, and what is written changes what a guest reads. */
bool plan_on_data(const struct plan *plan, uint64_t host_off);

/* A field there would be changed: what is made for it only if so. */
bool plan_takes_field(const struct plan *plan, uint64_t host_off);

/* Many of its entries make no sense: perhaps it is no L2 table, but what the pointer to it was
 * damaged into. */
bool plan_doubts(const struct table *table);

/* Each returns 0 or -ENOMEM.  A field or count that is not writable is left out. */
int plan_bytes(struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off,
    const void *bytes, size_t length);
int plan_be64(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off, uint64_t value);
int plan_be32(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off, uint32_t value);
/* Takes `data` (malloc'd), also when it fails. */
int plan_data(struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off,
    uint8_t *data, uint64_t length);
int plan_copy(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t src_off, uint64_t host_off);
int plan_refcount(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t cluster, uint64_t value);
/* `refs` references to the cluster will be gone: the stored count falls with those that it covers,
 * so that nothing seems to be missing afterwards. */
int plan_lower(struct plan *plan, enum check_id why, uint64_t cluster, uint64_t refs);
int plan_refblock(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t table_idx, bool lower);
int plan_remark(struct plan *plan, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* `count` clusters in a row that nobody uses, with a stored count that can be set; -ENOSPC if there
 * are none.  Sets their counts to `refs` in phase TAKE. */
int plan_alloc(
    struct plan *plan, enum check_id why, uint64_t count, uint64_t refs, uint64_t *cluster);

/* By how much the stored count falls: what was missing in it before, is not taken from it. */
uint64_t plan_falls_by(const struct plan *plan, const struct edit *edit);

/* Another one for each plan but by chance, together with what else is to be told apart. */
uint64_t plan_fingerprint(const struct plan *plan, const uint64_t *facts, size_t count);

/* Eight bytes of the image as they will be once this plan is applied. */
int plan_peek(const struct plan *plan, uint64_t host_off, uint64_t *value);

/* The counts of block `table_idx` as the census has them; block_bytes hold what is stored. */
void plan_fill_block(const struct plan *plan, uint64_t table_idx, bool lower, uint8_t *block_bytes);

/* Writes the plan to `io`, flushing between phases and at the end; stops before a phase when *stop
 * is set (-EINTR).  `log`, if not NULL, gets a line per edit; with `io` NULL nothing is written. */
int plan_apply(struct plan *plan, struct io *io, FILE *log);

#endif
