/* SPDX-License-Identifier: MIT
 *
 * Making plans; see plan.h. */
#include "plan.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* What belongs together was edited lately, or not at all. */
enum { LOOK_BACK = 256 };

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
    memset(plan, 0, sizeof(*plan));
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

bool plan_on_data(const struct plan *plan, uint64_t host_off)
{
    const struct walk *walk = plan->walk;
    const struct area *area;
    uint64_t size = walk->geo.cluster_size, cluster = cluster_of(&walk->geo, host_off);
    if (!walk->census || !census_get(walk->census, cluster).conflict ||
        walk_area_at(walk, cluster, &area) != AREA_SNAPSHOT_L1_TABLE)
        return false;
    for (size_t i = 0; i < walk->areas.count; i++) {
        const struct area *other = &walk->areas.items[i];
        if (other != area && ranges_overlap(other->host_off, other->length, cluster * size, size))
            return false;
    }
    return true;
}

bool plan_writable(const struct plan *plan, uint64_t host_off)
{
    const struct walk *walk = plan->walk;
    uint64_t cluster = cluster_of(&walk->geo, host_off);
    if (!walk->census || cluster == 0 || !census_get(walk->census, cluster).conflict)
        return true;
    if (plan->careful && (has_area(walk, cluster, AREA_L1_TABLE) || plan_on_data(plan, host_off)))
        return false;
    return !has_area(walk, cluster, AREA_REFCOUNT_TABLE) &&
           !has_area(walk, cluster, AREA_REFCOUNT_BLOCK) &&
           !has_area(walk, cluster, AREA_BITMAP_TABLE) &&
           !has_area(walk, cluster, AREA_BITMAP_DATA);
}

bool plan_doubts(const struct table *table)
{
    enum { FEW = 4, PART = 4 };
    return table->absurd >= FEW && table->absurd * PART >= table->used;
}

/* A table of guest data, or, where that matters, one that may be. */
static bool is_doubtful(const struct plan *plan, uint64_t host_off)
{
    uint64_t start = host_off & ~(uint64_t)(plan->walk->geo.cluster_size - 1);
    const struct table *table = table_find(&plan->walk->tables, start);
    return table && (table->rather_data || (plan->careful && plan_doubts(table)));
}

bool plan_takes_field(const struct plan *plan, uint64_t host_off)
{
    return plan_writable(plan, host_off) && !is_doubtful(plan, host_off);
}

int plan_bytes(struct plan *plan, enum phase phase, enum check_id why, uint64_t host_off,
    const void *bytes, size_t length)
{
    struct edit edit = {
        .kind = EDIT_BYTES, .phase = phase, .why = why, .host_off = host_off, .length = length};
    assert(length <= sizeof(edit.bytes));
    if (!plan_takes_field(plan, host_off))
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
    if (block == 0 || !plan_writable(plan, block) || !census_known(walk->census, cluster))
        return 0;
    for (size_t n = 0; n < LOOK_BACK && n < plan->count; n++) {
        struct edit *other = &plan->edits[plan->count - 1 - n];
        if (other->kind == EDIT_LOWER && other->count.cluster == cluster) {
            other->count.value += refs;
            return 0;
        }
    }
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

/* ---- fingerprint ---- */

static uint64_t mix(uint64_t sum, uint64_t value)
{
    sum = (sum ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    return sum ^ sum >> 29;
}

static uint64_t mix_bytes(uint64_t sum, const uint8_t *bytes, uint64_t length)
{
    for (uint64_t i = 0; i < length; i++)
        sum = mix(sum, bytes[i]);
    return sum;
}

static uint64_t mix_edit(uint64_t sum, const struct edit *edit)
{
    sum = mix(mix(mix(sum, edit->kind), edit->host_off), edit->length);
    switch (edit->kind) {
    case EDIT_BYTES:
        return mix_bytes(sum, edit->bytes, edit->length);
    case EDIT_DATA:
        return mix_bytes(sum, edit->data, edit->length);
    case EDIT_COPY:
        return mix(sum, edit->src_off);
    case EDIT_REFCOUNT:
    case EDIT_LOWER:
        return mix(mix(sum, edit->count.cluster), edit->count.value);
    case EDIT_REFBLOCK:
        return mix(mix(sum, edit->block.table_idx), edit->block.lower);
    }
    return sum;
}

uint64_t plan_falls_by(const struct plan *plan, const struct edit *edit)
{
    int64_t balance = census_get(plan->walk->census, edit->count.cluster).balance;
    uint64_t missing = balance < 0 ? (uint64_t)-balance : 0;
    return edit->count.value > missing ? edit->count.value - missing : 0;
}

uint64_t plan_fingerprint(const struct plan *plan, const uint64_t *facts, size_t count)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum = mix(sum, facts[i]);
    for (size_t i = 0; i < plan->count; i++)
        sum = mix_edit(sum, &plan->edits[i]);
    return sum;
}
