/* SPDX-License-Identifier: MIT
 *
 * build/tests/trial N SEED [--keep DIR] [--only I] [--verbose]
 *
 * The repair of N damaged images by qcheck and by qemu-img; see trial_run.h.  Exit 0: every rule
 * was kept; 2: one was broken; 1: could not run. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_run.h"
#include "trial_run.h"

static double percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 100;
}

static void print_row(const char *what, const double values[TRIAL_TOOLS], const char *unit)
{
    printf("%-48s", what);
    for (int tool = 0; tool < TRIAL_TOOLS; tool++)
        printf("  %22.2f%s", values[tool], unit);
    printf("\n");
}

static void print_table(const struct trial_totals *t)
{
    enum { CLEAN_QEMU, CLEAN_OWN, KEPT, KEPT_MEAN, KNOWN, PLACED, MAPPED, SNAPSHOTS, ROWS };
    static const char *const rows[] = {
        [CLEAN_QEMU] = "clean by qemu-img check",
        [CLEAN_OWN] = "clean by qcheck",
        [KEPT] = "data in the file that is kept, of all bytes",
        [KEPT_MEAN] = "  the same, mean over the images",
        [KNOWN] = "  of what the file still says where it belongs",
        [PLACED] = "  of what has its L2 entry and disk",
        [MAPPED] = "  of what has its L1 entry as well",
        [SNAPSHOTS] = "snapshots with their name",
    };
    double values[ROWS][TRIAL_TOOLS], most[TRIAL_TOOLS], mean[TRIAL_TOOLS];
    printf("%-48s", "");
    for (unsigned i = 0; i < TRIAL_TOOLS; i++) {
        const struct trial_sum *sum = &t->tools[i];
        const struct truth_share *s = &sum->share;
        values[CLEAN_QEMU][i] = percent((double)sum->clean_qemu, (double)t->images);
        values[CLEAN_OWN][i] = percent((double)sum->clean_own, (double)t->images);
        values[KEPT][i] = percent((double)s->kept, (double)s->in_file);
        values[KEPT_MEAN][i] = percent(sum->kept_shares, (double)t->with_data);
        values[KNOWN][i] = percent((double)s->known_kept, (double)s->known);
        values[PLACED][i] = percent((double)s->placed_kept, (double)s->placed);
        values[MAPPED][i] = percent((double)s->mapped_kept, (double)s->mapped);
        values[SNAPSHOTS][i] = percent(s->snapshots_kept, s->snapshots);
        most[i] = sum->seconds_most;
        mean[i] = t->images ? sum->seconds / (double)t->images : 0;
        printf("  %23s", trial_tool_name(i));
    }
    printf("\n");
    for (int row = 0; row < ROWS; row++)
        print_row(rows[row], values[row], "%");
    print_row("time, longest", most, "s");
    print_row("time, mean", mean, "s");
}

static void print_by_damages(const struct trial_totals *t)
{
    for (unsigned count = 1; count <= TRIAL_DAMAGES; count++) {
        const struct trial_sum *sums = t->by_damages[count - 1];
        double clean[TRIAL_TOOLS], kept[TRIAL_TOOLS];
        for (unsigned i = 0; i < TRIAL_TOOLS; i++) {
            clean[i] = percent((double)sums[i].clean_qemu, (double)sums[i].images);
            kept[i] = percent((double)sums[i].share.kept, (double)sums[i].share.in_file);
        }
        printf(
            "%" PRIu64 " images with %u damage%s\n", sums[0].images, count, count > 1 ? "s" : "");
        print_row("  clean by qemu-img check", clean, "%");
        print_row("  data in the file that is kept, of all bytes", kept, "%");
    }
}

static int compare_causes(const void *a, const void *b)
{
    const struct trial_cause *x = a, *y = b;
    return (x->bytes < y->bytes) - (x->bytes > y->bytes);
}

static void print_causes(struct trial_totals *t)
{
    enum { MOST = 12 };
    qsort(t->causes, t->cause_count, sizeof(t->causes[0]), compare_causes);
    printf("lost by --lossy, by kind of damage (shared among the damages of an image):\n");
    for (size_t i = 0; i < t->cause_count && i < MOST; i++)
        printf("%10.1f MiB  %6.2f images  %s\n", t->causes[i].bytes / (1 << 20),
            t->causes[i].images, t->causes[i].kind);
}

static bool print_totals(const struct trial_totals *t)
{
    bool kept = true;
    printf("%" PRIu64 " damaged images, %" PRIu64 " with guest data; %" PRIu64
           " left out: not sound before the damage\n",
        t->images, t->with_data, t->skipped);
    print_table(t);
    print_by_damages(t);
    printf("images of which qemu-img keeps more than --lossy: %" PRIu64 "\n", t->less_than_qemu);
    printf("hard rules broken:");
    for (unsigned rule = 0; rule < TRIAL_RULES; rule++) {
        printf("  %s %" PRIu64, trial_rule_name(rule), t->broken[rule]);
        kept = kept && t->broken[rule] == 0;
    }
    printf("\n");
    return kept;
}

int main(int argc, char **argv)
{
    struct item_options options = {.log = stdout};
    if (!items_parse(argc, argv, "trial", &options))
        return 1;
    char *qcheck = oracle_find_qcheck();
    options.qcheck = qcheck;
    struct trial_totals totals;
    int err = qcheck ? trial_run(&options, &totals) : -1;
    free(qcheck);
    if (err) {
        fprintf(stderr, "trial: %s\n", qcheck ? strerror(-err) : "there is no qcheck beside it");
        return 1;
    }
    bool kept = print_totals(&totals);
    print_causes(&totals);
    return kept ? 0 : 2;
}
