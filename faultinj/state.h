/* SPDX-License-Identifier: MIT
 *
 * One state of an image: all its bytes in one array, with a hash of each sector.
 *
 * Exploring sets units of this array to versions and asks what the image is now; nothing is
 * allocated for a state.  Bytes at or past the size are there but not visible.  A state that is
 * made writable is a device: engine and repair work on it, and the hashes follow. */
#ifndef FAULTINJ_STATE_H
#define FAULTINJ_STATE_H

#include "io.h"

enum { STATE_SECTOR = 512 };

struct state {
    struct io io; /* the state as a device; -EROFS for writes unless it is writable; -ENOSPC for
                   * those that pass the room; closing it does nothing */
    uint8_t *bytes;
    uint64_t size_bytes;
    uint64_t room_bytes; /* a multiple of 4096 */
    uint64_t *hashes;    /* one a sector */
    uint8_t *marks;      /* sectors that were looked at through state_at(); NULL: not noted */
    uint8_t *unreadable; /* sectors that fail with -EIO; NULL: none */
};

/* A state of zeros with room for `room_bytes`.  -ENOMEM. */
int state_open(uint64_t room_bytes, struct state **out);
void state_close(struct state *state); /* NULL is allowed */

/* Makes the room larger, of a state without marks and unreadable sectors.  -ENOMEM: it is as it
 * was. Pointers into the state are no longer valid. */
int state_make_room(struct state *state, uint64_t room_bytes);

/* Lets the state be written to through its io; its size grows with the writes. */
void state_allow_writes(struct state *state);

/* Takes over what is visible of `from`, which must fit the room.  Costs what differs. */
void state_copy(struct state *to, const struct state *from);
bool state_same(const struct state *a, const struct state *b);

/* Takes over what `src` holds; it must fit the room (-EFBIG).  What the state held before must lie
 * below its size. */
int state_load(struct state *state, struct io *src);

/* The hash of 512 bytes; STATE_ZERO_HASH for zeros and only for them. */
#define STATE_ZERO_HASH UINT64_C(0)
uint64_t state_hash_sector(const uint8_t *bytes);

/* Spreads the bits of a word. */
uint64_t state_mix(uint64_t word);

/* Hash of any bytes, for records and names. */
uint64_t state_hash_bytes(const void *bytes, size_t length, uint64_t seed);

/* Sets a sector whose hash is known. */
void state_put(struct state *state, uint64_t sector, const uint8_t *bytes, uint64_t hash);

/* The visible bytes [host_off, + length), or NULL when they pass the room; what lies past the size
 * but inside the room is hidden by the caller with state_visible(). */
const uint8_t *state_at(const struct state *state, uint64_t host_off, uint64_t length);

/* The same, but it does not count as looked at: for what tells only by itself how long it is.  What
 * was used of it is then told by state_at(). */
const uint8_t *state_peek(const struct state *state, uint64_t host_off, uint64_t length);

static inline bool state_visible(const struct state *state, uint64_t host_off, uint64_t length)
{
    return host_off <= state->size_bytes && length <= state->size_bytes - host_off;
}

/* Hash of a visible sector. */
static inline uint64_t state_sector_hash(const struct state *state, uint64_t sector)
{
    if (state->marks && sector < state->room_bytes / STATE_SECTOR)
        state->marks[sector] = 1;
    return sector * STATE_SECTOR < state->size_bytes ? state->hashes[sector] : STATE_ZERO_HASH;
}

#endif
