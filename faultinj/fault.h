/* SPDX-License-Identifier: MIT
 *
 * The device model, and what a fault is.
 *
 * Between two successful flushes a device owes nothing about the order of what it was given.  An
 * epoch is that: the durable content when it began, and for each unit (the piece the device writes
 * whole) the chain of versions that the requests made of it.  A power cut leaves any unit at any of
 * its versions, each on its own, and the size at any value on the way.  So a state is a vector of
 * choices, one per factor: the units, then the size.
 *
 * A fault model is a way to walk those vectors, after it has added, perhaps, versions that a worse
 * device may leave; and a promise: what still holds then. */
#ifndef FAULTINJ_FAULT_H
#define FAULTINJ_FAULT_H

#include "record.h"
#include "state.h"

enum { VERSION_DURABLE = 0, NO_REQUEST = -1 };

struct version {
    uint8_t *bytes;   /* of the whole unit */
    uint64_t *hashes; /* of its sectors */
    uint64_t hash;    /* what it adds to a state's hash */
    int64_t request;  /* that made it; NO_REQUEST: it was there, or a fault made it */
    bool unreadable;
    bool worse; /* a fault's addition, not something that was ever written */
};

struct unit {
    uint64_t idx; /* host offset / unit size */
    unsigned count, room;
    size_t settled; /* events before this one are none of its */
    struct version *versions;
};

/* Where the thing of a key was last put in a list; what is found there must be looked at, since
 * lists change.  Zeros: an empty one. */
struct places {
    struct place_slot {
        uint64_t key;
        size_t at; /* + 1; 0: free */
    } * slots;
    size_t size, count;
};

/* What a request did to a factor; for models that care about requests. */
struct event {
    size_t request;
    uint32_t factor;
    uint32_t version;
};

struct epoch {
    unsigned number;
    unsigned unit_bytes;
    size_t first, end; /* requests [first, end) of the recording */
    struct unit *units;
    size_t unit_count, unit_room;
    size_t touched;  /* units that were written to, also those whose bytes did not change */
    uint64_t *sizes; /* [0] the durable one, then those on the way */
    int64_t *size_requests;
    unsigned size_count, size_room;
    struct event *events;
    size_t event_count, event_room;
    size_t sizes_settled; /* events of sizes before this one are void */
    uint64_t durable_size, final_size;
    struct places by_idx, by_size, by_content; /* units; sizes; versions of all units */
};

/* Factors: units, then the size. */
static inline size_t epoch_factors(const struct epoch *epoch)
{
    return epoch->unit_count + 1;
}
static inline unsigned epoch_choices(const struct epoch *epoch, size_t factor)
{
    return factor < epoch->unit_count ? epoch->units[factor].count : epoch->size_count;
}

/* The requests [first, end) on top of `durable`, in units of `unit_bytes` (512 or 4096).  A write
 * with FUA that is not the last of them has completed: the chains of its units begin with it.  (A
 * log does not tell when requests were issued: what comes behind such a write is taken for issued
 * after it.) */
int epoch_build(const struct recording *recording, size_t first, size_t end,
    const struct state *durable, unsigned unit_bytes, struct epoch *out);
void epoch_release(struct epoch *epoch);

/* The next place at or behind `from` where power may be cut with something settled: at a flush,
 * which ends the epoch, or behind a write with FUA. */
size_t epoch_cut(const struct recording *recording, size_t from);
bool epoch_ends(const struct recording *recording, size_t cut); /* a flush, or the end */

/* Adds a version to a unit (a copy of `bytes`) unless it has it.  Returns its index, or -ENOMEM. */
int epoch_add_version(
    struct epoch *epoch, size_t unit, const uint8_t *bytes, int64_t request, bool worse);

/* Applies the requests to a state for good. */
int epoch_apply_all(
    const struct recording *recording, size_t first, size_t end, struct state *state);

/* All vectors: the product of the choices; saturates at UINT64_MAX. */
uint64_t epoch_product(const struct epoch *epoch);
long double epoch_product_log2(const struct epoch *epoch);

/* ---- models -------------------------------------------------------------------------------- */

/* Called with each vector of epoch_factors() choices; a result other than 0 ends the walk. */
typedef int fault_visit(void *arg, const unsigned *choice);
typedef int fault_walk(const struct epoch *epoch, fault_visit *visit, void *arg);
typedef int fault_extend(struct epoch *epoch, const struct recording *recording, uint64_t seed);

enum promise {
    PROMISE_FULL,     /* I1 to I8 hold */
    PROMISE_NOTICED,  /* what breaks is never silent: the checker says so, or all still holds */
    PROMISE_NO_CRASH, /* no format is safe here; the checker ends and says something */
};

struct fault_model {
    const char *name;
    const char *sentence; /* what the device does */
    unsigned unit_bytes;
    enum promise promise;
    fault_extend *extend; /* NULL: nothing is added */
    fault_walk *walk;     /* NULL: the whole product */
};

extern const struct fault_model fault_models[];
extern const size_t fault_model_count;
const struct fault_model *fault_model_find(const char *name);

fault_walk fault_prefix, fault_torn, fault_omit_one, fault_atomic;
fault_extend fault_garbage, fault_shorn, fault_unreadable, fault_stale, fault_discard_noise;

/* ---- calls that fail ----------------------------------------------------------------------- */

enum fault_call { FAULT_NONE, FAULT_READ, FAULT_WRITE, FAULT_FLUSH, FAULT_DISCARD, FAULT_ALLOC };

enum fault_mode {
    FAULT_ONCE,     /* that call only, with nothing done */
    FAULT_FOR_GOOD, /* that call and all of its kind after it */
    FAULT_SHORT,    /* a write that does its first half, then fails */
    FAULT_STOP,     /* that call and every other one after it */
    FAULT_DROP,     /* a flush that fails, and what was not durable is lost or not, though it can
                     * still be read; the next flush knows nothing of it: what real kernels do.
                     * Promised is what the handle that saw it does, not one opened after it */
    FAULT_LIE,      /* a flush that returns 0 and does nothing */
};

struct misbehaviour;

struct fault_plan {
    enum fault_call call;
    enum fault_mode mode;
    unsigned n; /* the n-th call of that kind, from 1 */
    int error;  /* -errno */
    unsigned seen;
    bool fired, dead;
    const struct misbehaviour *bug; /* of the engine, besides; NULL: none */
};

/* A filter over `next`, which it owns when it succeeds; `plan` must outlive it. */
int fault_error_open(struct io *next, struct fault_plan *plan, struct io **out);

/* The n-th allocation from now on returns NULL; 0 ends it.  Works in programs that are linked with
 * --wrap=malloc,--wrap=calloc,--wrap=realloc. */
void fault_alloc_arm(unsigned n);
unsigned fault_alloc_left(void); /* 0: it has failed */

#endif
