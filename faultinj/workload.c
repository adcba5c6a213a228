/* SPDX-License-Identifier: MIT
 *
 * See workload.h: the language, and the operations on the engine. */
#include "workload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "repair.h"
#include "snapshot.h"
#include "state.h"

static const char *const op_names[] = {"write", "discard", "create", "apply", "delete", "resize",
    "flush", "reopen", "repair", "close"};

void workload_release(struct workload *workload)
{
    free(workload->ops);
    *workload = (struct workload){0};
}

/* ---- text ---------------------------------------------------------------------------------- */

static bool parse_number(const char *word, uint64_t *value, bool *clusters)
{
    char *end;
    errno = 0;
    *value = strtoull(word, &end, strncmp(word, "0x", 2) == 0 ? 16 : 10);
    if (errno || end == word || *word == '-')
        return false;
    unsigned shift = *end == 'k' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (*end == 'c')
        *clusters = true;
    if (*end == 'c' || shift > 0)
        end++;
    bool fits = *value < UINT64_C(1) << (40 - shift);
    *value <<= shift;
    return *end == '\0' && fits;
}

static bool parse_arguments(struct op *op, char *const *words, unsigned count)
{
    uint64_t byte = 0;
    bool ignored = false;
    switch (op->kind) {
    case OP_WRITE:
    case OP_DISCARD:
        if (count != (op->kind == OP_WRITE ? 4u : 3u) ||
            !parse_number(words[1], &op->guest_off, &op->in_clusters) ||
            !parse_number(words[2], &op->length, &op->in_clusters) ||
            (count == 4 && !parse_number(words[3], &byte, &ignored)))
            return false;
        op->byte = (unsigned)byte;
        return true;
    case OP_CREATE:
    case OP_APPLY:
    case OP_DELETE:
        if (count != 2 || strlen(words[1]) >= sizeof(op->name))
            return false;
        snprintf(op->name, sizeof(op->name), "%s", words[1]);
        return true;
    case OP_RESIZE:
        op->relative = count == 2 ? (words[1][0] == '+') - (words[1][0] == '-') : 0;
        return count == 2 &&
               parse_number(words[1] + (op->relative != 0), &op->length, &op->in_clusters);
    default:
        return count == 1;
    }
}

static int add_op(struct workload *w, const struct op *op)
{
    struct op *ops = realloc(w->ops, (w->count + 1) * sizeof(*ops));
    if (!ops)
        return -ENOMEM;
    w->ops = ops;
    ops[w->count++] = *op;
    return 0;
}

/* What is on a line, or between semicolons. */
static int parse_part(struct workload *w, char *part)
{
    char *words[8], *save = NULL;
    unsigned count = 0;
    for (char *word = strtok_r(part, " \t\r", &save); word && count < 8;
         word = strtok_r(NULL, " \t\r", &save))
        words[count++] = word;
    if (count == 0)
        return 0;
    if (count == 2 && strcmp(words[0], "image") == 0 && strlen(words[1]) < sizeof(w->image)) {
        snprintf(w->image, sizeof(w->image), "%s", words[1]);
        return 0;
    }
    for (unsigned k = 0; k < OP_CLOSE; k++) {
        struct op op = {.kind = (enum op_kind)k};
        if (strcmp(words[0], op_names[k]) == 0)
            return parse_arguments(&op, words, count) ? add_op(w, &op) : -EINVAL;
    }
    return -EINVAL;
}

int workload_parse(
    const char *name, const char *text, struct workload *out, char error[WORKLOAD_ERROR_BYTES])
{
    struct workload w = {0};
    if (strlen(name) >= sizeof(w.name)) { /* it has to be found again by it */
        snprintf(error, WORKLOAD_ERROR_BYTES, "%.60s...: %s", name, strerror(ENAMETOOLONG));
        return -ENAMETOOLONG;
    }
    char *copy = strdup(text);
    int ret = copy ? 0 : -ENOMEM;
    snprintf(w.name, sizeof(w.name), "%s", name);
    unsigned line_number = 0;
    for (char *line = copy; ret == 0 && line;) {
        char *next = strchr(line, '\n'), *save = NULL;
        if (next)
            *next++ = '\0';
        line[strcspn(line, "#")] = '\0';
        line_number++;
        for (char *part = strtok_r(line, ";", &save); ret == 0 && part;
             part = strtok_r(NULL, ";", &save))
            ret = parse_part(&w, part);
        if (ret < 0)
            snprintf(error, WORKLOAD_ERROR_BYTES, "%s:%u: %s", name, line_number,
                ret == -EINVAL ? "not an operation" : strerror(-ret));
        line = next;
    }
    free(copy);
    if (ret < 0)
        workload_release(&w);
    else
        *out = w;
    return ret;
}

void op_text(const struct op *op, char *out, size_t out_len)
{
    const char *unit = op->in_clusters ? "c" : "";
    const char *sign = op->relative > 0 ? "+" : op->relative < 0 ? "-" : "";
    if (op->kind == OP_WRITE || op->kind == OP_DISCARD)
        snprintf(out, out_len, "%s %" PRIu64 "%s %" PRIu64 "%s", op_names[op->kind], op->guest_off,
            unit, op->length, unit);
    else if (op->kind == OP_RESIZE)
        snprintf(out, out_len, "resize %s%" PRIu64 "%s", sign, op->length, unit);
    else
        snprintf(out, out_len, "%s%s%s", op_names[op->kind], op->name[0] ? " " : "", op->name);
}

/* ---- the engine ---------------------------------------------------------------------------- */

const char *op_kind_name(enum op_kind kind)
{
    return op_names[kind];
}

bool op_commits(enum op_kind kind)
{
    return kind != OP_WRITE && kind != OP_DISCARD;
}

void op_fill(unsigned byte, uint64_t guest_off, uint8_t *buf, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        uint64_t at = guest_off + i;
        uint64_t word = state_mix(at / 8 + (uint64_t)byte * 0x10001);
        buf[i] = (uint8_t)(word >> (at % 8 * 8) | 1);
    }
}

static int apply_write(struct image *img, const struct op *op, uint64_t unit)
{
    size_t length = (size_t)(op->length * unit);
    uint8_t *buf = malloc(length + 1);
    if (!buf)
        return -ENOMEM;
    op_fill(op->byte, op->guest_off * unit, buf, length);
    int ret = image_write(img, op->guest_off * unit, buf, length);
    free(buf);
    return ret;
}

static int apply_named(struct image *img, const struct op *op)
{
    uint32_t idx;
    if (op->kind == OP_CREATE) {
        struct snapshot_info info = {
            .name = op->name, .date_sec = 1700000000, .date_nsec = 5, .icount = UINT64_MAX};
        return snapshot_create(img, &info);
    }
    int ret = snapshot_find(img, op->name, &idx);
    if (ret < 0)
        return ret;
    return op->kind == OP_APPLY ? snapshot_apply(img, idx) : snapshot_delete(img, idx);
}

static int apply_resize(struct image *img, const struct op *op, uint64_t unit)
{
    uint64_t size = op->length * unit, now = image_size(img);
    if (op->relative > 0)
        size += now;
    else if (op->relative < 0)
        size = now > size ? now - size : 0;
    return image_resize(img, size);
}

/* Without a handle: the repair and the engine do not know of each other. */
static int apply_repair(struct io *io)
{
    static const struct check_options how = {.threads = 1};
    static const struct repair_options options = {.lossy = false};
    struct report report;
    report_init(&report, 8);
    repair_image(io, NULL, &how, &options, &report);
    int ret = report.incomplete ? -EIO : 0;
    report_release(&report);
    return ret;
}

int op_apply(struct image **img, struct io *io, const struct op *op)
{
    if (op->kind == OP_REPAIR) {
        int closed = *img ? image_close(*img) : 0;
        *img = NULL;
        return closed < 0 ? closed : apply_repair(io);
    }
    if (!*img && op->kind == OP_CLOSE)
        return 0;
    if (!*img) { /* a reopen failed before */
        int ret = image_open(io, IMAGE_WRITE, img, NULL);
        if (ret < 0)
            return ret;
    }
    uint64_t unit = op->in_clusters ? (*img)->geo.cluster_size : 1;
    int ret;
    switch (op->kind) {
    case OP_WRITE:
        return apply_write(*img, op, unit);
    case OP_DISCARD:
        return image_discard(*img, op->guest_off * unit, op->length * unit);
    case OP_CREATE:
    case OP_APPLY:
    case OP_DELETE:
        return apply_named(*img, op);
    case OP_RESIZE:
        return apply_resize(*img, op, unit);
    case OP_FLUSH:
        return image_flush(*img);
    case OP_REPAIR:
        break;
    case OP_REOPEN:
    case OP_CLOSE:
        ret = image_close(*img);
        *img = NULL;
        if (op->kind == OP_CLOSE || ret < 0)
            return ret;
        return image_open(io, IMAGE_WRITE, img, NULL);
    }
    return -EINVAL;
}
