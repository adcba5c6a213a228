/* SPDX-License-Identifier: MIT
 *
 * See hurt.h. */
#include "hurt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static bool under(const struct oracle *o, const struct state *state, uint64_t cluster)
{
    uint32_t refs = o->clusters[cluster].refs;
    return refs > 0 && oracle_stored(o, state, cluster) < refs;
}

static bool wrongly_copied(const struct oracle *o, const struct copied_entry *entry)
{
    return o->clusters[entry->cluster].refs != 1;
}

void hurt_release(struct hurt *hurt)
{
    free(hurt->under);
    free(hurt->copied);
    *hurt = (struct hurt){0};
}

int hurt_note(const struct oracle *o, const struct state *state, struct hurt *out)
{
    struct hurt hurt = {.cluster_count = o->cluster_count};
    hurt.under = calloc(o->cluster_count + 1, sizeof(*hurt.under));
    hurt.copied = calloc(o->copied_count + 1, sizeof(*hurt.copied));
    if (!hurt.under || !hurt.copied) {
        hurt_release(&hurt);
        return -ENOMEM;
    }
    for (uint64_t c = 0; c < o->cluster_count; c++)
        hurt.under[c] = under(o, state, c);
    for (size_t i = 0; i < o->copied_count; i++) {
        if (wrongly_copied(o, &o->copied[i]))
            hurt.copied[hurt.copied_count++] = o->copied[i];
    }
    *out = hurt;
    return 0;
}

static bool was_wrong(const struct hurt *hurt, const struct copied_entry *entry)
{
    for (size_t i = 0; i < hurt->copied_count; i++) {
        if (hurt->copied[i].l1 == entry->l1 &&
            hurt->copied[i].guest_cluster == entry->guest_cluster)
            return true;
    }
    return false;
}

bool hurt_no_worse(const struct hurt *hurt, const struct oracle *o, const struct state *state,
    struct breach *breach)
{
    for (uint64_t c = 0; o->counts_known && c < o->cluster_count; c++) {
        if (under(o, state, c) && (c >= hurt->cluster_count || !hurt->under[c]))
            return breach_note(breach, INVARIANT_COUNTED,
                "the cluster at 0x%" PRIx64 " has %" PRIu32
                " references, but its stored count is %" PRIu64 ", which was high enough before",
                c << o->geo.cluster_bits, o->clusters[c].refs, oracle_stored(o, state, c));
    }
    for (size_t i = 0; i < o->copied_count; i++) {
        const struct copied_entry *e = &o->copied[i];
        if (wrongly_copied(o, e) && !was_wrong(hurt, e))
            return breach_note(breach, INVARIANT_COPIED,
                "the active %s %" PRIu64 " has COPIED set with other references, which was not "
                "so before",
                e->l1 ? "L1 entry" : "L2 entry of guest cluster", e->guest_cluster);
    }
    return true;
}
