/* SPDX-License-Identifier: MIT
 *
 * The census: for every host cluster, how the references found compare with the refcount stored.
 *
 * The stored refcounts are loaded first, and each reference found is taken off: what remains is
 * 0 where the image is right, positive where the stored count is too high, negative where it is too
 * low.  So one small number a cluster is enough: a byte nearly always, in pages that widen by
 * themselves where counts are large, and that exist only where something was counted.
 *
 * Besides the number a cluster has these marks:
 *   claimed   somebody refers to it
 *   packed    those who refer to it are compressed clusters, which may share it
 *   refused   those who refer to it are entries that no program follows
 *   conflict  it was claimed by owners that cannot share it
 *   odd       something about a reference to it was unusual, look closer
 *
 * A cluster index is a host offset divided by the cluster size; any index up to 2^55 is allowed.
 * Functions return 0 or -ENOMEM; then the census is as before the call, but for pages made. */
#ifndef CHECKER_CENSUS_H
#define CHECKER_CENSUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct census;

/* Higher stored counts are taken for this one: balances stay far from the limits of their type. */
#define CENSUS_STORED_MAX (INT64_C(1) << 59)

enum claim {
    CLAIM_ALONE,  /* metadata or a data cluster: nobody else may use it at another place */
    CLAIM_PACKED, /* compressed data: others of its kind may share the cluster */
    /* An entry that no program follows (unaligned, say). It counts, because QEMU counts it, and
     * keeps the cluster from being taken for a free one; but whoever else uses it is not at odds
     * with anybody. */
    CLAIM_REFUSED,
};

struct census_cell {
    int64_t balance; /* stored - references */
    bool claimed, conflict, odd;
};

/* `cluster_count` is what the file holds; a hint for small images. */
int census_open(uint64_t cluster_count, struct census **out);
void census_close(struct census *census); /* NULL is allowed */

/* Adds stored refcounts: `count` entries from the start of a refcount block of that order, the
 * first one being cluster `first`.  Each cluster may be loaded once, before anything is claimed. */
int census_load(
    struct census *census, uint64_t first, uint64_t count, const uint8_t *block, unsigned order);

/* The stored counts of these clusters are not to be had: they are left out of comparisons. */
int census_unknown(struct census *census, uint64_t first, uint64_t count);
bool census_known(const struct census *census, uint64_t cluster);

/* `refs` references to the cluster from one owner (that is, one guest place or one piece of
 * metadata).  Sets *conflict if an owner before it cannot share it.  -E2BIG, and nothing claimed,
 * when it is one of very many to places far apart where nothing is counted: no image is like that.
 */
int census_claim(
    struct census *census, uint64_t cluster, uint64_t refs, enum claim how, bool *conflict);

int census_mark_odd(struct census *census, uint64_t cluster);
struct census_cell census_get(const struct census *census, uint64_t cluster);
bool census_has_conflicts(const struct census *census);
bool census_has_refused(const struct census *census); /* claims of that kind */

/* The fast path for data clusters in a row, first, first + 1, ...: claims them with `refs`
 * references each, up to the first that was claimed before.  Those whose stored count is higher
 * become odd; *exact is set to false when any has another count than `refs`, and left alone
 * otherwise.  Returns how many it claimed; what it may not know how to claim fast it leaves, too,
 * and so it does when it is out of memory. */
uint64_t census_claim_run(
    struct census *census, uint64_t first, uint64_t count, uint64_t refs, bool *exact);

/* Claims one cluster that nobody claimed before and that has exactly that stored count. */
bool census_claim_exact(struct census *census, uint64_t cluster, uint64_t refs);

/* How many clusters from `first` on are claimed, have balance 0, and neither mark of a conflict nor
 * of being odd.  May say less than there are: then the next one is to be looked at. */
uint64_t census_right_run(const struct census *census, uint64_t first, uint64_t count);

/* How many clusters from `first` on are as it is: claimed or not, with the same balance.  At least
 * 1
 * (`count` is, too); may say less than there are. */
uint64_t census_like_run(const struct census *census, uint64_t first, uint64_t count);

/* The first cluster at or after `from` whose balance is not 0.  False if there is none. */
bool census_next_mismatch(const struct census *census, uint64_t from, uint64_t *cluster);

/* The same, with its balance. */
bool census_next_wrong(
    const struct census *census, uint64_t from, uint64_t *cluster, int64_t *balance);

/* The first of those that nobody claimed. */
bool census_next_leak(const struct census *census, uint64_t from, uint64_t *cluster);

/* One more than the highest cluster that has a stored count or a reference, and lies below `limit`;
 * 0 if there is none. */
uint64_t census_end(const struct census *census, uint64_t limit);

/* Bytes of memory in use, for --verbose and tests. */
size_t census_memory(const struct census *census);

#endif
