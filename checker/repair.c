/* SPDX-License-Identifier: MIT
 *
 * Rounds of repair; see repair.h. */
#include "repair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROUNDS = 200, MAX_FINDINGS_A_ROUND = 100000, MAX_OF_A_CHECK = 20000 };

void repair_new_plan(struct repair *repair)
{
    plan_release(&repair->plan);
    plan_init(&repair->plan, repair->walk,
        repair->named_end < repair->records_end ? repair->named_end : repair->records_end);
    repair->plan.careful = repair->careful;
    if (repair->void_counts) /* what seems to be free may be what was lost */
        repair->plan.alloc_next = repair->walk->cluster_end;
}

/* ---- findings of a round ---- */

static int compare_findings(const void *a, const void *b)
{
    const struct finding *x = a, *y = b;
    if (x->check != y->check)
        return x->check > y->check ? 1 : -1;
    if (x->host_off != y->host_off)
        return x->host_off > y->host_off ? 1 : -1;
    return (x->guest_off > y->guest_off) - (x->guest_off < y->guest_off);
}

/* A finding that means that references are gone, so that a leak may be somebody's data. */
static bool loses_references(enum check_id check)
{
    switch (check_rows[check].kind) {
    case OBJECT_COMPRESSED:
    case OBJECT_DATA_FILE:
    case OBJECT_BACKING:
        return false;
    default:
        return check_rows[check].severity == SEVERITY_DAMAGE && check != CHECK_l2_entry_shared &&
               check != CHECK_l1_entry_shared;
    }
}

/* What the finding says that is named; 0 if that is not about what may lie outside the file. */
static uint64_t named_outside(const struct repair *repair, const struct finding *finding)
{
    uint64_t named;
    switch (finding->check) {
    case CHECK_l1_entry_outside:
    case CHECK_l2_entry_outside:
    case CHECK_l2_compressed_outside:
    case CHECK_snapshot_l1_outside:
        named = finding->host_off;
        break;
    case CHECK_header_l1_outside:
        if (finding->got == 0)
            return 0;
        named = finding->got;
        break;
    default:
        return 0;
    }
    /* What begins in the file goes on behind its end. */
    return named > repair->file_size ? named : repair->file_size;
}

/* What is put where a table of records is said to be would be read for these. */
static uint64_t records_outside(const struct repair *repair, const struct finding *finding)
{
    bool records = finding->check == CHECK_header_snapshots_outside ||
                   finding->check == CHECK_ext_bitmaps_directory;
    return records && finding->got >= repair->file_size ? finding->got : 0;
}

static bool is_entry(enum object_kind kind)
{
    return kind == OBJECT_L1_ENTRY || kind == OBJECT_L2_ENTRY || kind == OBJECT_L2_TABLE ||
           kind == OBJECT_REFTABLE_ENTRY || kind == OBJECT_BITMAP_ENTRY;
}

static void collect(void *arg, const struct finding *finding)
{
    struct repair *repair = arg;
    struct finding_set *set = &repair->findings;
    repair->lost_references |= loses_references(finding->check);
    uint64_t named = named_outside(repair, finding);
    if (named > 0 && named < repair->named_end)
        repair->named_end = named;
    uint64_t records = records_outside(repair, finding);
    if (records > 0 && records < repair->records_end)
        repair->records_end = records;
    enum object_kind kind = check_rows[finding->check].kind;
    bool in_header = (kind == OBJECT_L1_ENTRY || kind == OBJECT_L2_ENTRY) &&
                     finding->table_off < QCOW2_V2_HEADER_BYTES;
    /* Of entries there may be millions because of one of the others. */
    size_t most = is_entry(kind) ? MAX_FINDINGS_A_ROUND : 2 * MAX_FINDINGS_A_ROUND;
    bool full = set->count >= most || repair->report.hits[finding->check] > MAX_OF_A_CHECK;
    if (in_header || kind == OBJECT_CLUSTER || full)
        return; /* counts are taken from the census; what is too much, from the next round */
    if (set->count == set->room) {
        size_t room = set->room ? set->room * 2 : 64;
        struct finding *items = repair_memory(repair, realloc(set->items, room * sizeof(*items)));
        if (!items)
            return;
        set->items = items;
        set->room = room;
    }
    set->items[set->count++] = *finding;
}

/* What could not be read, or had no room in memory, was taken for something that is not there: what
 * follows from that is not to be written.  Where the check itself could not read something all
 * stages know of it. */
static int is_blind(const struct repair *repair)
{
    if (repair->decoding->no_memory || (repair->walk && repair->walk->no_memory))
        return -ENOMEM;
    bool failed = io_watch_failures(repair->watch) != repair->failed_reads;
    return failed && repair->walk && !repair->walk->unreadable ? -EIO : 0;
}

/* With what was found to be a fake in the round before, the image is looked at again without these.
 */
static int look(struct repair *repair)
{
    repair->believing = repair->fake_count == 0;
    repair->findings.count = 0;
    repair->failed_reads = io_watch_failures(repair->watch);
    repair->lost_references = false;
    repair->named_end = repair->records_end = UINT64_MAX;
    report_init(&repair->report, 0);
    repair->check.found = collect;
    repair->check.found_arg = repair;
    repair->check.no_tables = repair->fakes;
    repair->check.no_table_count = repair->fake_count;
    int ret = io_size(repair->io, &repair->file_size);
    if (ret == 0)
        ret =
            walk_open(repair->io, repair->filename, &repair->check, &repair->report, &repair->walk);
    repair->void_counts = repair_counts_nothing(repair);
    if (repair->findings.count > 0)
        qsort(repair->findings.items, repair->findings.count, sizeof(struct finding),
            compare_findings);
    if (ret == 0)
        ret = repair_note_damaged(repair);
    repair->no_reftable = ret == 0 && repair_is_no_reftable(repair);
    if (ret == 0)
        ret = repair_find_doubtful(repair);
    if (ret == 0 && repair->believing)
        ret = repair_find_fakes(repair);
    return ret == 0 ? is_blind(repair) : ret;
}

static void round_end(struct repair *repair)
{
    walk_close(repair->walk);
    repair->walk = NULL;
    free(repair->damaged);
    repair->damaged = NULL;
    free(repair->lost_names.offs);
    repair->lost_names = (struct lost_names){0};
    report_release(&repair->report);
}

/* What could not be read is read once more, before anything is given up for it: storage may fail at
 * times, and it is not known to do so for good until it failed as often. */
static int round_check(struct repair *repair)
{
    int ret = look(repair);
    unsigned failed = io_watch_failures(repair->watch) - repair->failed_reads;
    if (ret == 0 && repair->walk->unreadable && failed > repair->lasting_failures) {
        round_end(repair);
        ret = look(repair);
        repair->lasting_failures = io_watch_failures(repair->watch) - repair->failed_reads;
    }
    return ret;
}

/* ---- marks ---- */

/* The corrupt bit, not the dirty bit: programs that see a dirty image repair it in their own way,
 * one marked corrupt they leave alone.  Version 2 has no room for marks. */
static int set_incompatible(struct io *io, uint64_t set, uint64_t clear)
{
    uint8_t head[QCOW2_V3_HEADER_BYTES];
    int ret = io_read_padded(io, 0, head, sizeof(head));
    if (ret < 0 || load_be32(head) != QCOW2_MAGIC || load_be32(head + QCOW2_HDR_VERSION) < 3)
        return ret;
    uint64_t old = load_be64(head + QCOW2_HDR_INCOMPATIBLE), bits = (old | set) & ~clear;
    if (bits == old)
        return 0;
    store_be64(head + QCOW2_HDR_INCOMPATIBLE, bits);
    ret = io_write(io, QCOW2_HDR_INCOMPATIBLE, head + QCOW2_HDR_INCOMPATIBLE, 8);
    return ret < 0 ? ret : io_flush(io);
}

/* ---- rounds ---- */

static void print_remarks(const struct repair *repair)
{
    for (size_t i = 0; repair->options->remarks && i < repair->plan.remark_count; i++)
        fprintf(repair->options->remarks, "    %s\n", repair->plan.remarks[i].text);
}

/* What was carried out so far.  A stage that comes again with the same edits for an image in the
 * same state has no effect, and is left out from then on. */
struct history {
    uint64_t seen[MAX_ROUNDS]; /* fingerprints */
    size_t count;
    uint64_t given_up; /* bits by stage */
    bool marked;       /* the image is marked as being repaired */
    size_t edits;      /* of the last plan */
    unsigned poor;     /* rounds with more findings than are kept, and little that can be mended */
};

static bool has_no_effect(const struct repair *repair, struct history *history, size_t stage)
{
    uint64_t facts[] = {
        stage, repair->report.corruptions, repair->report.leaks, repair->findings.count};
    uint64_t sum = plan_fingerprint(&repair->plan, facts, sizeof(facts) / sizeof(facts[0]));
    for (size_t i = 0; i < history->count; i++) {
        if (history->seen[i] == sum)
            return true;
    }
    history->seen[history->count++] = sum; /* one a round */
    return false;
}

/* Marks the image if it must be, and writes. */
static int carry_out(struct repair *repair, struct history *history)
{
    int ret = 0;
    history->edits = repair->plan.count;
    print_remarks(repair);
    if (repair->plan.needs_mark && !history->marked) {
        ret = set_incompatible(repair->io, QCOW2_INCOMPAT_CORRUPT, 0);
        history->marked = true;
    }
    return ret < 0 ? ret : plan_apply(&repair->plan, repair->io, repair->options->edits);
}

/* Where nearly all counts are lost nothing was judged: they come first, after what says where they
 * are. */
static bool may_run(const struct repair *repair, repair_stage *stage)
{
    /* What the header says may explain it all. */
    if (repair->believing && repair->fake_count > 0)
        return !repair->options->leaks_only &&
               (stage == repair_header_fields || stage == repair_records || stage == repair_disks);
    /* Counts that are none are not mended where they are: that may be something else. */
    if (repair->void_counts &&
        (stage == repair_raise || stage == repair_lower || stage == repair_copied))
        return false;
    if (repair->options->leaks_only)
        return (stage == repair_lower || (stage == repair_copied && repair->lowered)) &&
               !repair->walk->without_counts;
    if (!repair->walk->judgeable)
        return stage == repair_header_fields;
    /* What was not read may be what refers to that which seems to miss a reference. */
    if (repair->walk->refs_incomplete &&
        (stage == repair_l1 || stage == repair_l2 || stage == repair_holes))
        return false;
    /* What guest data claims, being taken for a table, speaks against others. */
    bool fakes =
        repair->fake_tables || ((repair->fake_root || repair->fake_records) && !repair->lossy);
    if (fakes && stage != repair_header_fields && stage != repair_records &&
        stage != repair_disks && stage != repair_l1 && stage != repair_lossy)
        return false;
    return !repair->walk->without_counts || stage == repair_header_fields ||
           stage == repair_records || stage == repair_disks || stage == repair_find_structure ||
           stage == repair_rebuild;
}

enum { CAREFUL_STAGES = 5, FIND_AGAIN = 7 };

/* Runs one stage; *more: it had anything to do. */
static int run_stage(
    struct repair *repair, struct history *history, repair_stage *stage, unsigned nth, bool *more)
{
    if (!may_run(repair, stage) || (history->given_up >> nth & 1))
        return 0;
    repair->careful = !repair->lossy || nth < CAREFUL_STAGES;
    repair_new_plan(repair);
    int ret = stage(repair);
    if (ret == 0 && repair->decoding->given_up)
        ret = -E2BIG;
    if (ret == 0)
        ret = is_blind(repair);
    if (ret == 0 && repair->plan.count == 0)
        print_remarks(repair);
    if (ret == 0 && repair->plan.count > 0) {
        *more = !has_no_effect(repair, history, nth);
        if (*more)
            ret = carry_out(repair, history);
        else
            history->given_up |= UINT64_C(1) << nth;
    }
    plan_release(&repair->plan);
    return ret;
}

/* Applies the first stage that has anything to do.  *more: it had.  Where a choice is allowed, what
 * is no choice comes first: what is found again then does not stand to choice any more. */
static int run_round(struct repair *repair, struct history *history, bool *more)
{
    static repair_stage *const stages[] = {
        repair_header_fields,
        repair_records,
        repair_disks,
        repair_find_structure,
        repair_fields,
        repair_l1,
        repair_l2,
        repair_holes,
        repair_rebuild,
        repair_shared,
        repair_fields, /* also in a table that nothing was found for */
        repair_raise,
        repair_snapshots,
        repair_lossy,
        repair_lower,
        repair_copied,
    };
    enum { STAGES = sizeof(stages) / sizeof(stages[0]) };
    int ret = 0;
    *more = false;
    repair->lossy = false;
    for (unsigned i = 0; repair->options->lossy && ret == 0 && !*more && i < FIND_AGAIN; i++)
        ret = run_stage(repair, history, stages[i], STAGES + i, more);
    repair->lossy = repair->options->lossy;
    for (unsigned i = 0; ret == 0 && !*more && i < STAGES; i++)
        ret = run_stage(repair, history, stages[i], i, more);
    return ret;
}

int repair_on_view(const struct repair *repair, struct io *io, repair_stage *stage)
{
    struct repair view = {.io = io,
        .watch = repair->watch,
        .most_copied = repair->most_copied,
        .filename = repair->filename,
        .check = repair->check,
        .options = repair->options,
        .decoding = repair->decoding};
    struct history history = {.marked = true}; /* nobody else sees it */
    bool more = true;
    int ret = 0;
    for (unsigned round = 0; ret == 0 && more && round < MAX_ROUNDS; round++) {
        more = false;
        view.lossy = view.options->lossy;
        ret = round_check(&view);
        view.fake_count = 0;
        if (ret == 0)
            ret = run_stage(&view, &history, stage, 0, &more);
        if (view.walk)
            round_end(&view);
    }
    free(view.findings.items);
    return ret;
}

struct outcome {
    int error;
    uint64_t corruptions, leaks; /* before the first edit */
    bool counted;
    bool was_corrupt; /* the bit, before we came */
    bool marked;      /* by us */
    bool clean;       /* nothing wrong but the marks */
    bool unread;      /* a round did not see all */
    bool given_up;    /* there is more to repair, but so much that is beyond it */
};

/* Clusters without their count, where that is not judged. */
static uint64_t uncounted(const struct repair *repair)
{
    const struct census *census = repair->walk->census;
    uint64_t count = 0;
    for (uint64_t cluster = 0, n;
         repair->walk->without_counts && census_next_mismatch(census, cluster, &cluster);
         cluster += n) {
        n = census_like_run(census, cluster, UINT64_MAX - cluster);
        count += n;
    }
    return count;
}

/* What cannot be mended comes again in each round, and leaves less and less room for what can. */
static bool is_hopeless(const struct repair *repair, struct history *history)
{
    enum { MOST_POOR = 8 };
    history->poor +=
        repair->findings.count >= MAX_FINDINGS_A_ROUND && history->edits < MAX_FINDINGS_A_ROUND / 2;
    return history->poor > MOST_POOR;
}

static int run_rounds(struct repair *repair, struct outcome *outcome)
{
    /* One cluster that a whole table names is a few bytes, and its copies are gigabytes. */
    enum { LEAST_COPIED = 64 << 20 };
    struct history history = {.count = 0};
    bool more = true;
    int ret = 0;
    for (unsigned round = 0; ret == 0 && more && round < MAX_ROUNDS; round++) {
        ret = round_check(repair);
        if (ret == 0 && !outcome->counted) {
            outcome->counted = true;
            repair->most_copied =
                repair->file_size > LEAST_COPIED ? repair->file_size : LEAST_COPIED;
            outcome->corruptions = repair->report.corruptions + uncounted(repair);
            outcome->leaks = repair->report.leaks;
            outcome->was_corrupt = repair->walk->header.incompatible & QCOW2_INCOMPAT_CORRUPT;
        }
        if (ret == 0)
            ret = run_round(repair, &history, &more);
        if (ret == 0 && !more && repair->believing && repair->fake_count > 0)
            more = true; /* without them */
        else
            repair->fake_count = 0;
        outcome->marked = history.marked;
        outcome->given_up = ret == 0 && more && is_hopeless(repair, &history);
        more &= !outcome->given_up;
        if (ret == 0 && !more && !outcome->given_up && repair->walk->without_counts) {
            repair->check.stop_without_counts = false; /* there is more to see */
            more = true;
        }
        outcome->clean = ret == 0 && !more && !outcome->given_up &&
                         repair->report.corruptions == 0 && !repair->report.incomplete &&
                         !repair->report.unsupported;
        outcome->unread |= repair->walk && repair->walk->unreadable;
        if (repair->walk)
            round_end(repair);
    }
    return ret;
}

/* Marks go last: when all is well, or when what is left was there before us. */
static int clear_marks(struct repair *repair, const struct outcome *outcome)
{
    if (repair->options->leaks_only)
        return 0;
    if (outcome->clean)
        return set_incompatible(repair->io, 0, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    if (outcome->marked && !outcome->was_corrupt)
        return set_incompatible(repair->io, 0, QCOW2_INCOMPAT_CORRUPT);
    return 0;
}

int repair_image(struct io *io, const char *filename, const struct check_options *check,
    const struct repair_options *options, struct report *report)
{
    struct repair_decoding decoding = {0};
    struct io_watch watch;
    io_watch_init(&watch, io);
    struct repair repair = {.io = &watch.io,
        .watch = &watch,
        .filename = filename,
        .check = *check,
        .options = options,
        .decoding = &decoding};
    struct outcome outcome = {0};
    repair.check.deploy = NULL; /* a policy has no say in what is repaired */
    repair.check.stop_without_counts = !options->leaks_only;
    int ret = run_rounds(&repair, &outcome);
    if (ret == 0)
        ret = clear_marks(&repair, &outcome);
    free(repair.findings.items);
    int checked = check_image(io, filename, check, report); /* what counts is what is there now */
    if (ret == 0 && outcome.unread && !report->incomplete &&
        report->corruptions + report->leaks > 0)
        ret = -EIO; /* a device that fails at times: there may have been more to repair */
    if (outcome.corruptions > report->corruptions)
        report->corruptions_fixed = outcome.corruptions - report->corruptions;
    if (outcome.leaks > report->leaks)
        report->leaks_fixed = outcome.leaks - report->leaks;
    if (ret == -EINTR)
        report_problem(report, "the repair was stopped at a safe point; run it again to go on");
    else if (decoding.given_up)
        report_problem(report, "the repair was given up: it would have to decode more compressed "
                               "data than an image of this kind can have");
    else if (ret == 0 && repair.copies_given_up && report->corruptions > 0)
        report_problem(report, "the repair was given up: entries share clusters, and a copy for "
                               "each would take more than the file has");
    else if (ret == 0 && outcome.given_up && report->corruptions > 0)
        report_problem(report,
            "so much is wrong that the repair has not gone through all of it; run "
            "it again to go on");
    else if (ret < 0)
        report_problem(report, "the repair could not be completed: %s", strerror(-ret));
    return ret < 0 ? ret : checked;
}
