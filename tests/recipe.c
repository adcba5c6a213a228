/* SPDX-License-Identifier: MIT
 *
 * A recipe from the first line to the last; see recipe.h and recipe_impl.h. */
#include "recipe.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "recipe_impl.h"

/* ---- errors and memory ---------------------------------------------------------------------- */

struct arena_block {
    struct arena_block *next;
    max_align_t bytes[];
};

void recipe_say(struct recipe *r, const char *format, ...)
{
    int n = r->line ? snprintf(r->error, RECIPE_ERROR_BYTES, "%s:%u: ", r->name, r->line) : 0;
    if (n < 0 || n >= RECIPE_ERROR_BYTES)
        n = 0;
    va_list args;
    va_start(args, format);
    vsnprintf(r->error + n, (size_t)(RECIPE_ERROR_BYTES - n), format, args);
    va_end(args);
}

void *recipe_alloc(struct recipe *r, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, sizeof(struct arena_block), &bytes))
        abort();
    struct arena_block *block = calloc(1, bytes + 1);
    if (!block)
        abort();
    block->next = r->arena;
    r->arena = block;
    return block->bytes;
}

void *recipe_grow(struct recipe *r, void *array, size_t count, size_t size)
{
    void *grown = recipe_alloc(r, count + 1, size);
    if (count)
        memcpy(grown, array, count * size);
    return grown;
}

void recipe_free(struct recipe *r)
{
    if (!r)
        return;
    io_close(r->io);
    io_close(r->pristine);
    io_close(r->data);
    while (r->arena) {
        struct arena_block *next = r->arena->next;
        free(r->arena);
        r->arena = next;
    }
    free(r);
}

/* ---- statements ----------------------------------------------------------------------------- */

static int guest_range(struct cursor *c, uint64_t *guest_off, uint64_t *length)
{
    int ret = read_number(c, guest_off);
    if (ret < 0)
        return ret;
    if (at_end(c))
        return recipe_fail(c->r, "OFFSET LENGTH expected");
    ret = read_number(c, length);
    if (ret < 0)
        return ret;
    uint64_t end;
    if (!range_end(*guest_off, *length, &end) || end > c->r->header.size_bytes)
        return recipe_fail(c->r, "this passes the end of the disk");
    return 0;
}

static struct recipe_pattern pattern_of(uint64_t byte, uint64_t seed)
{
    bool seeded = seed != UINT64_MAX;
    return (struct recipe_pattern){.seeded = seeded, .value = seeded ? seed : byte};
}

/* OFFSET LENGTH [pattern=BYTE | seed=N] [flag] */
static int guest_statement(struct cursor *c, uint64_t *guest_off, uint64_t *length,
    struct recipe_pattern *pattern, const char *flag_name, bool *flag)
{
    int ret = guest_range(c, guest_off, length);
    if (ret < 0)
        return ret;
    uint64_t byte = pattern->value, seed = UINT64_MAX;
    const struct arg args[] = {
        {"pattern", ARG_NUMBER, &byte}, {"seed", ARG_NUMBER, &seed}, {flag_name, ARG_FLAG, flag}};
    ret = read_args(c, args, flag_name ? 3 : 2);
    if (ret == 0 && byte > 0xff)
        return recipe_fail(c->r, "a pattern is a byte");
    *pattern = pattern_of(byte, seed);
    return ret;
}

static int say_data(struct cursor *c)
{
    uint64_t guest_off, length;
    struct recipe_pattern pattern = {.value = 0xda};
    int ret = guest_statement(c, &guest_off, &length, &pattern, NULL, NULL);
    if (ret < 0)
        return ret;
    enum { MAX_RAW_BYTES = 64 << 20 };
    if (c->r->raw_image && length > MAX_RAW_BYTES)
        return recipe_fail(c->r, "too much at once");
    if (!c->r->raw_image)
        return build_data(c->r, &c->r->active, guest_off, length, &pattern);
    uint8_t *buf = recipe_alloc(c->r, length, 1);
    recipe_pattern_fill(&pattern, guest_off, buf, length);
    return io_write(c->r->io, guest_off, buf, length);
}

static int say_compressed(struct cursor *c)
{
    uint64_t guest_off, length;
    struct recipe_pattern pattern = {.value = 0xc0};
    bool apart = false;
    int ret = guest_statement(c, &guest_off, &length, &pattern, "apart", &apart);
    if (ret < 0)
        return ret;
    struct recipe *r = c->r;
    if (r->geo.data_file)
        return recipe_fail(r, "no compressed clusters with a data file");
    uint64_t end = guest_off + length;
    if (!cluster_aligned(&r->geo, guest_off) ||
        (!cluster_aligned(&r->geo, end) && end != r->header.size_bytes))
        return recipe_fail(r, "compressed wants whole clusters");
    return build_compressed(r, guest_off, length, &pattern, apart);
}

static int say_zero(struct cursor *c)
{
    uint64_t guest_off, length;
    struct recipe_pattern stale = {.value = 0xee};
    bool prealloc = false;
    int ret = guest_statement(c, &guest_off, &length, &stale, "prealloc", &prealloc);
    return ret < 0 ? ret : build_zero(c->r, guest_off, length, prealloc, &stale);
}

static int say_discard(struct cursor *c)
{
    uint64_t guest_off, length;
    int ret = guest_range(c, &guest_off, &length);
    return ret < 0 ? ret : build_discard(c->r, guest_off, length);
}

static int say_gap(struct cursor *c)
{
    enum { MAX_GAP = 1 << 24 };
    uint64_t bytes;
    int ret = read_number(c, &bytes);
    if (ret == 0 && clusters_for(&c->r->geo, bytes) > MAX_GAP)
        return recipe_fail(c->r, "the gap is too large");
    if (ret == 0)
        build_alloc(c->r, clusters_for(&c->r->geo, bytes));
    return ret;
}

static int say_resize(struct cursor *c)
{
    struct recipe *r = c->r;
    uint64_t size;
    int ret = read_number(c, &size);
    if (ret < 0)
        return ret;
    uint64_t entries = l1_entries_for(&r->geo, size);
    if (entries > QCOW2_MAX_L1_BYTES / 8)
        return recipe_fail(r, "the disk is too large for its clusters");
    if (entries > r->active.size)
        build_l1_resize(r, &r->active, (uint32_t)entries);
    uint64_t kept = clusters_for(&r->geo, size) << r->geo.cluster_bits;
    ret = kept < r->header.size_bytes ? build_discard(r, kept, r->header.size_bytes - kept) : 0;
    r->header.size_bytes = size;
    return ret;
}

static int say_snapshot(struct cursor *c)
{
    struct recipe *r = c->r;
    struct recipe_snapshot s = {.id = "1",
        .name = "",
        .date_sec = 1000000000,
        .icount = UINT64_MAX,
        .extra_len = r->geo.version < 3 ? QCOW2_SNAPSHOT_EXTRA_V3 : 24};
    uint64_t byte = 0x5e, seed = UINT64_MAX;
    const struct arg args[] = {
        {"id", ARG_TEXT, &s.id},
        {"name", ARG_TEXT, &s.name},
        {"date", ARG_NUMBER, &s.date_sec},
        {"date_nsec", ARG_NUMBER, &s.date_nsec},
        {"clock", ARG_NUMBER, &s.clock_nsec},
        {"vmstate", ARG_NUMBER, &s.vm_state_size},
        {"pattern", ARG_NUMBER, &byte},
        {"seed", ARG_NUMBER, &seed},
        {"icount", ARG_NUMBER, &s.icount},
        {"extra", ARG_NUMBER, &s.extra_len},
    };
    int ret = read_args(c, args, sizeof(args) / sizeof(args[0]));
    if (ret < 0)
        return ret;
    struct recipe_pattern pattern = pattern_of(byte, seed);
    return build_snapshot(r, &s, &pattern);
}

static int bitmap_content(struct recipe *r, struct recipe_bitmap *b, const char *fill,
    const struct recipe_pattern *pattern)
{
    uint64_t left = qcow2_bitmap_bytes(r->header.size_bytes, (unsigned)b->granularity_bits);
    b->table_size = clusters_for(&r->geo, left);
    b->table = recipe_alloc(r, b->table_size, 8);
    b->table_off = b->table_size ? build_alloc(r, clusters_for(&r->geo, 8 * b->table_size)) : 0;
    uint8_t *buf = recipe_alloc(r, 1, r->geo.cluster_size);
    for (uint64_t i = 0; i < b->table_size; i++) {
        uint64_t n = left < r->geo.cluster_size ? left : r->geo.cluster_size;
        left -= n;
        if (strcmp(fill, "none") == 0)
            continue;
        b->table[i] = 1;
        if (strcmp(fill, "ones") == 0 || (strcmp(fill, "mixed") == 0 && i % 2))
            continue;
        b->table[i] = build_alloc(r, 1);
        memset(buf, 0, r->geo.cluster_size);
        recipe_pattern_fill(pattern, i << r->geo.cluster_bits, buf, n);
        int ret = io_write(r->io, b->table[i], buf, r->geo.cluster_size);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int say_bitmap(struct cursor *c)
{
    struct recipe *r = c->r;
    struct recipe_bitmap b = {.name = "bitmap", .type = QCOW2_BITMAP_TYPE_DIRTY};
    bool auto_flag = false, in_use = false, extra_ok = false;
    uint64_t granularity = 64 << 10, byte = 0x0f, seed = UINT64_MAX;
    const char *fill = "data";
    const struct arg args[] = {
        {"name", ARG_TEXT, &b.name},
        {"granularity", ARG_NUMBER, &granularity},
        {"auto", ARG_FLAG, &auto_flag},
        {"in_use", ARG_FLAG, &in_use},
        {"extra_compatible", ARG_FLAG, &extra_ok},
        {"extra", ARG_NUMBER, &b.extra_len},
        {"fill", ARG_TEXT, &fill},
        {"pattern", ARG_NUMBER, &byte},
        {"seed", ARG_NUMBER, &seed},
    };
    int ret = read_args(c, args, sizeof(args) / sizeof(args[0]));
    if (ret < 0)
        return ret;
    if (granularity == 0 || (granularity & (granularity - 1)))
        return recipe_fail(r, "the granularity is a power of two");
    b.granularity_bits = (unsigned)__builtin_ctzll(granularity);
    b.flags = (auto_flag ? QCOW2_BITMAP_AUTO : 0) | (in_use ? QCOW2_BITMAP_IN_USE : 0) |
              (extra_ok ? QCOW2_BITMAP_EXTRA_OK : 0);
    struct recipe_pattern pattern = pattern_of(byte, seed);
    ret = bitmap_content(r, &b, fill, &pattern);
    if (ret < 0)
        return ret;
    r->bitmaps = recipe_grow(r, r->bitmaps, r->bitmap_count, sizeof(b));
    r->bitmaps[r->bitmap_count++] = b;
    return 0;
}

/* ext TYPE HEX, or "text", or nothing */
static int say_ext(struct cursor *c)
{
    struct recipe *r = c->r;
    uint64_t type;
    uint8_t *bytes;
    size_t length;
    int ret = read_number(c, &type);
    if (ret == 0)
        skip_space(c);
    if (ret == 0)
        ret = read_bytes(c, &bytes, &length);
    if (ret < 0)
        return ret;
    r->exts = recipe_grow(r, r->exts, r->ext_count, sizeof(*r->exts));
    r->exts[r->ext_count++] =
        (struct recipe_ext){.type = (uint32_t)type, .length = (uint32_t)length, .data = bytes};
    return 0;
}

/* feature TYPE BIT "name": one more entry of the feature name table */
static int say_feature(struct cursor *c)
{
    uint64_t type, bit;
    const char *name;
    int ret = read_number(c, &type);
    if (ret < 0)
        return ret;
    ret = read_number(c, &bit);
    if (ret < 0)
        return ret;
    skip_space(c);
    ret = read_text(c, &name, NULL);
    return ret < 0 ? ret : recipe_add_feature(c->r, (uint8_t)type, (uint8_t)bit, name);
}

/* ---- the whole ------------------------------------------------------------------------------ */

static const struct {
    const char *word;
    int (*run)(struct cursor *c);
    bool raw; /* also for a raw image */
} statements[] = {
    {"data", say_data, true},
    {"compressed", say_compressed, false},
    {"zero", say_zero, false},
    {"discard", say_discard, false},
    {"gap", say_gap, false},
    {"resize", say_resize, false},
    {"snapshot", say_snapshot, false},
    {"bitmap", say_bitmap, false},
    {"ext", say_ext, false},
    {"feature", say_feature, false},
};

static int run_building(struct cursor *c)
{
    struct recipe *r = c->r;
    if (r->finished)
        return recipe_fail(r, "only damage and set may follow damage");
    if (accept(c, "image"))
        return recipe_start(c);
    if (accept(c, "raw"))
        return recipe_start_raw(c);
    if (!r->started)
        return recipe_fail(r, "a recipe starts with image or raw");
    for (size_t i = 0; i < sizeof(statements) / sizeof(statements[0]); i++) {
        if ((!r->raw_image || statements[i].raw) && accept(c, statements[i].word)) {
            int ret = statements[i].run(c);
            if (ret == 0 && !at_end(c))
                return recipe_fail(r, "what is \"%.20s\"?", c->p);
            return ret == 0 || ret == -EINVAL ? ret : recipe_fail(r, "%s", strerror(-ret));
        }
    }
    return recipe_fail(r, "\"%.20s\" is no statement", c->p);
}

static int run_line(struct recipe *r, const char *line)
{
    struct cursor c = {.r = r, .p = line};
    if (at_end(&c))
        return 0;
    if (!accept(&c, "damage") && !accept(&c, "set"))
        return run_building(&c);
    if (!r->started)
        return recipe_fail(r, "a recipe starts with image or raw");
    int ret = r->finished ? 0 : recipe_finish(r);
    c.io = r->io;
    return ret < 0 ? ret : damage_statement(&c);
}

int recipe_text(
    const char *name, const char *text, struct recipe **out, char error[RECIPE_ERROR_BYTES])
{
    struct recipe *r = calloc(1, sizeof(*r));
    if (!r)
        abort();
    r->name = name;
    r->error = error;
    char *copy = recipe_alloc(r, strlen(text) + 1, 1);
    memcpy(copy, text, strlen(text));
    int ret = 0;
    for (char *line = copy; ret == 0 && line; r->line++) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        r->line++;
        ret = run_line(r, line);
        r->line--;
        line = end ? end + 1 : NULL;
    }
    if (ret == 0 && !r->started)
        ret = recipe_fail(r, "a recipe starts with image or raw");
    if (ret == 0 && !r->finished)
        ret = recipe_finish(r);
    r->line = 0;
    r->name = NULL;
    r->error = NULL;
    if (ret == 0)
        *out = r;
    else
        recipe_free(r);
    return ret;
}

int recipe_load(const char *path, struct recipe **out, char error[RECIPE_ERROR_BYTES])
{
    FILE *file = fopen(path, "r");
    if (!file) {
        int err = errno;
        snprintf(error, RECIPE_ERROR_BYTES, "%s: %s", path, strerror(err));
        return -err;
    }
    char *text = NULL;
    size_t size = 0;
    if (getdelim(&text, &size, '\0', file) < 0 && !text)
        abort();
    fclose(file);
    int ret = recipe_text(path, text, out, error);
    free(text);
    return ret;
}

int recipe_eval(
    struct recipe *r, const char *expression, uint64_t *value, char error[RECIPE_ERROR_BYTES])
{
    struct cursor c = {.r = r, .p = expression, .io = r->io};
    r->error = error;
    int ret = read_number(&c, value);
    if (ret == 0 && !at_end(&c))
        ret = recipe_fail(r, "\"%s\" is no expression", expression);
    r->error = NULL;
    return ret;
}
