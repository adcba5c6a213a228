/* SPDX-License-Identifier: MIT
 *
 * Whose data it is, when several disks have one L2 table: findings name the first of them, and the
 * others are looked up here, in the L1 tables, for the tables that findings are about.  Only images
 * with such findings pay for it. */
#include <errno.h>
#include <stdlib.h>

#include "walk.h"

static int compare_sharers(const void *a, const void *b)
{
    const struct report_sharers *x = a, *y = b;
    return (x->table_off > y->table_off) - (x->table_off < y->table_off);
}

static bool has_sharers(const struct walk *walk, const struct finding *finding)
{
    const struct table *table =
        finding->has_table ? table_find(&walk->tables, finding->table_off) : NULL;
    return table && table->refs > 1;
}

/* The tables that findings are about and more than one L1 entry names, each once. */
static int collect_tables(struct walk *walk)
{
    struct report *report = walk->report;
    size_t count = 0, room = 0, kept = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int s = 0; s < SEVERITY_COUNT; s++) {
            const struct finding_list *list = &report->by_severity[s];
            for (size_t i = 0; i < list->count; i++) {
                if (!has_sharers(walk, &list->items[i]))
                    continue;
                if (pass == 1)
                    report->sharers[count++].table_off = list->items[i].table_off;
                room += pass == 0;
            }
        }
        if (pass == 0 && room == 0)
            return 0;
        if (pass == 0 && !(report->sharers = calloc(room, sizeof(*report->sharers))))
            return -ENOMEM;
    }
    qsort(report->sharers, count, sizeof(*report->sharers), compare_sharers);
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || report->sharers[i].table_off != report->sharers[i - 1].table_off)
            report->sharers[kept++] = report->sharers[i];
    }
    report->sharers_count = kept;
    return 0;
}

static int note_sharer(struct walk *walk, int tree_idx, uint32_t l1_idx, uint64_t raw)
{
    (void)l1_idx;
    struct report *report = walk->report;
    struct report_sharers key = {.table_off = raw & QCOW2_OFFSET_MASK};
    struct report_sharers *sharers = bsearch(
        &key, report->sharers, report->sharers_count, sizeof(*report->sharers), compare_sharers);
    if (sharers && sharers->count < REPORT_SHARERS &&
        (sharers->count == 0 || sharers->trees[sharers->count - 1] != tree_idx))
        sharers->trees[sharers->count++] = tree_idx;
    return 0;
}

int walk_name_sharers(struct walk *walk)
{
    int ret = collect_tables(walk);
    for (size_t i = 0; ret == 0 && walk->report->sharers_count > 0 && i < walk->tree_count; i++) {
        if (walk->trees[i].usable && walk->trees[i].same_l1 > 0)
            ret = walk_visit_l1(walk, (int)i, note_sharer, false, NULL);
    }
    return ret;
}
