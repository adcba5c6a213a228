/* SPDX-License-Identifier: MIT
 *
 * What the files of the oracle share. */
#ifndef FAULTINJ_ORACLE_IMPL_H
#define FAULTINJ_ORACLE_IMPL_H

#include "oracle.h"

enum owner {
    OWNER_NONE,
    OWNER_HEADER,
    OWNER_REFTABLE,
    OWNER_REFBLOCK,
    OWNER_L1,
    OWNER_SNAPSHOT_TABLE,
    OWNER_SNAPSHOT_L1,
    OWNER_L2,
    OWNER_DATA,
    OWNER_BITMAP,
};

#define PLACE_PACKED UINT64_MAX /* compressed data: any number of them in one cluster */

/* One reference to each cluster of the range.  L2 tables and data may be shared if the place
 * (L1 index, guest cluster) is the same. */
bool oracle_claim(struct oracle *o, uint64_t host_off, uint64_t length, enum owner owner,
    uint64_t place, struct breach *breach);

/* Claims what bitmaps use, where the header vouches for them. */
bool oracle_look_bitmaps(struct oracle *o, const struct state *state, struct breach *breach);

#endif
