/* SPDX-License-Identifier: MIT */
#include "specimen.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "damage.h"
#include "io.h"
#include "proc.h"
#include "rng.h"

void specimen_open(struct specimen *s)
{
    *s = (struct specimen){.dir = proc_mkdir()};
}

void specimen_close(struct specimen *s)
{
    imgmake_free(&s->image);
    proc_rmdir(s->dir);
    *s = (struct specimen){0};
}

void specimen_sound(struct specimen *s, uint64_t seed, uint64_t item)
{
    enum { ATTEMPTS = 4 };
    struct rng rng = rng_for(seed, item / SPECIMEN_SHARE);
    s->made = false;
    for (int i = 0; i < ATTEMPTS && !s->made; i++) {
        imgmake_free(&s->image);
        s->made = imgmake(s->dir, rng_next(&rng), &s->image) == 0;
        s->not_made += !s->made;
        if (!s->made)
            fprintf(stderr, "item %" PRIu64 " of seed %" PRIu64 " cannot be made: %s\n%s", item,
                seed, s->image.error ? s->image.error : "", s->image.script);
    }
}

static int copy_extents(struct io *from, struct io *to)
{
    enum { CHUNK = 1 << 18 };
    uint64_t size, pos = 0, start, end;
    int err = io_size(from, &size);
    if (err == 0)
        err = io_resize(to, size);
    uint8_t *buf = malloc(CHUNK);
    if (!buf)
        return -ENOMEM;
    while (err == 0 && (err = io_extents(from, pos, &start, &end)) == 0 && start < size) {
        for (pos = start; pos < end && err == 0;) {
            size_t length = end - pos < CHUNK ? (size_t)(end - pos) : CHUNK;
            err = io_read(from, pos, buf, length);
            if (err == 0)
                err = io_write(to, pos, buf, length);
            pos += length;
        }
    }
    free(buf);
    return err;
}

static int open_in(struct specimen *s, const char *name, unsigned flags, struct io **out)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", s->dir, name);
    if (flags & IO_FILE_CREATE)
        unlink(path);
    return io_file_open(path, flags | IO_FILE_NO_LOCK, out, NULL);
}

int specimen_copy(struct specimen *s, const char *from, const char *to)
{
    struct io *in = NULL, *out = NULL;
    int err = open_in(s, from, 0, &in);
    if (err == 0)
        err = open_in(s, to, IO_FILE_CREATE | IO_FILE_WRITE, &out);
    if (err == 0)
        err = copy_extents(in, out);
    io_close(in);
    io_close(out);
    return err;
}

static unsigned draw_count(struct rng *rng)
{
    static const unsigned char counts[] = {1, 1, 1, 1, 1, 2, 2, 3, 3, 4};
    return counts[rng_below(rng, sizeof(counts))];
}

int specimen_damage(
    struct specimen *s, uint64_t seed, uint64_t item, const char *name, char **story)
{
    struct rng rng = rng_for(~seed, item);
    unsigned count = draw_count(&rng);
    struct io *io = NULL;
    int err = specimen_copy(s, s->image.name, name);
    if (err == 0)
        err = open_in(s, name, IO_FILE_WRITE, &io);
    if (err == 0)
        err = damage_image(io, rng_next(&rng), count, story);
    io_close(io);
    return err;
}

void specimen_keep(struct specimen *s, const char *name, const char *keep, uint64_t seed,
    uint64_t item, const char *suffix)
{
    proc_exit("mkdir -p '%s' && cp '%s/%s' '%s/%" PRIu64 "-%" PRIu64 "%s.qcow2'", keep, s->dir,
        name, keep, seed, item, suffix);
    char path[4096];
    snprintf(path, sizeof(path), "%s/%" PRIu64 "-%" PRIu64 ".sh", keep, seed, item);
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    fputs(s->image.script, file);
    fclose(file);
}
