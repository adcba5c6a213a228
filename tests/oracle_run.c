/* SPDX-License-Identifier: MIT */
#include "oracle_run.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "compare.h"
#include "specimen.h"

#define CASE_NAME "case.qcow2"

struct oracle {
    const struct item_options *options;
    struct oracle_totals *totals;
    struct specimen specimen;
};

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
    const struct item_options *options = o->options;
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
        specimen_keep(
            &o->specimen, name, o->options->keep, o->options->seed, item, story ? "" : "-sound");
    fflush(o->options->log);
}

/* ---- items
 * ---------------------------------------------------------------------------------------
 */

static void make_sound(struct oracle *o, uint64_t item)
{
    struct specimen *s = &o->specimen;
    specimen_sound(s, o->options->seed, item);
    o->totals->not_made = s->not_made;
    if (!s->made)
        return;
    struct comparison c;
    compare_run(s->dir, &s->image, s->image.name, o->options->qcheck, &c);
    if (c.outcome == COMPARE_NAMED && c.qemu.exit_code == 0)
        c.outcome = COMPARE_DIFFERS; /* nothing may be found wrong with a sound image */
    o->totals->sound++;
    o->totals->unsound += c.qemu.exit_code != 0;
    account(o, item, s->image.name, NULL, &c);
    compare_free(&c);
}

static int make_damaged(struct oracle *o, uint64_t item)
{
    struct specimen *s = &o->specimen;
    char *story = NULL;
    int err = specimen_damage(s, o->options->seed, item, CASE_NAME, &story);
    if (err)
        return err;
    struct comparison c;
    compare_run(s->dir, &s->image, CASE_NAME, o->options->qcheck, &c);
    o->totals->damaged++;
    account(o, item, CASE_NAME, story, &c);
    compare_free(&c);
    free(story);
    return 0;
}

int oracle_run(const struct item_options *options, struct oracle_totals *totals)
{
    struct oracle o = {.options = options, .totals = totals};
    specimen_open(&o.specimen);
    int err = 0;
    *totals = (struct oracle_totals){0};
    for (uint64_t i = 0; i < options->count && err == 0; i++) {
        uint64_t item = options->first + i;
        if (i == 0 || item % SPECIMEN_SHARE == 0)
            make_sound(&o, item);
        if (o.specimen.made)
            err = make_damaged(&o, item);
    }
    specimen_close(&o.specimen);
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
