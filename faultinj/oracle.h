/* SPDX-License-Identifier: MIT
 *
 * The oracle: what a qcow2 image says, read once, with the invariants that need nothing else.
 *
 * A reader of its own on the pure format, so that no bug of the engine or the checker hides here:
 * it counts true references, compares them with stored counts and COPIED flags, and reduces every
 * disk to the hashes of its sectors, so that whole disks compare in no time. */
#ifndef FAULTINJ_ORACLE_H
#define FAULTINJ_ORACLE_H

#include "codec.h"
#include "qcow2.h"
#include "state.h"

/* I1 to I12, see the manual page. */
enum invariant {
    INVARIANT_NONE,
    INVARIANT_OPENS,
    INVARIANT_COUNTED,
    INVARIANT_COPIED,
    INVARIANT_OWNED,
    INVARIANT_SNAPSHOT_LIST,
    INVARIANT_DISK,
    INVARIANT_SNAPSHOTS,
    INVARIANT_CONTINUES,
    INVARIANT_REPAIRS,
    INVARIANT_DURABLE,
    INVARIANT_LEAKS,
    INVARIANT_FLUSHES,
    INVARIANT_COUNT
};
const char *invariant_sentence(enum invariant invariant);

enum { BREACH_TEXT_BYTES = 192 };

/* A broken promise; invariant NONE: there is none. */
struct breach {
    enum invariant invariant;
    char text[BREACH_TEXT_BYTES];
};

/* Fills the breach unless it holds one; returns false for `return breach_note(...)`. */
bool breach_note(struct breach *breach, enum invariant invariant, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A sector of a guest disk that is not all zeros. */
struct guest_sector {
    uint64_t sector, hash;
};

struct disk_model {
    uint64_t size_bytes;
    struct guest_sector *list; /* ascending */
    size_t count, room;
};

struct snapshot_model {
    uint64_t record_hash;   /* of the whole record but where its L1 is */
    struct disk_model disk; /* VM state included */
};

/* What users see of an image. */
struct model {
    struct disk_model active;
    struct snapshot_model *snapshots;
    uint32_t snapshot_count, snapshot_room;
};

void model_release(struct model *model);
int model_copy(const struct model *from, struct model *to); /* `to` is overwritten, not released */

bool disk_same(const struct disk_model *a, const struct disk_model *b, uint64_t *sector);
bool snapshots_same_records(const struct model *a, const struct model *b);
bool snapshots_same_disks(
    const struct model *a, const struct model *b, uint32_t *snapshot, uint64_t *sector);

/* What the oracle knows about a host cluster. */
struct host_cluster {
    uint32_t refs;
    uint8_t owner; /* enum owner of oracle.c; 0: nobody */
    bool active;   /* guest data that the active disk refers to */
    uint64_t place;
};

struct oracle {
    struct qcow2_header header;
    struct qcow2_geometry geo;
    uint64_t size_bytes;
    struct model model; /* of the last state looked at */
    struct host_cluster *clusters;
    uint64_t cluster_count, cluster_room;
    struct copied_entry {
        uint64_t cluster, guest_cluster;
        bool l1;
    } * copied;
    size_t copied_count, copied_room;
    struct codec *codec;
    uint8_t *plain;    /* a decoded cluster */
    bool counts_known; /* false: the dirty bit says that stored counts may lag behind */
    bool no_memory;
    /* Damaged images: what cannot be is passed over, counts and flags are read but not judged. */
    bool lenient;
};

void oracle_init(struct oracle *oracle);
void oracle_release(struct oracle *oracle);

/* Looks at a state: I1 to I4, and what users see, in oracle->model.  False with `breach` filled
 * when a promise is broken, and false with oracle->no_memory, from then on, when memory ran out. */
bool oracle_look(struct oracle *oracle, const struct state *state, struct breach *breach);

/* The stored refcount; 0 where no block covers the cluster. */
uint64_t oracle_stored(const struct oracle *oracle, const struct state *state, uint64_t cluster);

#endif
