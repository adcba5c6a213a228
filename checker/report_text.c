/* SPDX-License-Identifier: MIT
 *
 * The report for people: what is wrong, grouped by check, worst first; then what it means. */
#include "report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

enum { LINES_PER_CHECK = 10 };

static void print_bytes(FILE *out, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    double value = (double)bytes;
    while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    fprintf(out, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
}

static void print_findings(
    const struct report *report, enum check_id check, bool verbose, FILE *out)
{
    uint64_t shown = 0;
    for (size_t i = 0; i < report->sorted.count; i++) {
        const struct finding *finding = &report->sorted.items[i];
        if (finding->check != check)
            continue;
        if (!verbose && shown == LINES_PER_CHECK)
            break;
        char message[512];
        report_message(report, finding, message, sizeof(message));
        fprintf(out, "    %s%s\n", message, finding->fixed ? " [repaired]" : "");
        shown++;
    }
    if (report->hits[check] > shown)
        fprintf(out, "    ... and %" PRIu64 " more%s\n", report->hits[check] - shown,
            verbose ? "" : " (-v, --max-findings)");
}

static void print_severity(const struct report *report, enum severity severity,
    const struct report_style *style, FILE *out)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        const struct check_row *row = &check_rows[check];
        if (row->severity != severity || report->hits[check] == 0)
            continue;
        char name[CHECK_NAME_BYTES];
        check_name((enum check_id)check, name);
        fprintf(
            out, "  %s: %s (%" PRIu64 ")\n", severity_name(severity), name, report->hits[check]);
        print_findings(report, (enum check_id)check, style->verbose, out);
        fprintf(out, "    => %s\n", row->meaning);
    }
}

static void print_summary(const struct report *report, FILE *out)
{
    if (!report->image_known)
        return;
    fprintf(out,
        "  %" PRIu64 " corruptions, %" PRIu64 " leaked clusters, %" PRIu64 " of %" PRIu64
        " clusters allocated, ends at 0x%" PRIx64 "\n",
        report->corruptions, report->leaks, report->allocated_clusters, report->total_clusters,
        report->image_end_off);
    if (report->data_at_risk > 0) {
        fputs("  guest data lost or ambiguous: ", out);
        print_bytes(out, report->data_at_risk);
        fputc('\n', out);
    }
}

static uint64_t count_notes(const struct report *report)
{
    uint64_t notes = 0;
    for (int check = 0; check < CHECK_COUNT; check++) {
        if (check_rows[check].severity == SEVERITY_NOTE)
            notes += report->hits[check];
    }
    return notes;
}

void report_print(
    const struct report *report, const char *filename, const struct report_style *style, FILE *out)
{
    uint64_t notes = count_notes(report);
    enum verdict verdict = report_verdict(report);
    if (style->quiet && verdict == VERDICT_CLEAN)
        return;
    text_print(out, filename, strlen(filename), 0);
    fprintf(out, ": %s\n", verdict_name(verdict));
    if (report->problem[0]) { /* it may have names of files */
        fputs("  ", out);
        text_print(out, report->problem, strlen(report->problem), 0);
        fputc('\n', out);
    }
    if (style->quiet)
        return;
    for (int severity = SEVERITY_COUNT - 1; severity > SEVERITY_NOTE; severity--)
        print_severity(report, (enum severity)severity, style, out);
    /* A note that counts (a stale COPIED flag does) must not be hidden behind an exit code. */
    if (style->verbose || (verdict != VERDICT_CLEAN && notes > 0))
        print_severity(report, SEVERITY_NOTE, style, out);
    else if (notes > 0)
        fprintf(out, "  %" PRIu64 " note%s (-v shows %s)\n", notes, notes > 1 ? "s" : "",
            notes > 1 ? "them" : "it");
    if (style->verbose || verdict != VERDICT_CLEAN)
        print_summary(report, out);
}
