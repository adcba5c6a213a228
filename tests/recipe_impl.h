/* SPDX-License-Identifier: MIT
 *
 * What the files of the recipe language share; see recipe.h.
 *
 *   recipe.c         the statements, the arena
 *   recipe_start.c   the first statement
 *   recipe_use.c     what a finished recipe gives
 *   recipe_args.c    the words of a line: numbers, key=value, quoted text
 *   recipe_expr.c    expressions, loading and storing of named values
 *   recipe_name.c    names of fields and tables, from the layout
 *   recipe_damage.c  damage statements
 *   recipe_build.c   guest data, L2 tables, snapshots: what is placed while the recipe runs
 *   recipe_finish.c  what can only be written when all is placed: refcounts and tables
 *   recipe_header.c  the first cluster
 *
 * Invariant: a recipe has two parts.  Until r->finished the tables live in memory only; after
 * it they are in the image, the layout does not change any more, and only damage may follow. */
#ifndef TESTS_RECIPE_IMPL_H
#define TESTS_RECIPE_IMPL_H

#include <errno.h>

#include "recipe.h"

struct l2_table {
    uint64_t host_off;
    bool frozen; /* a snapshot has it: copied before the next change */
    bool written;
    uint64_t *raw, *bitmap; /* descriptors without COPIED, and subcluster bitmaps */
};

struct l1_table {
    uint64_t host_off;
    uint32_t size;
    struct l2_table **l2; /* `size` slots */
};

struct recipe_snapshot {
    struct l1_table l1;
    const char *id, *name;
    uint64_t date_sec, date_nsec, clock_nsec, vm_state_size, disk_size, icount, extra_len;
    uint64_t record_off;
};

struct recipe_bitmap {
    const char *name;
    uint64_t flags, type, granularity_bits, extra_len;
    uint64_t table_off, table_size;
    uint64_t *table;
    uint64_t record_off;
};

struct recipe_ext {
    uint32_t type, length;
    const uint8_t *data;
    uint64_t head_off;
};

struct recipe_range {
    uint64_t host_off, length;
};

struct recipe {
    const char *name; /* for messages */
    unsigned line;
    char *error;
    struct arena_block *arena;

    bool started, finished, raw_image;
    struct io *io, *pristine, *data; /* pristine: the image before the first damage */
    struct qcow2_header header;
    struct qcow2_geometry geo;
    const char *backing_name, *backing_format, *data_name;

    uint64_t next_cluster; /* bump allocator */
    uint8_t *frozen;       /* by host cluster: also a snapshot's */
    uint64_t frozen_count;
    uint64_t packed_off, packed_refs; /* where the next compressed cluster may start */

    struct l1_table active;
    struct recipe_snapshot *snapshots;
    size_t snapshot_count;
    uint64_t snapshot_table_off;
    struct recipe_bitmap *bitmaps;
    size_t bitmap_count;
    uint64_t bitmap_dir_off;
    uint64_t crypto_off, crypto_len;
    bool feature_names;
    uint8_t *features;
    uint32_t features_len;
    struct recipe_ext *exts;
    size_t ext_count;
    uint64_t *refs; /* by host cluster, from recipe_finish() on */
    uint64_t *refblocks;
    uint64_t refblock_count;
    struct recipe_range *unreadable;
    size_t unreadable_count;
};

/* ---- recipe.c ------------------------------------------------------------------------------- */

/* Formats "file:line: message" for the caller of the recipe; recipe_fail() is also the error. */
void recipe_say(struct recipe *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define recipe_fail(r, ...) (recipe_say((r), __VA_ARGS__), -EINVAL)

/* Zeroed memory that lives as long as the recipe. */
void *recipe_alloc(struct recipe *r, size_t count, size_t size);

/* The array with room for one more element, the new one zeroed. */
void *recipe_grow(struct recipe *r, void *array, size_t count, size_t size);

/* ---- recipe_args.c -------------------------------------------------------------------------- */

/* A place in a line. */
struct cursor {
    struct recipe *r;
    const char *p;
    struct io *io; /* where names read: the image, or the pristine one inside was() */
    unsigned depth;
};

enum arg_kind { ARG_NUMBER, ARG_TEXT, ARG_FLAG };
struct arg {
    const char *key;
    enum arg_kind kind;
    void *to; /* uint64_t, const char * or bool */
};

void skip_space(struct cursor *c);
bool at_end(struct cursor *c);
/* Takes `text` if it stands here; a word only as a whole. */
bool accept(struct cursor *c, const char *text);
int read_word(struct cursor *c, char *word, size_t size);
/* "text" in double quotes, or what stands up to the next space. */
int read_text(struct cursor *c, const char **text, size_t *length);
/* The rest of the line: key=value and flags, each at most as often as one likes; the last wins. */
int read_args(struct cursor *c, const struct arg *args, size_t count);
/* Hex digits with spaces as one likes, or quoted text. */
int read_bytes(struct cursor *c, uint8_t **bytes, size_t *length);

/* ---- recipe_expr.c -------------------------------------------------------------------------- */

enum ref_kind { REF_CONST, REF_INT, REF_OFFSET_FIELD, REF_L2_OFFSET_FIELD, REF_REFCOUNT };

/* Something a name stands for. */
struct ref {
    enum ref_kind kind;
    uint64_t value;    /* REF_CONST */
    uint64_t host_off; /* where it is stored, else */
    unsigned width;    /* bytes, REF_INT */
    unsigned sub_idx;  /* REF_REFCOUNT: which of the counts in that byte */
};

int read_number(struct cursor *c, uint64_t *value); /* a whole expression */
int ref_load(struct cursor *c, const struct ref *ref, uint64_t *value);
int ref_store(struct cursor *c, const struct ref *ref, uint64_t value);

/* ---- recipe_start.c ------------------------------------------------------------------------- */

int recipe_start(struct cursor *c);
int recipe_start_raw(struct cursor *c);
int recipe_add_feature(struct recipe *r, uint8_t type, uint8_t bit, const char *name);

/* ---- recipe_name.c, recipe_damage.c --------------------------------------------------------- */

int read_name(struct cursor *c, struct ref *ref);
int damage_statement(struct cursor *c);

/* ---- recipe_build.c ------------------------------------------------------------------------- */

uint64_t build_alloc(struct recipe *r, uint64_t clusters);
bool build_frozen(const struct recipe *r, uint64_t host_off);
/* Makes room for `entries` slots; a new host place if the table outgrows its clusters. */
void build_l1_resize(struct recipe *r, struct l1_table *l1, uint32_t entries);
int build_data(struct recipe *r, struct l1_table *l1, uint64_t guest_off, uint64_t length,
    const struct recipe_pattern *pattern);
int build_compressed(struct recipe *r, uint64_t guest_off, uint64_t length,
    const struct recipe_pattern *pattern, bool apart);
int build_zero(struct recipe *r, uint64_t guest_off, uint64_t length, bool prealloc,
    const struct recipe_pattern *stale);
int build_discard(struct recipe *r, uint64_t guest_off, uint64_t length);
int build_snapshot(
    struct recipe *r, const struct recipe_snapshot *plan, const struct recipe_pattern *vm_state);

/* Compresses one cluster into a buffer of that size; 0 bytes when it does not get smaller. */
size_t recipe_compress(enum qcow2_compression type, const uint8_t *src, uint8_t *dst, size_t size);

/* ---- recipe_finish.c ------------------------------------------------------------------------ */

int recipe_finish(struct recipe *r);

/* ---- recipe_header.c ------------------------------------------------------------------------ */

int recipe_write_header(struct recipe *r);

#endif
