/* SPDX-License-Identifier: MIT
 *
 * The oracle: healthy images by imgmake, damages by damage, both checkers, their verdicts compared.
 *
 * Item i of a run is one damaged image of specimen.h; the healthy one is compared, too. */
#ifndef TESTS_ORACLE_RUN_H
#define TESTS_ORACLE_RUN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "differences.h"
#include "items.h"

struct oracle_totals {
    uint64_t damaged, sound, not_made, equal, named, differ;
    uint64_t unsound; /* made by QEMU's own programs, and qemu-img check complains */
    uint64_t qemu_exits[256], own_exits[256];
    uint64_t reasons[DIFFERENCE_COUNT];
};

/* 0, or -errno when an image could not be copied or damaged. */
int oracle_run(const struct item_options *options, struct oracle_totals *totals);

/* The qcheck that was built with this program, or NULL if there is none; free() it. */
char *oracle_find_qcheck(void);

#endif
