/* SPDX-License-Identifier: MIT
 *
 * Persistent dirty bitmaps: they survive everything the engine does, and stay true.
 *
 * A bitmap with the auto flag promises to have a bit for whatever changed since it was made.  The
 * engine keeps that promise itself, by setting the bits durably before the guest-visible change:
 * too many bits only cost a backup some copying, a missing one loses data.  Bitmaps that are in use
 * (somebody did not save them) and those without the auto flag are left alone. */
#ifndef ENGINE_BITMAP_H
#define ENGINE_BITMAP_H

#include "image.h"

int bitmap_load(struct image *img);
void bitmap_release(struct image *img);

/* The guest range is about to change.  Sets the missing bits; nothing staged may be pending. */
int bitmap_mark(struct image *img, uint64_t guest_off, uint64_t length);

/* All of the disk may change (apply). */
int bitmap_mark_all(struct image *img);

/* -ENOTSUP if there are bitmaps and the disk would get another size: they would not fit it. */
int bitmap_check_resize(struct image *img, uint64_t size_bytes);

#endif
