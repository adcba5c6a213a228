/* SPDX-License-Identifier: MIT
 *
 * Collects findings, keeps the worst of them up to a cap, and draws the verdict. */
#include "report.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

void report_init(struct report *report, size_t max_findings)
{
    memset(report, 0, sizeof(*report));
    report->max_findings = max_findings;
}

void report_release(struct report *report)
{
    for (int severity = 0; severity < SEVERITY_COUNT; severity++)
        free(report->by_severity[severity].items);
    free(report->sorted.items);
    free(report->snapshots);
    free(report->snapshot_bytes);
    free(report->sharers);
}

static bool list_push(struct finding_list *list, const struct finding *finding)
{
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 16;
        struct finding *items = realloc(list->items, room * sizeof(*items));
        if (!items)
            return false;
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = *finding;
    return true;
}

static void tally(struct report *report, enum check_id check, uint64_t weight)
{
    report->hits[check]++;
    switch (check_rows[check].tally) {
    case TALLY_CORRUPTION_QEMU:
    case TALLY_CORRUPTION_OWN:
        report->corruptions = capped_sum(report->corruptions, weight);
        break;
    case TALLY_LEAK_QEMU:
    case TALLY_LEAK_OWN:
        report->leaks = capped_sum(report->leaks, weight);
        break;
    case TALLY_NONE:
        break;
    }
}

static size_t kept_of(const struct report *report, int severity)
{
    return report->by_severity[severity].count + report->kept_before[severity];
}

/* How many are kept of this severity and worse. */
static size_t kept_from(const struct report *report, enum severity severity)
{
    size_t kept = 0;
    for (int s = (int)severity; s < SEVERITY_COUNT; s++)
        kept += kept_of(report, s);
    return kept;
}

bool report_full(const struct report *report, enum check_id check)
{
    return kept_from(report, check_rows[check].severity) >= report->max_findings;
}

/* Keeps the finding if the cap allows. */
static void keep(struct report *report, const struct finding *finding)
{
    enum severity severity = check_rows[finding->check].severity;
    if (report_full(report, finding->check) ||
        !list_push(&report->by_severity[severity], finding)) {
        report->omitted++;
        return;
    }
    /* One too many now, perhaps: the mildest gives way. */
    bool over = kept_from(report, SEVERITY_NOTE) > report->max_findings;
    for (int s = 0; s < (int)severity && over; s++) {
        if (report->by_severity[s].count > 0) {
            report->by_severity[s].count--;
            report->omitted++;
            break;
        }
    }
}

void report_add(struct report *report, const struct finding *finding)
{
    tally(report, finding->check, finding->weight);
    keep(report, finding);
}

void report_count(struct report *report, enum check_id check, uint64_t weight)
{
    tally(report, check, weight);
    report->omitted++;
}

void report_init_part(struct report *part, const struct report *whole)
{
    report_init(part, whole->max_findings);
    for (int s = 0; s < SEVERITY_COUNT; s++)
        part->kept_before[s] = kept_of(whole, s);
}

void report_append(struct report *report, const struct report *more)
{
    report->corruptions = capped_sum(report->corruptions, more->corruptions);
    report->leaks = capped_sum(report->leaks, more->leaks);
    report->data_at_risk = capped_sum(report->data_at_risk, more->data_at_risk);
    report->omitted += more->omitted;
    for (int check = 0; check < CHECK_COUNT; check++)
        report->hits[check] += more->hits[check];
    for (int s = 0; s < SEVERITY_COUNT; s++) {
        for (size_t i = 0; i < more->by_severity[s].count; i++)
            keep(report, &more->by_severity[s].items[i]);
    }
    if (more->incomplete)
        report_problem(report, "%s", more->problem);
}

static int compare_table_offs(const void *key, const void *element)
{
    const uint64_t *table_off = key;
    const struct report_sharers *sharers = element;
    return (*table_off > sharers->table_off) - (*table_off < sharers->table_off);
}

const struct report_sharers *report_sharers_of(const struct report *report, uint64_t table_off)
{
    if (report->sharers_count == 0)
        return NULL;
    return bsearch(&table_off, report->sharers, report->sharers_count, sizeof(*report->sharers),
        compare_table_offs);
}

void report_problem(struct report *report, const char *format, ...)
{
    report->incomplete = true;
    if (report->problem[0])
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(report->problem, sizeof(report->problem), format, args);
    va_end(args);
    text_trim(report->problem);
}

static int compare_findings(const void *a, const void *b)
{
    const struct finding *x = a, *y = b;
    uint64_t keys[][2] = {
        {x->host_off, y->host_off},
        {(uint64_t)x->check, (uint64_t)y->check},
        {x->guest_off, y->guest_off},
        {(uint64_t)(x->tree + 1), (uint64_t)(y->tree + 1)},
        {x->table_off, y->table_off},
        {x->index, y->index},
    };
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (keys[i][0] != keys[i][1])
            return keys[i][0] > keys[i][1] ? 1 : -1;
    }
    return 0;
}

void report_finish(struct report *report)
{
    for (int severity = 0; severity < SEVERITY_COUNT; severity++) {
        const struct finding_list *list = &report->by_severity[severity];
        for (size_t i = 0; i < list->count; i++) {
            if (!list_push(&report->sorted, &list->items[i]))
                report->omitted++;
        }
    }
    if (report->sorted.count > 0)
        qsort(report->sorted.items, report->sorted.count, sizeof(struct finding), compare_findings);
}

bool report_has_damage(const struct report *report)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        if (check_rows[check].severity == SEVERITY_DAMAGE && report->hits[check] > 0)
            return true;
    }
    return false;
}

static bool is_refused(const struct report *report)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        if (check_rows[check].kind == OBJECT_POLICY && report->hits[check] > 0)
            return true;
    }
    return false;
}

enum verdict report_verdict(const struct report *report)
{
    if (report->unsupported && !report->problem[0])
        return VERDICT_UNSUPPORTED;
    if (report->unsupported || report->incomplete || report->check_errors > 0)
        return VERDICT_INCOMPLETE;
    if (report->corruptions > 0)
        return VERDICT_CORRUPT;
    bool refused = is_refused(report);
    if (report->leaks > 0 && !(report->leaks_allowed && refused))
        return VERDICT_LEAKS;
    return refused ? VERDICT_REFUSED : VERDICT_CLEAN;
}

const char *verdict_name(enum verdict verdict)
{
    static const char *const names[] = {
        "clean", "leaks", "corrupt", "incomplete", "unsupported", "refused"};
    return names[verdict];
}

int report_exit_code(const struct report *report)
{
    static const int codes[] = {
        [VERDICT_CLEAN] = 0,
        [VERDICT_LEAKS] = 3,
        [VERDICT_CORRUPT] = 2,
        [VERDICT_INCOMPLETE] = 1,
        [VERDICT_UNSUPPORTED] = 63,
        [VERDICT_REFUSED] = 4,
    };
    enum verdict verdict = report_verdict(report);
    return verdict == VERDICT_LEAKS && report->leaks_allowed ? 0 : codes[verdict];
}

int worse_exit_code(int a, int b)
{
    static const int order[] = {1, 2, 63, 3, 4, 0};
    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        if (a == order[i] || b == order[i])
            return order[i];
    }
    return 1;
}

void report_escape(const uint8_t *bytes, size_t length, char *out, size_t out_len)
{
    text_escape(bytes, length, "\"\\", out, out_len);
}

/* ---- sentences ---- */

struct text {
    char *out;
    size_t room, used;
};

static void append(struct text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void append(struct text *text, const char *format, ...)
{
    va_list args;
    if (text->used >= text->room)
        return;
    va_start(args, format);
    int n = vsnprintf(text->out + text->used, text->room - text->used, format, args);
    va_end(args);
    text->used += n > 0 ? (size_t)n : 0;
}

static void append_snapshot(
    struct text *text, const struct report *report, int tree, const char *before)
{
    if (tree <= TREE_ACTIVE || (size_t)tree > report->snapshot_count)
        return;
    char id[64];
    const struct report_snapshot *snapshot = &report->snapshots[tree - 1];
    report_escape(snapshot->id, snapshot->id_len, id, sizeof(id));
    append(text, "%s \"%s\"", before, id);
}

/* Those who have the table besides the disk of the finding. */
static void append_sharers(
    struct text *text, const struct report *report, const struct finding *finding)
{
    const struct report_sharers *sharers =
        finding->has_table ? report_sharers_of(report, finding->table_off) : NULL;
    const char *before = finding->tree > TREE_ACTIVE ? " (and" : " (and of snapshot";
    for (size_t i = 0; sharers && i < sharers->count; i++) {
        if (sharers->trees[i] == finding->tree)
            continue;
        append_snapshot(text, report, sharers->trees[i], before);
        before = ",";
    }
    if (before[0] == ',')
        append(text, sharers->count == REPORT_SHARERS ? ", ...)" : ")");
}

/* What it is and should be: an errno, a count, a size in bytes, or a field as it stands there. */
static void append_values(struct text *text, enum object_kind kind, const struct finding *finding)
{
    unsigned long long got = finding->got, want = finding->want;
    const char *form = "0x%llx", *wanted = ", should be ";
    switch (kind) {
    case OBJECT_REGION:
        append(text, ": %s", strerror((int)finding->got));
        return;
    case OBJECT_ORPHAN:
        if (got > 0)
            append(text, ": %llu bytes of guest data hang on it", got);
        return;
    case OBJECT_CLUSTER:
        form = "%llu";
        break;
    case OBJECT_POLICY:
        form = "%llu";
        wanted = ", allowed is ";
        break;
    case OBJECT_FILE:
    case OBJECT_DATA_FILE:
    case OBJECT_BACKING:
        form = "%llu bytes";
        break;
    default:
        break;
    }
    if (finding->has_got) {
        append(text, ": is ");
        append(text, form, got);
    }
    if (finding->has_want) {
        append(text, "%s", wanted);
        append(text, form, want);
    }
}

void report_message(
    const struct report *report, const struct finding *finding, char *out, size_t out_len)
{
    const struct check_row *row = &check_rows[finding->check];
    struct text text = {.out = out, .room = out_len};
    out[0] = '\0';
    append(&text, "%s", object_kind_name(row->kind));
    if (finding->has_table && row->kind != OBJECT_CLUSTER)
        append(&text, " %llu of the table at 0x%llx", (unsigned long long)finding->index,
            (unsigned long long)finding->table_off);
    else if (finding->has_host)
        append(&text, " at 0x%llx", (unsigned long long)finding->host_off);
    if (finding->guest_len > 0) {
        append(&text, ", guest 0x%llx-0x%llx", (unsigned long long)finding->guest_off,
            (unsigned long long)(finding->guest_off + finding->guest_len - 1));
        append_snapshot(&text, report, finding->tree, " of snapshot");
        append_sharers(&text, report, finding);
    } else if (row->kind == OBJECT_SNAPSHOT) {
        append_snapshot(&text, report, finding->tree, " of snapshot");
    }
    append(&text, ": %s", row->sentence);
    if (finding->detail[0]) {
        char detail[sizeof(finding->detail) * 4];
        report_escape(
            (const uint8_t *)finding->detail, strlen(finding->detail), detail, sizeof(detail));
        append(&text, " (%s)", detail);
    }
    append_values(&text, row->kind, finding);
    text_trim(out);
}
