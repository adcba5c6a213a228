/* SPDX-License-Identifier: MIT
 *
 * Names of fields and tables.  Where something is comes from the layout as built and does not move
 * when pointers to it are damaged; what a field holds is read from the image. */
#include <string.h>

#include "recipe_impl.h"

struct field {
    const char *name;
    unsigned off, width;
};

static const struct field header_fields[] = {
    {"magic", 0, 4},
    {"version", QCOW2_HDR_VERSION, 4},
    {"backing_offset", QCOW2_HDR_BACKING_OFF, 8},
    {"backing_length", QCOW2_HDR_BACKING_LEN, 4},
    {"cluster_bits", QCOW2_HDR_CLUSTER_BITS, 4},
    {"size", QCOW2_HDR_SIZE, 8},
    {"crypt_method", QCOW2_HDR_CRYPT_METHOD, 4},
    {"l1_size", QCOW2_HDR_L1_SIZE, 4},
    {"l1_offset", QCOW2_HDR_L1_OFF, 8},
    {"reftable_offset", QCOW2_HDR_REFTABLE_OFF, 8},
    {"reftable_clusters", QCOW2_HDR_REFTABLE_CLUSTERS, 4},
    {"snapshot_count", QCOW2_HDR_SNAPSHOT_COUNT, 4},
    {"snapshots_offset", QCOW2_HDR_SNAPSHOTS_OFF, 8},
    {"incompatible", QCOW2_HDR_INCOMPATIBLE, 8},
    {"compatible", QCOW2_HDR_COMPATIBLE, 8},
    {"autoclear", QCOW2_HDR_AUTOCLEAR, 8},
    {"refcount_order", QCOW2_HDR_REFCOUNT_ORDER, 4},
    {"length", QCOW2_HDR_LENGTH, 4},
    {"compression", QCOW2_HDR_COMPRESSION, 1},
    {0},
};

static const struct field snapshot_fields[] = {
    {"l1_offset", 0, 8},
    {"l1_size", 8, 4},
    {"id_length", 12, 2},
    {"name_length", 14, 2},
    {"date", 16, 4},
    {"date_nsec", 20, 4},
    {"clock", 24, 8},
    {"vm_state_size32", 32, 4},
    {"extra_length", 36, 4},
    {"extra", 40, 1},
    {"vm_state_size", 40, 8}, /* these three only where the extra data is long enough */
    {"disk_size", 48, 8},
    {"icount", 56, 8},
    {0},
};

static const struct field bitmap_fields[] = {
    {"table_offset", 0, 8},
    {"table_size", 8, 4},
    {"flags", 12, 4},
    {"type", 16, 1},
    {"granularity_bits", 17, 1},
    {"name_length", 18, 2},
    {"extra_length", 20, 4},
    {"extra", 24, 1},
    {0},
};

static const struct field bitmaps_ext_fields[] = {
    {"count", 0, 4},
    {"reserved", 4, 4},
    {"directory_size", 8, 8},
    {"directory_offset", 16, 8},
    {0},
};

static const struct field crypto_ext_fields[] = {
    {"header_offset", 0, 8},
    {"header_length", 8, 8},
    {0},
};

static const struct field ext_fields[] = {
    {"type", 0, 4},
    {"length", 4, 4},
    {"data", 8, 1},
    {0},
};

static struct ref place(uint64_t host_off)
{
    return (struct ref){.kind = REF_CONST, .value = host_off};
}

static struct ref stored(uint64_t host_off, unsigned width)
{
    return (struct ref){.kind = REF_INT, .host_off = host_off, .width = width};
}

static int read_field(
    struct cursor *c, const struct field *fields, uint64_t base_off, struct ref *ref)
{
    char word[32];
    int ret = read_word(c, word, sizeof(word));
    if (ret < 0)
        return ret;
    for (; fields->name; fields++) {
        if (strcmp(fields->name, word) == 0) {
            *ref = stored(base_off + fields->off, fields->width);
            return 0;
        }
    }
    return recipe_fail(c->r, "there is no field \"%s\"", word);
}

/* "[" expr "]", below `count`. */
static int read_index(struct cursor *c, const char *what, uint64_t count, uint64_t *idx)
{
    if (!accept(c, "["))
        return recipe_fail(c->r, "%s wants an index: %s[...]", what, what);
    int ret = read_number(c, idx);
    if (ret < 0)
        return ret;
    if (!accept(c, "]"))
        return recipe_fail(c->r, "] is missing");
    if (*idx >= count)
        return recipe_fail(c->r, "%s[%llu]: there are only %llu", what, (unsigned long long)*idx,
            (unsigned long long)count);
    return 0;
}

/* A table of 8-byte entries: ".offset", "[i]" or "[i].offset". */
static int read_table(
    struct cursor *c, const char *what, uint64_t table_off, uint64_t count, struct ref *ref)
{
    if (accept(c, ".offset")) {
        *ref = place(table_off);
        return 0;
    }
    uint64_t idx;
    int ret = read_index(c, what, count, &idx);
    if (ret < 0)
        return ret;
    *ref = stored(table_off + 8 * idx, 8);
    if (accept(c, ".offset"))
        ref->kind = REF_OFFSET_FIELD;
    return 0;
}

static int read_l1(struct cursor *c, const struct l1_table *l1, struct ref *ref)
{
    uint64_t room = clusters_for(&c->r->geo, 8 * (uint64_t)l1->size) * c->r->geo.cluster_size / 8;
    return read_table(c, "l1", l1->host_off, room, ref);
}

static int read_l2(struct cursor *c, const struct l1_table *l1, struct ref *ref)
{
    uint64_t i, j;
    int ret = read_index(c, "l2", l1->size, &i);
    if (ret < 0)
        return ret;
    if (!l1->l2[i])
        return recipe_fail(c->r, "l2[%llu] was not allocated", (unsigned long long)i);
    if (accept(c, ".offset")) {
        *ref = place(l1->l2[i]->host_off);
        return 0;
    }
    const struct qcow2_geometry *geo = &c->r->geo;
    ret = read_index(c, "l2[i]", geo->l2_entries, &j);
    if (ret < 0)
        return ret;
    *ref = stored(l1->l2[i]->host_off + j * geo->l2_entry_size, 8);
    if (accept(c, ".offset")) {
        ref->kind = REF_L2_OFFSET_FIELD;
    } else if (accept(c, ".bitmap")) {
        if (!geo->extended_l2)
            return recipe_fail(c->r, "only extended L2 entries have a bitmap");
        ref->host_off += 8;
    }
    return 0;
}

static int refcount_ref(struct cursor *c, uint64_t block, uint64_t idx, struct ref *ref)
{
    const struct recipe *r = c->r;
    if (block >= r->refblock_count || !r->refblocks[block])
        return recipe_fail(
            c->r, "refcount block %llu was not allocated", (unsigned long long)block);
    unsigned order = r->geo.refcount_order;
    *ref = (struct ref){
        .kind = REF_REFCOUNT,
        .host_off = r->refblocks[block] + (order < 3 ? idx >> (3 - order) : idx << (order - 3)),
        .sub_idx = order < 3 ? (unsigned)(idx & ((8u >> order) - 1)) : 0,
    };
    return 0;
}

/* refcount[cluster] or refcount[@offset]; an L2 entry as it stands will do for the offset. */
static int read_refcount(struct cursor *c, struct ref *ref)
{
    if (!accept(c, "["))
        return recipe_fail(c->r, "refcount[cluster] or refcount[@offset]");
    bool by_offset = accept(c, "@");
    uint64_t n;
    int ret = read_number(c, &n);
    if (ret < 0)
        return ret;
    if (!accept(c, "]"))
        return recipe_fail(c->r, "] is missing");
    if (by_offset)
        n = cluster_of(&c->r->geo, n & QCOW2_OFFSET_MASK);
    uint64_t entries = c->r->geo.refblock_entries;
    return refcount_ref(c, n / entries, n % entries, ref);
}

static int read_refblock(struct cursor *c, struct ref *ref)
{
    uint64_t i, j;
    int ret = read_index(c, "refblock", c->r->refblock_count, &i);
    if (ret < 0)
        return ret;
    if (accept(c, ".offset")) {
        *ref = place(c->r->refblocks[i]);
        return 0;
    }
    ret = read_index(c, "refblock[i]", c->r->geo.refblock_entries, &j);
    return ret < 0 ? ret : refcount_ref(c, i, j, ref);
}

static int read_snapshot(struct cursor *c, struct ref *ref)
{
    uint64_t i;
    int ret = read_index(c, "snapshot", c->r->snapshot_count, &i);
    if (ret < 0)
        return ret;
    const struct recipe_snapshot *s = &c->r->snapshots[i];
    if (accept(c, ".l1"))
        return read_l1(c, &s->l1, ref);
    if (accept(c, ".l2"))
        return read_l2(c, &s->l1, ref);
    uint64_t id_off = s->record_off + QCOW2_SNAPSHOT_HEAD_BYTES + s->extra_len;
    if (accept(c, ".offset"))
        *ref = place(s->record_off);
    else if (accept(c, ".id"))
        *ref = stored(id_off, 1);
    else if (accept(c, ".name"))
        *ref = stored(id_off + strlen(s->id), 1);
    else if (accept(c, "."))
        return read_field(c, snapshot_fields, s->record_off, ref);
    else
        return recipe_fail(c->r, "snapshot[i] wants a field: snapshot[i].l1_offset");
    return 0;
}

static int read_bitmap(struct cursor *c, struct ref *ref)
{
    uint64_t i;
    int ret = read_index(c, "bitmap", c->r->bitmap_count, &i);
    if (ret < 0)
        return ret;
    const struct recipe_bitmap *b = &c->r->bitmaps[i];
    if (accept(c, ".table"))
        return read_table(c, "table", b->table_off, b->table_size, ref);
    if (accept(c, ".offset"))
        *ref = place(b->record_off);
    else if (accept(c, ".name"))
        *ref = stored(b->record_off + QCOW2_BITMAP_HEAD_BYTES + b->extra_len, 1);
    else if (accept(c, "."))
        return read_field(c, bitmap_fields, b->record_off, ref);
    else
        return recipe_fail(c->r, "bitmap[i] wants a field: bitmap[i].flags");
    return 0;
}

/* A field in the data of the first extension of that type. */
static int read_ext_data(
    struct cursor *c, uint32_t type, const struct field *fields, struct ref *ref)
{
    for (size_t i = 0; i < c->r->ext_count; i++) {
        if (c->r->exts[i].type == type && accept(c, "."))
            return read_field(c, fields, c->r->exts[i].head_off + 8, ref);
    }
    return recipe_fail(c->r, "this image has no such extension");
}

static int read_ext(struct cursor *c, struct ref *ref)
{
    uint64_t i;
    int ret = read_index(c, "ext", c->r->ext_count + 1, &i);
    if (ret < 0)
        return ret;
    const struct recipe_ext *last = c->r->ext_count ? &c->r->exts[c->r->ext_count - 1] : NULL;
    uint64_t head_off = i < c->r->ext_count ? c->r->exts[i].head_off
                        : last              ? last->head_off + 8 + ((last->length + 7) & ~7u)
                                            : c->r->header.header_length; /* the end mark */
    if (accept(c, ".offset")) {
        *ref = place(head_off);
        return 0;
    }
    if (!accept(c, "."))
        return recipe_fail(c->r, "ext[i] wants a field: ext[i].length");
    return read_field(c, ext_fields, head_off, ref);
}

/* u8[off], u16[off], u32[off], u64[off]: whatever stands there. */
static int read_raw(struct cursor *c, unsigned width, struct ref *ref)
{
    uint64_t host_off;
    int ret = read_index(c, "u8", INT64_MAX, &host_off);
    if (ret == 0)
        *ref = stored(host_off, width);
    return ret;
}

static int read_simple_name(struct cursor *c, const char *word, struct ref *ref)
{
    struct recipe *r = c->r;
    if (strcmp(word, "cluster") == 0) {
        *ref = place(r->geo.cluster_size);
    } else if (strcmp(word, "backing_name") == 0) {
        *ref = stored(r->header.backing_off, 1);
    } else if (strcmp(word, "file") == 0 && (accept(c, ".size") || accept(c, ".end"))) {
        *ref = place(0);
        return io_size(c->io, &ref->value);
    } else if (strcmp(word, "snapshots") == 0 && accept(c, ".offset")) {
        *ref = place(r->snapshot_table_off);
    } else {
        return recipe_fail(r, "there is nothing called \"%s\"", word);
    }
    return 0;
}

int read_name(struct cursor *c, struct ref *ref)
{
    struct recipe *r = c->r;
    char word[32];
    int ret = read_word(c, word, sizeof(word));
    if (ret < 0)
        return ret;
    if (!r->finished && strcmp(word, "cluster") != 0)
        return recipe_fail(r, "\"%s\": names have a meaning only in damage and set", word);
    if (strcmp(word, "header") == 0 && accept(c, "."))
        return read_field(c, header_fields, 0, ref);
    if (strcmp(word, "l1") == 0)
        return read_l1(c, &r->active, ref);
    if (strcmp(word, "l2") == 0)
        return read_l2(c, &r->active, ref);
    if (strcmp(word, "reftable") == 0)
        return read_table(c, "reftable", r->header.reftable_off,
            (uint64_t)r->header.reftable_clusters * r->geo.cluster_size / 8, ref);
    if (strcmp(word, "refblock") == 0)
        return read_refblock(c, ref);
    if (strcmp(word, "refcount") == 0)
        return read_refcount(c, ref);
    if (strcmp(word, "snapshot") == 0)
        return read_snapshot(c, ref);
    if (strcmp(word, "bitmap") == 0)
        return read_bitmap(c, ref);
    if (strcmp(word, "ext") == 0)
        return read_ext(c, ref);
    bool bitmaps = strcmp(word, "bitmaps") == 0, crypto = strcmp(word, "crypto") == 0;
    if ((bitmaps || crypto) && accept(c, ".offset")) {
        *ref = place(bitmaps ? r->bitmap_dir_off : r->crypto_off);
        return 0;
    }
    if (bitmaps)
        return read_ext_data(c, QCOW2_EXT_BITMAPS, bitmaps_ext_fields, ref);
    if (crypto)
        return read_ext_data(c, QCOW2_EXT_CRYPTO, crypto_ext_fields, ref);
    static const char *const widths[] = {"u8", "u16", "u32", "u64"};
    for (unsigned i = 0; i < 4; i++) {
        if (strcmp(word, widths[i]) == 0)
            return read_raw(c, 1u << i, ref);
    }
    return read_simple_name(c, word, ref);
}
