/* SPDX-License-Identifier: MIT
 *
 * Logs in the format of the kernel's dm-log-writes target (Documentation/admin-guide/device-mapper/
 * log-writes.rst), which QEMU's blklogwrites driver writes as well. */
#ifndef FAULTINJ_DMLOG_H
#define FAULTINJ_DMLOG_H

#include "record.h"

/* Reads a log.  Entries beyond the count in the super block are taken as long as they make sense:
 * the count is only brought up to date now and then.  Flushes become REQUEST_FLUSH; a write that is
 * also a flush becomes a flush and a write.  FUA is not taken as durable: that allows more states
 * than the device would.  -EILSEQ: not such a log; -ENODATA: an entry is cut short, or there are
 * fewer than the super block says; -EFBIG: DMLOG_MOST_BYTES are not enough for what is written, or
 * something is written behind them. */
#define DMLOG_MOST_BYTES (UINT64_C(4) << 30)
int dmlog_read(struct io *log, struct recording *out);

/* Writes a log of whole 512-byte sectors: what a request leaves out of its sectors is taken from
 * the image, `base` at the start. */
int dmlog_write(const struct recording *recording, struct io *base, struct io *log);

#endif
