/* SPDX-License-Identifier: MIT
 *
 * See output.h. */
#include "output.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jvalue.h"
#include "text.h"

#define EXACT_BELOW 9223372036854775808.0L /* 2^63 */

void output_count(long double count, char *out, size_t out_len)
{
    if (count < EXACT_BELOW)
        snprintf(out, out_len, "%.0Lf", count);
    else
        snprintf(out, out_len, "2^%.1Lf", log2l(count));
}

void story_print(const struct story *story, FILE *out)
{
    text_line(out, "  %s", story->id);
    fprintf(
        out, "    I%d broken: %s\n", (int)story->invariant, invariant_sentence(story->invariant));
    text_line(out, "    %s", story->message);
    text_line(out, "    cut: %s", story->cut);
    for (size_t i = 0; i < story->persisted_count; i++)
        fprintf(out, "    persisted: %s\n", story->persisted[i]);
    for (size_t i = 0; i < story->lost_count; i++)
        fprintf(out, "    lost:      %s\n", story->lost[i]);
    if (story->order[0])
        fprintf(out, "    order:     %s must be durable before %s\n", story->lost[0],
            story->persisted[0]);
    for (size_t i = 0; i < story->backtrace_count; i++)
        fprintf(out, "    called by: %s\n", story->backtraces[i]);
}

/* Several states may shrink to one. */
static bool is_told(const struct output *output, const struct story *story)
{
    for (size_t i = output->printed; i < output->story_count; i++) {
        const struct story *other = &output->stories[i];
        if (strcmp(other->id, story->id) == 0 && other->invariant == story->invariant &&
            strcmp(other->message, story->message) == 0)
            return true;
    }
    return false;
}

int output_story(struct output *output, struct story *story)
{
    if (is_told(output, story)) {
        story_release(story);
        return 0;
    }
    struct story *grown =
        realloc(output->stories, (output->story_count + 1) * sizeof(*output->stories));
    if (!grown) {
        story_release(story);
        return -ENOMEM;
    }
    output->stories = grown;
    grown[output->story_count++] = *story;
    return 0;
}

static void print_counts(const struct explore_counts *c, FILE *out)
{
    char legal[32], certified[32];
    output_count(c->legal, legal, sizeof(legal));
    output_count(c->certified, certified, sizeof(certified));
    fprintf(out, "legal %s, certified %s, executed %" PRIu64 ", distinct %" PRIu64, legal,
        certified, c->executed, c->distinct);
}

static void print_human(struct output *output, const char *workload, const char *image,
    const char *model, const struct explore_counts *c)
{
    FILE *out = output->out;
    size_t broken = output->story_count - output->printed;
    text_print(out, workload, strlen(workload), 9);
    fputc(' ', out);
    text_print(out, image, strlen(image), 12);
    fprintf(out, " %-12s ", model);
    print_counts(c, out);
    fprintf(out, "%s", explore_exhaustive(c) ? ", exhaustive" : "");
    if (c->harmed > 0)
        fprintf(out, ", harmed %" PRIu64 " (unnoticed %" PRIu64 ")", c->harmed, c->silent);
    if (c->flushes > 0)
        fprintf(
            out, ": %" PRIu64 " of %" PRIu64 " flushes needed\n", c->flushes_needed, c->flushes);
    else
        fprintf(out, broken ? ": %zu BROKEN\n" : ": kept\n", broken);
    for (size_t i = output->printed; i < output->story_count; i++)
        story_print(&output->stories[i], out);
}

/* A word of a shell; without quotes of its own, whoever made the name. */
static void print_quoted(const char *before, const char *word, FILE *out)
{
    char escaped[8192];
    text_escape(word, strlen(word), "'", escaped, sizeof(escaped));
    fprintf(out, "%s'%s'", before, escaped);
}

static void print_replay(const struct output *output, const struct story *story)
{
    print_quoted("# qcrash replay ", story->id, output->out);
    if (output->base)
        print_quoted(" --base ", output->base, output->out);
    if (output->log)
        print_quoted(" --log ", output->log, output->out);
    fputc('\n', output->out);
}

static void print_tap(struct output *output, const char *workload, const char *image,
    const char *model, const struct explore_counts *c)
{
    FILE *out = output->out;
    size_t broken = output->story_count - output->printed;
    text_line(out, "%sok %u - %s on %s under %s", broken ? "not " : "", ++output->lines, workload,
        image, model);
    fprintf(out, "# ");
    print_counts(c, out);
    fprintf(out, "%s\n", explore_exhaustive(c) ? ", exhaustive" : "");
    for (size_t i = output->printed; i < output->story_count; i++) {
        const struct story *story = &output->stories[i];
        print_replay(output, story);
        text_line(out, "# I%d: %s", (int)story->invariant, story->message);
    }
}

/* ---- a table ------------------------------------------------------------------------------- */

static struct output_row *row_of(struct output *output, const char *workload)
{
    const char *name = strncmp(workload, "seq-", 4) == 0   ? "sequences"
                       : strncmp(workload, "rnd-", 4) == 0 ? "random"
                                                           : workload;
    for (size_t i = 0; i < output->row_count; i++) {
        if (strncmp(output->rows[i].name, name, sizeof(output->rows[i].name) - 1) == 0)
            return &output->rows[i];
    }
    struct output_row *grown =
        realloc(output->rows, (output->row_count + 1) * sizeof(*output->rows));
    if (!grown)
        return NULL;
    output->rows = grown;
    grown[output->row_count] = (struct output_row){0};
    snprintf(grown[output->row_count].name, sizeof(grown->name), "%.31s", name);
    return &grown[output->row_count++];
}

static void print_row(const struct output_row *row, FILE *out)
{
    const struct explore_counts *c = &row->counts;
    char legal[32], certified[32];
    output_count(c->legal, legal, sizeof(legal));
    output_count(c->certified, certified, sizeof(certified));
    text_line(out,
        "| %s | %u | %s | %s | %" PRIu64 " | %" PRIu64 " | %" PRIu64 " | %" PRIu64 " | %" PRIu64
        " | %s | %u of %u |",
        row->name, row->runs, legal, certified, c->executed, c->distinct, c->continued, c->repaired,
        c->repair_cuts, explore_exhaustive(c) ? "yes" : "no", row->kept, row->runs);
}

static void finish_table(struct output *output)
{
    FILE *out = output->out;
    struct output_row sum = {.name = "all"};
    fprintf(out, "| workload | runs | legal | certified | executed | distinct | used on | repaired "
                 "| cuts in repairs | exhaustive | kept |\n"
                 "|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < output->row_count; i++) {
        print_row(&output->rows[i], out);
        explore_counts_add(&sum.counts, &output->rows[i].counts);
        sum.runs += output->rows[i].runs;
        sum.kept += output->rows[i].kept;
    }
    if (output->row_count > 1)
        print_row(&sum, out);
}

void output_line(struct output *output, const char *workload, const char *image, const char *model,
    const struct explore_counts *counts)
{
    explore_counts_add(&output->total, counts);
    if (output->style == OUTPUT_HUMAN)
        print_human(output, workload, image, model, counts);
    else if (output->style == OUTPUT_TAP)
        print_tap(output, workload, image, model, counts);
    struct output_row *row = row_of(output, workload);
    if (row) {
        explore_counts_add(&row->counts, counts);
        row->runs++;
        row->kept += output->printed == output->story_count;
    }
    output->printed = output->story_count;
    fflush(output->out);
}

/* ---- the sum ------------------------------------------------------------------------------- */

static json_t *text_json(const char *text)
{
    return jvalue_text(text, strlen(text));
}

static json_t *lines(char *const *list, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, text_json(list[i]));
    return array;
}

static json_t *count_json(long double count)
{
    char text[32];
    if (count < EXACT_BELOW)
        return json_integer((json_int_t)count);
    output_count(count, text, sizeof(text));
    return json_string(text);
}

static json_t *story_json(const struct story *s)
{
    return json_pack("{s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "id", text_json(s->id),
        "invariant", invariant_sentence(s->invariant), "workload", text_json(s->workload), "cut",
        text_json(s->cut), "persisted", lines(s->persisted, s->persisted_count), "lost",
        lines(s->lost, s->lost_count), "backtraces", lines(s->backtraces, s->backtrace_count),
        "message", text_json(s->message));
}

static double per_second(const struct explore_counts *c)
{
    return c->seconds > 0 ? (double)c->executed / c->seconds : 0;
}

static int finish_json(struct output *output)
{
    const struct explore_counts *c = &output->total;
    json_t *violations = json_array();
    for (size_t i = 0; i < output->story_count; i++) {
        json_t *story = story_json(&output->stories[i]);
        if (story)
            json_object_set_new(
                story, "invariant-number", json_integer((json_int_t)output->stories[i].invariant));
        json_array_append_new(violations, story);
    }
    json_t *top = json_pack("{s:o, s:o, s:I, s:I, s:I, s:I, s:f, s:o, s:b, s:I}", "states-legal",
        count_json(c->legal), "states-certified", count_json(c->certified), "states-executed",
        (json_int_t)c->executed, "states-distinct", (json_int_t)c->distinct, "states-checked",
        (json_int_t)c->checked, "states-continued", (json_int_t)c->continued, "states-per-second",
        per_second(c), "violations", violations, "exhaustive", (int)explore_exhaustive(c), "seed",
        (json_int_t)output->seed);
    if (top)
        json_object_set_new(top, "states-repaired", json_integer((json_int_t)c->repaired));
    if (top)
        json_object_set_new(top, "repairs-with-orphans", json_integer((json_int_t)c->orphaned));
    if (top && output->left_out[0])
        json_object_set_new(top, "left-out", text_json(output->left_out));
    int ret = top ? json_dumpf(top, output->out, JSON_INDENT(2)) : -1;
    fputc('\n', output->out);
    json_decref(top);
    return ret < 0 ? -EIO : 0;
}

static void finish_human(struct output *output)
{
    const struct explore_counts *c = &output->total;
    FILE *out = output->out;
    fprintf(out, "\nstates: ");
    print_counts(c, out);
    fprintf(out,
        "\n%" PRIu64 " epochs, %" PRIu64 " of them exhaustive, up to %" PRIu64
        " changed units (%" PRIu64 " units changed of %" PRIu64 " touched)\n",
        c->epochs, c->epochs_exhaustive, c->largest_epoch_units, c->units, c->units_touched);
    fprintf(out,
        "%" PRIu64 " states seen by qcheck, %" PRIu64 " used on (%" PRIu64 " refused), %" PRIu64
        " repaired with %" PRIu64 " cuts inside\n",
        c->checked, c->continued, c->refused, c->repaired, c->repair_cuts);
    if (c->orphaned > 0)
        fprintf(out,
            "%" PRIu64 " repairs kept leaks that look like lost tables, all of them of the "
            "interrupted operation; a lossy\nrepair then lost nothing, and took %" PRIu64
            " of them for the content of something empty\n",
            c->orphaned, c->adopted);
    fprintf(out, "%.0f states/s, seed %" PRIu64 "\n", per_second(c), output->seed);
    if (output->left_out[0])
        text_line(out, "NOT complete; left out: %s", output->left_out);
    fprintf(out, output->story_count ? "%zu promises BROKEN\n" : "every promise kept\n",
        output->story_count);
}

int output_finish(struct output *output)
{
    if (output->style == OUTPUT_JSON)
        return finish_json(output);
    if (output->style == OUTPUT_TABLE) {
        finish_table(output);
        for (size_t i = 0; i < output->story_count; i++)
            story_print(&output->stories[i], output->out);
        if (output->left_out[0])
            text_line(output->out, "NOT complete; left out: %s", output->left_out);
    } else if (output->style == OUTPUT_TAP) {
        fprintf(output->out, "1..%u\n", output->lines);
        if (output->left_out[0])
            text_line(output->out, "# NOT complete; left out: %s", output->left_out);
    } else {
        finish_human(output);
    }
    return ferror(output->out) ? -EIO : 0;
}

void output_release(struct output *output)
{
    for (size_t i = 0; i < output->story_count; i++)
        story_release(&output->stories[i]);
    free(output->stories);
    free(output->rows);
    output->rows = NULL;
    output->row_count = 0;
    output->stories = NULL;
    output->story_count = 0;
}
