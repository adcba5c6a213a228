/* SPDX-License-Identifier: MIT
 *
 * What the parts of the interplay test share: one run on one image. */
#ifndef TESTS_INTERPLAY_H
#define TESTS_INTERPLAY_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "proc.h"

enum { RUN_STEPS = 60, MAX_SNAPSHOTS = 6 };

struct kind {
    const char *options;         /* of qemu-img create and of qsnap new */
    uint32_t cluster_size, unit; /* unit: what a discard can zero */
    uint64_t size_bytes;
    bool v2, compress, bitmap, by_qemu_only, one_bit;
    enum { NO_BACKING, RAW_BACKING, BACKING_CHAIN } backing;
};

/* By seed; as many as there are. */
const struct kind *interplay_kind(unsigned seed);
unsigned interplay_kind_count(void);

struct disk {
    uint8_t *bytes;
    uint64_t size;
    char name[16];
};

struct run {
    const struct kind *kind;
    char path[PATH_MAX], raw[PATH_MAX], program_dir[PATH_MAX];
    unsigned seed, rng, step, names;
    struct disk active, snaps[MAX_SNAPSHOTS];
    unsigned snap_count;
    char story[512]; /* the step */
};

uint32_t interplay_random(struct run *run, uint32_t below);

/* Prints what went wrong and how to repeat it, and ends the program. */
void interplay_failed(const struct run *run, const char *format, ...)
    __attribute__((format(printf, 2, 3), noreturn));
void interplay_must(const struct run *run, struct proc_result result); /* frees the result */

/* Makes the run's image, in `dir`, and the model of its disk. */
void interplay_make_image(struct run *run, const char *dir);

#endif
