/* SPDX-License-Identifier: MIT
 *
 * See options.h.  One row per option and word. */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int size_parse(const char *text, uint64_t *value)
{
    static const char suffixes[] = "kMGT";
    char *end;
    if (*text < '0' || *text > '9')
        return -EINVAL;
    errno = 0;
    /* A zero in front is just that. */
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    unsigned long long number = strtoull(text, &end, hex ? 16 : 10);
    if (errno)
        return -ERANGE;
    const char *suffix = *end ? strchr(suffixes, *end == 'K' ? 'k' : *end) : NULL;
    unsigned shift = suffix ? 10 * ((unsigned)(suffix - suffixes) + 1) : 0;
    if (end[suffix != NULL])
        return -EINVAL;
    if (number > UINT64_MAX >> shift)
        return -ERANGE;
    *value = (uint64_t)number << shift;
    return 0;
}

enum option { CLUSTER_SIZE, REFCOUNT_BITS, EXTENDED_L2, LAZY_REFCOUNTS, COMPAT, COMPRESSION };

static const struct {
    const char *key;
    enum option option;
    const char *word; /* NULL: a number */
    unsigned value;
} rows[] = {
    {"cluster_size", CLUSTER_SIZE, NULL, 0},
    {"refcount_bits", REFCOUNT_BITS, NULL, 0},
    {"extended_l2", EXTENDED_L2, "on", true},
    {"extended_l2", EXTENDED_L2, "off", false},
    {"lazy_refcounts", LAZY_REFCOUNTS, "on", true},
    {"lazy_refcounts", LAZY_REFCOUNTS, "off", false},
    {"compat", COMPAT, "0.10", 2},
    {"compat", COMPAT, "v2", 2},
    {"compat", COMPAT, "1.1", 3},
    {"compat", COMPAT, "v3", 3},
    {"compression_type", COMPRESSION, "zlib", QCOW2_ZLIB},
    {"compression_type", COMPRESSION, "zstd", QCOW2_ZSTD},
};

static void set(struct image_options *o, enum option option, uint32_t value)
{
    switch (option) {
    case CLUSTER_SIZE:
        o->cluster_size = value;
        break;
    case REFCOUNT_BITS:
        o->refcount_bits = value;
        break;
    case EXTENDED_L2:
        o->extended_l2 = value;
        break;
    case LAZY_REFCOUNTS:
        o->lazy_refcounts = value;
        break;
    case COMPAT:
        o->version = value;
        break;
    case COMPRESSION:
        o->compression = (enum qcow2_compression)value;
        break;
    }
}

static bool is(const char *text, size_t length, const char *word)
{
    return strlen(word) == length && memcmp(text, word, length) == 0;
}

/* One key=value of `length` bytes. */
static int set_one(const char *item, size_t length, struct image_options *o)
{
    const char *equals = memchr(item, '=', length);
    if (!equals)
        return -EINVAL;
    size_t key_len = (size_t)(equals - item), value_len = length - key_len - 1;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        uint64_t number = rows[i].value;
        if (!is(item, key_len, rows[i].key))
            continue;
        if (rows[i].word && !is(equals + 1, value_len, rows[i].word))
            continue;
        if (!rows[i].word) {
            char text[32] = "";
            if (value_len >= sizeof(text))
                return -EINVAL;
            memcpy(text, equals + 1, value_len);
            if (size_parse(text, &number) < 0 || number > UINT32_MAX)
                return -EINVAL;
        }
        set(o, rows[i].option, (uint32_t)number);
        return 0;
    }
    return -EINVAL;
}

int image_options_parse(const char *text, struct image_options *options, struct image_error *why)
{
    struct image_options o = *options;
    while (*text) {
        size_t length = strcspn(text, ",");
        if (set_one(text, length, &o) < 0) {
            snprintf(why->text, sizeof(why->text), "'%.*s' is no option of a new image",
                length < 100 ? (int)length : 100, text);
            return -EINVAL;
        }
        text += length + (text[length] == ',');
    }
    *options = o;
    return 0;
}
