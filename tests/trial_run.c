/* SPDX-License-Identifier: MIT */
#include "trial_run.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "proc.h"
#include "same.h"
#include "specimen.h"

#define CASE_NAME "case.qcow2"
#define COPY_NAME "repaired.qcow2"

struct trial {
    const struct item_options *options;
    struct trial_totals *totals;
    struct specimen specimen;
    struct io *healthy; /* in memory; NULL: skip its items */
    struct truth truth;
};

/* What came out for one image and tool. */
struct outcome {
    int exit_code, check_qemu, check_own;
    double seconds;
    struct truth_share share;
    char *checks; /* findings that are left, by name */
};

/* One image. */
struct item {
    uint64_t idx;
    struct io *damaged;
    struct truth before;
    struct outcome tools[TRIAL_TOOLS];
    bool told; /* something is to be told about it */
    FILE *text;
};

const char *trial_tool_name(enum trial_tool tool)
{
    static const char *const names[] = {
        [TRIAL_SAFE] = "qcheck --repair",
        [TRIAL_LOSSY] = "qcheck --repair --lossy",
        [TRIAL_QEMU] = "qemu-img check -r all",
    };
    return names[tool];
}

const char *trial_rule_name(enum trial_rule rule)
{
    static const char *const names[] = {
        [TRIAL_WORSE] = "WORSE",
        [TRIAL_AGAIN] = "AGAIN",
        [TRIAL_VERDICT] = "VERDICT",
        [TRIAL_CRASH] = "CRASH",
    };
    return names[rule];
}

static void broken(
    struct trial *t, struct item *item, enum trial_tool tool, enum trial_rule rule, const char *how)
{
    t->totals->broken[rule]++;
    item->told = true;
    fprintf(item->text, "    HARD %s %s: %s\n", trial_rule_name(rule), trial_tool_name(tool), how);
}

/* ---- files ------------------------------------------------------------------------------------
 */

static struct io *load(const char *dir, const char *name)
{
    char path[4096];
    struct io *file, *image = NULL;
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    if (io_file_open(path, IO_FILE_NO_LOCK, &file, NULL) < 0)
        return NULL;
    if (io_mem_load(file, &image) < 0)
        image = NULL;
    io_close(file);
    return image;
}

/* With the data file as it is now: nobody may have touched it. */
static void read_content(struct trial *t, struct io *image, struct truth *out)
{
    struct io *data = t->specimen.image.data_file ? load(t->specimen.dir, "data.raw") : NULL;
    uint64_t most = t->truth.disk_count ? truth_size(&t->truth) : UINT64_MAX;
    truth_read(image, data, most, out);
    io_close(data);
}

/* ---- programs ---------------------------------------------------------------------------------
 */

static int run_tool(struct trial *t, enum trial_tool tool)
{
    struct specimen *s = &t->specimen;
    char args[IMGMAKE_ARGS_BYTES];
    imgmake_args(&s->image, COPY_NAME, args);
    if (tool == TRIAL_QEMU)
        return proc_exit("cd '%s' && exec timeout -k 1 60 qemu-img check -r all %s", s->dir, args);
    return proc_exit("cd '%s' && exec timeout -s KILL %d '%s' --repair %s " COPY_NAME, s->dir,
        TRIAL_SECONDS + 1, t->options->qcheck, tool == TRIAL_LOSSY ? "--lossy" : "");
}

static int check_qemu(struct trial *t, const char *name)
{
    char args[IMGMAKE_ARGS_BYTES];
    imgmake_args(&t->specimen.image, name, args);
    return proc_exit("cd '%s' && exec timeout -k 1 60 qemu-img check %s", t->specimen.dir, args);
}

/* The names of the findings that are no notes, in one string. */
static char *name_findings(const char *output)
{
    char *names = NULL;
    size_t length, idx;
    FILE *out = open_memstream(&names, &length);
    if (!out)
        abort();
    json_t *json = json_loads(output, JSON_ALLOW_NUL, NULL), *finding;
    json_t *seen = json_object();
    json_array_foreach(json_object_get(json, "findings"), idx, finding)
    {
        const char *severity = json_string_value(json_object_get(finding, "severity"));
        const char *check = json_string_value(json_object_get(finding, "check"));
        if (!severity || !check || strcmp(severity, "note") == 0 || json_object_get(seen, check))
            continue;
        json_object_set_new(seen, check, json_true());
        fprintf(out, " %s", check);
    }
    json_decref(seen);
    json_decref(json);
    fclose(out);
    return names;
}

static int check_own(struct trial *t, const char *name, char **checks)
{
    struct proc_result result = proc_run("cd '%s' && exec timeout -k 1 20 '%s' --output=json '%s'",
        t->specimen.dir, t->options->qcheck, name);
    int exit_code = result.exit_code;
    if (checks)
        *checks = name_findings(result.out);
    proc_free(&result);
    return exit_code;
}

/* ---- one image, one tool ----------------------------------------------------------------------
 */

static void judge_run(struct trial *t, struct item *item, enum trial_tool tool)
{
    struct outcome *o = &item->tools[tool];
    char how[100];
    bool own = o->exit_code <= 3 || o->exit_code == 63;
    snprintf(how, sizeof(how), "exit %d after %.1f s", o->exit_code, o->seconds);
    if (!own || o->seconds > TRIAL_SECONDS)
        broken(t, item, tool, TRIAL_CRASH, how);
    else if (o->exit_code != o->check_own && o->exit_code != 1) {
        snprintf(how, sizeof(how), "exit %d, a check afterwards %d", o->exit_code, o->check_own);
        broken(t, item, tool, TRIAL_VERDICT, how);
    }
}

static void judge_content(
    struct trial *t, struct item *item, enum trial_tool tool, const struct truth *after)
{
    char *how = NULL;
    size_t length;
    FILE *why = open_memstream(&how, &length);
    if (!why)
        abort();
    uint64_t worse = truth_worse(&t->truth, &item->before, after, tool == TRIAL_LOSSY, why);
    fclose(why);
    how[strcspn(how, "\n")] = '\0';
    if (worse)
        broken(t, item, tool, TRIAL_WORSE, how);
    free(how);
}

static void repair_again(
    struct trial *t, struct item *item, enum trial_tool tool, struct io *repaired)
{
    int exit_code = run_tool(t, tool);
    struct io *again = load(t->specimen.dir, COPY_NAME);
    char how[64];
    snprintf(
        how, sizeof(how), "bytes changed, exit %d then %d", item->tools[tool].exit_code, exit_code);
    if (!again || !same_image(repaired, again))
        broken(t, item, tool, TRIAL_AGAIN, how);
    io_close(again);
}

static int try_tool(struct trial *t, struct item *item, enum trial_tool tool)
{
    struct specimen *s = &t->specimen;
    struct outcome *o = &item->tools[tool];
    int err = specimen_copy(s, CASE_NAME, COPY_NAME);
    if (err)
        return err;
    double start = proc_seconds();
    o->exit_code = run_tool(t, tool);
    if (tool == TRIAL_QEMU)
        o->exit_code = run_tool(t, tool);
    o->seconds = proc_seconds() - start;
    struct io *repaired = load(s->dir, COPY_NAME);
    if (!repaired)
        return -EIO;
    struct truth after;
    read_content(t, repaired, &after);
    truth_kept(&t->truth, t->healthy, item->damaged, &after, &o->share);
    o->check_own = check_own(t, COPY_NAME, &o->checks);
    o->check_qemu = check_qemu(t, COPY_NAME);
    if (t->options->keep) {
        static const char *const suffixes[] = {"-safe", "-lossy", "-qemu"};
        specimen_keep(s, COPY_NAME, t->options->keep, t->options->seed, item->idx, suffixes[tool]);
    }
    if (tool != TRIAL_QEMU) {
        judge_run(t, item, tool);
        judge_content(t, item, tool, &after);
        if (o->exit_code <= 3)
            repair_again(t, item, tool, repaired);
    }
    truth_free(&after);
    io_close(repaired);
    return 0;
}

/* ---- one image --------------------------------------------------------------------------------
 */

static void add_up(struct trial_sum *sum, const struct outcome *o)
{
    const struct truth_share *share = &o->share;
    sum->images++;
    sum->clean_qemu += o->check_qemu == 0;
    sum->clean_own += o->check_own == 0;
    sum->share.in_file += share->in_file;
    sum->share.kept += share->kept;
    sum->share.known += share->known;
    sum->share.known_kept += share->known_kept;
    sum->share.placed += share->placed;
    sum->share.placed_kept += share->placed_kept;
    sum->share.mapped += share->mapped;
    sum->share.mapped_kept += share->mapped_kept;
    sum->share.snapshots += share->snapshots;
    sum->share.snapshots_kept += share->snapshots_kept;
    if (share->in_file)
        sum->kept_shares += (double)share->kept / (double)share->in_file;
    sum->seconds += o->seconds;
    if (o->seconds > sum->seconds_most)
        sum->seconds_most = o->seconds;
}

/* "L2 0x40000[3] at 0x40018: 0x1 -> 0x0 (zeroed)" is of the kind "L2 (zeroed)". */
static void name_kind(const char *line, size_t length, char kind[96])
{
    const char *end = line + length, *at = line, *what = end;
    size_t n = 0;
    while (what > line && what[-1] != '(')
        what--;
    for (; at < end && strncmp(at, " at ", 4) != 0 && *at != ':' && *at != '[' && n < 60; at++) {
        bool number = (*at >= '0' && *at <= '9' && at > line && at[-1] == ' ');
        if (number) {
            while (at + 1 < end && at[1] != ' ' && at[1] != '[' && at[1] != ':')
                at++;
            continue;
        }
        kind[n++] = *at;
    }
    while (n > 0 && kind[n - 1] == ' ')
        n--;
    n += (size_t)snprintf(kind + n, 96 - n, "%s%.*s", what > line ? " (" : "",
        what > line ? (int)(end - what < 30 ? end - what : 30) : 0, what);
    kind[n < 95 ? n : 95] = '\0';
}

static size_t count_lines(const char *story)
{
    size_t lines = 0;
    for (const char *p = story; *p; p++)
        lines += *p == '\n';
    return lines;
}

/* Two lines tell one swap. */
static size_t count_damages(const char *story)
{
    size_t damages = count_lines(story);
    while ((story = strstr(story, "(with this)\n")) && damages > 1) {
        damages--;
        story++;
    }
    return damages < 1 ? 1 : damages > TRIAL_DAMAGES ? TRIAL_DAMAGES : damages;
}

static void blame(struct trial_totals *totals, const char *story, const struct truth_share *share)
{
    size_t lines = count_lines(story);
    double bytes = (double)(share->in_file - share->kept) / (double)(lines ? lines : 1);
    for (const char *line = story; *line;) {
        size_t length = strcspn(line, "\n"), i = 0;
        char kind[96];
        name_kind(line, length, kind);
        while (i < totals->cause_count && strcmp(totals->causes[i].kind, kind) != 0)
            i++;
        if (i < TRIAL_CAUSES) {
            struct trial_cause *cause = &totals->causes[i];
            memcpy(cause->kind, kind, sizeof(kind));
            cause->bytes += bytes;
            cause->images += bytes / (double)share->in_file;
            totals->cause_count += i == totals->cause_count;
        }
        line += length + (line[length] == '\n');
    }
}

static void judge_item(struct trial *t, struct item *item, const char *story)
{
    const struct outcome *lossy = &item->tools[TRIAL_LOSSY], *qemu = &item->tools[TRIAL_QEMU];
    const struct truth_share *share = &lossy->share;
    size_t damages = count_damages(story);
    for (unsigned tool = 0; tool < TRIAL_TOOLS; tool++) {
        add_up(&t->totals->tools[tool], &item->tools[tool]);
        add_up(&t->totals->by_damages[damages - 1][tool], &item->tools[tool]);
    }
    t->totals->images++;
    t->totals->with_data += share->in_file > 0;
    if (lossy->check_qemu != 0 || lossy->check_own != 0) {
        item->told = true;
        fprintf(item->text, "    NOT CLEAN --lossy: qemu-img %d, qcheck %d:%s\n", lossy->check_qemu,
            lossy->check_own, lossy->checks);
    }
    if (share->kept < share->in_file) {
        blame(t->totals, story, share);
        item->told = true;
        fprintf(item->text,
            "    LOST --lossy keeps %" PRIu64 " of %" PRIu64 " bytes (%" PRIu64 " of %" PRIu64
            " with a mapping), --repair %" PRIu64 ", qemu-img %" PRIu64 "\n",
            share->kept, share->in_file, share->known_kept, share->known,
            item->tools[TRIAL_SAFE].share.kept, qemu->share.kept);
    }
    if (share->kept < qemu->share.kept) {
        t->totals->less_than_qemu++;
        fprintf(item->text, "    LESS than qemu-img by %" PRIu64 " bytes\n",
            qemu->share.kept - share->kept);
    }
}

static void tell(struct trial *t, const struct item *item, const char *text, const char *story)
{
    FILE *log = t->options->log;
    fprintf(log,
        "item %" PRIu64 "  build/tests/trial 1 %" PRIu64 " --only %" PRIu64 " --keep kept\n",
        item->idx, t->options->seed, item->idx);
    for (unsigned tool = 0; tool < TRIAL_TOOLS; tool++) {
        const struct outcome *o = &item->tools[tool];
        if (t->options->verbose)
            fprintf(log, "    %s: exit %d, %.2f s; then qemu-img %d, qcheck %d:%s\n",
                trial_tool_name(tool), o->exit_code, o->seconds, o->check_qemu, o->check_own,
                o->checks);
    }
    fputs(text, log);
    for (const char *line = story; *line;) {
        size_t length = strcspn(line, "\n");
        fprintf(log, "    damage: %.*s\n", (int)length, line);
        line += length + (line[length] == '\n');
    }
    fflush(log);
}

static int try_item(struct trial *t, uint64_t idx)
{
    struct specimen *s = &t->specimen;
    struct item item = {.idx = idx};
    char *story = NULL, *text = NULL;
    size_t length;
    int err = specimen_damage(s, t->options->seed, idx, CASE_NAME, &story);
    if (err)
        return err;
    item.damaged = load(s->dir, CASE_NAME);
    item.text = open_memstream(&text, &length);
    if (!item.damaged || !item.text)
        abort();
    read_content(t, item.damaged, &item.before);
    for (unsigned tool = 0; tool < TRIAL_TOOLS && err == 0; tool++)
        err = try_tool(t, &item, tool);
    if (err == 0)
        judge_item(t, &item, story);
    fclose(item.text);
    if (err == 0 && (item.told || t->options->verbose))
        tell(t, &item, text, story);
    if (t->options->keep)
        specimen_keep(s, CASE_NAME, t->options->keep, t->options->seed, idx, "");
    for (unsigned tool = 0; tool < TRIAL_TOOLS; tool++)
        free(item.tools[tool].checks);
    truth_free(&item.before);
    io_close(item.damaged);
    free(text);
    free(story);
    return err;
}

/* ---- all of them ------------------------------------------------------------------------------
 */

static void forget_truth(struct trial *t)
{
    io_close(t->healthy);
    t->healthy = NULL;
    truth_free(&t->truth);
}

/* QEMU's own programs now and then make an image that is not sound. */
static void make_truth(struct trial *t, uint64_t idx)
{
    struct specimen *s = &t->specimen;
    forget_truth(t);
    specimen_sound(s, t->options->seed, idx);
    if (!s->made || check_qemu(t, s->image.name) != 0 || check_own(t, s->image.name, NULL) != 0)
        return;
    t->healthy = load(s->dir, s->image.name);
    if (t->healthy)
        read_content(t, t->healthy, &t->truth);
}

int trial_run(const struct item_options *options, struct trial_totals *totals)
{
    struct trial t = {.options = options, .totals = totals};
    int err = 0;
    *totals = (struct trial_totals){0};
    specimen_open(&t.specimen);
    for (uint64_t i = 0; i < options->count && err == 0; i++) {
        uint64_t idx = options->first + i;
        if (i == 0 || idx % SPECIMEN_SHARE == 0)
            make_truth(&t, idx);
        if (t.healthy)
            err = try_item(&t, idx);
        else
            totals->skipped++;
    }
    forget_truth(&t);
    specimen_close(&t.specimen);
    return err;
}
