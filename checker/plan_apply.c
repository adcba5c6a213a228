/* SPDX-License-Identifier: MIT
 *
 * Carrying plans out; see plan.h. */
#include "plan.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

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
            edit->count.cluster << plan->walk->geo.cluster_bits, plan_falls_by(plan, edit));
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
        value = plan_falls_by(plan, edit);
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
    uint64_t end = 0;
    int ret = io_read_padded(io, edit->src_off, bytes, size);
    if (ret == 0)
        ret = io_size(io, &end);
    if (ret == 0 && edit->host_off >= end && walk_bytes_zero(bytes, size))
        ret = io_resize(io, edit->host_off + size); /* a hole stays one */
    else if (ret == 0)
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
            if (plan->edits[i].kind == EDIT_LOWER && plan_falls_by(plan, &plan->edits[i]) == 0)
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
