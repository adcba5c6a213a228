/* SPDX-License-Identifier: MIT
 *
 * The list of snapshots as people and scripts see it.  Nothing is read here. */
#ifndef LISTING_H
#define LISTING_H

#include <stdio.h>

#include "qcow2.h"

/* As `qemu-img snapshot -l` prints it, in local time; nothing without snapshots.  -EIO. */
int listing_print(const struct qcow2_snapshot *list, uint32_t count, FILE *out);

/* A JSON array of objects with id, name, vm-state-size (bytes), date-sec, date-nsec (since 1970),
 * vm-clock-nsec and, where the record has them, disk-size (bytes) and icount.  -EIO, -ENOMEM. */
int listing_json(const struct qcow2_snapshot *list, uint32_t count, FILE *out);

#endif
