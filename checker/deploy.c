/* SPDX-License-Identifier: MIT
 *
 * The pre-deploy gate: policies, and what the rules are told about an image.
 *
 * How much is too much follows from the disk: `need` is what it takes when each cluster of the disk
 * and of each snapshot is mapped on its own.  A bomb is more than twice that and a bit; it makes a
 * program that opens the image read, or a tool that copies it write, out of proportion to the disk
 * it asked for. */
#include "deploy.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "walk.h"

/* ---- policies ---- */

static const struct {
    const char *name, *rule;
} named[] = {
    {"strict", NULL},
    /* Images of our own, back from a backup: what our programs leave in them is welcome. */
    {"local", "snapshots"},
    {"local", "bitmaps"},
    {"local", "leaks"},
    {"local", "trailing-bytes"},
};

static int fail(char error[DEPLOY_ERROR_BYTES], int ret, const char *what, const char *value)
{
    snprintf(error, DEPLOY_ERROR_BYTES, "%.100s: %s", value, what);
    return ret;
}

int deploy_allow(struct deploy_policy *policy, const char *rule, char error[DEPLOY_ERROR_BYTES])
{
    char name[CHECK_NAME_BYTES];
    snprintf(name, sizeof(name), "deploy-%s", rule);
    int check = check_find(name);
    if (check < 0 || strlen(rule) + sizeof("deploy-") > sizeof(name))
        return fail(
            error, -ENOENT, "no such rule; qcheck --explain lists them as deploy-RULE", rule);
    policy->allowed[check] = true;
    return 0;
}

int deploy_max_size(struct deploy_policy *policy, const char *size, char error[DEPLOY_ERROR_BYTES])
{
    static const char suffixes[] = "kMGT";
    char *end;
    errno = 0;
    unsigned long long value = strtoull(size, &end, 10);
    const char *suffix = *end ? strchr(suffixes, *end) : NULL;
    unsigned shift = suffix ? 10 * (unsigned)(suffix - suffixes + 1) : 0;
    if (errno || size[0] < '0' || size[0] > '9' || (*end && (!suffix || end[1])) || value == 0 ||
        value > UINT64_MAX >> shift)
        return fail(error, -EINVAL, "not a size", size);
    policy->max_size = (uint64_t)value << shift;
    return 0;
}

static int take_line(struct deploy_policy *policy, char *line, char error[DEPLOY_ERROR_BYTES])
{
    static const char blanks[] = " \t\r\n";
    char *rest, *word;
    line[strcspn(line, "#")] = '\0';
    word = strtok_r(line, blanks, &rest);
    if (!word)
        return 0;
    char *value = strtok_r(NULL, blanks, &rest);
    if (!value || strtok_r(NULL, blanks, &rest))
        return fail(error, -EINVAL, "a line is `allow RULE` or `max-size SIZE`", word);
    if (strcmp(word, "allow") == 0)
        return deploy_allow(policy, value, error);
    if (strcmp(word, "max-size") == 0)
        return deploy_max_size(policy, value, error);
    return fail(error, -EINVAL, "a line is `allow RULE` or `max-size SIZE`", word);
}

/* Whatever file that is: a device has no end, and some have no lines. */
static int read_policy(
    const char *path, struct deploy_policy *policy, char error[DEPLOY_ERROR_BYTES])
{
    enum { MOST_BYTES = 64 << 10 };
    FILE *in = fopen(path, "re");
    if (!in)
        return fail(error, -errno, "neither a policy nor a file that can be read", path);
    char *text = malloc(MOST_BYTES + 1);
    size_t length = text ? fread(text, 1, MOST_BYTES + 1, in) : 0;
    int ret = text ? 0 : -ENOMEM;
    if (ret < 0 || ferror(in))
        ret = fail(error, ret < 0 ? ret : -EIO, "cannot be read", path);
    else if (length > MOST_BYTES)
        ret = fail(error, -EFBIG, "longer than 64 KiB", path);
    else if (memchr(text, '\0', length))
        ret = fail(error, -EINVAL, "not a text", path);
    else
        text[length] = '\0';
    for (char *rest = text, *line; ret == 0 && (line = strsep(&rest, "\n"));)
        ret = take_line(policy, line, error);
    free(text);
    fclose(in);
    return ret;
}

int deploy_policy_load(
    const char *name, struct deploy_policy *policy, char error[DEPLOY_ERROR_BYTES])
{
    struct deploy_policy made = {0};
    bool known = !name;
    int ret = 0;
    for (size_t i = 0; ret == 0 && name && i < sizeof(named) / sizeof(named[0]); i++) {
        if (strcmp(named[i].name, name) != 0)
            continue;
        known = true;
        if (named[i].rule)
            ret = deploy_allow(&made, named[i].rule, error);
    }
    if (!known)
        ret = read_policy(name, &made, error);
    if (ret < 0)
        return ret;
    for (int check = 0; check < CHECK_COUNT; check++)
        policy->allowed[check] |= made.allowed[check];
    if (policy->max_size == 0)
        policy->max_size = made.max_size;
    return 0;
}

/* ---- what an image needs ---- */

/* The largest header that LUKS knows; what an image claims beyond it is no need. */
enum { LUKS_HEADER_BYTES = 16 << 20 };

struct need {
    uint64_t metadata, file; /* bytes */
};

/* Everything mapped, nothing shared. */
static struct need need_of(const struct walk *walk)
{
    const struct qcow2_geometry *geo = &walk->geo;
    struct need need = {.metadata = walk->snapshot_table_len};
    for (size_t i = 0; i < walk->tree_count; i++) {
        const struct tree *tree = &walk->trees[i];
        uint64_t bytes = capped_sum(tree->disk_size, tree->vm_state_size);
        uint64_t tables = capped_sum(l1_entries_for(geo, bytes), 1);
        need.metadata =
            capped_sum(need.metadata, capped_product(tables, (uint64_t)geo->cluster_size + 8));
        need.file = capped_sum(need.file, bytes);
    }
    if (walk->has_crypto)
        need.file = capped_sum(need.file,
            walk->crypto_len < LUKS_HEADER_BYTES ? walk->crypto_len : (uint64_t)LUKS_HEADER_BYTES);
    /* What counts them all counts itself; each refcount block has an entry in the table. */
    uint64_t clusters = clusters_for(geo, capped_sum(need.file, need.metadata));
    uint64_t blocks = capped_sum(div_up(clusters, geo->refblock_entries), 1);
    need.metadata =
        capped_sum(need.metadata, capped_product(blocks, (uint64_t)geo->cluster_size + 8));
    need.file = capped_sum(need.file, need.metadata);
    return need;
}

/* The metadata there is; bitmaps have a rule of their own, a LUKS header has the size it has. */
static uint64_t metadata_of(const struct walk *walk)
{
    const struct qcow2_geometry *geo = &walk->geo;
    uint64_t clusters = walk->tables.count;
    for (size_t i = 0; i < walk->areas.count; i++) {
        const struct area *area = &walk->areas.items[i];
        if (!area_is_bitmap(area->kind) && area->kind != AREA_CRYPTO_HEADER)
            clusters = capped_sum(clusters, clusters_for(geo, area->length));
    }
    return capped_product(clusters, geo->cluster_size);
}

/* The largest disk that there is, or was: a snapshot's comes back when it is applied. */
static uint64_t largest_disk(const struct walk *walk)
{
    uint64_t largest = walk->header.size_bytes;
    for (size_t i = 0; i < walk->tree_count; i++)
        largest = walk->trees[i].disk_size > largest ? walk->trees[i].disk_size : largest;
    return largest;
}

/* Twice the need, and what alignment and tables that grow in steps may add. */
static uint64_t limit_of(const struct walk *walk, uint64_t need)
{
    enum { SPARE_CLUSTERS = 16, SPARE_BYTES = 1 << 20 };
    uint64_t spare = (uint64_t)SPARE_CLUSTERS << walk->geo.cluster_bits;
    return capped_sum(capped_product(need, 2), spare > SPARE_BYTES ? spare : SPARE_BYTES);
}

int walk_policy(struct walk *walk)
{
    const struct deploy_policy *policy = walk->options->deploy;
    const uint64_t *hits = walk->report->hits;
    if (!policy)
        return 0;
    struct need need = need_of(walk);
    struct subject subject = {
        .kind = OBJECT_POLICY,
        .tree = TREE_NONE,
        .policy = {.max_size = policy->max_size,
            .largest = largest_disk(walk),
            .data_file = walk->data_file_name.data,
            .data_file_len = walk->data_file_name.length,
            .has_bitmaps = walk->has_bitmaps_ext,
            .unknown = hits[CHECK_header_compatible_unknown] +
                       hits[CHECK_header_autoclear_unknown] + hits[CHECK_header_unknown_fields] +
                       hits[CHECK_header_padding] + hits[CHECK_ext_unknown],
            .leaks = walk->report->leaks,
            .metadata = metadata_of(walk),
            .metadata_limit = limit_of(walk, need.metadata),
            .file_limit = limit_of(walk, need.file),
            .trailing = hits[CHECK_file_trailing] > 0,
            .used_end = walk->report->image_end_off},
    };
    uint64_t end;
    const struct qcow2_header *header = &walk->header;
    if (range_end(header->backing_off, header->backing_len, &end) && end <= walk->head_len) {
        subject.policy.backing = walk->head + header->backing_off;
        subject.policy.backing_len = header->backing_len;
    }
    walk->report->leaks_allowed = policy->allowed[CHECK_deploy_leaks];
    walk_show(walk, &subject);
    return 0;
}
