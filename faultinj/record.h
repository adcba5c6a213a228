/* SPDX-License-Identifier: MIT
 *
 * Recording: a layer that passes everything on and remembers it. */
#ifndef FAULTINJ_RECORD_H
#define FAULTINJ_RECORD_H

#include "io.h"

enum request_kind { REQUEST_WRITE, REQUEST_RESIZE, REQUEST_DISCARD, REQUEST_FLUSH };

struct request {
    enum request_kind kind;
    uint64_t host_off; /* resize: the new size */
    uint64_t length;
    uint8_t *data;   /* of a write */
    unsigned op;     /* the operation that issued it, as recording->op said */
    bool fua;        /* a write that was durable when it completed */
    int result;      /* what the layer below answered */
    char *backtrace; /* innermost function first; NULL where not asked for or not to be had */
};

/* Result of a flush that failed, and after which the device has forgotten what it lost. */
enum { FLUSH_LOST = 1 };

struct recording {
    struct request *list;
    size_t count, room;
    unsigned op;
    bool backtraces; /* slow: a string for each request */
    bool no_memory;  /* something is missing */
};

void recording_release(struct recording *recording);

/* Appends a copy of the request; its data and backtrace are copied too. */
int recording_add(struct recording *recording, const struct request *request);

/* A copy of all of it. */
int recording_copy(const struct recording *from, struct recording *to);

void recording_remove(struct recording *recording, size_t idx);

/* Moves request `from` so that it stands before the one now at `to`. */
void recording_move(struct recording *recording, size_t from, size_t to);

/* A filter over `next`, which it owns when it succeeds; `recording` must outlive it. */
int record_open(struct io *next, struct recording *recording, struct io **out);

const char *request_kind_name(enum request_kind kind);

/* The functions that led to this request, as "f < g < h"; malloc'd.  NULL without libunwind. */
char *backtrace_text(void);

#endif
