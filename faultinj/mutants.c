/* SPDX-License-Identifier: MIT
 *
 * What makes mutants of a recording; see mutants.h.  Requests are found by what they are: header
 * fields by their place, refcount blocks and tables by the owner of their cluster. */
#include "mutants.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "oracle_impl.h"
#include "run.h"
#include "sweep.h"

#define REORDERED(name, workload, image, sentence)         static mutant_change mutant_##name;
#define MISHANDLED(name, workload, image, fault, sentence) static mutant_change mutant_##name;
#define MISBEHAVED(name, workload, image, fault, bug, sentence)
#include "mutants.def"
#undef REORDERED
#undef MISHANDLED
#undef MISBEHAVED

const struct mutant mutants[] = {
#define REORDERED(name, workload, image, sentence) \
    {#name, workload, image, "", NULL, mutant_##name, sentence},
#define MISHANDLED(name, workload, image, fault, sentence) \
    {#name, workload, image, fault, NULL, mutant_##name, sentence},
#define MISBEHAVED(name, workload, image, fault, bug, sentence) \
    {#name, workload, image, fault, &misbehaviour_##bug, NULL, sentence},
#include "mutants.def"
#undef REORDERED
#undef MISHANDLED
#undef MISBEHAVED
};
const size_t mutant_count = sizeof(mutants) / sizeof(mutants[0]);

const struct mutant *mutant_find(const char *name)
{
    for (size_t i = 0; i < mutant_count; i++) {
        if (strcmp(mutants[i].name, name) == 0)
            return &mutants[i];
    }
    return NULL;
}

int mutant_history(const struct mutant *mutant, bool backtraces, struct history *out)
{
    struct fault_plan plan = {0};
    unsigned variant = 0;
    struct history h;
    bool faulty = mutant->fault[0] && sweep_parse(mutant->fault, &plan, &variant);
    plan.bug = mutant->bug;
    int ret = run_history(mutant->workload, mutant->image, backtraces, faulty ? &plan : NULL, &h);
    if (ret < 0)
        return ret;
    if (faulty)
        ret = plan.fired ? sweep_lose(&h.recording, &plan, variant) : -ENOENT;
    if (ret == 0 && mutant->change)
        ret = mutant->change(&h, &h.recording);
    if (ret < 0)
        history_release(&h);
    else
        *out = h;
    return ret;
}

/* ---- finding requests ---------------------------------------------------------------------- */

static bool is_write(const struct request *r, uint64_t host_off, uint64_t length)
{
    return r->kind == REQUEST_WRITE && r->host_off == host_off && r->length == length;
}

/* The first header switch: 12 bytes of the snapshot fields, or 24 of size and L1. */
static bool find_commit(const struct recording *r, uint64_t host_off, size_t *idx)
{
    uint64_t length = host_off == QCOW2_HDR_SIZE ? 24 : host_off == QCOW2_HDR_INCOMPATIBLE ? 8 : 12;
    for (*idx = 0; *idx < r->count; ++*idx) {
        if (is_write(&r->list[*idx], host_off, length))
            return true;
    }
    return false;
}

/* Who owns the cluster at `host_off` before the run or after step `step`. */
static enum owner owner_before(const struct history *h, uint64_t host_off)
{
    struct oracle oracle;
    struct state *state;
    struct breach ignored = {0};
    uint64_t size;
    enum owner owner = OWNER_NONE;
    if (io_size(h->base, &size) < 0 || state_open(size, &state) < 0)
        return owner;
    oracle_init(&oracle);
    if (state_load(state, h->base) == 0 && oracle_look(&oracle, state, &ignored)) {
        uint64_t cluster = cluster_of(&oracle.geo, host_off);
        if (cluster < oracle.cluster_count)
            owner = (enum owner)oracle.clusters[cluster].owner;
    }
    oracle_release(&oracle);
    state_close(state);
    return owner;
}

/* The next write, from *idx on, to something of that owner. */
static bool find_owned(
    const struct history *h, const struct recording *r, enum owner owner, size_t *idx)
{
    for (; *idx < r->count; ++*idx) {
        if (r->list[*idx].kind == REQUEST_WRITE && r->list[*idx].host_off >= 72 &&
            owner_before(h, r->list[*idx].host_off) == owner)
            return true;
    }
    return false;
}

static bool find_kind(const struct recording *r, enum request_kind kind, size_t *idx)
{
    while (*idx < r->count && r->list[*idx].kind != kind)
        ++*idx;
    return *idx < r->count;
}

/* ---- changing them ------------------------------------------------------------------------- */

/* Moves the first write to a refcount block behind the commit to before it. */
static int counts_before(const struct history *h, struct recording *r, uint64_t header_off)
{
    size_t commit, at;
    if (!find_commit(r, header_off, &commit))
        return -ENOENT;
    at = commit;
    if (!find_owned(h, r, OWNER_REFBLOCK, &at))
        return -ENOENT;
    recording_move(r, at, commit);
    return 0;
}

static int discards_before(struct recording *r, uint64_t header_off)
{
    size_t commit, at;
    unsigned moved = 0;
    if (!find_commit(r, header_off, &commit))
        return -ENOENT;
    unsigned op = r->list[commit].op;
    for (at = commit; find_kind(r, REQUEST_DISCARD, &at) && r->list[at].op == op; at++) {
        recording_move(r, at, commit++);
        moved++;
    }
    return moved > 0 ? 0 : -ENOENT;
}

/* The flush before the commit is left out. */
static int no_flush_before(struct recording *r, size_t commit)
{
    while (commit-- > 0) {
        if (r->list[commit].kind == REQUEST_FLUSH) {
            recording_remove(r, commit);
            return 0;
        }
    }
    return -ENOENT;
}

/* The one write becomes two, the first `head` bytes first. */
static int split(struct recording *r, size_t idx, uint64_t head)
{
    struct request tail = r->list[idx];
    tail.host_off += head;
    tail.data += head;
    tail.length -= head;
    int ret = recording_add(r, &tail);
    if (ret < 0)
        return ret;
    r->list[idx].length = head;
    recording_move(r, r->count - 1, idx + 1);
    return 0;
}

static int mutant_apply_counts_early(const struct history *h, struct recording *r)
{
    return counts_before(h, r, QCOW2_HDR_SIZE);
}

/* The write of the new L1 that the commit at `commit` switches to. */
static bool find_new_l1(const struct recording *r, size_t commit, size_t *idx)
{
    uint64_t l1_off = load_be64(r->list[commit].data + 16);
    for (*idx = commit; (*idx)-- > 0;) {
        if (r->list[*idx].kind == REQUEST_WRITE && r->list[*idx].host_off == l1_off)
            return true;
    }
    return false;
}

static int mutant_apply_copied_kept(const struct history *h, struct recording *r)
{
    size_t commit, l1;
    (void)h;
    if (!find_commit(r, QCOW2_HDR_SIZE, &commit) || !find_new_l1(r, commit, &l1))
        return -ENOENT;
    for (uint64_t i = 0; i + 8 <= r->list[l1].length; i += 8) {
        if (load_be64(r->list[l1].data + i) != 0)
            r->list[l1].data[i] |= 0x80;
    }
    return 0;
}

static int mutant_apply_l1_in_place(const struct history *h, struct recording *r)
{
    size_t commit, l1;
    uint8_t old[8];
    if (!find_commit(r, QCOW2_HDR_SIZE, &commit) || !find_new_l1(r, commit, &l1) ||
        io_read(h->base, QCOW2_HDR_L1_OFF, old, sizeof(old)) < 0)
        return -ENOENT;
    memcpy(r->list[commit].data + 16, old, sizeof(old));
    r->list[l1].host_off = load_be64(old);
    recording_move(r, l1, commit + 1);
    return 0;
}

static int mutant_apply_resize_early(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    if (!find_commit(r, QCOW2_HDR_SIZE, &commit))
        return -ENOENT;
    struct request early = r->list[commit];
    size_t first = commit;
    while (first > 0 && r->list[first - 1].op == early.op)
        first--;
    early.length = 8;
    int ret = recording_add(r, &early);
    if (ret == 0)
        recording_move(r, r->count - 1, first);
    return ret;
}

static int mutant_apply_header_twice(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    return find_commit(r, QCOW2_HDR_SIZE, &commit) ? split(r, commit, 8) : -ENOENT;
}

static int mutant_apply_discard_early(const struct history *h, struct recording *r)
{
    (void)h;
    return discards_before(r, QCOW2_HDR_SIZE);
}

static int mutant_delete_counts_early(const struct history *h, struct recording *r)
{
    return counts_before(h, r, QCOW2_HDR_SNAPSHOT_COUNT);
}

static int mutant_delete_discard_early(const struct history *h, struct recording *r)
{
    (void)h;
    return discards_before(r, QCOW2_HDR_SNAPSHOT_COUNT);
}

static int mutant_create_flush_missing(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    return find_commit(r, QCOW2_HDR_SNAPSHOT_COUNT, &commit) ? no_flush_before(r, commit) : -ENOENT;
}

static int remove_owned(const struct history *h, struct recording *r, enum owner owner)
{
    size_t at = 0;
    if (!find_owned(h, r, owner, &at))
        return -ENOENT;
    recording_remove(r, at);
    return 0;
}

static int mutant_create_refblock_missing(const struct history *h, struct recording *r)
{
    return remove_owned(h, r, OWNER_REFBLOCK);
}

static int mutant_create_copied_in_l2(const struct history *h, struct recording *r)
{
    return remove_owned(h, r, OWNER_L2);
}

static int mutant_create_copied_in_l1(const struct history *h, struct recording *r)
{
    return remove_owned(h, r, OWNER_L1);
}

static int mutant_create_header_twice(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    return find_commit(r, QCOW2_HDR_SNAPSHOT_COUNT, &commit) ? split(r, commit, 4) : -ENOENT;
}

/* Who owns what after the run. */
static int look_after(
    const struct history *h, const struct recording *r, struct state *state, struct oracle *oracle)
{
    struct breach ignored = {0};
    int ret = state_load(state, h->base);
    if (ret == 0)
        ret = epoch_apply_all(r, 0, r->count, state);
    return ret < 0 || oracle_look(oracle, state, &ignored) ? ret : -ENOENT;
}

/* A write to the only refcount block: the cluster of the snapshot table is free. */
static int free_table(const struct oracle *o, const struct state *state, struct request *write)
{
    uint64_t block_off = load_be64(state_at(state, o->header.reftable_off, 8));
    uint64_t cluster = cluster_of(&o->geo, o->header.snapshots_off);
    write->kind = REQUEST_WRITE;
    write->host_off = block_off;
    write->length = o->geo.cluster_size;
    write->data = malloc((size_t)write->length);
    if (!write->data)
        return -ENOMEM;
    memcpy(write->data, state_at(state, block_off, write->length), (size_t)write->length);
    qcow2_refcount_set(write->data, o->geo.refcount_order, cluster, 0);
    return 0;
}

static int mutant_create_table_freed(const struct history *h, struct recording *r)
{
    struct state *state;
    struct oracle oracle;
    struct request write = {0};
    size_t commit, flush;
    if (!find_commit(r, QCOW2_HDR_SNAPSHOT_COUNT, &commit))
        return -ENOENT;
    flush = commit;
    while (flush < r->count && r->list[flush].op == r->list[commit].op)
        flush++;
    write.op = r->list[commit].op;
    int ret = state_open(h->room_bytes, &state);
    if (ret < 0)
        return ret;
    oracle_init(&oracle);
    ret = look_after(h, r, state, &oracle);
    if (ret == 0)
        ret = free_table(&oracle, state, &write);
    if (ret == 0)
        ret = recording_add(r, &write);
    if (ret == 0)
        recording_move(r, r->count - 1, flush);
    free(write.data);
    oracle_release(&oracle);
    state_close(state);
    return ret;
}

/* The flush behind the commit. */
static int mutant_create_not_durable(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    if (!find_commit(r, QCOW2_HDR_SNAPSHOT_COUNT, &commit) || !find_kind(r, REQUEST_FLUSH, &commit))
        return -ENOENT;
    recording_remove(r, commit);
    return 0;
}

/* The count of cluster 0, which holds the header. */
static int mutant_create_leaks_else(const struct history *h, struct recording *r)
{
    size_t at = 0;
    if (!find_owned(h, r, OWNER_REFBLOCK, &at))
        return -ENOENT;
    store_be16(r->list[at].data, (uint16_t)(load_be16(r->list[at].data) + 1));
    return 0;
}

static int mutant_freed_reused_early(const struct history *h, struct recording *r)
{
    size_t at = 0;
    (void)h;
    if (!find_kind(r, REQUEST_DISCARD, &at))
        return -ENOENT;
    return no_flush_before(r, at);
}

/* The first flush of the run: between data and the entries that map it. */
static int first_flush_missing(struct recording *r)
{
    size_t at = 0;
    if (!find_kind(r, REQUEST_FLUSH, &at))
        return -ENOENT;
    recording_remove(r, at);
    return 0;
}

static int mutant_write_map_early(const struct history *h, struct recording *r)
{
    (void)h;
    return first_flush_missing(r);
}

static int mutant_grow_flush_missing(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    return find_commit(r, QCOW2_HDR_SIZE, &commit) ? no_flush_before(r, commit) : -ENOENT;
}

/* The flush before the first write to the refcount table. */
static int mutant_block_not_durable(const struct history *h, struct recording *r)
{
    size_t at = 0;
    return find_owned(h, r, OWNER_REFTABLE, &at) ? no_flush_before(r, at) : -ENOENT;
}

static int mutant_table_not_durable(const struct history *h, struct recording *r)
{
    size_t commit;
    (void)h;
    return find_commit(r, QCOW2_HDR_REFTABLE_OFF, &commit) ? no_flush_before(r, commit) : -ENOENT;
}

static int mutant_rebuild_flush_missing(const struct history *h, struct recording *r)
{
    return mutant_table_not_durable(h, r);
}

/* The last write to the feature bits comes before the last one to a refcount block. */
static int mutant_dirty_cleared_early(const struct history *h, struct recording *r)
{
    size_t cleared = r->count, counts = 0;
    while (cleared-- > 0 && !is_write(&r->list[cleared], QCOW2_HDR_INCOMPATIBLE, 8))
        ;
    if (cleared >= r->count || !find_owned(h, r, OWNER_REFBLOCK, &counts) || counts > cleared)
        return -ENOENT;
    recording_move(r, cleared, counts);
    return 0;
}

static int mutant_dirty_not_set(const struct history *h, struct recording *r)
{
    size_t set;
    (void)h;
    if (!find_commit(r, QCOW2_HDR_INCOMPATIBLE, &set))
        return -ENOENT;
    recording_remove(r, set);
    return 0;
}
