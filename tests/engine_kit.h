/* SPDX-License-Identifier: MIT
 *
 * What tests of the engine share: images in memory, short calls that must succeed. */
#ifndef TESTS_ENGINE_KIT_H
#define TESTS_ENGINE_KIT_H

#include "image.h"
#include "snapshot.h"

/* A new image in memory of that size and these options ("" for none), and a handle on it. */
struct image *kit_new(uint64_t size_bytes, const char *options, struct io **io);
struct image *kit_open(struct io *io);

/* Ends the handle; the image must be clean in the checker's eyes. */
void kit_close(struct image *img, struct io *io);

void kit_must(const struct image *img, int ret);
void kit_put(struct image *img, uint64_t guest_off, int byte, size_t length);
void kit_snap(struct image *img, const char *name);
uint32_t kit_find(struct image *img, const char *id_or_name);

/* Whether guest bytes of the active disk (or a snapshot) all are `byte`. */
bool kit_is(struct image *img, uint64_t guest_off, int byte, size_t length);
bool kit_snap_is(struct image *img, const char *name, uint64_t guest_off, int byte, size_t length);

/* Changes bytes of the image behind the engine's back. */
void kit_poke32(struct io *io, uint64_t host_off, uint32_t value);
void kit_poke64(struct io *io, uint64_t host_off, uint64_t value);
uint64_t kit_peek64(struct io *io, uint64_t host_off);

#endif
