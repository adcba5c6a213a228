/* SPDX-License-Identifier: MIT
 *
 * A damage is one of three sorts: a value (a field or entry found by the survey, changed by one of
 * the actions that fit it), a table (a sector or more of it overwritten), or the file's end.  The
 * tables of actions and places below say how often each is drawn. */
#include "damage.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"
#include "rng.h"
#include "survey.h"

struct damage {
    struct io *io;
    struct survey *survey;
    struct rng rng;
    FILE *story;
};

static uint64_t below(struct damage *d, uint64_t count)
{
    return count ? rng_below(&d->rng, count) : 0; /* 0: the image is not sound */
}

static uint64_t cluster_bytes(const struct damage *d)
{
    return d->survey->geo.cluster_size;
}

/* ---- choosing ------------------------------------------------------------------------------- */

static const struct survey_array *pick_array(struct damage *d, enum survey_place place)
{
    size_t count = 0;
    for (size_t i = 0; i < d->survey->array_count; i++)
        count += d->survey->arrays[i].place == place;
    if (count == 0)
        return NULL;
    size_t nth = (size_t)below(d, count);
    for (size_t i = 0;; i++) {
        if (d->survey->arrays[i].place == place && nth-- == 0)
            return &d->survey->arrays[i];
    }
}

/* Mostly a value that is in use (not 0), so that the damage is not lost in an empty table. */
static int pick_target(struct damage *d, const struct survey_array *array, struct survey_value *t)
{
    uint64_t count = array->count;
    if (array->traits & SURVEY_STORED) {
        uint64_t clusters = (d->survey->file_bytes >> d->survey->geo.cluster_bits) + 4;
        count = count < clusters ? count : clusters;
    }
    *t = (struct survey_value){.array = array};
    if (count == 0)
        return -ENOENT;
    bool used = rng_chance(&d->rng, 85);
    uint64_t start = below(d, count), found = start;
    for (uint64_t i = 0; used && i < count && i < 8192; i++) {
        t->idx = (start + i) % count;
        int err = survey_read(d->survey, d->io, t);
        if (err)
            return err;
        found = t->idx;
        if (t->value != 0)
            return 0;
        if (i == 4096) /* a large table: most of them have their entries at the start */
            start = count - i - 1;
    }
    t->idx = found;
    return survey_read(d->survey, d->io, t);
}

/* ---- what happens to a value ----------------------------------------------------------------- */

static uint64_t all_ones(struct damage *d, const struct survey_value *t)
{
    (void)d;
    return UINT64_MAX >> (64 - t->bits);
}

static uint64_t flip_bit(struct damage *d, const struct survey_value *t)
{
    return t->value ^ UINT64_C(1) << below(d, t->bits);
}

static uint64_t random_value(struct damage *d, const struct survey_value *t)
{
    (void)t;
    return rng_next(&d->rng);
}

static uint64_t small_value(struct damage *d, const struct survey_value *t)
{
    (void)t;
    return below(d, 40);
}

static uint64_t zero(struct damage *d, const struct survey_value *t)
{
    (void)d;
    (void)t;
    return 0;
}

static uint64_t one_more(struct damage *d, const struct survey_value *t)
{
    (void)d;
    return t->value + 1;
}

static uint64_t one_less(struct damage *d, const struct survey_value *t)
{
    (void)d;
    return t->value - 1;
}

static uint64_t sibling(struct damage *d, const struct survey_value *t)
{
    struct survey_value other;
    const struct survey_array *array = t->array;
    if (array->count == 1 || rng_chance(&d->rng, 30))
        array = pick_array(d, array->place);
    return pick_target(d, array, &other) == 0 ? other.value : t->value;
}

static uint64_t one_cluster_off(struct damage *d, const struct survey_value *t)
{
    return rng_chance(&d->rng, 50) ? t->value + cluster_bytes(d) : t->value - cluster_bytes(d);
}

static uint64_t unaligned(struct damage *d, const struct survey_value *t)
{
    uint64_t sectors = cluster_bytes(d) / QCOW2_SECTOR_BYTES;
    if (sectors == 1 || rng_chance(&d->rng, 20))
        return t->value + below(d, 512);
    return t->value + (1 + below(d, sectors - 1)) * QCOW2_SECTOR_BYTES;
}

/* Keeps the flags around an offset. */
static uint64_t point_to(const struct survey_value *t, uint64_t host_off)
{
    return (t->value & ~QCOW2_OFFSET_MASK) | (host_off & QCOW2_OFFSET_MASK);
}

static uint64_t into_metadata(struct damage *d, const struct survey_value *t)
{
    uint64_t cluster = cluster_bytes(d);
    size_t idx = (size_t)below(d, d->survey->array_count);
    return point_to(t, d->survey->arrays[idx].host_off / cluster * cluster);
}

static uint64_t into_file(struct damage *d, const struct survey_value *t)
{
    uint64_t clusters = div_up(d->survey->file_bytes, cluster_bytes(d));
    return point_to(t, below(d, clusters) * cluster_bytes(d));
}

static uint64_t just_past_end(struct damage *d, const struct survey_value *t)
{
    uint64_t clusters = div_up(d->survey->file_bytes, cluster_bytes(d));
    return point_to(t, (clusters + below(d, 3)) * cluster_bytes(d));
}

static uint64_t far_past_end(struct damage *d, const struct survey_value *t)
{
    uint64_t host_off = rng_next(&d->rng) >> (8 + below(d, 32));
    return point_to(t, host_off / cluster_bytes(d) * cluster_bytes(d));
}

static uint64_t flip_copied(struct damage *d, const struct survey_value *t)
{
    (void)d;
    return t->value ^ QCOW2_ENTRY_COPIED;
}

static uint64_t flip_zero_flag(struct damage *d, const struct survey_value *t)
{
    (void)d;
    return t->value ^ QCOW2_ENTRY_ZERO;
}

static uint64_t flip_compressed(struct damage *d, const struct survey_value *t)
{
    uint64_t value = t->value ^ QCOW2_ENTRY_COMPRESSED;
    return rng_chance(&d->rng, 50) ? value : value & ~QCOW2_ENTRY_COPIED;
}

static uint64_t set_reserved(struct damage *d, const struct survey_value *t)
{
    return t->value |
           (rng_chance(&d->rng, 50) ? 2u << below(d, 8) : UINT64_C(1) << (56 + below(d, 6)));
}

static uint64_t more_sectors(struct damage *d, const struct survey_value *t)
{
    return t->value + ((1 + below(d, 3)) << d->survey->geo.compressed_shift);
}

static uint64_t both_subbits(struct damage *d, const struct survey_value *t)
{
    unsigned bit = (unsigned)below(d, QCOW2_SUBCLUSTERS);
    return t->value | UINT64_C(1) << bit | UINT64_C(1) << (bit + QCOW2_SUBCLUSTERS);
}

typedef uint64_t change_fn(struct damage *d, const struct survey_value *t);

static const struct action {
    change_fn *change;
    unsigned needs; /* any of these traits */
    unsigned weight;
    const char *name;
} actions[] = {
    {flip_bit, ~0u, 6, "bit flipped"},
    {random_value, ~0u, 2, "random value"},
    {small_value, SURVEY_COUNT | SURVEY_STORED | SURVEY_FLAGS, 3, "small random value"},
    {all_ones, SURVEY_COUNT | SURVEY_STORED | SURVEY_FLAGS | SURVEY_SUBBITS, 2, "all ones"},
    {zero, ~0u, 3, "zeroed"},
    {one_more, SURVEY_COUNT | SURVEY_STORED, 5, "one more"},
    {one_less, SURVEY_COUNT | SURVEY_STORED, 5, "one less"},
    {sibling, SURVEY_OFFSET | SURVEY_STORED | SURVEY_SUBBITS, 4, "copied from its like"},
    {one_cluster_off, SURVEY_OFFSET, 4, "off by one cluster"},
    {unaligned, SURVEY_OFFSET, 3, "not aligned"},
    {into_metadata, SURVEY_OFFSET, 4, "into metadata"},
    {into_file, SURVEY_OFFSET, 3, "somewhere in the file"},
    {just_past_end, SURVEY_OFFSET, 3, "just past the end"},
    {far_past_end, SURVEY_OFFSET, 2, "far past the end"},
    {flip_copied, SURVEY_ENTRY, 3, "COPIED flipped"},
    {flip_zero_flag, SURVEY_ENTRY, 2, "zero flag flipped"},
    {flip_compressed, SURVEY_ENTRY, 3, "compressed flipped"},
    {more_sectors, SURVEY_ENTRY, 1, "longer"},
    {set_reserved, SURVEY_ENTRY, 2, "reserved bit"},
    {both_subbits, SURVEY_SUBBITS, 5, "allocated and zero"},
};

enum { ACTION_COUNT = sizeof(actions) / sizeof(actions[0]) };

static const struct action *pick_action(struct damage *d, unsigned traits)
{
    unsigned total = 0, i;
    for (i = 0; i < ACTION_COUNT; i++)
        total += actions[i].needs & traits ? actions[i].weight : 0;
    uint64_t nth = below(d, total);
    for (i = 0;; i++) {
        unsigned weight = actions[i].needs & traits ? actions[i].weight : 0;
        if (nth < weight)
            return &actions[i];
        nth -= weight;
    }
}

static void tell(struct damage *d, const struct survey_value *t, uint64_t value, const char *what)
{
    fprintf(d->story, "%s[%" PRIu64 "] at 0x%" PRIx64 ": 0x%" PRIx64 " -> 0x%" PRIx64 " (%s)\n",
        t->array->label, t->idx, survey_value_off(d->survey, t), t->value, value, what);
}

static int change_value(struct damage *d, const struct survey_value *t)
{
    for (int tries = 0; tries < 20; tries++) {
        const struct action *action = pick_action(d, t->array->traits);
        uint64_t value = action->change(d, t) & (UINT64_MAX >> (64 - t->bits));
        if (value == t->value)
            continue;
        tell(d, t, value, action->name);
        return survey_write(d->survey, d->io, t, value);
    }
    return 0;
}

static int swap_values(struct damage *d, const struct survey_value *t)
{
    struct survey_value other;
    int err = pick_target(d, t->array, &other);
    if (err)
        return err;
    if (other.value == t->value)
        return change_value(d, t);
    tell(d, t, other.value, "swapped");
    tell(d, &other, t->value, "with this");
    err = survey_write(d->survey, d->io, t, other.value);
    return err ? err : survey_write(d->survey, d->io, &other, t->value);
}

static int damage_value(struct damage *d)
{
    static const unsigned char weights[SURVEY_PLACES] = {
        [SURVEY_HEADER] = 8,
        [SURVEY_EXTENSION] = 3,
        [SURVEY_L1] = 12,
        [SURVEY_L2] = 28,
        [SURVEY_SNAPSHOT_L1] = 9,
        [SURVEY_SNAPSHOT_L2] = 10,
        [SURVEY_REFTABLE] = 10,
        [SURVEY_REFCOUNT] = 18,
        [SURVEY_SNAPSHOT] = 9,
        [SURVEY_BITMAP] = 5,
        [SURVEY_BITMAP_TABLE] = 6,
    };
    const struct survey_array *array;
    do {
        uint64_t nth = below(d, 118);
        unsigned place = 0;
        while (nth >= weights[place])
            nth -= weights[place++];
        array = pick_array(d, place);
    } while (!array);
    struct survey_value t;
    int err = pick_target(d, array, &t);
    if (err)
        return err == -ENOENT ? 0 : err;
    return array->count > 1 && rng_chance(&d->rng, 8) ? swap_values(d, &t) : change_value(d, &t);
}

/* ---- tables and the file's end ----------------------------------------------------------------
 */

static uint64_t table_bytes(const struct damage *d, const struct survey_array *array)
{
    return array->traits & SURVEY_STORED ? cluster_bytes(d) : array->count * array->stride;
}

static int overwrite(struct damage *d, uint64_t host_off, uint64_t length, uint64_t from_off)
{
    enum { MOST = 4 << 20 }; /* a table that is not sound may claim any length */
    length = length < MOST ? length : MOST;
    uint8_t *buf = calloc(1, (size_t)length + 1);
    if (!buf)
        return -ENOMEM;
    int err = 0;
    if (from_off == UINT64_MAX) {
        for (uint64_t i = 0; i < length; i++)
            buf[i] = (uint8_t)rng_next(&d->rng);
    } else if (from_off != 0) {
        err = io_read_padded(d->io, from_off, buf, (size_t)length);
    }
    if (err == 0)
        err = io_write(d->io, host_off, buf, (size_t)length);
    free(buf);
    return err;
}

static int damage_table(struct damage *d)
{
    const struct survey_array *array, *other;
    do
        array = &d->survey->arrays[below(d, d->survey->array_count)];
    while (!(array->traits & SURVEY_IS_TABLE));
    do
        other = &d->survey->arrays[below(d, d->survey->array_count)];
    while (!(other->traits & SURVEY_IS_TABLE));
    struct survey_value t;
    int err = pick_target(d, array, &t);
    if (err)
        return err == -ENOENT ? 0 : err;
    uint64_t start = array->host_off, length = table_bytes(d, array);
    uint64_t sector =
        (survey_value_off(d->survey, &t) - start) / QCOW2_SECTOR_BYTES * QCOW2_SECTOR_BYTES;
    uint64_t from_off = 0; /* zeros */
    const char *what = "zeroed";
    if (rng_chance(&d->rng, 60)) { /* one sector, or else from there to the end, or all */
        start += sector;
        length -= sector;
        if (rng_chance(&d->rng, 60) && length > QCOW2_SECTOR_BYTES)
            length = QCOW2_SECTOR_BYTES;
    }
    if (length <= QCOW2_SECTOR_BYTES && rng_chance(&d->rng, 40)) {
        from_off = UINT64_MAX;
        what = "garbage";
    } else if (rng_chance(&d->rng, 40)) {
        from_off = other->host_off;
        what = other->label;
    }
    fprintf(d->story, "%s: 0x%" PRIx64 " bytes at 0x%" PRIx64 " overwritten (%s)\n", array->label,
        length, start, what);
    return overwrite(d, start, length, from_off);
}

static int damage_end(struct damage *d)
{
    uint64_t size, cluster = cluster_bytes(d), unit = rng_chance(&d->rng, 40) ? cluster : 512;
    int err = io_size(d->io, &size);
    if (err)
        return err;
    uint64_t old = size;
    switch (below(d, 4)) {
    case 0:
        size += 1 + below(d, 3 * cluster);
        break;
    case 1:
        size = below(d, size);
        break;
    default:
        size -= below(d, 4 * cluster < size ? 4 * cluster : size);
        break;
    }
    if (rng_chance(&d->rng, 70))
        size = size / unit * unit;
    fprintf(d->story, "file: 0x%" PRIx64 " -> 0x%" PRIx64 " bytes\n", old, size);
    return io_resize(d->io, size);
}

/* ---- public
 * --------------------------------------------------------------------------------------
 */

static int damage_some(struct damage *d, unsigned count)
{
    int err = 0;
    while (count-- > 0 && err == 0) {
        uint64_t sort = below(d, 100);
        if (sort < 6)
            err = damage_end(d);
        else if (sort < 16)
            err = damage_table(d);
        else
            err = damage_value(d);
    }
    return err;
}

int damage_image(struct io *image, uint64_t seed, unsigned count, char **story)
{
    struct damage d = {.io = image, .rng = rng_for(seed, count)};
    int err = survey_open(image, &d.survey);
    if (err)
        return err;
    char *text = NULL;
    size_t length;
    d.story = open_memstream(&text, &length);
    err = d.story ? damage_some(&d, count) : -ENOMEM;
    if (d.story)
        fclose(d.story);
    survey_close(d.survey);
    if (err) {
        free(text);
        return err;
    }
    *story = text;
    return 0;
}
