/* SPDX-License-Identifier: MIT
 *
 * What suites with hostile images build these of: tables written in bulk, and how long it takes to
 * work at the image.  What fails fails the test. */
#ifndef TESTS_BOMB_H
#define TESTS_BOMB_H

#include "recipe.h"
#include "repair.h"

/* Times are multiplied by it: under ASan, and where `make coverage` counts each line. */
#if defined(__SANITIZE_ADDRESS__)
enum { BOMB_SLOWER = 10 };
#elif !defined(__OPTIMIZE__)
enum { BOMB_SLOWER = 40 };
#else
enum { BOMB_SLOWER = 1 };
#endif

/* The image of a recipe.  The caller frees it. */
struct recipe *bomb_text(const char *text);

/* The image of a recipe; `number` takes the place of its one %u.  The caller frees it. */
struct recipe *bomb_build(const char *format, unsigned number)
    __attribute__((format(printf, 1, 0)));

/* The value of an expression of recipes. */
uint64_t bomb_eval(struct recipe *recipe, const char *expression);

/* `count` 64-bit entries at `host_off`: `raw`, and each `step` more than the one before. */
void bomb_write_entries(
    struct recipe *recipe, uint64_t host_off, uint64_t raw, uint64_t step, size_t count);

/* A snapshot: bytes, bytes, entries, and the number that is its ID. */
struct bomb_record {
    uint64_t l1_off, disk_size;
    uint32_t l1_size;
    unsigned id;
};

/* A table of snapshots at `host_off`, and the header that names it. */
void bomb_write_records(
    struct recipe *recipe, uint64_t host_off, const struct bomb_record *records, unsigned count);

/* Repairs the image on one thread; the caller releases the report. */
struct report bomb_repair(struct recipe *recipe, bool lossy);

/* Processor time so far: it does not depend on what else the machine does. */
double bomb_seconds(void);

/* Fails the test if that was longer ago than `seconds`; with LIMITS=print in the environment prints
 * a row of the table of `make limits`. */
void bomb_within(double before, unsigned seconds, const char *what);

/* Like bomb_repair, and it ends with `exit_code`, and within `seconds`. */
struct report bomb_repair_within(
    struct recipe *recipe, bool lossy, int exit_code, unsigned seconds, const char *what);

#endif
