/* SPDX-License-Identifier: MIT
 *
 * Making and applying plans; see plan.h. */
#include "plan.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- making ---- */

void plan_init(struct plan *plan, struct walk *walk, uint64_t alloc_end)
{
    memset(plan, 0, sizeof(*plan));
    plan->walk = walk;
    plan->alloc_next = 1;
    plan->alloc_end = alloc_end;
}

void plan_release(struct plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        if (plan->edits[i].kind == EDIT_DATA)
            free(plan->edits[i].data);
    }
    free(plan->edits);
    free(plan->remarks);
}

static int add(struct plan *plan, const struct edit *edit)
{
    if (plan->count == plan->room) {
        size_t room = plan->room ? plan->room * 2 : 32;
        struct edit *edits = realloc(plan->edits, room * sizeof(*edits));
        if (!edits)
            return -ENOMEM;
        plan->edits = edits;
        plan->room = room;
    }
    plan->edits[plan->count++] = *edit;
    return 0;
}

/* One of the pieces of metadata that lie on each other there is of that kind. */
static bool has_area(const struct walk *walk, uint64_t cluster, enum area_kind kind)
{
    uint64_t size = walk->geo.cluster_size, host_off = cluster * size;
    for (size_t i = 0; i < walk->areas.count; i++) {
        const struct area *area = &walk->areas.items[i];
        if (area->host_off >= host_off + size)
            break; /* they are sorted */
        if (area->kind == kind && ranges_overlap(area->host_off, area->length, host_off, size))
            return true;
    }
    return false;
}

bool plan_writable(const struct plan *plan, uint64_t host_off)
{
    const struct walk *walk = plan->walk;
    uint64_t cluster = cluster_of(&walk->geo, host_off);
    if (!walk->census || cluster == 0 || !census_get(walk->census, cluster).conflict)
        return true;
    return !has_area(walk, cluster, AREA_REFCOUNT_TABLE) &&
           !has_area(walk, cluster, AREA_REFCOUNT_BLOCK) &&
           !has_area(walk, cluster, AREA_BITMAP_TABLE) &&
           !has_area(walk, cluster, AREA_BITMAP_DATA);
}

int plan_bytes(struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off,
    const void *bytes, size_t length)
{
    struct edit edit = {
        .kind = EDIT_BYTES, .phase = phase, .why = why, .host_off = host_off, .length = length};
    assert(length <= sizeof(edit.bytes));
    if (!plan_writable(plan, host_off))
        return 0;
    memcpy(edit.bytes, bytes, length);
    return add(plan, &edit);
}

int plan_be64(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    return plan_bytes(plan, phase, why, host_off, bytes, sizeof(bytes));
}

int plan_be32(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off, uint32_t value)
{
    uint8_t bytes[4];
    store_be32(bytes, value);
    return plan_bytes(plan, phase, why, host_off, bytes, sizeof(bytes));
}

int plan_data(struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off,
    uint8_t *data, uint64_t length)
{
    struct edit edit = {.kind = EDIT_DATA,
        .phase = phase,
        .why = why,
        .host_off = host_off,
        .length = length,
        .data = data};
    int ret = add(plan, &edit);
    if (ret < 0)
        free(data);
    return ret;
}

int plan_copy(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t src_off, uint64_t host_off)
{
    struct edit edit = {.kind = EDIT_COPY,
        .phase = phase,
        .why = why,
        .host_off = host_off,
        .length = plan->walk->geo.cluster_size,
        .src_off = src_off};
    return add(plan, &edit);
}

int plan_refcount(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t cluster, uint64_t value)
{
    struct edit edit = {.kind = EDIT_REFCOUNT,
        .phase = phase,
        .why = why,
        .count = {.cluster = cluster, .value = value}};
    if (!plan_writable(plan, walk_block_off(plan->walk, cluster >> plan->walk->geo.refblock_bits)))
        return 0;
    return add(plan, &edit);
}

int plan_lower(struct plan *plan, enum check_id why, uint64_t cluster, uint64_t refs)
{
    const struct walk *walk = plan->walk;
    uint64_t block = walk_block_off(walk, cluster >> walk->geo.refblock_bits);
    struct edit edit = {.kind = EDIT_LOWER,
        .phase = PHASE_RELEASE,
        .why = why,
        .count = {.cluster = cluster, .value = refs}};
    if (block == 0 || !plan_writable(plan, block) || !census_known(walk->census, cluster) ||
        census_get(walk->census, cluster).balance < 0)
        return 0;
    return add(plan, &edit);
}

int plan_refblock(
    struct plan *plan, enum phase phase, enum check_id why, uint64_t table_idx, bool lower)
{
    struct edit edit = {.kind = EDIT_REFBLOCK,
        .phase = phase,
        .why = why,
        .host_off = walk_block_off(plan->walk, table_idx),
        .length = plan->walk->geo.cluster_size,
        .block = {.table_idx = table_idx, .lower = lower}};
    return add(plan, &edit);
}

int plan_remark(struct plan *plan, const char *format, ...)
{
    if (plan->remark_count == plan->remark_room) {
        size_t room = plan->remark_room ? plan->remark_room * 2 : 16;
        struct remark *remarks = realloc(plan->remarks, room * sizeof(*remarks));
        if (!remarks)
            return -ENOMEM;
        plan->remarks = remarks;
        plan->remark_room = room;
    }
    struct remark *remark = &plan->remarks[plan->remark_count++];
    va_list args;
    va_start(args, format);
    vsnprintf(remark->text, sizeof(remark->text), format, args);
    va_end(args);
    return 0;
}

/* Nobody uses the cluster, and its count can be set where it is. */
static bool free_cluster(const struct plan *plan, uint64_t cluster)
{
    const struct walk *walk = plan->walk;
    struct census_cell cell = census_get(walk->census, cluster);
    uint64_t block = walk_block_off(walk, cluster >> walk->geo.refblock_bits);
    /* Metadata that was not read may use anything in the file. */
    bool seen = !walk->refs_incomplete || cluster >= walk->cluster_end;
    return seen && !cell.claimed && cell.balance == 0 && census_known(walk->census, cluster) &&
           block != 0 && plan_writable(plan, block);
}

int plan_alloc(
    struct plan *plan, enum check_id why, uint64_t count, uint64_t refs, uint64_t *cluster)
{
    enum { BEYOND = 4096 }; /* clusters behind the end that may turn out not to be free */
    const struct walk *walk = plan->walk;
    uint64_t span = walk->geo.refblock_entries, run = 0;
    uint64_t end = (uint64_t)walk->reftable_len << walk->geo.refblock_bits;
    uint64_t from = plan->alloc_next > walk->cluster_end ? plan->alloc_next : walk->cluster_end;
    if (end > from && end - from > count + BEYOND)
        end = from + count + BEYOND;
    if (end > plan->alloc_end >> walk->geo.cluster_bits)
        end = plan->alloc_end >> walk->geo.cluster_bits;
    for (uint64_t c = plan->alloc_next; c < end; c++) {
        if (walk_block_off(walk, c / span) == 0) {
            c |= span - 1;
            if (c >= walk->cluster_end) /* the file is not made longer than what is put into it */
                break;
            run = 0;
            continue;
        }
        run = free_cluster(plan, c) ? run + 1 : 0;
        if (run < count)
            continue;
        *cluster = c + 1 - count;
        plan->alloc_next = c + 1;
        plan->needs_mark = true;
        for (uint64_t i = 0; i < count; i++) {
            int ret = plan_refcount(plan, PHASE_TAKE, why, *cluster + i, refs);
            if (ret < 0)
                return ret;
        }
        return 0;
    }
    return -ENOSPC;
}

int plan_peek(const struct plan *plan, uint64_t host_off, uint64_t *value)
{
    enum { LOOK_BACK = 256 }; /* neighbours were edited lately, or not at all */
    uint8_t bytes[8];
    for (size_t n = 0; n < LOOK_BACK && n < plan->count; n++) {
        const struct edit *edit = &plan->edits[plan->count - 1 - n];
        if (edit->kind == EDIT_BYTES && edit->length >= 8 && edit->host_off == host_off) {
            *value = load_be64(edit->bytes);
            return 0;
        }
    }
    int ret = io_read_padded(plan->walk->io, host_off, bytes, sizeof(bytes));
    if (ret == 0)
        *value = load_be64(bytes);
    return ret;
}

/* ---- counts ---- */

static bool in_new_run(const struct plan *plan, uint64_t cluster)
{
    return cluster - plan->run_first < plan->run_count;
}

/* How often the old refcount structure itself uses the cluster.  Areas are sorted by offset, so
 * those that may cover it end just behind it. */
static uint64_t structure_claims(const struct walk *walk, uint64_t cluster)
{
    const struct area *area;
    enum area_kind kind = walk_area_at(walk, cluster, &area);
    uint64_t host_off = cluster << walk->geo.cluster_bits, claims = 0;
    if (kind == AREA_NONE || !area)
        return 0;
    while (area >= walk->areas.items && host_off - area->host_off < area->length) {
        claims += area->kind == AREA_REFCOUNT_BLOCK || area->kind == AREA_REFCOUNT_TABLE;
        area--;
    }
    return claims;
}

/* Zeros that the file does not even hold: nothing can be lost there. */
static bool in_hole(const struct plan *plan, uint64_t cluster)
{
    const struct qcow2_geometry *geo = &plan->walk->geo;
    return walk_hole(plan->walk, cluster << geo->cluster_bits) >= geo->cluster_size;
}

/* References to the cluster once the plan is carried out, from the stored count the census began
 * with.  When refcounts are made anew, the old structure does not count any more. */
static uint64_t new_count(const struct plan *plan, uint64_t cluster, uint64_t stored, bool lower)
{
    const struct walk *walk = plan->walk;
    struct census_cell cell = census_get(walk->census, cluster);
    bool known = census_known(walk->census, cluster);
    uint64_t loaded = stored < CENSUS_STORED_MAX ? stored : CENSUS_STORED_MAX;
    uint64_t refs = (uint64_t)((int64_t)(known ? loaded : 0) - cell.balance);
    if (plan->rebuild) {
        if (in_new_run(plan, cluster))
            return 1;
        uint64_t old = structure_claims(walk, cluster);
        if (old > 0)
            refs = stored = refs > old ? refs - old : 0;
        known &=
            !plan->void_counts && walk_block_off(walk, cluster >> walk->geo.refblock_bits) != 0;
        /* May be what was lost: a later round frees it, or finds whose it is. */
        if (!known && refs == 0 && cluster < walk->cluster_end && !in_hole(plan, cluster))
            refs = 1;
    }
    if (!lower && known && stored > refs)
        refs = stored;
    return refs < walk->geo.refcount_max ? refs : walk->geo.refcount_max;
}

/* The clusters before the one returned have new counts like this one, provided that the census and
 * the old block say the same of them. */
static uint64_t alike_end(const struct plan *plan, uint64_t cluster)
{
    const struct walk *walk = plan->walk;
    const struct area *areas = walk->areas.items;
    uint64_t ends[] = {
        walk->cluster_end, plan->run_first, plan->run_first + plan->run_count, UINT64_MAX};
    uint64_t end = UINT64_MAX, host_off = cluster << walk->geo.cluster_bits;
    size_t low = 0, high = walk->areas.count; /* find the first area behind it */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cluster_of(&walk->geo, areas[middle].host_off) <= cluster)
            low = middle + 1;
        else
            high = middle;
    }
    /* In metadata, and where holes matter, each is looked at. */
    if ((low > 0 && areas[low - 1].host_off + areas[low - 1].length > host_off) ||
        (plan->rebuild && census_get(walk->census, cluster).balance == 0))
        return cluster + 1;
    if (low < walk->areas.count)
        ends[3] = cluster_of(&walk->geo, areas[low].host_off);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        end = ends[i] > cluster && ends[i] < end ? ends[i] : end;
    return end;
}

void plan_fill_block(const struct plan *plan, uint64_t table_idx, bool lower, uint8_t *block_bytes)
{
    const struct walk *walk = plan->walk;
    const unsigned order = walk->geo.refcount_order;
    uint64_t entries = walk->geo.refblock_entries, first = table_idx << walk->geo.refblock_bits;
    for (uint64_t i = 0, n; i < entries; i += n) {
        uint64_t stored = qcow2_refcount_get(block_bytes, order, i);
        bool keep = first + i >= walk->cluster_end && !in_new_run(plan, first + i);
        uint64_t value =
            keep ? (plan->rebuild ? 0 : stored) : new_count(plan, first + i, stored, lower);
        uint64_t most = alike_end(plan, first + i) - (first + i);
        most = census_like_run(walk->census, first + i, most < entries - i ? most : entries - i);
        for (n = 0; n < most && qcow2_refcount_get(block_bytes, order, i + n) == stored; n++) {
            if (value != stored)
                qcow2_refcount_set(block_bytes, order, i + n, value);
        }
    }
}

/* ---- applying ---- */

static void log_bytes(FILE *log, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        fprintf(log, "%02x", bytes[i]);
}

static int log_edit(const struct plan *plan, const struct edit *edit, FILE *log)
{
    char name[CHECK_NAME_BYTES];
    uint8_t old[EDIT_FIELD_BYTES];
    int ret = 0;
    check_name(edit->why, name);
    switch (edit->kind) {
    case EDIT_BYTES:
        ret = io_read_padded(plan->walk->io, edit->host_off, old, (size_t)edit->length);
        fprintf(log, "    0x%" PRIx64 ": ", edit->host_off);
        if (ret == 0)
            log_bytes(log, old, (size_t)edit->length);
        fputs(" -> ", log);
        log_bytes(log, edit->bytes, (size_t)edit->length);
        break;
    case EDIT_DATA:
        fprintf(
            log, "    0x%" PRIx64 ": new table of %" PRIu64 " bytes", edit->host_off, edit->length);
        break;
    case EDIT_COPY:
        fprintf(log, "    0x%" PRIx64 ": copy of the cluster at 0x%" PRIx64, edit->host_off,
            edit->src_off);
        break;
    case EDIT_REFCOUNT:
        fprintf(log, "    refcount of cluster 0x%" PRIx64 " becomes %" PRIu64,
            edit->count.cluster << plan->walk->geo.cluster_bits, edit->count.value);
        break;
    case EDIT_LOWER:
        fprintf(log, "    refcount of cluster 0x%" PRIx64 " falls by %" PRIu64,
            edit->count.cluster << plan->walk->geo.cluster_bits, edit->count.value);
        break;
    case EDIT_REFBLOCK:
        fprintf(log, "    0x%" PRIx64 ": refcounts of block %" PRIu64 " %s", edit->host_off,
            edit->block.table_idx, edit->block.lower ? "set right" : "raised where too low");
        break;
    }
    fprintf(log, " (%s)\n", name);
    return ret;
}

static int apply_refcount(const struct plan *plan, struct io *io, const struct edit *edit)
{
    const struct qcow2_geometry *geo = &plan->walk->geo;
    uint64_t entry = edit->count.cluster & (geo->refblock_entries - 1);
    uint64_t off = walk_block_off(plan->walk, edit->count.cluster >> geo->refblock_bits);
    uint64_t byte = (entry << geo->refcount_order) / 8;
    uint8_t bytes[8];
    size_t length = geo->refcount_order < 3 ? 1 : (size_t)1 << (geo->refcount_order - 3);
    uint64_t idx = geo->refcount_order < 3 ? entry & ((8u >> geo->refcount_order) - 1) : 0;
    int ret = io_read_padded(io, off + byte, bytes, length);
    if (ret < 0)
        return ret;
    uint64_t value = edit->count.value;
    if (edit->kind == EDIT_LOWER) {
        uint64_t stored = qcow2_refcount_get(bytes, geo->refcount_order, idx);
        value = stored > value ? stored - value : 0;
    }
    qcow2_refcount_set(bytes, geo->refcount_order, idx, value);
    return io_write(io, off + byte, bytes, length);
}

/* Writes what changes of the block, in one piece. */
static int apply_refblock(const struct plan *plan, struct io *io, const struct edit *edit)
{
    size_t size = plan->walk->geo.cluster_size, first = 0, end = size;
    uint8_t *block = calloc(2, size), *old;
    if (!block)
        return -ENOMEM;
    old = block + size;
    uint64_t stored_off = walk_block_off(plan->walk, edit->block.table_idx);
    int ret = stored_off ? io_read_padded(io, stored_off, block, size) : 0;
    if (ret == 0) {
        memcpy(old, block, size);
        plan_fill_block(plan, edit->block.table_idx, edit->block.lower, block);
        if (stored_off == edit->host_off) {
            while (first < end && block[first] == old[first])
                first++;
            while (end > first && block[end - 1] == old[end - 1])
                end--;
        }
        ret = io_write(io, edit->host_off + first, block + first, end - first);
    }
    free(block);
    return ret;
}

static int apply_copy(const struct plan *plan, struct io *io, const struct edit *edit)
{
    size_t size = plan->walk->geo.cluster_size;
    uint8_t *bytes = malloc(size);
    if (!bytes)
        return -ENOMEM;
    int ret = io_read_padded(io, edit->src_off, bytes, size);
    if (ret == 0)
        ret = io_write(io, edit->host_off, bytes, size);
    free(bytes);
    return ret;
}

static int apply_edit(const struct plan *plan, struct io *io, const struct edit *edit)
{
    switch (edit->kind) {
    case EDIT_BYTES:
        return io_write(io, edit->host_off, edit->bytes, (size_t)edit->length);
    case EDIT_DATA:
        return io_write(io, edit->host_off, edit->data, (size_t)edit->length);
    case EDIT_COPY:
        return apply_copy(plan, io, edit);
    case EDIT_REFCOUNT:
    case EDIT_LOWER:
        return apply_refcount(plan, io, edit);
    case EDIT_REFBLOCK:
        return apply_refblock(plan, io, edit);
    }
    return -EINVAL;
}

int plan_apply(struct plan *plan, struct io *io, FILE *log)
{
    const volatile sig_atomic_t *stop = plan->walk->options->stop;
    int ret = 0;
    for (enum phase phase = PHASE_NEW; phase < PHASE_COUNT; phase++) {
        bool any = false;
        if (stop && *stop)
            return -EINTR; /* between phases: a safe point */
        for (size_t i = 0; i < plan->count; i++) {
            if (plan->edits[i].phase != phase)
                continue;
            any = true;
            if (log)
                log_edit(plan, &plan->edits[i], log);
            ret = apply_edit(plan, io, &plan->edits[i]);
            if (ret < 0)
                return ret;
        }
        /* What the next phase builds on must be durable first. */
        ret = any ? io_flush(io) : 0;
        if (ret < 0)
            return ret;
    }
    return ret;
}
