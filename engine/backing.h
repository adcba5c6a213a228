/* SPDX-License-Identifier: MIT
 *
 * The backing file of an image: what the guest sees where the image maps nothing.
 *
 * It is opened by the name and format in the header (format specification, "Backing file name" and
 * "Header extensions"), with the whole chain behind it, for reading only, and never followed into
 * anything but a regular file or block device: no protocols, no guessing of formats. */
#ifndef ENGINE_BACKING_H
#define ENGINE_BACKING_H

#include "image.h"

/* Opens the backing file of `img` and hands it to the image, which closes it with itself.  Does
 * nothing for an image without one.  `path` is the image's own, for names relative to it;
 * `io_flags` are those of io_file_open().  Errors are in image_error(img). */
int backing_open(struct image *img, const char *path, unsigned io_flags);
void backing_close(struct backing *backing); /* NULL is allowed */

/* Guest bytes; zeros past its end.  Fills `why` on errors. */
int backing_read(
    struct backing *backing, uint64_t guest_off, void *buf, size_t length, struct image_error *why);

/* Of the disk that the backing file shows. */
uint64_t backing_size(const struct backing *backing);

#endif
