/* SPDX-License-Identifier: MIT */
#include "compare.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "differences.h"
#include "io.h"
#include "proc.h"

static const char *const keys[COMPARE_COUNTS] = {
    [COUNT_CHECK_ERRORS] = "check-errors",
    [COUNT_CORRUPTIONS] = "corruptions",
    [COUNT_LEAKS] = "leaks",
    [COUNT_IMAGE_END] = "image-end-offset",
    [COUNT_TOTAL] = "total-clusters",
    [COUNT_ALLOCATED] = "allocated-clusters",
    [COUNT_FRAGMENTED] = "fragmented-clusters",
    [COUNT_COMPRESSED] = "compressed-clusters",
};

const char *compare_count_key(enum compare_count count)
{
    return keys[count];
}

/* A key that is absent is 0: qemu-img leaves out what is 0. */
static void take_verdict(struct proc_result *result, struct verdict *v)
{
    *v = (struct verdict){.exit_code = result->exit_code,
        .json = json_loads(result->out, JSON_ALLOW_NUL, NULL),
        .err = result->err};
    for (int i = 0; i < COMPARE_COUNTS && v->json; i++)
        v->counts[i] = json_integer_value(json_object_get(v->json, keys[i]));
    free(result->out);
}

static bool same(const struct verdict *a, const struct verdict *b)
{
    if (a->exit_code != b->exit_code)
        return false;
    if (a->exit_code == 63) /* not an image: there is nothing to count */
        return true;
    return !a->json == !b->json && memcmp(a->counts, b->counts, sizeof(a->counts)) == 0;
}

static void run_both(const char *dir, const struct imgmake *image, const char *name,
    const char *qcheck, struct comparison *out)
{
    char args[IMGMAKE_ARGS_BYTES];
    imgmake_args(image, name, args);
    *out = (struct comparison){.outcome = COMPARE_QEMU_ONLY};
    struct proc_result result =
        proc_run("cd '%s' && exec timeout 60 qemu-img check --output=json %s", dir, args);
    take_verdict(&result, &out->qemu);
    if (!qcheck)
        return;
    result = proc_run(
        "cd '%s' && exec timeout 60 '%s' --output=json --max-findings 30000 %s", dir, qcheck, name);
    take_verdict(&result, &out->own);
    out->outcome = same(&out->qemu, &out->own) ? COMPARE_EQUAL : COMPARE_DIFFERS;
}

/* Takes one disputed object out of the copy; *what is the first of all of them. */
static int take_out_one(const char *path, const struct comparison *c, enum difference *what)
{
    struct io *copy;
    int changed = io_file_open(path, IO_FILE_WRITE | IO_FILE_NO_LOCK, &copy, NULL);
    if (changed < 0)
        return changed;
    enum difference next = difference_next(c, 0);
    while (next != DIFFERENCE_NONE && (changed = difference_take_out(next, c, copy)) == 0)
        next = difference_next(c, next + 1);
    if (*what == DIFFERENCE_NONE && changed > 0)
        *what = next;
    io_close(copy);
    return changed;
}

/* Not a table: then qemu-img has found it to be corrupt, too, unless it could not compare counts.
 * Without this a sound table that qcheck refuses by mistake would pass. */
static bool confirmed(
    enum difference what, const struct comparison *with, const struct comparison *without)
{
    return what != DIFFERENCE_not_a_table || with->qemu.counts[COUNT_CHECK_ERRORS] > 0 ||
           difference_told_of_table(with) ||
           with->qemu.counts[COUNT_CORRUPTIONS] > without->qemu.counts[COUNT_CORRUPTIONS];
}

/* Takes disputed objects out of a copy until the two agree on it. */
static enum difference explain_by_copy(const char *dir, const struct imgmake *image,
    const char *name, const char *qcheck, const struct comparison *first)
{
    enum { ROUNDS = 6 };
    char path[4096];
    snprintf(path, sizeof(path), "%s/neutral.qcow2", dir);
    if (difference_next(first, 0) == DIFFERENCE_NONE ||
        proc_exit("cd '%s' && cp --sparse=always '%s' neutral.qcow2", dir, name) != 0)
        return DIFFERENCE_NONE;
    struct comparison now = {0};
    enum difference what = DIFFERENCE_NONE;
    bool agree = false;
    for (int round = 0; round < ROUNDS && !agree; round++) {
        if (take_out_one(path, round ? &now : first, &what) <= 0)
            break;
        compare_free(&now);
        run_both(dir, image, "neutral.qcow2", qcheck, &now);
        agree = now.outcome == COMPARE_EQUAL || difference_alone(&now) != DIFFERENCE_NONE;
    }
    agree = agree && confirmed(what, first, &now);
    compare_free(&now);
    return agree ? what : DIFFERENCE_NONE;
}

void compare_run(const char *dir, const struct imgmake *image, const char *name, const char *qcheck,
    struct comparison *out)
{
    run_both(dir, image, name, qcheck, out);
    if (out->outcome != COMPARE_DIFFERS)
        return;
    enum difference difference = difference_alone(out);
    if (difference == DIFFERENCE_NONE)
        difference = explain_by_copy(dir, image, name, qcheck, out);
    out->reason = difference_name(difference);
    out->outcome = out->reason ? COMPARE_NAMED : COMPARE_DIFFERS;
}

void compare_free(struct comparison *c)
{
    json_decref(c->qemu.json);
    json_decref(c->own.json);
    free(c->qemu.err);
    free(c->own.err);
    *c = (struct comparison){0};
}

/* ---- for people ----------------------------------------------------------------------------- */

static void print_lines(FILE *out, const char *text, int most)
{
    while (*text && most-- > 0) {
        size_t length = strcspn(text, "\n");
        fprintf(out, "        %.*s\n", (int)length, text);
        text += length + (text[length] == '\n');
    }
    if (*text)
        fprintf(out, "        ...\n");
}

static void print_verdict(FILE *out, const char *who, const struct verdict *v)
{
    fprintf(out, "    %s: exit %d", who, v->exit_code);
    for (int i = 0; i < COMPARE_COUNTS && v->json; i++) {
        if (v->counts[i])
            fprintf(out, ", %s %" PRId64, keys[i], v->counts[i]);
    }
    fprintf(out, "%s\n", v->json ? "" : ", no JSON");
    if (v->err)
        print_lines(out, v->err, 25);
    size_t idx;
    json_t *finding;
    json_array_foreach(json_object_get(v->json, "findings"), idx, finding)
    {
        if (idx == 40) {
            fprintf(out, "        ...\n");
            break;
        }
        fprintf(out, "        %s %s: %s\n", json_string_value(json_object_get(finding, "severity")),
            json_string_value(json_object_get(finding, "check")),
            json_string_value(json_object_get(finding, "message")));
    }
}

char *compare_text(const struct comparison *c)
{
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    if (!out)
        return NULL;
    print_verdict(out, "qemu-img", &c->qemu);
    if (c->outcome != COMPARE_QEMU_ONLY)
        print_verdict(out, "qcheck", &c->own);
    fclose(out);
    return text;
}
