/* SPDX-License-Identifier: MIT
 *
 * See repairing.h. */
#include "repairing.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"

enum { GROWTH_CLUSTERS = 32 };

void repairing_init(struct repairing *r)
{
    *r = (struct repairing){0};
}

void repairing_release(struct repairing *r)
{
    oracle_release(&r->oracle);
    state_close(r->start);
    state_close(r->now);
    state_close(r->first);
    *r = (struct repairing){0};
}

static int make_room(struct repairing *r, const struct state *crash)
{
    uint32_t bits = load_be32(crash->bytes + QCOW2_HDR_CLUSTER_BITS);
    /* With --lossy it may copy most of the image. */
    uint64_t wanted =
        2 * crash->room_bytes + ((uint64_t)GROWTH_CLUSTERS << (bits > 21 ? 21 : bits));
    struct state **const states[] = {&r->start, &r->now, &r->first};
    int ret = 0;
    for (size_t i = 0; ret == 0 && i < sizeof(states) / sizeof(states[0]); i++) {
        if (*states[i] && (*states[i])->room_bytes >= wanted)
            continue;
        state_close(*states[i]);
        *states[i] = NULL;
        ret = state_open(wanted, states[i]);
    }
    if (ret == 0)
        state_allow_writes(r->now);
    return ret;
}

/* I1 to I4, and the content as it was. */
static bool same_content(
    struct repairing *r, const struct model *model, const char *when, struct breach *breach)
{
    struct breach why = {0};
    uint64_t sector = 0;
    uint32_t snapshot = 0;
    if (!oracle_look(&r->oracle, r->now, &why))
        return breach_note(breach, INVARIANT_REPAIRS, "%s: %s", when, why.text);
    const struct model *now = &r->oracle.model;
    if (!snapshots_same_records(now, model))
        return breach_note(breach, INVARIANT_REPAIRS, "%s: the snapshot list has changed", when);
    if (!snapshots_same_disks(now, model, &snapshot, &sector))
        return breach_note(breach, INVARIANT_REPAIRS,
            "%s: snapshot number %" PRIu32 " has changed at guest sector %" PRIu64, when, snapshot,
            sector);
    if (!disk_same(&now->active, &model->active, &sector))
        return breach_note(breach, INVARIANT_REPAIRS,
            "%s: the active disk has changed at guest sector %" PRIu64, when, sector);
    return true;
}

static bool orphans(const struct report *report)
{
    return report->hits[CHECK_orphan_l1_table] || report->hits[CHECK_orphan_l2_table] ||
           report->hits[CHECK_orphan_snapshot_table] || report->hits[CHECK_l1_hole];
}

/* Leaks that look like lost tables are kept, and with them all that waits for a decision about
 * them. */
static bool may_remain(const struct report *report, enum check_id check)
{
    switch (check) {
    case CHECK_orphan_l1_table:
    case CHECK_orphan_l2_table:
    case CHECK_orphan_snapshot_table:
    case CHECK_l1_hole:
    case CHECK_cluster_leaked:
    case CHECK_refcount_too_high:
    case CHECK_header_dirty:
        return orphans(report);
    default:
        return check_rows[check].severity == SEVERITY_NOTE;
    }
}

static bool repair(struct repairing *r, struct io *io, bool lossy, struct breach *breach)
{
    static const struct check_options how = {.threads = 1};
    struct repair_options options = {.lossy = lossy};
    struct report report;
    report_init(&report, 1000);
    r->no_memory |= repair_image(io, NULL, &how, &options, &report) == -ENOMEM;
    bool good = !r->no_memory && !report.incomplete && !report.unsupported;
    if (!good && !r->no_memory)
        breach_note(
            breach, INVARIANT_REPAIRS, "the repair cannot be completed: %s", report.problem);
    for (int check = 0; good && check < CHECK_COUNT; check++) {
        char name[CHECK_NAME_BYTES];
        check_name((enum check_id)check, name);
        if (report.hits[check] > 0 && !may_remain(&report, (enum check_id)check))
            good = breach_note(breach, INVARIANT_REPAIRS, "after the repair there is %s", name);
    }
    r->orphaned = good && orphans(&report);
    if (lossy && r->orphaned)
        good = breach_note(breach, INVARIANT_REPAIRS, "a lossy repair leaves orphaned tables");
    report_release(&report);
    return good;
}

/* ---- power cuts inside the repair ---------------------------------------------------------- */

struct cut {
    struct repairing *r;
    const struct epoch *epoch;
    const struct model *model;
    struct breach *breach;
};

static int look_at_cut(void *arg, const unsigned *choice)
{
    struct cut *cut = arg;
    struct state *now = cut->r->now;
    const struct epoch *epoch = cut->epoch;
    uint64_t largest = cut->r->start->size_bytes;
    for (unsigned i = 0; i < epoch->size_count; i++)
        largest = epoch->sizes[i] > largest ? epoch->sizes[i] : largest;
    state_copy(now, cut->r->start);
    io_resize(&now->io, largest);
    for (size_t f = 0; f < epoch->unit_count; f++)
        state_put(now, epoch->units[f].idx, epoch->units[f].versions[choice[f]].bytes,
            epoch->units[f].versions[choice[f]].hashes[0]);
    io_resize(&now->io, epoch->sizes[choice[epoch->unit_count]]); /* the rest goes */
    cut->r->cuts++;
    if (!same_content(cut->r, cut->model, "power cut inside the repair", cut->breach))
        return cut->r->oracle.no_memory ? -ENOMEM : 1;
    return 0;
}

static int cut_power(struct repairing *r, const struct recording *recording,
    const struct model *model, struct breach *breach)
{
    static fault_walk *const walks[] = {fault_prefix, fault_omit_one, fault_torn};
    int ret = 0;
    for (size_t first = 0, end; ret == 0 && first < recording->count; first = end + 1) {
        struct epoch epoch;
        for (end = first; end < recording->count && recording->list[end].kind != REQUEST_FLUSH;)
            end++;
        ret = epoch_build(recording, first, end, r->start, STATE_SECTOR, &epoch);
        if (ret < 0)
            return ret;
        struct cut cut = {r, &epoch, model, breach};
        for (size_t i = 0; ret == 0 && i < sizeof(walks) / sizeof(walks[0]); i++)
            ret = walks[i](&epoch, look_at_cut, &cut);
        epoch_release(&epoch);
        if (ret == 0)
            ret = epoch_apply_all(recording, first, end, r->start);
    }
    return ret > 0 ? 0 : ret;
}

/* ---- the whole ----------------------------------------------------------------------------- */

/* Nothing of `old` is lost; *more: sectors show something where nothing was. */
static bool disk_keeps(const struct disk_model *now, const struct disk_model *old, bool *more)
{
    size_t at = 0;
    for (size_t i = 0; i < old->count; i++, at++) {
        while (at < now->count && now->list[at].sector < old->list[i].sector)
            at++;
        if (at == now->count || now->list[at].sector != old->list[i].sector ||
            now->list[at].hash != old->list[i].hash)
            return false;
    }
    *more |= now->count > old->count;
    return now->size_bytes == old->size_bytes;
}

/* Each snapshot is there still, in the same order; one whose table was lost may be there again. */
static bool snapshots_keep(
    struct repairing *r, const struct model *now, const struct model *old, struct breach *why)
{
    uint32_t k = 0;
    for (uint32_t i = 0; i < old->snapshot_count; i++, k++) {
        while (k < now->snapshot_count &&
               now->snapshots[k].record_hash != old->snapshots[i].record_hash)
            k++;
        if (k == now->snapshot_count)
            return breach_note(why, INVARIANT_REPAIRS, "snapshot number %" PRIu32 " is gone", i);
        if (!disk_keeps(&now->snapshots[k].disk, &old->snapshots[i].disk, &r->adopted))
            return breach_note(
                why, INVARIANT_REPAIRS, "snapshot number %" PRIu32 " has lost data", i);
    }
    r->adopted |= now->snapshot_count > old->snapshot_count;
    return true;
}

/* A lossy repair gives orphaned tables up, or puts them where nothing is; either way nothing that
 * was there may be lost. */
static void judge_orphans(struct repairing *r, const struct state *crash,
    const struct repairing_promise *promise, struct breach *breach)
{
    struct breach why = {0};
    const struct model *now = &r->oracle.model, *old = promise->model;
    state_copy(r->now, crash);
    if (!repair(r, &r->now->io, true, breach))
        return;
    bool good = oracle_look(&r->oracle, r->now, &why);
    if (good && !disk_keeps(&now->active, &old->active, &r->adopted))
        good = breach_note(&why, INVARIANT_REPAIRS, "the active disk has lost data");
    if (good)
        good = snapshots_keep(r, now, old, &why);
    if (!good)
        breach_note(breach, INVARIANT_REPAIRS, "after a lossy repair: %s", why.text);
}

/* The repaired image, its content, and a second repair. */
static void judge_repaired(struct repairing *r, struct io *io,
    const struct repairing_promise *promise, struct breach *breach)
{
    if (!same_content(r, promise->model, "after the repair", breach) ||
        !leaks_allowed(promise->limits, &r->oracle, r->now, breach))
        return;
    state_copy(r->first, r->now);
    if (repair(r, io, false, breach) && !state_same(r->first, r->now))
        breach_note(breach, INVARIANT_REPAIRS, "a second repair changes the image again");
}

int repairing_run(struct repairing *r, const struct state *crash,
    const struct repairing_promise *promise, struct breach *breach)
{
    struct recording recording = {0};
    struct io *io;
    int ret = make_room(r, crash);
    if (ret < 0)
        return ret;
    state_copy(r->start, crash);
    state_copy(r->now, crash);
    r->adopted = r->orphaned = false;
    ret = record_open(&r->now->io, &recording, &io);
    if (ret < 0)
        return ret;
    if (repair(r, io, false, breach)) {
        size_t repaired = recording.count;
        bool orphaned = r->orphaned;
        judge_repaired(r, io, promise, breach);
        while (recording.count > repaired) /* the second one is none of ours */
            recording_remove(&recording, recording.count - 1);
        if (breach->invariant == INVARIANT_NONE)
            ret = cut_power(r, &recording, promise->model, breach);
        if (ret == 0 && orphaned && breach->invariant == INVARIANT_NONE)
            judge_orphans(r, crash, promise, breach);
        r->orphaned = orphaned;
    }
    if (ret == 0 && (recording.no_memory || r->oracle.no_memory || r->no_memory))
        ret = -ENOMEM;
    recording_release(&recording);
    io_close(io);
    return ret;
}

int repairing_again(struct repairing *r, const struct state *crash, const struct history *history,
    struct window window, struct breach *breach)
{
    struct breach why = {0};
    int ret = make_room(r, crash);
    if (ret < 0)
        return ret;
    state_copy(r->now, crash);
    if (!repair(r, &r->now->io, false, breach))
        return r->no_memory ? -ENOMEM : 0;
    if (!oracle_look(&r->oracle, r->now, &why) ||
        !history_allows(history, window, &r->oracle.model, &why))
        breach_note(breach, INVARIANT_REPAIRS, "after repairing again: %s", why.text);
    return r->oracle.no_memory ? -ENOMEM : 0;
}
