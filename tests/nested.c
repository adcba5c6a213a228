/* SPDX-License-Identifier: MIT
 *
 * The contents are statements of the recipe language, so that every image of the table can be had
 * as one recipe; each function below is one content. */
#include "nested.h"

#include <check.h>
#include <inttypes.h>
#include <stdint.h>
#include <string.h>

#include "recipe.h"

/* Clusters in a row from the spot on; entries that a made-up table has. */
enum { SPOT = NESTED_SPOT, SPOTS = 48, FILLED = 64 };

const struct nested_base nested_bases[] = {
    {.name = "plain",
        .cluster = 4096,
        .recipe = "image cluster=4k size=16M\ndata 0 256k seed=1\ndata 2M 256k seed=2\n"},
    {.name = "snapshots",
        .cluster = 4096,
        .snapshots = true,
        .recipe = "image cluster=4k size=16M\ndata 0 256k seed=1\ndata 2M 256k seed=2\n"
                  "snapshot id=1 name=one\ndata 0 16k seed=3\nsnapshot id=2 name=two\n"
                  "data 8k 8k seed=4\ndata 4M 64k seed=5\n"},
    {.name = "bitmap",
        .cluster = 4096,
        .bitmap = true,
        .recipe = "image cluster=4k size=16M\ndata 0 256k seed=1\ndata 2M 256k seed=2\n"
                  "bitmap name=b granularity=64k fill=data\n"},
    {.name = "subclusters",
        .cluster = 16384,
        .extended = true,
        .recipe = "image cluster=16k extended_l2 size=128M\ndata 0 1M seed=1\n"
                  "data 16M 1M seed=2\n"},
    {.name = "narrow",
        .cluster = 4096,
        .narrow = true,
        .recipe = "image cluster=4k refcount_bits=1 size=8M\ndata 0 256k seed=1\n"
                  "data 2M 256k seed=2\n"},
};

const size_t nested_base_count = sizeof(nested_bases) / sizeof(nested_bases[0]);

/* ---- contents ---- */

#define COPIED (UINT64_C(1) << 63)

static void clear(FILE *out, int table, int spot)
{
    fprintf(out, "set fill l2[%d][%d].offset cluster 0\n", table, spot);
}

static unsigned entry_bytes(const struct nested_base *base)
{
    return base->extended ? 16 : 8;
}

/* Entry `idx` of what is made to look like an L2 table in `spot` of `table`. */
static void put_entry(FILE *out, const struct nested_base *base, int table, int spot, int idx,
    uint64_t flags, const char *target)
{
    unsigned step = entry_bytes(base);
    fprintf(out, "set u64[l2[%d][%d].offset + %u] = 0x%" PRIx64 " | %s\n", table, spot,
        step * (unsigned)idx, flags, target);
    if (base->extended)
        fprintf(out, "set u64[l2[%d][%d].offset + %u] = 0xffffffff\n", table, spot,
            step * (unsigned)idx + 8);
}

static void put_l2(FILE *out, const struct nested_base *base, int table, int spot, uint64_t flags,
    int target_table, int shift)
{
    char target[64];
    clear(out, table, spot);
    for (int i = 0; i < FILLED; i++) {
        if (target_table == table && (i + shift) % FILLED == spot)
            continue; /* tables do not name themselves */
        snprintf(target, sizeof(target), "l2[%d][%d].offset", target_table, (i + shift) % FILLED);
        put_entry(out, base, table, spot, i, flags, target);
    }
}

static void own_shifted(FILE *out, const struct nested_base *base)
{
    put_l2(out, base, 0, SPOT, COPIED, 0, 1);
    put_l2(out, base, 1, SPOT, COPIED, 1, 1);
}

static void own_no_flags(FILE *out, const struct nested_base *base)
{
    put_l2(out, base, 0, SPOT, 0, 0, 1);
    put_l2(out, base, 1, SPOT, 0, 1, 1);
}

static void each_others(FILE *out, const struct nested_base *base)
{
    put_l2(out, base, 0, SPOT, COPIED, 1, 0);
    put_l2(out, base, 1, SPOT, COPIED, 0, 0);
}

/* Entries first to end - 1 of tables in the spots, each for the cluster of another entry; a table
 * does not name itself. */
static void put_runs(
    FILE *out, const struct nested_base *base, int first, int end, int (*other)(int idx))
{
    char target[64];
    for (int table = 0; table < 2; table++) {
        clear(out, table, SPOT);
        for (int i = first; i < end; i++) {
            snprintf(target, sizeof(target), "l2[%d][%d].offset", table, other(i));
            if (other(i) != SPOT)
                put_entry(out, base, table, SPOT, i, COPIED, target);
        }
    }
}

static int neighbour(int idx)
{
    return idx ^ 1;
}

static void swapped_run(FILE *out, const struct nested_base *base)
{
    put_runs(out, base, 16, 48, neighbour);
}

static int behind_spot(int idx)
{
    return SPOT + 1 + idx;
}

static void few_entries(FILE *out, const struct nested_base *base)
{
    put_runs(out, base, 0, 4, behind_spot);
}

static int next_of_run(int idx)
{
    return idx < 19 ? idx + 1 : 4;
}

/* What loses its entries when entries 4 to 19 are lost. */
static void neighbours(FILE *out, const struct nested_base *base)
{
    put_runs(out, base, 4, 20, next_of_run);
}

static void many_tables(FILE *out, const struct nested_base *base)
{
    for (int table = 0; table < 2; table++) {
        for (int k = 0; k < 4; k++)
            put_l2(out, base, table, SPOT + k, COPIED, table, k + 1);
    }
}

static void table_copies(FILE *out, const struct nested_base *base)
{
    (void)base;
    for (int table = 0; table < 2; table++)
        fprintf(out, "set copy l2[%d].offset (l2[%d][%d].offset) cluster\n", table, table, SPOT);
}

static void old_table_copies(FILE *out, const struct nested_base *base)
{
    table_copies(out, base);
    for (int table = 0; table < 2; table++) {
        put_entry(
            out, base, table, SPOT, 20, COPIED, table ? "l2[1][21].offset" : "l2[0][21].offset");
        put_entry(
            out, base, table, SPOT, 21, COPIED, table ? "l2[1][20].offset" : "l2[0][20].offset");
    }
}

static void l1_of_real_tables(FILE *out, const struct nested_base *base)
{
    (void)base;
    for (int table = 0; table < 2; table++) {
        clear(out, table, SPOT);
        for (int i = 0; i < 4; i++)
            fprintf(out, "set u64[l2[%d][%d].offset + %d] = 0x%" PRIx64 " | l2[%d].offset\n", table,
                SPOT, 8 * i, COPIED, (i + 1) % 2);
    }
}

static void l1_copy(FILE *out, const struct nested_base *base)
{
    (void)base;
    for (int table = 0; table < 2; table++)
        fprintf(out,
            "set fill l2[%d][%d].offset cluster 0\n"
            "set copy l1.offset (l2[%d][%d].offset) 64\n",
            table, SPOT, table, SPOT);
}

/* With tables of its own. */
static void l1_of_own_tables(FILE *out, const struct nested_base *base)
{
    for (int table = 0; table < 2; table++) {
        clear(out, table, SPOT);
        for (int i = 0; i < 3; i++) {
            put_l2(out, base, table, SPOT + 1 + i, COPIED, table, i + 1);
            fprintf(out, "set u64[l2[%d][%d].offset + %d] = 0x%" PRIx64 " | l2[%d][%d].offset\n",
                table, SPOT, 8 * i, COPIED, table, SPOT + 1 + i);
        }
    }
}

static void counts_of_one(FILE *out, const struct nested_base *base)
{
    (void)base;
    fprintf(out, "set fill l2[0][%d].offset cluster 0\n", SPOT);
    for (int i = 0; i < 256; i++)
        fprintf(out, "set u16[l2[0][%d].offset + %d] = 1\n", SPOT, 2 * i);
}

static void count_copies(FILE *out, const struct nested_base *base)
{
    (void)base;
    fprintf(out, "set copy refblock[0].offset (l2[0][%d].offset) cluster\n", SPOT);
    fprintf(out, "set copy reftable.offset (l2[0][%d].offset) cluster\n", SPOT + 1);
    fprintf(out, "set fill l2[1][%d].offset cluster 0\n", SPOT);
    fprintf(out, "set u64[l2[1][%d].offset] = l2[0][%d].offset\n", SPOT, SPOT);
}

static void record(FILE *out, uint64_t at, int spot, const char *l1, unsigned l1_size, int id)
{
    char where[64];
    snprintf(where, sizeof(where), "l2[0][%d].offset + %" PRIu64, spot, at);
    fprintf(out, "set u64[%s] = %s\n", where, l1);
    fprintf(out, "set u32[%s + 8] = %u\n", where, l1_size);
    fprintf(out, "set u16[%s + 12] = 1\nset u16[%s + 14] = 6\n", where, where);
    fprintf(out, "set u32[%s + 16] = 1700000000\nset u32[%s + 36] = 16\n", where, where);
    fprintf(out, "set u64[%s + 48] = header.size\n", where);
    fprintf(out, "set u8[%s + 56] = \"%dnested\"\n", where, id);
}

/* Records, an L1 table and an L2 table that belong together. */
static void snapshots_of_own_tables(FILE *out, const struct nested_base *base)
{
    l1_of_own_tables(out, base);
    char l1[64];
    snprintf(l1, sizeof(l1), "l2[0][%d].offset", SPOT);
    clear(out, 0, SPOT + 8);
    record(out, 0, SPOT + 8, l1, 8, 1);
    record(out, 64, SPOT + 8, l1, 8, 2);
}

static void snapshots_of_real_tables(FILE *out, const struct nested_base *base)
{
    const char *l1 = base->snapshots ? "snapshot[0].l1.offset" : "l1.offset";
    clear(out, 0, SPOT);
    record(out, 0, SPOT, l1, 8, 1);
    record(out, 64, SPOT, l1, 8, 2);
}

static void snapshot_copies(FILE *out, const struct nested_base *base)
{
    if (!base->snapshots)
        return;
    fprintf(out, "set copy snapshots.offset (l2[0][%d].offset) cluster\n", SPOT);
    fprintf(out, "set copy snapshot[0].l1.offset (l2[0][%d].offset) cluster\n", SPOT + 1);
    fprintf(out, "set copy snapshot[0].l2[0].offset (l2[0][%d].offset) cluster\n", SPOT + 2);
    fprintf(out, "set copy snapshots.offset (l2[1][%d].offset) cluster\n", SPOT);
    fprintf(out, "set u64[l2[1][%d].offset] = l2[0][%d].offset\n", SPOT, SPOT + 1);
}

static void bitmap_copies(FILE *out, const struct nested_base *base)
{
    if (!base->bitmap)
        return;
    fprintf(out, "set copy bitmaps.offset (l2[0][%d].offset) cluster\n", SPOT);
    fprintf(out, "set copy bitmap[0].table.offset (l2[0][%d].offset) cluster\n", SPOT + 1);
    fprintf(out, "set u64[l2[0][%d].offset] = l2[0][%d].offset\n", SPOT, SPOT + 1);
}

/* The file from its start on, as a backup of a sister image. */
static void sister(FILE *out, const struct nested_base *base)
{
    (void)base;
    fprintf(out, "set copy 0 (l2[0][%d].offset) (cluster * 16)\n", SPOT);
}

/* Writes what is not zero of a nested image, `shift` bytes into the first spot. */
static void nest(FILE *out, const char *recipe, uint64_t shift, uint64_t most)
{
    enum { PIECE = 64 };
    char error[RECIPE_ERROR_BYTES];
    struct recipe *inner;
    uint64_t size;
    ck_assert_msg(recipe_text("nested", recipe, &inner, error) == 0, "%s", error);
    ck_assert_int_eq(io_size(recipe_io(inner), &size), 0);
    ck_assert_uint_le(size + shift, most);
    fprintf(out, "set fill l2[0][%d].offset %" PRIu64 " 0\n", SPOT, size + shift);
    for (uint64_t off = 0; off < size; off += PIECE) {
        static const uint8_t zeros[PIECE];
        uint8_t bytes[PIECE];
        ck_assert_int_eq(io_read_padded(recipe_io(inner), off, bytes, PIECE), 0);
        if (memcmp(bytes, zeros, PIECE) == 0)
            continue;
        fprintf(out, "set bytes (l2[0][%d].offset + %" PRIu64 ") = ", SPOT, off + shift);
        for (int i = 0; i < PIECE; i++)
            fprintf(out, "%02x", bytes[i]);
        fprintf(out, "\n");
    }
    recipe_free(inner);
}

#define NESTED_BODY \
    "data 0 32k seed=11\ndata 2M 16k seed=12\nsnapshot id=1 name=in\ndata 0 8k seed=13\n"

static void nested_same(FILE *out, const struct nested_base *base)
{
    char text[400];
    snprintf(text, sizeof(text), "image cluster=%u %s size=8M\n" NESTED_BODY "bitmap name=inner\n",
        base->cluster, base->extended ? "extended_l2" : "");
    nest(out, text, 0, SPOTS * (uint64_t)base->cluster);
}

static void nested_aside(FILE *out, const struct nested_base *base)
{
    char text[400];
    snprintf(text, sizeof(text), "image cluster=%u %s size=8M\n" NESTED_BODY "bitmap name=inner\n",
        base->cluster, base->extended ? "extended_l2" : "");
    nest(out, text, 512, SPOTS * (uint64_t)base->cluster);
}

static void nested_small(FILE *out, const struct nested_base *base)
{
    nest(out, "image cluster=512 size=8M\n" NESTED_BODY "bitmap name=inner\n", 0,
        SPOTS * (uint64_t)base->cluster);
}

static void nested_full(FILE *out, const struct nested_base *base)
{
    char text[400];
    snprintf(text, sizeof(text), "image cluster=%u %s size=8M\ndata 0 %u seed=1\n", base->cluster,
        base->extended ? "extended_l2" : "", 40 * base->cluster);
    nest(out, text, 0, SPOTS * (uint64_t)base->cluster);
}

const struct nested_content nested_contents[] = {
    {"own-shifted", own_shifted},
    {"own-no-flags", own_no_flags},
    {"each-others", each_others},
    {"swapped-run", swapped_run},
    {"few-entries", few_entries},
    {"neighbours", neighbours},
    {"many-tables", many_tables},
    {"table-copies", table_copies},
    {"old-table-copies", old_table_copies},
    {"l1-of-real-tables", l1_of_real_tables},
    {"l1-copy", l1_copy},
    {"l1-of-own-tables", l1_of_own_tables},
    {"counts-of-one", counts_of_one},
    {"count-copies", count_copies},
    {"snapshots-of-own-tables", snapshots_of_own_tables},
    {"snapshots-of-real-tables", snapshots_of_real_tables},
    {"snapshot-copies", snapshot_copies},
    {"bitmap-copies", bitmap_copies},
    {"sister", sister},
    {"nested-same", nested_same},
    {"nested-aside", nested_aside},
    {"nested-small", nested_small},
    {"nested-full", nested_full},
};

const size_t nested_content_count = sizeof(nested_contents) / sizeof(nested_contents[0]);
