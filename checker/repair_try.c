/* SPDX-License-Identifier: MIT
 *
 * Values tried on a copy-on-write view of the image: the one under which the least is wrong with
 * the image is taken, if it is the only one.  What is tried is bounded, in number and in what it
 * finds. */
#include <errno.h>
#include <string.h>

#include "repair.h"

/* A leak may be what another damage leaves behind. */
uint64_t repair_wrong(const struct report *report)
{
    uint64_t wrong = capped_sum(capped_product(report->corruptions, 4), report->leaks);
    return wrong < REPAIR_WRONG_UNREAD ? wrong : REPAIR_WRONG_UNREAD - 1;
}

/* How much is wrong with the image under the patch (of one that can be read now, too):
 * REPAIR_WRONG_UNREAD and more if a part of it is not judged, UINT64_MAX if it cannot be judged at
 * all or more than `most` is wrong: then *cut is set, too. */
static int try_patch(struct repair *repair, const struct patch *patch, bool readable, uint64_t most,
    uint64_t *wrong, bool *cut)
{
    struct io *overlay;
    struct report report;
    struct check_options options = {.stop = repair->check.stop, .enough = most / 4 + 1};
    int ret = io_overlay_open(repair->io, &overlay);
    if (ret < 0)
        return ret;
    ret = io_write(overlay, patch->off, patch->bytes, patch->length);
    if (ret == 0) {
        report_init(&report, 0);
        ret = check_image(overlay, NULL, &options, &report) == -ENOMEM ? -ENOMEM : 0;
        *wrong = repair_wrong(&report);
        if (report.incomplete) /* as good as any other only where as little was judged before */
            *wrong += repair->report.incomplete ? REPAIR_WRONG_UNREAD : UINT64_MAX - *wrong;
        *cut |= report.corruptions >= options.enough;
        if (report.unsupported || report.check_errors || report.corruptions >= options.enough ||
            (readable && !repair->lossy && repair_shows_more(repair, &report)) ||
            (repair->refuses && repair->refuses(repair, overlay, &report)))
            *wrong = UINT64_MAX;
        repair->trials++;
        repair->trial_findings =
            capped_sum(repair->trial_findings, report.corruptions + report.leaks);
        report_release(&report);
    }
    io_close(overlay);
    return ret;
}

/* Bits in which the patch differs from what is there: damage is mostly small. */
static int distance(struct repair *repair, const struct patch *patch, unsigned *bits)
{
    uint8_t old[8];
    int ret = io_read_padded(repair->io, patch->off, old, patch->length);
    *bits = 0;
    for (size_t i = 0; ret == 0 && i < patch->length; i++)
        *bits += (unsigned)__builtin_popcount((unsigned)(old[i] ^ patch->bytes[i]));
    return ret;
}

int repair_take_best(
    struct repair *repair, enum check_id why, const struct patch *patches, size_t count)
{
    return repair_take_better(repair, why, patches, count, UINT64_MAX);
}

bool repair_may_try(const struct repair *repair, size_t count)
{
    enum { MOST_TRIALS = 1024, MOST_FINDINGS = 8 << 20 };
    return repair->trials + count <= MOST_TRIALS && repair->trial_findings < MOST_FINDINGS;
}

struct choice {
    uint64_t wrong;
    unsigned bits; /* UINT32_MAX: there is none yet */
    size_t best;
    bool tie, cut; /* cut: there were some with more wrong than was asked for */
};

/* Tries all of them, each until it has more than `most` wrong.  Without a choice where that takes
 * too long: what was not tried may be right. */
static int try_all(struct repair *repair, const struct patch *patches, size_t count, uint64_t below,
    uint64_t most, struct choice *choice)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t wrong;
        unsigned bits = 0;
        if (!repair_may_try(repair, 1)) {
            *choice = (struct choice){.bits = UINT32_MAX};
            return 0;
        }
        int ret = try_patch(repair, &patches[i], below < REPAIR_WRONG_UNREAD,
            most < choice->wrong ? most : choice->wrong, &wrong, &choice->cut);
        if (ret == 0)
            ret = distance(repair, &patches[i], &bits);
        if (ret < 0)
            return ret;
        if (bits == 0 || wrong >= below || wrong > choice->wrong ||
            (wrong == choice->wrong && bits > choice->bits))
            continue;
        choice->tie = wrong == choice->wrong && bits == choice->bits;
        if (choice->tie)
            continue; /* the first of equals */
        choice->wrong = wrong;
        choice->bits = bits;
        choice->best = i;
    }
    return 0;
}

int repair_take_better(struct repair *repair, enum check_id why, const struct patch *patches,
    size_t count, uint64_t below)
{
    enum { FEW = 65536 }; /* under the right value there is mostly little wrong */
    struct choice choice = {.wrong = below, .bits = UINT32_MAX};
    if (!repair_may_try(repair, count))
        return 0;
    repair->trials++;
    int ret = try_all(repair, patches, count, below, FEW, &choice);
    if (ret == 0 && choice.bits == UINT32_MAX && choice.cut)
        ret = try_all(repair, patches, count, below, UINT64_MAX, &choice);
    if (ret < 0 || choice.bits == UINT32_MAX || (choice.tie && !repair->lossy))
        return ret;
    const struct patch *best = &patches[choice.best];
    if (choice.tie)
        ret = plan_remark(&repair->plan,
            "choice: more than one value of the field at 0x%llx makes as much sense",
            (unsigned long long)best->off);
    return ret < 0
               ? ret
               : plan_bytes(&repair->plan, PHASE_SWITCH, why, best->off, best->bytes, best->length);
}
