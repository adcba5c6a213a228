/* SPDX-License-Identifier: MIT
 *
 * What a check of one image found: counts that are complete, findings up to a cap, the verdict. */
#ifndef CHECKER_REPORT_H
#define CHECKER_REPORT_H

#include <stdio.h>

#include "check.h"

enum verdict {
    VERDICT_CLEAN,
    VERDICT_LEAKS,
    VERDICT_CORRUPT,
    VERDICT_INCOMPLETE,
    VERDICT_UNSUPPORTED,
    VERDICT_REFUSED, /* sound, but the pre-deploy policy says no */
};

enum { DEFAULT_MAX_FINDINGS = 1000 };

struct finding_list {
    struct finding *items;
    size_t count, room;
};

struct report {
    /* The counters of `qemu-img check`, with its meanings. */
    uint64_t corruptions, leaks, check_errors;
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_off;
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters;

    uint64_t data_at_risk;      /* guest bytes, over the active disk and all snapshots */
    uint64_t hits[CHECK_COUNT]; /* findings of each check, printed or not */
    struct finding_list by_severity[SEVERITY_COUNT];
    size_t max_findings;
    size_t kept_before[SEVERITY_COUNT]; /* of a part: what the cap has let through before it */
    uint64_t omitted;                   /* hits that the cap left out */
    struct finding_list sorted;         /* after report_finish(): by host offset, then check */

    bool leaks_allowed; /* by the pre-deploy policy: leaks alone are no reason to exit with 3 */

    bool unsupported;  /* not qcow2, or a feature that cannot be judged */
    bool incomplete;   /* something was left unread or unjudged */
    bool image_known;  /* the header could be decoded: the fields about clusters mean something */
    char problem[256]; /* why it could not be completed, "" if it could or findings say it */

    /* Snapshot IDs for printing, by tree - 1; they point into `snapshot_bytes`. */
    struct report_snapshot {
        const uint8_t *id;
        size_t id_len;
    } * snapshots;
    size_t snapshot_count;
    uint8_t *snapshot_bytes;

    /* L2 tables named by findings that several disks have; sorted by table_off. */
    struct report_sharers *sharers;
    size_t sharers_count;
};

enum { REPORT_SHARERS = 16 };

/* The disks that have an L2 table, in the order of the snapshot table, the active one first. */
struct report_sharers {
    uint64_t table_off;
    size_t count;              /* of `trees`: the first ones if there are more */
    int trees[REPORT_SHARERS]; /* TREE_... */
};

void report_init(struct report *report, size_t max_findings);
void report_release(struct report *report);

/* Counts the finding and keeps a copy if the cap allows; one of higher severity pushes out one of
 * lower.  Never fails: without memory it is counted and omitted. */
void report_add(struct report *report, const struct finding *finding);

/* For those who find the same again and again: whether a finding of that check would only be
 * counted, and counting one that is not even made. */
bool report_full(const struct report *report, enum check_id check);
void report_count(struct report *report, enum check_id check, uint64_t weight);

/* The report of a part of the check, which is to be appended to the whole. */
void report_init_part(struct report *part, const struct report *whole);

/* Adds what a part found, as if each of its findings had been added here, after those that are
 * there. */
void report_append(struct report *report, const struct report *more);

/* The disks that have the table, NULL if there is one at most. */
const struct report_sharers *report_sharers_of(const struct report *report, uint64_t table_off);

/* Something of the machine failed: what, once the first; the verdict becomes incomplete. */
void report_problem(struct report *report, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Sorts what was kept; call once, when all is added. */
void report_finish(struct report *report);

enum verdict report_verdict(const struct report *report);
const char *verdict_name(enum verdict verdict);

/* A finding so far that guest data is lost or ambiguous, kept or only counted. */
bool report_has_damage(const struct report *report);

/* Exit code of one image; the worse of two. */
int report_exit_code(const struct report *report);
int worse_exit_code(int a, int b);

/* One sentence about a finding, without its severity and check, into `out`. */
void report_message(
    const struct report *report, const struct finding *finding, char *out, size_t out_len);

/* ---- output (report_text.c, report_json.c) ---- */

struct report_style {
    bool quiet, verbose, color;
};

void report_print(
    const struct report *report, const char *filename, const struct report_style *style, FILE *out);

/* One JSON object on one line.  -ENOMEM, or -EIO if it could not be written. */
int report_print_json(const struct report *report, const char *filename, FILE *out);

/* A name as it stands between quotes in a text: what controls a terminal, quotes and backslashes
 * as \xNN, cut to fit. */
void report_escape(const uint8_t *bytes, size_t length, char *out, size_t out_len);

#endif
