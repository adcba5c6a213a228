/* SPDX-License-Identifier: MIT
 *
 * Where things are in a healthy image: every field and table a random damage may aim at.  Used by
 * tests only; it trusts the image. */
#ifndef TESTS_SURVEY_H
#define TESTS_SURVEY_H

#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "qcow2.h"

enum survey_place {
    SURVEY_HEADER,
    SURVEY_EXTENSION,
    SURVEY_L1,
    SURVEY_L2,
    SURVEY_SNAPSHOT_L1,
    SURVEY_SNAPSHOT_L2,
    SURVEY_REFTABLE,
    SURVEY_REFCOUNT,
    SURVEY_SNAPSHOT,
    SURVEY_BITMAP,
    SURVEY_BITMAP_TABLE,
    SURVEY_PLACES,
};

/* What the values of an array are, and so which damages make sense. */
enum survey_traits {
    SURVEY_OFFSET = 1 << 0, /* a host offset, perhaps with flags in the bits an offset leaves */
    SURVEY_COUNT = 1 << 1,  /* a number: size, length, count */
    SURVEY_FLAGS = 1 << 2,
    SURVEY_ENTRY = 1 << 3,    /* L1 or L2 entry: COPIED and its like */
    SURVEY_SUBBITS = 1 << 4,  /* subcluster bitmap */
    SURVEY_STORED = 1 << 5,   /* stored refcounts */
    SURVEY_IS_TABLE = 1 << 6, /* fills clusters of its own */
};

/* `count` equal values in a row; a single field is an array of one. */
struct survey_array {
    enum survey_place place;
    unsigned traits;
    uint64_t host_off;
    uint64_t count;
    unsigned width;  /* bytes of a value; 0: refcounts, whose width the geometry tells */
    unsigned stride; /* bytes from one to the next */
    char label[48];
};

struct survey {
    struct qcow2_header header;
    struct qcow2_geometry geo;
    uint64_t file_bytes;
    struct survey_array *arrays;
    size_t array_count;
};

/* One value of an array. */
struct survey_value {
    const struct survey_array *array;
    uint64_t idx;
    uint64_t value;
    unsigned bits; /* its width */
};

/* 0, -errno of the device or memory, or -EINVAL if this is not a qcow2 image. */
int survey_open(struct io *io, struct survey **out);
void survey_close(struct survey *survey);

/* The first byte the value touches. */
uint64_t survey_value_off(const struct survey *survey, const struct survey_value *v);

/* Reads value v->idx of v->array, as it stands now; what lies past the end of the file is 0. */
int survey_read(const struct survey *survey, struct io *io, struct survey_value *v);

/* Writes `value` in its place; *v stays as it is. */
int survey_write(
    const struct survey *survey, struct io *io, const struct survey_value *v, uint64_t value);

#endif
