/* SPDX-License-Identifier: MIT
 *
 * The report for programs: the keys of `qemu-img check --output=json` and ours.  Valid UTF-8
 * whatever bytes names hold. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "jvalue.h"
#include "report.h"

static int set_number(json_t *object, const char *key, uint64_t value)
{
    return json_object_set_new(object, key, jvalue_number(value));
}

static int set_text(json_t *object, const char *key, const char *bytes)
{
    return json_object_set_new(object, key, jvalue_text(bytes, strlen(bytes)));
}

static bool is_snapshot(const struct report *report, int tree)
{
    return tree > TREE_ACTIVE && (size_t)tree <= report->snapshot_count;
}

static json_t *snapshot_id(const struct report *report, int tree)
{
    const struct report_snapshot *snapshot = &report->snapshots[tree - 1];
    return jvalue_text(snapshot->id, snapshot->id_len);
}

/* The snapshots that have the table besides the disk of the finding. */
static int set_sharers(json_t *object, const struct report *report, const struct finding *finding)
{
    const struct report_sharers *sharers = report_sharers_of(report, finding->table_off);
    json_t *ids = sharers ? json_array() : NULL;
    int failed = sharers && !ids;
    for (size_t i = 0; ids && i < sharers->count; i++) {
        if (sharers->trees[i] != finding->tree && is_snapshot(report, sharers->trees[i]))
            failed |= json_array_append_new(ids, snapshot_id(report, sharers->trees[i]));
    }
    return failed | (ids ? json_object_set_new(object, "shared-with", ids) : 0);
}

static int set_place(json_t *object, const struct report *report, const struct finding *finding)
{
    int failed = 0;
    if (finding->has_host) {
        failed |= set_number(object, "host-offset", finding->host_off);
        failed |= set_number(object, "length", finding->length);
    }
    if (finding->guest_len > 0) {
        failed |= set_number(object, "guest-offset", finding->guest_off);
        failed |= set_number(object, "guest-length", finding->guest_len);
    }
    if (is_snapshot(report, finding->tree))
        failed |= json_object_set_new(object, "snapshot", snapshot_id(report, finding->tree));
    if (finding->has_table) {
        failed |= set_number(object, "table", finding->table_off);
        failed |= set_number(object, "index", finding->index);
        if (finding->guest_len > 0)
            failed |= set_sharers(object, report, finding);
    }
    return failed;
}

static json_t *finding_json(const struct report *report, const struct finding *finding)
{
    const struct check_row *row = &check_rows[finding->check];
    char name[CHECK_NAME_BYTES], message[512];
    check_name(finding->check, name);
    report_message(report, finding, message, sizeof(message));
    json_t *object = json_object();
    int failed = set_text(object, "check", name);
    failed |= set_text(object, "severity", severity_name(row->severity));
    failed |= set_text(object, "object", object_kind_name(row->kind));
    failed |= set_place(object, report, finding);
    if (finding->has_got)
        failed |= set_number(object, "got", finding->got);
    if (finding->has_want)
        failed |= set_number(object, "want", finding->want);
    if (finding->weight != 1)
        failed |= set_number(object, "count", finding->weight);
    failed |= set_text(object, "repair", repair_class_name(row->repair));
    failed |= json_object_set_new(object, "fixed", json_boolean(finding->fixed));
    failed |= set_text(object, "message", message);
    if (failed) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *findings_json(const struct report *report)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < report->sorted.count; i++) {
        if (json_array_append_new(list, finding_json(report, &report->sorted.items[i])) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *report_json(const struct report *report, const char *filename)
{
    const struct {
        const char *key;
        uint64_t value;
    } counters[] = {
        {"check-errors", report->check_errors},
        {"image-end-offset", report->image_end_off},
        {"total-clusters", report->total_clusters},
        {"allocated-clusters", report->allocated_clusters},
        {"fragmented-clusters", report->fragmented_clusters},
        {"compressed-clusters", report->compressed_clusters},
        {"corruptions", report->corruptions},
        {"leaks", report->leaks},
        {"corruptions-fixed", report->corruptions_fixed},
        {"leaks-fixed", report->leaks_fixed},
        {"data-at-risk", report->data_at_risk},
        {"findings-omitted", report->omitted},
    };
    json_t *object = json_object();
    int failed = set_text(object, "filename", filename);
    failed |= set_text(object, "format", "qcow2");
    failed |= set_text(object, "verdict", verdict_name(report_verdict(report)));
    for (size_t i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
        failed |= set_number(object, counters[i].key, counters[i].value);
    if (report->problem[0])
        failed |= set_text(object, "problem", report->problem);
    failed |= json_object_set_new(object, "findings", findings_json(report));
    if (failed) {
        json_decref(object);
        return NULL;
    }
    return object;
}

struct sink {
    FILE *out;
    bool failed;
};

/* Remembers a failure itself: the library forgets one inside a key. */
static int write_piece(const char *bytes, size_t length, void *arg)
{
    struct sink *sink = arg;
    sink->failed |= fwrite(bytes, 1, length, sink->out) != length;
    return sink->failed ? -1 : 0;
}

int report_print_json(const struct report *report, const char *filename, FILE *out)
{
    json_t *object = report_json(report, filename);
    if (!object)
        return -ENOMEM;
    struct sink sink = {.out = out};
    int ret = json_dump_callback(object, write_piece, &sink, JSON_COMPACT) < 0 ? -ENOMEM : 0;
    json_decref(object);
    if (sink.failed || (ret == 0 && fputc('\n', out) == EOF))
        return -EIO;
    return ret;
}
