/* SPDX-License-Identifier: MIT
 *
 * Lost L2 tables and the L1 entries that may have lost them; for the files of that repair only.
 *
 *   repair_l1_find.c   which tables there are
 *   repair_l1_places.c which places
 *   repair_l1_score.c  what speaks for a pair
 *   repair_l1_swap.c   entries that stand in each other's place
 *   repair_l1.c        which pairs are made */
#ifndef CHECKER_REPAIR_L1_H
#define CHECKER_REPAIR_L1_H

#include "repair.h"

enum { MAX_CANDIDATES = 64, MAX_PLACES = 512, MAX_HOLES = 128 };

/* What speaks for a pair, the strongest last. */
enum {
    FITS = 1,
    BESIDE = 2,           /* it lies in order with the one neighbour that has a table */
    ENDS = 4,             /* its last entry is at the disk's end, where guests keep something */
    WITHIN = 8,           /* it lies between the tables of the neighbours */
    CONTINUES = 16,       /* its data goes on where that of a neighbour ends */
    EARLIER = 32,         /* an older disk has a table at that place: so has every later one */
    KIN = 64,             /* it shares clusters with what another disk has at that place */
    OTHER_DISK = 128,     /* another disk has this table at that place */
    ONE_BIT = 256,        /* the entry is a bit away from it, or points into it */
    OWN = 512,            /* its flags and counts are those of such a disk's table */
    PLACE_IS_SAID = 1024, /* data file: the entries themselves say it */
};
#define STRONG (KIN | OTHER_DISK | ONE_BIT | PLACE_IS_SAID)
#define WEAK   (FITS | BESIDE | ENDS)

enum owner_kind { ANYBODY, ACTIVE_DISK, SNAPSHOTS };

struct candidate {
    uint64_t host_off;
    struct l2_look look;
    enum owner_kind whose;
    uint32_t first, last, last_but_one; /* entries that are not 0, but for odd ones */
    uint64_t first_data, last_data; /* host offsets of the outermost entries, 0 if they have none */
    uint64_t spare;                 /* references it misses */
    bool bare;                      /* no data behind it: only an entry's bits can speak for it */
    uint8_t *bytes;
};

struct place {
    enum check_id check;
    int tree;
    uint32_t l1_idx;
    uint64_t entry_off, raw;
    bool crowded;  /* only the count of its table says that something is wrong */
    bool on_data;  /* it names guest data */
    unsigned home; /* what speaks for the table that it has */
    bool filled;
};

struct match {
    struct repair *repair;
    struct candidate *candidates;
    size_t candidate_count;
    struct place *places;
    size_t place_count;
    uint16_t *scores; /* of each place, for each candidate */
};

/* All places and candidates, each once, by their offsets.  0 or -ENOMEM. */
int match_find(struct match *m);
void match_release(struct match *m);

/* Places that are wrong by what the check found; and those that may be, where more tables are lost
 * than there are such. */
void match_add_places(struct match *m);
void match_add_doubtful(struct match *m);

/* Places still open that are wrong for sure, and references that tables with data miss. */
size_t match_count_open(const struct match *m);
size_t match_count_spare(const struct match *m);

/* Fills in what its entries tell of a candidate that has its bytes. */
void match_look_closer(struct repair *repair, struct candidate *c);

/* The bits that speak for the pair, 0 if it cannot be. */
unsigned match_score(struct match *m, const struct place *p, const struct candidate *c);

/* The same for the table that a place has now, into p->home.  0 or -ENOMEM. */
int match_score_home(struct match *m, struct place *p);

/* What other disks have at the place that speaks for the table: OTHER_DISK, KIN. */
unsigned match_score_disks(struct match *m, const struct place *p, const struct candidate *c);

/* How many of them there are. */
size_t match_count_disks(struct match *m, const struct place *p, const struct candidate *c);

/* Plans to swap entries of a disk that stand in each other's place.  0 or -ENOMEM. */
int match_swap_back(struct match *m);

/* The L2 table that a disk has at that index, 0 if none. */
uint64_t match_table_at(const struct match *m, int tree_idx, uint64_t l1_idx);

/* The entry names a table; it is only that something else does so, too. */
static inline bool may_be_right(const struct place *p)
{
    return !p->on_data &&
           (p->check == CHECK_l1_entry_shared || p->check == CHECK_l1_entry_into_data);
}

#endif
