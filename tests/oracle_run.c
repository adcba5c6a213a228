/* SPDX-License-Identifier: MIT */
#include "oracle_run.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compare.h"
#include "damage.h"
#include "imgmake.h"
#include "io.h"
#include "proc.h"
#include "rng.h"

#define CASE_NAME "case.qcow2"

struct oracle {
    const struct oracle_options *options;
    struct oracle_totals *totals;
    char *dir;
    struct imgmake image;
    bool made; /* image.qcow2 is there and good */
};

/* ---- copies ------------------------------------------------------------------------------------
 */

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

/* The damaged copy of image.qcow2; *story as damage_image() tells it. */
static int make_case(struct oracle *o, uint64_t damage_seed, unsigned count, char **story)
{
    char from_path[4096], to_path[4096];
    snprintf(from_path, sizeof(from_path), "%s/%s", o->dir, o->image.name);
    snprintf(to_path, sizeof(to_path), "%s/" CASE_NAME, o->dir);
    unlink(to_path);
    struct io *from = NULL, *to = NULL;
    int err = io_file_open(from_path, IO_FILE_NO_LOCK, &from, NULL);
    if (err == 0)
        err = io_file_open(to_path, IO_FILE_NO_LOCK | IO_FILE_CREATE | IO_FILE_WRITE, &to, NULL);
    if (err == 0)
        err = copy_extents(from, to);
    if (err == 0)
        err = damage_image(to, damage_seed, count, story);
    io_close(from);
    io_close(to);
    return err;
}

/* ---- the outcome of one comparison
 * ----------------------------------------------------------------
 */

static void tell(struct oracle *o, uint64_t item, const char *story, const struct comparison *c)
{
    static const char *const words[] = {
        [COMPARE_EQUAL] = "equal",
        [COMPARE_NAMED] = "differs, known reason",
        [COMPARE_DIFFERS] = "DIFFERS",
        [COMPARE_QEMU_ONLY] = "qemu-img only",
    };
    const struct oracle_options *options = o->options;
    char *text = compare_text(c);
    fprintf(options->log, "%s%s%s: item %" PRIu64 " of seed %" PRIu64 "%s\n", words[c->outcome],
        c->reason ? " " : "", c->reason ? c->reason : "", item, options->seed,
        story ? "" : " (not damaged)");
    fprintf(options->log,
        "    replay: build/tests/oracle 1 %" PRIu64 " --only %" PRIu64 " --keep kept\n",
        options->seed, item);
    for (const char *line = story; line && *line;) {
        size_t length = strcspn(line, "\n");
        fprintf(options->log, "    damage: %.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
    fprintf(options->log, "%s\n", text ? text : "out of memory");
    free(text);
}

static void keep(struct oracle *o, uint64_t item, const char *name, const char *story)
{
    const struct oracle_options *options = o->options;
    proc_exit("mkdir -p '%s' && cp '%s/%s' '%s/%" PRIu64 "-%" PRIu64 "%s.qcow2'", options->keep,
        o->dir, name, options->keep, options->seed, item, story ? "" : "-sound");
    char path[4096];
    snprintf(
        path, sizeof(path), "%s/%" PRIu64 "-%" PRIu64 ".sh", options->keep, options->seed, item);
    FILE *file = fopen(path, "w");
    if (!file)
        return;
    fputs(o->image.script, file);
    fclose(file);
}

static void account(struct oracle *o, uint64_t item, const char *name, const char *story,
    const struct comparison *c)
{
    struct oracle_totals *totals = o->totals;
    totals->qemu_exits[c->qemu.exit_code & 255]++;
    if (c->outcome != COMPARE_QEMU_ONLY)
        totals->own_exits[c->own.exit_code & 255]++;
    totals->equal += c->outcome == COMPARE_EQUAL;
    totals->named += c->outcome == COMPARE_NAMED;
    totals->differ += c->outcome == COMPARE_DIFFERS;
    for (unsigned i = 0; i < DIFFERENCE_COUNT; i++)
        totals->reasons[i] += difference_name(i) == c->reason;
    if (c->outcome == COMPARE_DIFFERS || o->options->verbose)
        tell(o, item, story, c);
    if (o->options->keep && (c->outcome == COMPARE_DIFFERS || o->options->count == 1))
        keep(o, item, name, story);
    fflush(o->options->log);
}

/* ---- items
 * ---------------------------------------------------------------------------------------
 */

static void make_sound(struct oracle *o, uint64_t item)
{
    enum { ATTEMPTS = 4 };
    struct rng rng = rng_for(o->options->seed, item / ORACLE_SHARE);
    o->made = false;
    for (int i = 0; i < ATTEMPTS && !o->made; i++) {
        imgmake_free(&o->image);
        o->made = imgmake(o->dir, rng_next(&rng), &o->image) == 0;
        o->totals->not_made += !o->made;
    }
    if (!o->made)
        return;
    struct comparison c;
    compare_run(o->dir, &o->image, o->image.name, o->options->qcheck, &c);
    if (c.outcome == COMPARE_NAMED && c.qemu.exit_code == 0)
        c.outcome = COMPARE_DIFFERS; /* nothing may be found wrong with a sound image */
    o->totals->sound++;
    o->totals->unsound += c.qemu.exit_code != 0;
    account(o, item, o->image.name, NULL, &c);
    compare_free(&c);
}

static unsigned draw_count(struct rng *rng)
{
    static const unsigned char counts[] = {1, 1, 1, 1, 1, 2, 2, 3, 3, 4};
    return counts[rng_below(rng, sizeof(counts))];
}

static int make_damaged(struct oracle *o, uint64_t item)
{
    struct rng rng = rng_for(~o->options->seed, item);
    unsigned count = draw_count(&rng);
    char *story = NULL;
    int err = make_case(o, rng_next(&rng), count, &story);
    if (err)
        return err;
    struct comparison c;
    compare_run(o->dir, &o->image, CASE_NAME, o->options->qcheck, &c);
    o->totals->damaged++;
    account(o, item, CASE_NAME, story, &c);
    compare_free(&c);
    free(story);
    return 0;
}

int oracle_run(const struct oracle_options *options, struct oracle_totals *totals)
{
    struct oracle o = {.options = options, .totals = totals, .dir = proc_mkdir()};
    int err = 0;
    *totals = (struct oracle_totals){0};
    for (uint64_t i = 0; i < options->count && err == 0; i++) {
        uint64_t item = options->first + i;
        if (i == 0 || item % ORACLE_SHARE == 0)
            make_sound(&o, item);
        if (o.made)
            err = make_damaged(&o, item);
    }
    imgmake_free(&o.image);
    proc_rmdir(o.dir);
    return err;
}

char *oracle_find_qcheck(void)
{
    char self[4096], *path = NULL;
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (length < 0)
        return NULL;
    self[length] = '\0';
    for (int i = 0; i < 2; i++) { /* build/tests/oracle, so it is build/qcheck */
        char *slash = strrchr(self, '/');
        if (slash)
            *slash = '\0';
    }
    if (asprintf(&path, "%s/qcheck", self) < 0)
        return NULL;
    if (access(path, X_OK) == 0)
        return path;
    free(path);
    return NULL;
}
