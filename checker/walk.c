/* SPDX-License-Identifier: MIT
 *
 * What all stages of the walk share, and their order; see walk.h. */
#include "walk.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "deploy.h"

/* ---- showing objects to checks ---- */

/* Most subjects concern a handful of the checks. */
static void index_rows(struct walk *walk)
{
    for (int check = CHECK_COUNT - 1; check >= 0; check--) {
        enum object_kind kind = check_rows[check].kind;
        walk->rows[kind].first = check;
        if (walk->rows[kind].end == 0)
            walk->rows[kind].end = check + 1;
        assert(walk->rows[kind].end - check < 64); /* there is a bit for each, and HITS_UNKNOWN */
    }
}

/* Made for each finding of millions: the bytes of `detail` behind the first are not cleared. */
static void finding_start(struct finding *finding, const struct subject *subject, int check)
{
    finding->check = (enum check_id)check;
    finding->has_host = subject->has_host;
    finding->has_table = subject->has_table;
    finding->has_got = finding->has_want = false;
    finding->host_off = subject->host_off;
    finding->length = subject->length;
    finding->table_off = subject->table_off;
    finding->index = subject->index;
    finding->guest_off = subject->guest_off;
    finding->guest_len = subject->guest_len;
    finding->tree = subject->tree;
    finding->got = finding->want = 0;
    finding->weight = subject->weight ? subject->weight : 1;
    finding->fixed = false;
    finding->detail[0] = '\0';
}

static bool is_allowed(const struct walk *walk, int check)
{
    return walk->options->deploy && walk->options->deploy->allowed[check];
}

/* The checks that have something to say, as bits: row 0 is the first of the kind.  Nearly all say
 * no, and may leave traces in the finding: it is made for those that do not. */
static uint64_t find_hits(const struct walk *walk, const struct subject *subject)
{
    struct finding scratch;
    int first = walk->rows[subject->kind].first, end = walk->rows[subject->kind].end;
    uint64_t hits = 0;
    finding_start(&scratch, subject, first);
    for (int check = first; check < end; check++) {
        const struct check_row *row = &check_rows[check];
        if (row->kind != subject->kind || is_allowed(walk, check) ||
            !row->hit(&walk->view, subject, &scratch))
            continue;
        hits |= UINT64_C(1) << (check - first);
        if (row->after >= AFTER_STOP)
            break;
    }
    return hits;
}

static uint64_t data_at_risk(
    int check, const struct subject *subject, uint64_t guest_len, uint64_t weight)
{
    bool counts = check_rows[check].severity == SEVERITY_DAMAGE && !subject->risk_counted;
    return counts ? capped_product(guest_len, weight) : 0;
}

/* Reports what these checks find; the predicates, being pure, say it again.  *weight becomes that
 * of the last finding. */
static enum after report_hits(
    struct walk *walk, const struct subject *subject, uint64_t hits, uint64_t *weight)
{
    enum after after = AFTER_GO_ON;
    uint64_t lost = 0;
    for (; hits; hits &= hits - 1) {
        int check = walk->rows[subject->kind].first + __builtin_ctzll(hits);
        const struct check_row *row = &check_rows[check];
        struct finding finding;
        finding_start(&finding, subject, check);
        row->hit(&walk->view, subject, &finding);
        report_add(walk->report, &finding);
        if (walk->options->found)
            walk->options->found(walk->options->found_arg, &finding);
        *weight = finding.weight;
        uint64_t at_risk = data_at_risk(check, subject, finding.guest_len, finding.weight);
        if (at_risk > lost)
            lost = at_risk;
        if (row->after > after)
            after = row->after;
    }
    /* Once, however much is wrong with the object. */
    walk->report->data_at_risk = capped_sum(walk->report->data_at_risk, lost);
    return after;
}

enum after walk_show(struct walk *walk, const struct subject *subject)
{
    uint64_t weight;
    return report_hits(walk, subject, find_hits(walk, subject), &weight);
}

/* When a single check objects and its finding would not be kept, it is not made. */
static bool count_again(struct walk *walk, const struct subject *subject, struct verdicts *before)
{
    int check = walk->rows[subject->kind].first + __builtin_ctzll(before->hits);
    if (!before->full) {
        bool single = (before->hits & (before->hits - 1)) == 0;
        before->full =
            single && !walk->options->found && report_full(walk->report, (enum check_id)check);
        if (!before->full)
            return false;
    }
    uint64_t lost = data_at_risk(check, subject, subject->guest_len, before->weight);
    report_count(walk->report, (enum check_id)check, before->weight);
    walk->report->data_at_risk = capped_sum(walk->report->data_at_risk, lost);
    return true;
}

void walk_show_alike(struct walk *walk, const struct subject *subject, struct verdicts *before)
{
    bool again = before->hits != HITS_UNKNOWN && !walk->options->no_fast_paths;
    if (again && before->hits != 0 && count_again(walk, subject, before))
        return;
    if (!again)
        before->hits = find_hits(walk, subject);
    report_hits(walk, subject, before->hits, &before->weight);
}

enum after walk_after(const struct walk *walk, const struct subject *subject)
{
    enum after after = AFTER_GO_ON;
    for (int check = walk->rows[subject->kind].first; check < walk->rows[subject->kind].end;
         check++) {
        const struct check_row *row = &check_rows[check];
        if (row->kind != subject->kind || row->after <= after)
            continue;
        struct finding finding;
        finding_start(&finding, subject, check);
        if (row->hit(&walk->view, subject, &finding))
            after = row->after;
    }
    return after;
}

/* ---- progress ---- */

int walk_pause(struct walk *walk, uint64_t bytes_done)
{
    const struct check_options *options = walk->options;
    walk->bytes_done += bytes_done;
    if (options->progress)
        options->progress(options->progress_arg, walk->bytes_done, walk->bytes_total);
    if (options->enough && walk->report->corruptions >= options->enough)
        return -ECANCELED;
    return options->stop && __atomic_load_n(options->stop, __ATOMIC_RELAXED) ? -EINTR : 0;
}

/* ---- claims ---- */

int walk_claim(struct walk *walk, uint64_t host_off, uint64_t length, uint64_t refs, enum claim how,
    bool *conflict)
{
    uint64_t first = cluster_of(&walk->geo, host_off);
    uint64_t last = cluster_of(&walk->geo, host_off + length - 1);
    for (uint64_t cluster = first; cluster <= last; cluster++) {
        bool taken = false;
        int ret = census_claim(walk->census, cluster, refs, how, &taken);
        if (ret == -E2BIG)
            report_problem(walk->report,
                "references to more places than an image can have: not all were counted");
        else if (ret < 0)
            return ret;
        *conflict |= taken;
    }
    if (walk->cluster_end <= last) /* references may pass the file's end by a part of a cluster */
        walk->cluster_end = last + 1;
    return 0;
}

/* More metadata than any image has; fields of a crafted one may claim the same clusters, or holes
 * of a sparse file, thousands of times over. */
enum { MAX_AREA_CLUSTERS = 64 << 20 };

int walk_claim_area(struct walk *walk, const struct area *area, bool *conflict)
{
    *conflict = false;
    if (area->length == 0 || check_outside(&walk->view, area->host_off, area->length))
        return 0;
    uint64_t clusters = clusters_for(&walk->geo, area->length);
    if (clusters > MAX_AREA_CLUSTERS - walk->area_clusters) {
        report_problem(walk->report, "more metadata than an image can have: not all was looked at");
        *conflict = walk->refs_incomplete = true;
        return 0;
    }
    walk->area_clusters += clusters;
    struct area_list *list = &walk->areas;
    if (list->count == list->room) {
        size_t room = list->room ? list->room * 2 : 32;
        struct area *items = realloc(list->items, room * sizeof(*items));
        if (!items)
            return -ENOMEM;
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = *area;
    return walk_claim(walk, area->host_off, area->length, 1, CLAIM_ALONE, conflict);
}

static int compare_areas(const void *a, const void *b)
{
    const struct area *x = a, *y = b;
    if (x->host_off != y->host_off)
        return x->host_off > y->host_off ? 1 : -1;
    return (x->index > y->index) - (x->index < y->index);
}

void walk_sort_areas(struct walk *walk)
{
    qsort(walk->areas.items, walk->areas.count, sizeof(struct area), compare_areas);
}

enum area_kind walk_area_at(const struct walk *walk, uint64_t cluster, const struct area **area)
{
    const struct area_list *list = &walk->areas;
    uint64_t host_off = cluster << walk->geo.cluster_bits;
    size_t low = 0, high = list->count; /* find the last one that starts at or before it */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (list->items[middle].host_off <= host_off)
            low = middle + 1;
        else
            high = middle;
    }
    if (area)
        *area = NULL;
    if (low > 0 && host_off - list->items[low - 1].host_off < list->items[low - 1].length) {
        if (area)
            *area = &list->items[low - 1];
        return list->items[low - 1].kind;
    }
    /* Nothing is metadata that does not look like it. */
    const struct table *table = table_find(&walk->tables, host_off);
    return table && !table->implausible ? AREA_L2_TABLE : AREA_NONE;
}

/* The cluster is at odds only with an L1 entry that points to no table: not the cluster's fault. */
bool walk_wrongly_accused(const struct walk *walk, uint64_t cluster)
{
    const struct table *table = table_find(&walk->tables, cluster << walk->geo.cluster_bits);
    return table && table->implausible;
}

bool walk_area_conflict(const struct walk *walk, const struct area *area)
{
    uint64_t last = cluster_of(&walk->geo, area->host_off + area->length - 1);
    for (uint64_t c = cluster_of(&walk->geo, area->host_off); c <= last; c++) {
        if (census_get(walk->census, c).conflict && !walk_wrongly_accused(walk, c))
            return true;
    }
    return false;
}

int walk_judge_areas(struct walk *walk)
{
    for (size_t i = 0; census_has_conflicts(walk->census) && i < walk->areas.count; i++) {
        const struct area *area = &walk->areas.items[i];
        struct subject subject = {
            .kind = OBJECT_AREA,
            .tree = area->tree,
            .has_host = true,
            .host_off = area->host_off,
            .length = area->length,
            .area = {.kind = area->kind, .conflict = walk_area_conflict(walk, area)},
        };
        walk_show(walk, &subject);
    }
    return 0;
}

/* ---- what is known about a cluster ---- */

struct cluster_facts walk_counts(struct walk *walk, uint64_t cluster, int64_t balance)
{
    uint64_t stored = 0;
    bool counted = census_known(walk->census, cluster);
    bool known = counted && walk_stored(walk, cluster, &stored);
    int64_t loaded = stored < CENSUS_STORED_MAX ? (int64_t)stored : CENSUS_STORED_MAX;
    if (counted && !known) { /* of the references only those above any count are sure */
        walk_lost_again(walk);
        return (struct cluster_facts){.refs = balance < 0 ? (uint64_t)-balance : 0};
    }
    return (struct cluster_facts){
        .stored_known = known, .stored = stored, .refs = (uint64_t)(loaded - balance)};
}

struct cluster_facts walk_facts(struct walk *walk, uint64_t cluster)
{
    struct census_cell cell = census_get(walk->census, cluster);
    struct cluster_facts facts = walk_counts(walk, cluster, cell.balance);
    facts.conflict = cell.conflict && !walk_wrongly_accused(walk, cluster);
    facts.area = cell.claimed ? walk_area_at(walk, cluster, NULL) : AREA_NONE;
    return facts;
}

struct owner *walk_owner(struct walk *walk, uint64_t cluster)
{
    if (walk->owner_slots == 0 || cluster > walk->owner_last)
        return NULL;
    size_t mask = walk->owner_slots - 1;
    for (size_t i = (size_t)(cluster * UINT64_C(0x9e3779b97f4a7c15) >> 32) & mask;;
         i = (i + 1) & mask) {
        struct owner *owner = &walk->owners[i];
        if (owner->cluster == cluster || owner->cluster == UINT64_MAX)
            return owner->cluster == cluster ? owner : NULL;
    }
}

static void owner_set(struct owner *owner, size_t table_idx, const struct subject *subject)
{
    owner->found = true;
    owner->table_idx = table_idx;
    owner->tree = subject->tree;
    owner->table_off = subject->table_off;
    owner->index = subject->index;
    owner->guest_off = subject->guest_off;
    owner->guest_len = subject->guest_len;
}

void walk_note_owner(struct walk *walk, uint64_t cluster, const struct subject *subject)
{
    struct owner *owner = walk_owner(walk, cluster);
    if (!owner)
        return;
    if (walk->owner_lock)
        pthread_mutex_lock(walk->owner_lock);
    if (!owner->found || walk->table_idx < owner->table_idx)
        owner_set(owner, walk->table_idx, subject);
    if (walk->owner_lock)
        pthread_mutex_unlock(walk->owner_lock);
}

/* The first cluster at or behind `cluster` whose owner is asked for. */
static bool next_owned(const struct walk *walk, uint64_t cluster, uint64_t *next)
{
    while (census_next_mismatch(walk->census, cluster, next) && *next < walk->cluster_end) {
        if (census_get(walk->census, *next).claimed)
            return true;
        cluster = *next + 1;
    }
    return false;
}

int walk_collect_owners(struct walk *walk)
{
    size_t most = walk->report->max_findings, wanted = 0, slots = 16;
    uint64_t cluster = walk->first_mismatch;
    for (; cluster != UINT64_MAX && wanted < most && next_owned(walk, cluster, &cluster); cluster++)
        wanted++;
    if (wanted == 0)
        return 0;
    while (slots < wanted * 2)
        slots *= 2;
    walk->owners = malloc(slots * sizeof(*walk->owners));
    if (!walk->owners)
        return -ENOMEM;
    for (size_t i = 0; i < slots; i++)
        walk->owners[i].cluster = UINT64_MAX;
    walk->owner_slots = slots;
    for (cluster = walk->first_mismatch; wanted > 0; wanted--, cluster++) {
        next_owned(walk, cluster, &cluster);
        size_t i = (size_t)(cluster * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (slots - 1);
        while (walk->owners[i].cluster != UINT64_MAX)
            i = (i + 1) & (slots - 1);
        walk->owners[i] = (struct owner){.cluster = cluster};
        walk->owner_last = cluster;
    }
    return 0;
}

/* ---- order ---- */

typedef int stage(struct walk *walk);

/* Of the refcount blocks that count something in use nearly all are missing. */
static bool counts_are_lost(const struct walk *walk)
{
    enum { MANY = 64, PER_BLOCK_LEFT = 8 };
    uint64_t cluster = 0, missing = 0, left = 0;
    for (size_t i = 0; i < walk->reftable_len; i++)
        left += walk_block_off(walk, i) != 0;
    while (census_next_mismatch(walk->census, cluster, &cluster) && cluster < walk->cluster_end) {
        uint64_t table_idx = cluster >> walk->geo.refblock_bits;
        missing +=
            census_get(walk->census, cluster).balance < 0 && walk_block_off(walk, table_idx) == 0;
        cluster = (table_idx + 1) << walk->geo.refblock_bits;
    }
    return missing >= MANY && missing > left * PER_BLOCK_LEFT;
}

static int stop_without_counts(struct walk *walk)
{
    walk->without_counts = walk->options->stop_without_counts && counts_are_lost(walk);
    return 0;
}

static int run_stages(struct walk *walk)
{
    static stage *const stages[] = {
        walk_refcounts,      /* stored counts into the census */
        walk_snapshot_table, /* which disks there are */
        walk_fixed_areas,    /* claims: metadata that is neither L1 nor L2 */
        walk_l1_tables,      /* claims: L1 and L2 tables */
        walk_l2_tables,      /* claims: guest data; from here on the census is complete */
        stop_without_counts, walk_find_orphans, /* what may have been lost */
        walk_collect_owners,                    /* whose clusters have a wrong count */
        walk_judge_tables,                      /* second look at unusual tables */
        walk_judge_l1, walk_judge_areas, walk_compare_refcounts, walk_deep, walk_data_file,
        walk_backing_chain, walk_name_sharers, walk_policy, /* last: it asks what was found */
    };
    int ret = walk_header(walk, &walk->judgeable);
    for (size_t i = 0; ret == 0 && walk->judgeable && !walk->without_counts &&
                       i < sizeof(stages) / sizeof(stages[0]);
         i++)
        ret = stages[i](walk);
    return ret;
}

void walk_close(struct walk *walk)
{
    if (!walk)
        return;
    crew_close(walk->crew);
    census_close(walk->census);
    free(walk->areas.items);
    free(walk->trees);
    for (size_t i = 0; i < walk->tables.count; i++)
        free(walk->tables.items[i].shape);
    free(walk->tables.items);
    free(walk->tables.slots);
    free(walk->reftable);
    free(walk->owners);
    free(walk->head);
    free(walk->buf);
    free(walk->ahead_buf);
    free(walk);
}

int walk_open(struct io *io, const char *filename, const struct check_options *options,
    struct report *report, struct walk **out)
{
    struct walk *walk = calloc(1, sizeof(*walk));
    int ret = walk ? 0 : -ENOMEM;
    *out = walk;
    if (ret == 0) {
        walk->io = io;
        walk->options = options;
        walk->report = report;
        walk->filename = filename;
        index_rows(walk);
        for (size_t i = 0; i < STORED_PIECES; i++)
            walk->stored_cache[i].piece = UINT64_MAX;
        ret = run_stages(walk);
    }
    if (ret == -EINTR)
        report_problem(report, "stopped before the check was complete");
    else if (ret < 0)
        report_problem(report, "the check could not be completed: %s", strerror(-ret));
    return ret;
}

int check_image(
    struct io *io, const char *filename, const struct check_options *options, struct report *report)
{
    struct walk *walk;
    int ret = walk_open(io, filename, options, report, &walk);
    walk_close(walk);
    report_finish(report);
    return ret;
}
