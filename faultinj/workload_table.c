/* SPDX-License-Identifier: MIT
 *
 * The workloads that are built in, and those that follow from a name. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"
#include "workload.h"

const struct workload_row workload_rows[] = {
    {"write", "writes to new clusters", "write 10c 2c 9; flush; write 12c 1c 8"},
    {"overwrite", "writes to clusters of its own and to shared ones",
        "write 0c 3c 9; flush; write 0c 3c 8"},
    {"partial", "writes to parts of clusters", "write 300 300 9; flush; write 200 1000 8"},
    {"discard", "discards mapped clusters, and uses them again",
        "discard 0c 4c; flush; write 0c 2c 7"},
    {"create", "creates a snapshot and writes on", "create k; write 0c 2c 9; write 9c 1c 8"},
    {"apply", "applies a snapshot and writes on", "apply s1; write 0c 2c 9; write 9c 1c 8"},
    {"delete", "deletes a snapshot and writes on", "delete s1; write 0c 2c 9; write 9c 1c 8"},
    {"grow", "makes the disk larger, so that the L1 grows",
        "resize +64c; write 0c 1c 9; resize +1c"},
    {"shrink", "makes the disk smaller, then larger", "resize -3c; resize +3c"},
    {"reopen", "writes, closes, opens again", "write 10c 1c 9; reopen; write 0c 1c 8; reopen"},
    {"mixed", "all of it in turns",
        "write 0c 2c 9; create k; discard 1c 2c; apply s1; write 3c 1c 8; delete k; resize +1c"},
    {"repair", "mends what is damaged; on the hurt- images there is something", "repair"},
    {"full-turn", "create, change, go back, delete",
        "create k; write 0c 4c 9; apply k; delete k; write 1c 1c 8"},
};
const size_t workload_row_count = sizeof(workload_rows) / sizeof(workload_rows[0]);

const char workload_letters[] = "wopdcaxrf";

static const char *letter_text(char letter)
{
    switch (letter) {
    case 'w':
        return "write 10c 2c 9";
    case 'o':
        return "write 0c 3c 8";
    case 'p':
        return "write 300 300 7";
    case 'd':
        return "discard 1c 2c";
    case 'c':
        return "create k";
    case 'a':
        return "apply s1";
    case 'x':
        return "delete s1";
    case 'r':
        return "resize +1c";
    case 'f':
        return "flush";
    default:
        return NULL;
    }
}

enum { TEXT_BYTES = 8192 };

static int find_sequence(const char *name, struct workload *out, char *error)
{
    char text[TEXT_BYTES] = "";
    size_t used = 0;
    for (const char *p = name + 4; *p; p++) {
        const char *line = letter_text(*p);
        if (!line || used + strlen(line) + 2 > sizeof(text))
            return -ENOENT;
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s;", line);
    }
    return workload_parse(name, text, out, error);
}

static size_t random_line(uint64_t *seed, char *text, size_t room)
{
    uint64_t r[4];
    for (unsigned i = 0; i < 4; i++)
        r[i] = state_mix(*seed += UINT64_C(0x9e3779b97f4a7c15)) >> 8;
    unsigned byte = (unsigned)(r[3] % 200) + 20;
    switch (r[0] % 10) {
    case 0:
    case 1:
        return (size_t)snprintf(
            text, room, "write %uc %uc %u;", (unsigned)(r[1] % 14), (unsigned)(r[2] % 4 + 1), byte);
    case 2:
        return (size_t)snprintf(text, room, "write %u %u %u;", (unsigned)(r[1] % 6000),
            (unsigned)(r[2] % 900 + 1), byte);
    case 3:
        return (size_t)snprintf(
            text, room, "discard %uc %uc;", (unsigned)(r[1] % 12), (unsigned)(r[2] % 4 + 1));
    case 4:
    case 5:
        return (size_t)snprintf(text, room, "create n%u;", (unsigned)(r[1] % 3));
    case 6:
        return (size_t)snprintf(text, room, "apply %s;", r[1] % 2 ? "s1" : "n1");
    case 7:
        return (size_t)snprintf(text, room, "delete n%u;", (unsigned)(r[1] % 3));
    case 8:
        return (size_t)snprintf(
            text, room, "resize %c%uc;", r[1] % 2 ? '+' : '-', (unsigned)(r[2] % 3 + 1));
    default:
        return (size_t)snprintf(text, room, r[1] % 2 ? "flush;" : "reopen;");
    }
}

static int find_random(const char *name, struct workload *out, char *error)
{
    uint64_t seed;
    unsigned length;
    char text[TEXT_BYTES] = "";
    size_t used = 0;
    if (sscanf(name, "rnd-%" SCNu64 "-%u", &seed, &length) != 2 || length > 100)
        return -ENOENT;
    for (unsigned i = 0; i < length && used + 64 < sizeof(text); i++)
        used += random_line(&seed, text + used, sizeof(text) - used);
    return workload_parse(name, text, out, error);
}

/* Why the file is no workload, NULL if nothing speaks against it. */
static const char *file_refused(FILE *file, const char *text, size_t length)
{
    if (ferror(file))
        return strerror(errno);
    if (length == TEXT_BYTES - 1)
        return "longer than 8 KiB";
    return strlen(text) != length ? "not a text" : NULL;
}

static int find_file(const char *path, struct workload *out, char *error)
{
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(error, WORKLOAD_ERROR_BYTES, "%.80s: %s", path, strerror(errno));
        return -errno;
    }
    char *text = calloc(1, TEXT_BYTES);
    size_t length = text ? fread(text, 1, TEXT_BYTES - 1, file) : 0;
    const char *why = text ? file_refused(file, text, length) : NULL;
    int ret = !text ? -ENOMEM : why ? -EINVAL : workload_parse(path, text, out, error);
    if (ret == 0 && out->count == 0) {
        workload_release(out);
        why = "no operation in it";
        ret = -EINVAL;
    }
    if (why)
        snprintf(error, WORKLOAD_ERROR_BYTES, "%.80s: %s", path, why);
    free(text);
    fclose(file);
    return ret;
}

int workload_find(const char *name, struct workload *out, char error[WORKLOAD_ERROR_BYTES])
{
    snprintf(error, WORKLOAD_ERROR_BYTES, "there is no workload '%.80s'; see qcrash list", name);
    for (size_t i = 0; i < workload_row_count; i++) {
        if (strcmp(workload_rows[i].name, name) == 0)
            return workload_parse(name, workload_rows[i].text, out, error);
    }
    if (strncmp(name, "seq-", 4) == 0)
        return find_sequence(name, out, error);
    if (strncmp(name, "rnd-", 4) == 0)
        return find_random(name, out, error);
    if (strpbrk(name, "/."))
        return find_file(name, out, error);
    return -ENOENT;
}
