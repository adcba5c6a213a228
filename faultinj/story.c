/* SPDX-License-Identifier: MIT
 *
 * See story.h. */
#include "story.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 200 };

void story_release(struct story *story)
{
    for (size_t i = 0; i < STORY_SIDE_MAX; i++) {
        free(story->persisted[i]);
        free(story->lost[i]);
        free(story->backtraces[i]);
    }
    *story = (struct story){0};
}

static int add_line(char **list, size_t *count, const char *text)
{
    if (*count == STORY_SIDE_MAX)
        return 0;
    char *line = strdup(text);
    if (!line)
        return -ENOMEM;
    list[(*count)++] = line;
    return 0;
}

/* "write #12 of 'create k' at 0x400, 512 bytes (its sector 0x400)" */
static void describe(const struct history *h, const struct violation *v, size_t factor,
    unsigned version, char *out, size_t out_len)
{
    const struct epoch *epoch = v->units;
    char op[64] = "the end";
    int64_t request = factor < epoch->unit_count ? epoch->units[factor].versions[version].request
                                                 : epoch->size_requests[version];
    if (request < 0) {
        if (factor < epoch->unit_count)
            snprintf(out, out_len, "damage to the unit at 0x%" PRIx64,
                epoch->units[factor].idx * epoch->unit_bytes);
        else
            snprintf(out, out_len, "the size of %" PRIu64 " bytes", epoch->sizes[version]);
        return;
    }
    const struct request *r = &v->recording->list[request];
    if (r->op < h->workload.count)
        op_text(&h->workload.ops[r->op], op, sizeof(op));
    if (factor == epoch->unit_count)
        snprintf(out, out_len, "the size of %" PRIu64 " bytes by request #%" PRIi64 " of '%s'",
            epoch->sizes[version], request, op);
    else
        snprintf(out, out_len,
            "%s #%" PRIi64 " of '%s' (0x%" PRIx64 ", %" PRIu64 " bytes): unit 0x%" PRIx64,
            request_kind_name(r->kind), request, op, r->host_off, r->length,
            epoch->units[factor].idx * epoch->unit_bytes);
}

static const char *backtrace_of(const struct violation *v, size_t factor, unsigned version)
{
    const struct epoch *epoch = v->units;
    int64_t request = factor < epoch->unit_count ? epoch->units[factor].versions[version].request
                                                 : epoch->size_requests[version];
    const char *text = request >= 0 ? v->recording->list[request].backtrace : NULL;
    return text ? text : "";
}

static int add_factor(
    const struct history *h, const struct violation *v, size_t f, bool lost, struct story *story)
{
    char line[LINE_BYTES];
    unsigned last = epoch_choices(v->units, f) - 1;
    unsigned version = lost ? (v->choice[f] + 1 < last ? v->choice[f] + 1 : last) : v->choice[f];
    describe(h, v, f, version, line, sizeof(line));
    int ret = lost ? add_line(story->lost, &story->lost_count, line)
                   : add_line(story->persisted, &story->persisted_count, line);
    const char *trace = backtrace_of(v, f, version);
    bool first = (lost ? story->lost_count : story->persisted_count) == 1;
    if (ret == 0 && first && trace[0])
        ret = add_line(story->backtraces, &story->backtrace_count, trace);
    return ret;
}

static void tell_cut(const struct history *h, const struct violation *v, char *out, size_t out_len)
{
    char op[64] = "the end of the run";
    size_t end = v->end;
    if (end < v->recording->count && v->recording->list[end].op < h->workload.count)
        op_text(&h->workload.ops[v->recording->list[end].op], op, sizeof(op));
    snprintf(out, out_len,
        "power cut before the flush that ends epoch %u (requests %zu to %zu), during '%s'; steps "
        "%u to %u are allowed to show",
        v->epoch, v->first, end, op, v->window.floor, v->window.ceil);
}

int story_make(const struct history *h, const struct fault_model *model, const struct violation *v,
    const char *suffix, struct story *out)
{
    *out = (struct story){.invariant = v->breach.invariant};
    char choices[STORY_ID_BYTES / 3];
    choices_print(v->units, v->choice, choices, sizeof(choices));
    snprintf(out->id, sizeof(out->id), "%s@%s/%.15s/%u/%s%s%.47s", h->workload.name, h->image,
        model->name, v->epoch, choices, suffix[0] ? "+" : "", suffix);
    snprintf(out->workload, sizeof(out->workload), "%s@%s", h->workload.name, h->image);
    memcpy(out->message, v->breach.text, sizeof(out->message));
    tell_cut(h, v, out->cut, sizeof(out->cut));
    int ret = 0;
    for (size_t f = 0; ret == 0 && f < epoch_factors(v->units); f++) {
        if (v->needed[f])
            ret = add_factor(h, v, f, false, out);
        if (ret == 0 && v->choice[f] + 1 < epoch_choices(v->units, f))
            ret = add_factor(h, v, f, true, out);
    }
    if (out->persisted_count > 0 && out->lost_count > 0)
        snprintf(out->order, sizeof(out->order), "must be durable before it: %.80s || %.80s",
            out->lost[0], out->persisted[0]);
    if (ret < 0)
        story_release(out);
    return ret;
}

void story_live(const struct history *h, const char *suffix, struct story *out)
{
    char op[64] = "opening";
    *out = (struct story){.invariant = h->live.invariant};
    if (h->live_step > 0)
        op_text(&h->workload.ops[h->live_step - 1], op, sizeof(op));
    snprintf(out->id, sizeof(out->id), "%s@%s/live/%u/p%s%.47s", h->workload.name, h->image,
        h->live_step, suffix[0] ? "+" : "", suffix);
    snprintf(out->workload, sizeof(out->workload), "%s@%s", h->workload.name, h->image);
    snprintf(out->cut, sizeof(out->cut), "no cut at all: after step %u, '%s'", h->live_step, op);
    memcpy(out->message, h->live.text, sizeof(out->message));
}

/* ---- IDs ----------------------------------------------------------------------------------- */

static bool take(const char **at, const char *stop, char *out, size_t out_len)
{
    size_t length = strcspn(*at, stop);
    if (length >= out_len)
        return false;
    memcpy(out, *at, length);
    out[length] = '\0';
    *at += length;
    return true;
}

int story_id_parse(const char *text, struct story_id *out)
{
    struct story_id id = {0};
    char epoch[16];
    const char *p = text;
    if (!take(&p, "@", id.workload, sizeof(id.workload)) || *p++ != '@')
        return -EINVAL;
    /* An image may be a path: model, epoch and choices are the last three. */
    const char *slash = p + strlen(p);
    for (int i = 0; i < 3; i++) {
        while (slash > p && slash[-1] != '/')
            slash--;
        if (slash == p)
            return -EINVAL;
        slash--;
    }
    if ((size_t)(slash - p) >= sizeof(id.image))
        return -EINVAL;
    memcpy(id.image, p, (size_t)(slash - p));
    p = slash + 1;
    if (!take(&p, "/", id.model, sizeof(id.model)) || *p++ != '/' ||
        !take(&p, "/", epoch, sizeof(epoch)) || *p++ != '/' ||
        !take(&p, "+", id.choices, sizeof(id.choices)))
        return -EINVAL;
    char *end;
    id.epoch = (unsigned)strtoul(epoch, &end, 10);
    if (*end || end == epoch)
        return -EINVAL;
    if (*p == '+' && (p++, !take(&p, "", id.mutant, sizeof(id.mutant))))
        return -EINVAL;
    *out = id;
    return 0;
}
