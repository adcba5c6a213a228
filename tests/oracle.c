/* SPDX-License-Identifier: MIT
 *
 * build/tests/oracle N SEED [--keep DIR] [--only I] [--verbose]
 *
 * Compares qcheck with qemu-img check on N damaged images and the healthy ones they come from.
 * Exit 0: equal, or different for a reason with a name; 2: some differ without one; 1: could not
 * run. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "oracle_run.h"
#include "proc.h"

static void print_exits(const char *who, const uint64_t exits[256])
{
    printf("%s:", who);
    for (int i = 0; i < 256; i++) {
        if (exits[i])
            printf("  exit %d: %" PRIu64, i, exits[i]);
    }
    printf("\n");
}

static void print_totals(const struct oracle_totals *t, double seconds)
{
    double images = (double)(t->damaged + t->sound);
    printf("%" PRIu64 " damaged images, %" PRIu64 " healthy ones, %.0f s, %.1f images/s\n",
        t->damaged, t->sound, seconds, images / seconds);
    if (t->not_made || t->unsound)
        printf("QEMU's own failures: %" PRIu64 " images could not be made, %" PRIu64
               " came out unsound\n",
            t->not_made, t->unsound);
    print_exits("qemu-img", t->qemu_exits);
    print_exits("qcheck", t->own_exits);
    printf("equal: %" PRIu64 "  named difference: %" PRIu64 "  unexplained: %" PRIu64 "\n",
        t->equal, t->named, t->differ);
    for (unsigned i = 0; i < DIFFERENCE_COUNT; i++) {
        if (t->reasons[i])
            printf("    %-32s %" PRIu64 "\n", difference_name(i), t->reasons[i]);
    }
}

int main(int argc, char **argv)
{
    struct item_options options = {.log = stdout};
    if (!items_parse(argc, argv, "oracle", &options))
        return 1;
    char *qcheck = oracle_find_qcheck();
    options.qcheck = qcheck;
    if (!qcheck)
        printf("there is no qcheck beside this program: only qemu-img is run\n");
    struct oracle_totals totals;
    double start = proc_seconds();
    int err = oracle_run(&options, &totals);
    free(qcheck);
    if (err) {
        fprintf(stderr, "oracle: %s\n", strerror(-err));
        return 1;
    }
    print_totals(&totals, proc_seconds() - start);
    return totals.differ ? 2 : 0;
}
