/* SPDX-License-Identifier: MIT
 *
 * The table of checks as data, made from checks.def, and the words for its columns. */
#include "check.h"

#include <string.h>

const struct check_row check_rows[CHECK_COUNT] = {
#define CHECK(name_, kind_, severity_, after_, repair_, tally_, sentence_, meaning_) \
    [CHECK_##name_] = {                                                              \
        .name = #name_,                                                              \
        .kind = OBJECT_##kind_,                                                      \
        .severity = SEVERITY_##severity_,                                            \
        .after = AFTER_##after_,                                                     \
        .repair = REPAIR_##repair_,                                                  \
        .tally = TALLY_##tally_,                                                     \
        .sentence = sentence_,                                                       \
        .meaning = meaning_,                                                         \
        .hit = check_##name_,                                                        \
    },
#include "checks.def"
#undef CHECK
};

static char dashed(char c)
{
    return c == '_' ? '-' : c;
}

void check_name(enum check_id check, char out[CHECK_NAME_BYTES])
{
    const char *name = check_rows[check].name;
    size_t i = 0;
    for (; i < CHECK_NAME_BYTES - 1 && name[i]; i++)
        out[i] = dashed(name[i]);
    out[i] = '\0';
}

int check_find(const char *name)
{
    for (int check = 0; check < CHECK_COUNT; check++) {
        const char *row = check_rows[check].name;
        size_t i = 0;
        while (row[i] && dashed(row[i]) == name[i])
            i++;
        if (row[i] == '\0' && name[i] == '\0')
            return check;
    }
    return -1;
}

const char *severity_name(enum severity severity)
{
    static const char *const names[] = {"note", "waste", "danger", "damage"};
    return names[severity];
}

const char *repair_class_name(enum repair_class repair)
{
    static const char *const names[] = {"none", "safe", "lossy"};
    return names[repair];
}

const char *object_kind_name(enum object_kind kind)
{
    static const char *const names[OBJECT_KIND_COUNT] = {
        [OBJECT_HEADER] = "header",
        [OBJECT_EXTENSION] = "header extension",
        [OBJECT_REFTABLE_ENTRY] = "refcount table entry",
        [OBJECT_CLUSTER] = "cluster",
        [OBJECT_L1_ENTRY] = "L1 entry",
        [OBJECT_L2_TABLE] = "L2 table",
        [OBJECT_L2_ENTRY] = "L2 entry",
        [OBJECT_COMPRESSED] = "compressed cluster",
        [OBJECT_SNAPSHOT_TABLE] = "snapshot table",
        [OBJECT_SNAPSHOT] = "snapshot",
        [OBJECT_BITMAP_DIRECTORY] = "bitmap directory",
        [OBJECT_BITMAP] = "bitmap",
        [OBJECT_BITMAP_ENTRY] = "bitmap table entry",
        [OBJECT_AREA] = "metadata",
        [OBJECT_DATA_FILE] = "data file",
        [OBJECT_BACKING] = "backing file",
        [OBJECT_ORPHAN] = "orphan",
        [OBJECT_FILE] = "file",
        [OBJECT_REGION] = "region",
        [OBJECT_POLICY] = "policy",
    };
    return names[kind];
}

const char *area_kind_name(enum area_kind kind)
{
    static const char *const names[] = {
        [AREA_NONE] = "guest data",
        [AREA_HEADER] = "header",
        [AREA_REFCOUNT_TABLE] = "refcount table",
        [AREA_REFCOUNT_BLOCK] = "refcount block",
        [AREA_L1_TABLE] = "L1 table",
        [AREA_SNAPSHOT_TABLE] = "snapshot table",
        [AREA_SNAPSHOT_L1_TABLE] = "snapshot L1 table",
        [AREA_CRYPTO_HEADER] = "LUKS header",
        [AREA_BITMAP_DIRECTORY] = "bitmap directory",
        [AREA_BITMAP_TABLE] = "bitmap table",
        [AREA_BITMAP_DATA] = "bitmap data",
        [AREA_L2_TABLE] = "L2 table",
    };
    return names[kind];
}
