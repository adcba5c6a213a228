/* SPDX-License-Identifier: MIT
 *
 * The engine and QEMU take turns on one image: `interplay STEPS SEED`.
 *
 * Each run makes an image of some kind, does RUN_STEPS random steps on it, each by the engine, by
 * build/qsnap or by QEMU's programs, and keeps a plain model of what every disk must hold.  After
 * each step the image must be clean and every disk equal to its model.  A run depends on its seed
 * alone; a failure prints the command that repeats it. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backing.h"
#include "image.h"
#include "interplay.h"
#include "snapshot.h"

/* ---- the engine in this process ------------------------------------------------------------ */

static struct image *open_engine(const struct run *run, bool write, struct io **io)
{
    struct image *img;
    struct image_error why;
    int ret = io_file_open(run->path, write ? IO_FILE_WRITE : 0, io, NULL);
    if (ret < 0)
        interplay_failed(run, "io_file_open: %s", strerror(-ret));
    if (image_open(*io, write ? IMAGE_WRITE : 0, &img, &why) < 0)
        interplay_failed(run, "image_open: %s", why.text);
    if (backing_open(img, run->path, 0) < 0)
        interplay_failed(run, "backing_open: %s", image_error(img));
    return img;
}

static void engine_must(const struct run *run, const struct image *img, int ret)
{
    if (ret < 0)
        interplay_failed(run, "engine: %s", image_error(img));
}

/* ---- steps --------------------------------------------------------------------------------- */

enum actor { ENGINE, QSNAP, QEMU, ACTORS };
static const char *const actor_names[] = {"engine", "qsnap", "qemu"};

struct step {
    enum actor actor;
    uint64_t at, length, size;
    unsigned pattern, snap;
    char name[16];
};

typedef void step_fn(struct run *run, struct step *s);

static void pick_range(struct run *run, struct step *s, uint32_t align)
{
    uint64_t units = run->active.size / align;
    uint32_t most = interplay_random(run, 4) == 0 ? (uint32_t)units : 1 + (uint32_t)(units / 12);
    uint64_t at = interplay_random(run, (uint32_t)units), length = 1 + interplay_random(run, most);
    length = length < units - at ? length : units - at;
    s->at = at * align;
    s->length = length * align;
}

static void step_write(struct run *run, struct step *s)
{
    bool close = interplay_random(run, 2);
    pick_range(run, s, s->actor == QEMU ? 512 : 1);
    snprintf(run->story, sizeof(run->story), "%s write %" PRIu64 " +%" PRIu64 " 0x%02x",
        actor_names[s->actor], s->at, s->length, s->pattern);
    if (s->actor == ENGINE) {
        struct io *io;
        struct image *img = open_engine(run, true, &io);
        uint8_t *buf = malloc(s->length + 1);
        memset(buf, (int)s->pattern, s->length);
        engine_must(run, img, image_write(img, s->at, buf, s->length / 2));
        engine_must(
            run, img, image_write(img, s->at + s->length / 2, buf, s->length - s->length / 2));
        if (!close)
            engine_must(run, img, image_flush(img));
        int ret = image_close(img);
        if (ret < 0)
            interplay_failed(run, "close: %s", strerror(-ret));
        io_close(io);
        free(buf);
    } else if (s->actor == QSNAP) {
        interplay_must(run, proc_run("%s/qsnap write %s %" PRIu64 " %" PRIu64 " --pattern %u",
                                run->program_dir, run->path, s->at, s->length, s->pattern));
    } else {
        interplay_must(
            run, proc_run("qemu-io -f qcow2 -c 'write -q -P %u %" PRIu64 " %" PRIu64 "' %s",
                     s->pattern, s->at, s->length, run->path));
    }
    memset(run->active.bytes + s->at, (int)s->pattern, s->length);
}

static void step_compress(struct run *run, struct step *s)
{
    uint32_t size = run->kind->cluster_size;
    if (!run->kind->compress || run->active.size < size)
        return;
    pick_range(run, s, size);
    s->length = s->length > 4 * (uint64_t)size ? 4 * (uint64_t)size : s->length;
    snprintf(run->story, sizeof(run->story), "qemu compress %" PRIu64 " +%" PRIu64 " 0x%02x", s->at,
        s->length, s->pattern);
    for (uint64_t at = s->at; at < s->at + s->length; at += size) {
        /* Over a cluster that is allocated QEMU refuses; so it is given up first. */
        interplay_must(run, proc_run("qemu-io -d unmap -f qcow2 -c 'discard -q %" PRIu64 " %u' "
                                     "-c 'write -q -c -P %u %" PRIu64 " %u' %s",
                                at, size, s->pattern, at, size, run->path));
    }
    memset(run->active.bytes + s->at, (int)s->pattern, s->length);
}

static void step_zero(struct run *run, struct step *s)
{
    pick_range(run, s, 512);
    const char *unmap = interplay_random(run, 2) ? "-u" : "";
    snprintf(run->story, sizeof(run->story), "qemu zero %s %" PRIu64 " +%" PRIu64, unmap, s->at,
        s->length);
    interplay_must(
        run, proc_run("qemu-io -d unmap -f qcow2 -c 'write -q -z %s %" PRIu64 " %" PRIu64 "' %s",
                 unmap, s->at, s->length, run->path));
    memset(run->active.bytes + s->at, 0, s->length);
}

static void step_discard(struct run *run, struct step *s)
{
    uint64_t unit = s->actor == QEMU ? run->kind->cluster_size : run->kind->unit;
    if (run->active.size < unit)
        return;
    /* Of compressed clusters with subclusters only whole ones can be discarded. */
    bool whole =
        s->actor == QEMU || (run->kind->compress && strstr(run->kind->options, "extended"));
    pick_range(run, s, whole ? (uint32_t)unit : 1);
    snprintf(run->story, sizeof(run->story), "%s discard %" PRIu64 " +%" PRIu64,
        actor_names[s->actor], s->at, s->length);
    if (s->actor == ENGINE) {
        struct io *io;
        struct image *img = open_engine(run, true, &io);
        engine_must(run, img, image_discard(img, s->at, s->length));
        if (image_close(img) < 0)
            interplay_failed(run, "close");
        io_close(io);
    } else if (s->actor == QSNAP) {
        interplay_must(run, proc_run("%s/qsnap discard %s %" PRIu64 " %" PRIu64, run->program_dir,
                                run->path, s->at, s->length));
    } else {
        interplay_must(
            run, proc_run("qemu-io -d unmap -f qcow2 -c 'discard -q %" PRIu64 " %" PRIu64 "' %s",
                     s->at, s->length, run->path));
    }
    uint64_t from = div_up(s->at, unit) * unit, to = s->at + s->length;
    if (to < run->active.size)
        to = to / unit * unit;
    if (from < to)
        memset(run->active.bytes + from, 0, to - from);
}

static void step_resize(struct run *run, struct step *s)
{
    const struct kind *kind = run->kind;
    if (kind->bitmap || (kind->v2 && run->snap_count > 0))
        return;
    s->size =
        (kind->size_bytes / 2 + interplay_random(run, (uint32_t)kind->size_bytes)) / 512 * 512;
    snprintf(run->story, sizeof(run->story), "%s resize %" PRIu64, actor_names[s->actor], s->size);
    if (s->actor == ENGINE) {
        struct io *io;
        struct image *img = open_engine(run, true, &io);
        engine_must(run, img, image_resize(img, s->size));
        if (image_close(img) < 0)
            interplay_failed(run, "close");
        io_close(io);
    } else if (s->actor == QSNAP) {
        interplay_must(
            run, proc_run("%s/qsnap resize %s %" PRIu64, run->program_dir, run->path, s->size));
    } else {
        /* QEMU leaves what is in the rest of the last cluster: it must be zeros. */
        if (s->size < run->active.size && s->size % kind->cluster_size)
            return;
        interplay_must(run, proc_run("qemu-img resize -q -f qcow2 %s %s %" PRIu64,
                                s->size < run->active.size ? "--shrink" : "", run->path, s->size));
    }
    run->active.bytes = realloc(run->active.bytes, s->size + 1);
    if (s->size > run->active.size)
        memset(run->active.bytes + run->active.size, 0, s->size - run->active.size);
    run->active.size = s->size;
}

static void step_create(struct run *run, struct step *s)
{
    if (run->snap_count == MAX_SNAPSHOTS)
        return;
    snprintf(s->name, sizeof(s->name), "s%u", run->names++);
    snprintf(run->story, sizeof(run->story), "%s create %s", actor_names[s->actor], s->name);
    if (run->kind->one_bit) {
        if (proc_exit("%s/qsnap create %s %s 2>/dev/null", run->program_dir, run->path, s->name) !=
            1)
            interplay_failed(run, "a snapshot on refcounts of one bit");
        return;
    }
    if (s->actor == ENGINE) {
        struct io *io;
        struct image *img = open_engine(run, true, &io);
        struct snapshot_info info = {.name = s->name, .icount = UINT64_MAX};
        engine_must(run, img, snapshot_create(img, &info));
        if (image_close(img) < 0)
            interplay_failed(run, "close");
        io_close(io);
    } else if (s->actor == QSNAP) {
        interplay_must(
            run, proc_run("%s/qsnap create %s %s", run->program_dir, run->path, s->name));
    } else {
        interplay_must(run, proc_run("qemu-img snapshot -c %s %s", s->name, run->path));
    }
    struct disk *snap = &run->snaps[run->snap_count++];
    *snap = run->active;
    memcpy(snap->name, s->name, sizeof(snap->name));
    snap->bytes = malloc(snap->size + 1);
    memcpy(snap->bytes, run->active.bytes, snap->size);
}

/* Apply and delete differ in one word for each program. */
static void snapshot_step(struct run *run, struct step *s, bool apply)
{
    const char *name = run->snaps[s->snap].name;
    snprintf(run->story, sizeof(run->story), "%s %s %s", actor_names[s->actor],
        apply ? "apply" : "delete", name);
    if (s->actor == ENGINE) {
        struct io *io;
        struct image *img = open_engine(run, true, &io);
        uint32_t idx;
        engine_must(run, img, snapshot_find(img, name, &idx));
        engine_must(run, img, apply ? snapshot_apply(img, idx) : snapshot_delete(img, idx));
        if (image_close(img) < 0)
            interplay_failed(run, "close");
        io_close(io);
    } else if (s->actor == QSNAP) {
        interplay_must(run, proc_run("%s/qsnap %s %s %s", run->program_dir,
                                apply ? "apply" : "delete", run->path, name));
    } else {
        interplay_must(
            run, proc_run("qemu-img snapshot -%c %s %s", apply ? 'a' : 'd', name, run->path));
    }
}

static void step_apply(struct run *run, struct step *s)
{
    if (run->snap_count == 0)
        return;
    s->snap = interplay_random(run, run->snap_count);
    if (run->kind->bitmap && s->actor == QEMU) /* which refuses this */
        s->actor = ENGINE;
    snapshot_step(run, s, true);
    const struct disk *snap = &run->snaps[s->snap];
    run->active.size = snap->size;
    run->active.bytes = realloc(run->active.bytes, snap->size + 1);
    memcpy(run->active.bytes, snap->bytes, snap->size);
}

static void step_delete(struct run *run, struct step *s)
{
    if (run->snap_count == 0)
        return;
    s->snap = interplay_random(run, run->snap_count);
    snapshot_step(run, s, false);
    free(run->snaps[s->snap].bytes);
    run->snap_count--;
    memmove(&run->snaps[s->snap], &run->snaps[s->snap + 1],
        (run->snap_count - s->snap) * sizeof(struct disk));
}

static const struct {
    step_fn *fn;
    unsigned weight;
} steps[] = {{step_write, 10}, {step_compress, 2}, {step_zero, 2}, {step_discard, 3},
    {step_resize, 2}, {step_create, 4}, {step_apply, 4}, {step_delete, 3}};

static void do_step(struct run *run)
{
    struct step s = {.actor = (enum actor)interplay_random(run, ACTORS),
        .pattern = 1 + interplay_random(run, 255)};
    unsigned total = 0, pick;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
        total += steps[i].weight;
    pick = interplay_random(run, total);
    run->story[0] = '\0';
    for (size_t i = 0;; i++) {
        if (pick < steps[i].weight) {
            steps[i].fn(run, &s);
            return;
        }
        pick -= steps[i].weight;
    }
}

/* ---- checks -------------------------------------------------------------------------------- */

static void compare(const struct run *run, const struct disk *disk, const uint8_t *bytes,
    uint64_t size, const char *reader)
{
    const char *name = disk->name[0] ? disk->name : "the active disk";
    if (size != disk->size)
        interplay_failed(
            run, "%s: %s has %" PRIu64 " bytes, not %" PRIu64, reader, name, size, disk->size);
    for (uint64_t i = 0; i < size; i++) {
        if (bytes[i] != disk->bytes[i])
            interplay_failed(run, "%s: %s differs at %" PRIu64 ": 0x%02x, not 0x%02x", reader, name,
                i, bytes[i], disk->bytes[i]);
    }
}

static void check_engine_view(struct run *run)
{
    struct io *io;
    struct image *img = open_engine(run, false, &io);
    uint8_t *bytes = malloc(image_size(img) + 1);
    engine_must(run, img, image_read(img, 0, bytes, image_size(img)));
    compare(run, &run->active, bytes, image_size(img), "engine");
    free(bytes);
    for (unsigned i = 0; i < run->snap_count; i++) {
        struct view view;
        uint32_t idx;
        engine_must(run, img, snapshot_find(img, run->snaps[i].name, &idx));
        engine_must(run, img, snapshot_view(img, idx, &view));
        bytes = malloc(view.size_bytes + 1);
        engine_must(run, img, view_read(img, &view, 0, bytes, view.size_bytes));
        compare(run, &run->snaps[i], bytes, view.size_bytes, "engine");
        view_close(&view);
        free(bytes);
    }
    image_abandon(img);
    io_close(io);
}

/* One disk through QEMU's eyes: all of them each time would take most of the time. */
static void check_qemu_view(struct run *run)
{
    unsigned which = interplay_random(run, run->snap_count + 1);
    const struct disk *disk = which < run->snap_count ? &run->snaps[which] : &run->active;
    char option[64] = "";
    if (which < run->snap_count)
        snprintf(option, sizeof(option), "-l snapshot.name=%s", disk->name);
    interplay_must(
        run, proc_run("qemu-img convert -q -f qcow2 %s -O raw %s %s", option, run->path, run->raw));
    struct io *io;
    uint64_t size;
    if (io_file_open(run->raw, 0, &io, NULL) < 0 || io_size(io, &size) < 0)
        interplay_failed(run, "cannot open %s", run->raw);
    uint8_t *bytes = malloc(size + 1);
    if (io_read(io, 0, bytes, size) < 0)
        interplay_failed(run, "cannot read %s", run->raw);
    /* QEMU shows a snapshot in the size of the active disk. */
    struct disk seen = *disk;
    if (which < run->snap_count && seen.size > run->active.size)
        seen.size = run->active.size;
    compare(
        run, &seen, bytes, which < run->snap_count && size > seen.size ? seen.size : size, "qemu");
    free(bytes);
    io_close(io);
}

static void check_all(struct run *run)
{
    char qcheck[PATH_MAX + 16];
    interplay_must(run, proc_run("qemu-img check -q -f qcow2 %s", run->path));
    snprintf(qcheck, sizeof(qcheck), "%s/qcheck", run->program_dir);
    if (access(qcheck, X_OK) == 0)
        interplay_must(run, proc_run("%s -q %s", qcheck, run->path));
    check_engine_view(run);
    check_qemu_view(run);
    unlink(run->raw);
}

/* ---- runs ---------------------------------------------------------------------------------- */

static unsigned run_one(const char *dir, const char *program_dir, unsigned seed, unsigned steps_max)
{
    struct run run = {.seed = seed, .rng = seed, .kind = interplay_kind(seed)};
    snprintf(run.path, sizeof(run.path), "%s/image.qcow2", dir);
    snprintf(run.raw, sizeof(run.raw), "%s/image.raw", dir);
    snprintf(run.program_dir, sizeof(run.program_dir), "%s", program_dir);
    interplay_make_image(&run, dir);
    for (run.step = 1; run.step <= RUN_STEPS && run.step <= steps_max; run.step++) {
        do_step(&run);
        if (run.story[0])
            check_all(&run);
        if (getenv("INTERPLAY_VERBOSE"))
            fprintf(stderr, "%u %s\n", run.step, run.story);
    }
    free(run.active.bytes);
    while (run.snap_count > 0)
        free(run.snaps[--run.snap_count].bytes);
    unlink(run.path);
    return run.step - 1;
}

int main(int argc, char **argv)
{
    unsigned steps_max = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 1000;
    unsigned seed = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 1, done = 0, runs = 0;
    char program_dir[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program_dir, sizeof(program_dir) - 1);
    program_dir[length > 0 ? length : 0] = '\0';
    for (int i = 0; i < 2; i++) { /* build/tests/interplay -> build */
        char *slash = strrchr(program_dir, '/');
        if (slash)
            *slash = '\0';
    }
    char *dir = proc_mkdir();
    while (done < steps_max)
        done += run_one(dir, program_dir, seed + runs++, steps_max - done);
    printf("interplay: %u steps in %u runs over %d kinds, seeds %u to %u\n", done, runs,
        (int)interplay_kind_count(), seed, seed + runs - 1);
    proc_rmdir(dir);
    return EXIT_SUCCESS;
}
