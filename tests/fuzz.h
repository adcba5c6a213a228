/* SPDX-License-Identifier: MIT
 *
 * Fuzzing: what the targets, their fuzzers and the suite share.
 *
 *   fuzz_<target>.c  one target each: takes an input, says whether every promise was kept
 *   fuzz_pack.c      inputs: images without their holes
 *   fuzz_mutate.c    changes that know the structures of an image, and mend nothing
 *   fuzz_io.c        time, memory and writes of one input
 *   fuzz_entry.c     the functions that libFuzzer and AFL++ look for
 *   fuzz_tool.c      seeds, and inputs as recipes */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "io.h"
#include "report.h"

enum { FUZZ_WHY_BYTES = 400 };

/* Runs one input.  False when a promise was broken; `why` says which one. */
typedef bool fuzz_target(const uint8_t *data, size_t size, char why[FUZZ_WHY_BYTES]);
fuzz_target fuzz_check, fuzz_repair, fuzz_engine, fuzz_dmlog;

/* For the targets' last lines: writes the sentence and is false. */
bool fuzz_broken(char why[FUZZ_WHY_BYTES], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- inputs (fuzz_pack.c) ----
 *
 * An input is an image without its holes: one byte of options, the file size in 8 bytes, then
 * records of offset (8), length (4) and bytes; with the top bit of the length set, one byte that
 * fills the range.  Big endian; any bytes are an input. */

struct fuzz_image {
    struct io *io; /* in memory; the caller closes it */
    uint8_t options;
    uint64_t stored; /* bytes that are no hole */
};

int fuzz_unpack(const uint8_t *data, size_t size, struct fuzz_image *out); /* 0 or -ENOMEM */

/* -ENOSPC when it takes more than `room` bytes. */
int fuzz_pack(struct io *io, uint8_t options, uint8_t *out, size_t room, size_t *size);

/* The same as statements of a recipe. */
int fuzz_print_recipe(const uint8_t *data, size_t size, FILE *out);

/* Changes an input in place; the new size.  Knows where header, tables, entries, records and
 * extensions are, and repairs nothing.  0: this one could not be understood. */
size_t fuzz_mutate(uint8_t *data, size_t size, size_t room, uint64_t seed);

/* ---- limits (fuzz_io.c) ---- */

/* A view of the image that counts.  It has room for FUZZ_GROWTH more bytes, and none behind
 * FUZZ_MAX_HOST, where the index of an image in memory would grow too large; then its device is
 * full. */
enum { FUZZ_GROWTH = 64 << 20 };
#define FUZZ_MAX_HOST (UINT64_C(64) << 30)

struct fuzz_io {
    struct io io;
    struct io *next;      /* not owned */
    uint64_t size_before; /* of the device */
    uint64_t stored;
    unsigned long calls, writes;
    bool full; /* a write found no room */
    bool wild; /* a write far behind the end of the device */
    uint64_t memory_before, memory_peak;
    double cpu_before;
};

void fuzz_io_init(struct fuzz_io *io, struct io *next, uint64_t stored_bytes);

/* CPU time and memory since fuzz_io_init() are in proportion to what the image stores. `passes`: as
 * often as the image may be walked over. */
bool fuzz_io_within(struct fuzz_io *io, unsigned passes, char why[FUZZ_WHY_BYTES]);

/* ---- for several targets ---- */

/* Checks an image: exit code; *report, if not NULL, is the caller's to release. */
int fuzz_judge(struct io *io, bool deep, struct report *report);

#endif
