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
    *missing = (struct missing){.clusters = calloc(most + 1, sizeof(*missing->clusters))};
    if (!missing->clusters)
        return -ENOMEM;
    for (uint64_t cluster = 0;
         missing->count < most && census_next_leak(walk->census, cluster, &cluster); cluster++) {
        if (repair_deficit(repair, cluster << walk->geo.cluster_bits))
            missing->clusters[missing->count++] = cluster;
    }
    return 0;
}

bool repair_next_missing(
    const struct repair *repair, struct missing *missing, size_t *at, uint64_t *host_off)
{
    size_t end = *at;
    bool found = false;
    for (; !found && end < missing->count; end++) {
        *host_off = missing->clusters[end] << repair->walk->geo.cluster_bits;
        found = repair_deficit(repair, *host_off);
    }
    size_t gone = end - *at - found;
    if (gone > 0) {
        memmove(missing->clusters + *at, missing->clusters + *at + gone,
            (missing->count - *at - gone) * sizeof(*missing->clusters));
        missing->count -= gone;
    }
    *at += found;
    return found;
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
