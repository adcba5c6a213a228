/* SPDX-License-Identifier: MIT
 *
 * Workloads: what the engine is made to do, and on which image.
 *
 * A workload is a list of operations, one a line in its text form:
 *
 *   write OFF LENGTH BYTE     guest data that follows from BYTE and the place
 *   discard OFF LENGTH
 *   create NAME | apply NAME | delete NAME
 *   resize SIZE | resize +SIZE | resize -SIZE
 *   flush | reopen | repair
 *   image KIND                in a file: the image to run on, if the caller names none
 *
 * Numbers take the suffixes c (clusters), k, M; lines from # on are comments. */
#ifndef FAULTINJ_WORKLOAD_H
#define FAULTINJ_WORKLOAD_H

#include "image.h"

enum op_kind {
    OP_WRITE,
    OP_DISCARD,
    OP_CREATE,
    OP_APPLY,
    OP_DELETE,
    OP_RESIZE,
    OP_FLUSH,
    OP_REOPEN,
    OP_REPAIR, /* closes the handle, and has the checker's repair mend the image */
    OP_CLOSE,  /* what every run ends with */
};

enum {
    OP_NAME_BYTES = 24,
    WORKLOAD_NAME_BYTES = 96,
    IMAGE_NAME_BYTES = 256,
    WORKLOAD_ERROR_BYTES = 160
};

struct op {
    enum op_kind kind;
    bool in_clusters; /* the numbers count clusters */
    int relative;     /* resize: +1, -1 or 0 */
    uint64_t guest_off, length;
    unsigned byte;
    char name[OP_NAME_BYTES];
};

struct workload {
    char name[WORKLOAD_NAME_BYTES]; /* what finds it again */
    char image[IMAGE_NAME_BYTES];   /* from a file's "image" line, else "" */
    struct op *ops;
    size_t count;
};

void workload_release(struct workload *workload);

/* Parses the text form.  -EINVAL with a message. */
int workload_parse(
    const char *name, const char *text, struct workload *out, char error[WORKLOAD_ERROR_BYTES]);

/* A workload by name: a built-in one; "seq-" and letters out of wopdcaxrf; "rnd-SEED-LENGTH"; or a
 * file's path (with a '/' or '.' in it).  -ENOENT. */
int workload_find(const char *name, struct workload *out, char error[WORKLOAD_ERROR_BYTES]);

struct workload_row {
    const char *name, *sentence, *text;
};
extern const struct workload_row workload_rows[];
extern const size_t workload_row_count;
extern const char workload_letters[]; /* of sequences */

/* One operation as text, for stories. */
void op_text(const struct op *op, char *out, size_t out_len);

const char *op_kind_name(enum op_kind kind);

/* Operations that are durable when they return success. */
bool op_commits(enum op_kind kind);

/* Does it.  OP_CLOSE and OP_REOPEN release *img; after them it is NULL or a new one on `io`. */
int op_apply(struct image **img, struct io *io, const struct op *op);

/* The bytes a write puts at a guest offset. */
void op_fill(unsigned byte, uint64_t guest_off, uint8_t *buf, size_t length);

/* ---- images (image_kind.c) ----------------------------------------------------------------- */

struct image_kind {
    const char *name, *sentence;
    struct image_options options;
    const char *setup;            /* operations that make it */
    int (*finish)(struct io *io); /* what the engine cannot make; NULL: nothing */
};
extern const struct image_kind image_kinds[];
extern const size_t image_kind_count;
const struct image_kind *image_kind_find(const char *name);

/* Damaged images, for the repair; image_kind_find() knows them, too. */
extern const struct image_kind image_kinds_hurt[];
extern const size_t image_kind_hurt_count;

/* The image in memory; the caller closes it. */
int image_kind_build(const struct image_kind *kind, struct io **out);

#endif
