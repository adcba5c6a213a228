/* SPDX-License-Identifier: MIT
 *
 * What a finished recipe gives: its image as an io layer or as files, its patterns. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io_unreadable.h"
#include "recipe_impl.h"

struct io *recipe_io(struct recipe *r)
{
    return r->io;
}

struct io *recipe_data_io(struct recipe *r)
{
    return r->data;
}

const char *recipe_data_name(const struct recipe *r)
{
    return r->data_name;
}

const struct qcow2_geometry *recipe_geometry(const struct recipe *r)
{
    return &r->geo;
}

bool recipe_has_unreadable(const struct recipe *r)
{
    return r->unreadable_count > 0;
}

int recipe_branch(struct recipe *r, struct io **out)
{
    struct io *io;
    int ret = io_mem_branch(r->io, &io);
    for (size_t i = 0; ret == 0 && i < r->unreadable_count; i++) {
        struct io *layer;
        ret = io_unreadable_open(io, r->unreadable[i].host_off, r->unreadable[i].length, &layer);
        if (ret < 0)
            io_close(io);
        else
            io = layer;
    }
    if (ret == 0)
        *out = io;
    return ret;
}

static int copy_out(struct io *from, struct io *to)
{
    enum { STEP = 1 << 20 };
    uint64_t size, start = 0, end = 0;
    int ret = io_size(from, &size);
    if (ret == 0)
        ret = io_resize(to, size);
    uint8_t *buf = malloc(STEP);
    if (!buf)
        abort();
    while (ret == 0 && (ret = io_extents(from, end, &start, &end)) == 0 && start < size) {
        for (uint64_t off = start; ret == 0 && off < end; off += STEP) {
            size_t n = end - off < STEP ? end - off : STEP;
            ret = io_read(from, off, buf, n);
            if (ret == 0)
                ret = io_write(to, off, buf, n);
        }
    }
    free(buf);
    return ret;
}

static int save(struct io *from, const char *path)
{
    struct io *to;
    int ret = io_file_open(path, IO_FILE_WRITE | IO_FILE_NO_LOCK | IO_FILE_CREATE, &to, NULL);
    if (ret < 0)
        return ret;
    ret = copy_out(from, to);
    io_close(to);
    return ret;
}

int recipe_save(struct recipe *r, const char *path)
{
    int ret = save(r->io, path);
    if (ret < 0 || !r->data)
        return ret;
    const char *slash = strrchr(path, '/');
    char *data_path;
    if (asprintf(&data_path, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, r->data_name) < 0)
        return -ENOMEM;
    ret = save(r->data, data_path);
    free(data_path);
    return ret;
}

/* One step of splitmix64: well mixed and stateless, so any part of a pattern can be made alone. */
static uint64_t mix(uint64_t x)
{
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

void recipe_pattern_fill(
    const struct recipe_pattern *pattern, uint64_t guest_off, uint8_t *buf, size_t length)
{
    if (!pattern->seeded) {
        memset(buf, (int)pattern->value, length);
        return;
    }
    uint64_t word = 0;
    for (size_t i = 0; i < length; i++) {
        uint64_t off = guest_off + i;
        if (i == 0 || off % 16 == 0)
            word = mix(pattern->value ^ mix(off / 16));
        buf[i] = (uint8_t)('a' + (word >> (4 * (off % 16)) & 15));
    }
}
