/* SPDX-License-Identifier: MIT
 *
 * See state.h. */
#include "state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct state *self(struct io *io)
{
    return (struct state *)io;
}

uint64_t state_mix(uint64_t word)
{
    word ^= word >> 32;
    word *= UINT64_C(0xd6e8feb86659fd93);
    word ^= word >> 29;
    word *= UINT64_C(0xa0761d6478bd642f);
    return word ^ word >> 32;
}

uint64_t state_hash_bytes(const void *bytes, size_t length, uint64_t seed)
{
    const uint8_t *p = bytes;
    uint64_t hash = state_mix(seed + length + 1);
    uint64_t lanes[4] = {hash, ~hash, hash << 1 | 1, hash >> 1};
    for (; length >= 32; p += 32, length -= 32) { /* four at a time: they do not wait for another */
        for (unsigned i = 0; i < 4; i++) {
            uint64_t word;
            memcpy(&word, p + (size_t)i * 8, 8);
            lanes[i] = (lanes[i] ^ word) * UINT64_C(0x9e3779b97f4a7c15);
            lanes[i] ^= lanes[i] >> 31;
        }
    }
    hash = state_mix(lanes[0] + state_mix(lanes[1] + state_mix(lanes[2] + state_mix(lanes[3]))));
    for (; length >= 8; p += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        hash = (hash ^ word) * UINT64_C(0x9e3779b97f4a7c15);
        hash ^= hash >> 31;
    }
    for (; length > 0; p++, length--)
        hash = (hash ^ *p) * UINT64_C(0x100000001b3);
    return state_mix(hash);
}

uint64_t state_hash_sector(const uint8_t *bytes)
{
    static const uint8_t zeros[STATE_SECTOR];
    if (memcmp(bytes, zeros, STATE_SECTOR) == 0)
        return STATE_ZERO_HASH;
    uint64_t hash = state_hash_bytes(bytes, STATE_SECTOR, 0);
    return hash != STATE_ZERO_HASH ? hash : 1;
}

static int state_read(struct io *io, uint64_t host_off, void *buf, size_t length)
{
    const struct state *state = self(io);
    if (!state_visible(state, host_off, length))
        return -ERANGE;
    for (uint64_t s = host_off / STATE_SECTOR;
         state->unreadable && s * STATE_SECTOR < host_off + length; s++) {
        if (state->unreadable[s])
            return -EIO;
    }
    memcpy(buf, state->bytes + host_off, length);
    return 0;
}

static void rehash(struct state *state, uint64_t from, uint64_t to)
{
    for (uint64_t s = from / STATE_SECTOR; s * STATE_SECTOR < to; s++)
        state->hashes[s] = state_hash_sector(state->bytes + s * STATE_SECTOR);
}

static void clear(struct state *state, uint64_t from, uint64_t to)
{
    if (from >= to)
        return;
    memset(state->bytes + from, 0, (size_t)(to - from));
    rehash(state, from, to);
}

static int state_write(struct io *io, uint64_t host_off, const void *buf, size_t length)
{
    struct state *state = self(io);
    if (host_off > state->room_bytes || length > state->room_bytes - host_off)
        return -ENOSPC;
    memcpy(state->bytes + host_off, buf, length);
    rehash(state, host_off, host_off + length);
    if (state->size_bytes < host_off + length)
        state->size_bytes = host_off + length;
    return 0;
}

static int state_flush(struct io *io)
{
    (void)io;
    return 0;
}

static int state_size(struct io *io, uint64_t *size_bytes)
{
    *size_bytes = self(io)->size_bytes;
    return 0;
}

static int state_resize(struct io *io, uint64_t size_bytes)
{
    struct state *state = self(io);
    if (size_bytes > state->room_bytes)
        return -ENOSPC;
    clear(state, size_bytes, state->size_bytes);
    state->size_bytes = size_bytes;
    return 0;
}

static int state_discard(struct io *io, uint64_t host_off, uint64_t length)
{
    struct state *state = self(io);
    if (host_off < state->size_bytes) {
        uint64_t left = state->size_bytes - host_off;
        clear(state, host_off, host_off + (length < left ? length : left));
    }
    return 0;
}

/* The state stays its owner's. */
static void state_io_close(struct io *io)
{
    (void)io;
}

int state_open(uint64_t room_bytes, struct state **out)
{
    static const struct io_ops ops = {
        .read = state_read,
        .write = state_write,
        .flush = state_flush,
        .size = state_size,
        .resize = state_resize,
        .discard = state_discard,
        .close = state_io_close,
    };
    uint64_t room = (room_bytes / 4096 + 1) * 4096;
    struct state *state = calloc(1, sizeof(*state));
    if (!state)
        return -ENOMEM;
    state->io = (struct io){.ops = &ops, .read_only = true};
    state->room_bytes = room;
    state->bytes = calloc(1, (size_t)room);
    state->hashes = calloc((size_t)(room / STATE_SECTOR), sizeof(*state->hashes));
    if (!state->bytes || !state->hashes) {
        state_close(state);
        return -ENOMEM;
    }
    *out = state;
    return 0;
}

int state_make_room(struct state *state, uint64_t room_bytes)
{
    uint64_t room = (room_bytes / 4096 + 1) * 4096, old = state->room_bytes;
    if (room <= old)
        return 0;
    uint8_t *bytes = realloc(state->bytes, (size_t)room);
    if (!bytes)
        return -ENOMEM;
    state->bytes = bytes;
    uint64_t *hashes = realloc(state->hashes, (size_t)(room / STATE_SECTOR) * sizeof(*hashes));
    if (!hashes)
        return -ENOMEM;
    state->hashes = hashes;
    state->room_bytes = room;
    memset(bytes + old, 0, (size_t)(room - old));
    rehash(state, old, room);
    return 0;
}

void state_close(struct state *state)
{
    if (!state)
        return;
    free(state->bytes);
    free(state->hashes);
    free(state->marks);
    free(state->unreadable);
    free(state);
}

int state_load(struct state *state, struct io *src)
{
    uint64_t size;
    int ret = io_size(src, &size);
    if (ret < 0)
        return ret;
    if (size > state->room_bytes)
        return -EFBIG;
    uint64_t old = state->size_bytes;
    ret = size > 0 ? io_read(src, 0, state->bytes, (size_t)size) : 0;
    if (ret < 0)
        return ret;
    if (old > size)
        memset(state->bytes + size, 0, (size_t)(old - size));
    state->size_bytes = size;
    for (uint64_t s = 0; s * STATE_SECTOR < (old > size ? old : size); s++)
        state->hashes[s] = state_hash_sector(state->bytes + s * STATE_SECTOR);
    return 0;
}

void state_allow_writes(struct state *state)
{
    state->io.read_only = false;
}

void state_copy(struct state *to, const struct state *from)
{
    uint64_t whole = from->size_bytes / STATE_SECTOR;
    for (uint64_t s = 0; s < whole; s++) {
        if (to->hashes[s] != from->hashes[s])
            state_put(to, s, from->bytes + s * STATE_SECTOR, from->hashes[s]);
    }
    if (whole * STATE_SECTOR < from->size_bytes) {
        size_t rest = (size_t)(from->size_bytes % STATE_SECTOR);
        memcpy(to->bytes + whole * STATE_SECTOR, from->bytes + whole * STATE_SECTOR, rest);
        rehash(to, whole * STATE_SECTOR, from->size_bytes);
    }
    clear(to, from->size_bytes, to->size_bytes);
    to->size_bytes = from->size_bytes;
}

bool state_same(const struct state *a, const struct state *b)
{
    return a->size_bytes == b->size_bytes && memcmp(a->bytes, b->bytes, (size_t)a->size_bytes) == 0;
}

void state_put(struct state *state, uint64_t sector, const uint8_t *bytes, uint64_t hash)
{
    memcpy(state->bytes + sector * STATE_SECTOR, bytes, STATE_SECTOR);
    state->hashes[sector] = hash;
}

const uint8_t *state_peek(const struct state *state, uint64_t host_off, uint64_t length)
{
    if (host_off > state->room_bytes || length > state->room_bytes - host_off)
        return NULL;
    return state->bytes + host_off;
}

const uint8_t *state_at(const struct state *state, uint64_t host_off, uint64_t length)
{
    const uint8_t *bytes = state_peek(state, host_off, length);
    if (bytes && state->marks && length > 0) {
        uint64_t last = (host_off + length - 1) / STATE_SECTOR;
        for (uint64_t s = host_off / STATE_SECTOR; s <= last; s++)
            state->marks[s] = 1;
    }
    return bytes;
}
