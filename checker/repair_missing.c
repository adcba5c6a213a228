/* SPDX-License-Identifier: MIT
 *
 * Clusters that miss references, found once for all entries that may have lost them: looking
 * through the census again for each entry would take minutes where a hundred thousand are damaged.
 * A cluster that has got its references does not miss any later, and is forgotten. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

int repair_find_missing(const struct repair *repair, size_t most, struct missing *missing)
{
    const struct walk *walk = repair->walk;
    *missing = (struct missing){.items = calloc(most + 1, sizeof(*missing->items))};
    if (!missing->items)
        return -ENOMEM;
    for (uint64_t cluster = 0;
         missing->count < most && census_next_leak(walk->census, cluster, &cluster); cluster++) {
        if (repair_deficit(repair, cluster << walk->geo.cluster_bits))
            missing->items[missing->count++].cluster = cluster;
    }
    return 0;
}

struct missing_cluster *repair_next_missing(
    const struct repair *repair, struct missing *missing, size_t *at)
{
    size_t end = *at;
    bool found = false;
    for (; !found && end < missing->count; end++)
        found =
            repair_deficit(repair, missing->items[end].cluster << repair->walk->geo.cluster_bits);
    size_t gone = end - *at - found;
    if (gone > 0) {
        memmove(missing->items + *at, missing->items + *at + gone,
            (missing->count - *at - gone) * sizeof(*missing->items));
        missing->count -= gone;
    }
    *at += found;
    return found ? &missing->items[*at - 1] : NULL;
}

uint64_t repair_only_leak(const struct repair *repair)
{
    const struct walk *walk = repair->walk;
    uint64_t cluster = 0, found = 0;
    while (census_next_mismatch(walk->census, cluster, &cluster) && cluster < walk->cluster_end) {
        bool misses = repair_deficit(repair, cluster << walk->geo.cluster_bits);
        if (misses && found != 0)
            return 0;
        if (misses)
            found = cluster;
        cluster++;
    }
    return found << walk->geo.cluster_bits;
}
