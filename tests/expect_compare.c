/* SPDX-License-Identifier: MIT
 *
 * What the checker said against what was expected; see expect.h. */
#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "expect.h"

/* A list of words against "word,word". */
static bool list_matches(const json_t *list, const char *text)
{
    size_t idx;
    json_t *item;
    json_array_foreach(list, idx, item)
    {
        const char *word = json_string_value(item) ? json_string_value(item) : "";
        if ((idx > 0 && *text++ != ',') || strncmp(text, word, strlen(word)) != 0)
            return false;
        text += strlen(word);
    }
    return *text == '\0';
}

/* A JSON value against the text of a key: a word as it is, a number as an expression. */
static bool value_matches(struct recipe *recipe, const json_t *value, const char *text)
{
    char error[RECIPE_ERROR_BYTES];
    uint64_t number;
    if (!value)
        return strcmp(text, "absent") == 0;
    if (json_is_boolean(value))
        return strcmp(text, json_is_true(value) ? "true" : "false") == 0;
    if (json_is_array(value))
        return list_matches(value, text);
    if (json_is_string(value) && strcmp(text, json_string_value(value)) == 0)
        return true;
    if (recipe_eval(recipe, text, &number, error) < 0)
        return false;
    if (json_is_integer(value))
        return (uint64_t)json_integer_value(value) == number;
    char *end;
    const char *string = json_string_value(value);
    return string && *string && strtoull(string, &end, 0) == number && *end == '\0';
}

static bool finding_matches(
    struct recipe *recipe, const struct expect_finding *want, const json_t *got)
{
    const char *check = json_string_value(json_object_get(got, "check"));
    if (!check || strcmp(check, want->check) != 0)
        return false;
    for (size_t i = 0; i < want->key_count; i++) {
        const json_t *value = json_object_get(got, want->keys[i].key);
        if (!value_matches(recipe, value, want->keys[i].value))
            return false;
    }
    return true;
}

/* Which line has which finding.  A line may leave keys out and so fit several findings; augmenting
 * paths find the pairing that serves most. */
struct pairing {
    const struct expect *expect;
    struct recipe *recipe;
    const json_t *findings;
    int *line_of;  /* by finding, -1 for none */
    bool *visited; /* by finding, of one search */
};

static bool pair_line(struct pairing *p, size_t line)
{
    for (size_t i = 0; i < json_array_size(p->findings); i++) {
        if (p->visited[i] ||
            !finding_matches(p->recipe, &p->expect->findings[line], json_array_get(p->findings, i)))
            continue;
        p->visited[i] = true;
        if (p->line_of[i] < 0 || pair_line(p, (size_t)p->line_of[i])) {
            p->line_of[i] = (int)line;
            return true;
        }
    }
    return false;
}

/* A finding as a line of an expect file. */
static void print_finding(FILE *out, const json_t *finding)
{
    enum { FIRST_NUMBER = 3 };
    static const char *const keys[] = {"severity", "snapshot", "repair", "host-offset", "length",
        "guest-offset", "table", "index", "got", "want"};
    const char *check = json_string_value(json_object_get(finding, "check"));
    fprintf(out, "  got:      finding %s", check ? check : "?");
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const json_t *value = json_object_get(finding, keys[i]);
        const char *text = json_string_value(value);
        if (text && i >= FIRST_NUMBER && isdigit((unsigned char)*text)) /* too large for JSON */
            fprintf(out, " %s=%#llx", keys[i], strtoull(text, NULL, 0));
        else if (text)
            fprintf(out, " %s=%s", keys[i], text);
        else if (json_is_integer(value))
            fprintf(out, " %s=%#" PRIx64, keys[i], (uint64_t)json_integer_value(value));
    }
    const char *message = json_string_value(json_object_get(finding, "message"));
    fprintf(out, "\n            (%s)\n", message ? message : "no message");
}

static int compare_findings(
    const struct expect *e, struct recipe *recipe, const json_t *findings, FILE *out)
{
    size_t count = json_array_size(findings);
    struct pairing p = {.expect = e, .recipe = recipe, .findings = findings};
    p.line_of = calloc(count + 1, sizeof(*p.line_of));
    p.visited = calloc(count + 1, sizeof(*p.visited));
    if (!p.line_of || !p.visited)
        abort();
    for (size_t i = 0; i < count; i++)
        p.line_of[i] = -1;
    int differences = 0;
    for (size_t line = 0; line < e->finding_count; line++) {
        memset(p.visited, 0, count * sizeof(*p.visited));
        if (pair_line(&p, line))
            continue;
        fprintf(out, "  expected: %s\n", e->findings[line].line);
        differences++;
    }
    for (size_t i = 0; i < count; i++) {
        if (p.line_of[i] >= 0)
            continue;
        print_finding(out, json_array_get(findings, i));
        differences++;
    }
    free(p.line_of);
    free(p.visited);
    return differences;
}

static int compare_number(const json_t *report, const char *key, int want, FILE *out)
{
    const json_t *value = json_object_get(report, key);
    if (want == EXPECT_ANY || (json_is_integer(value) && json_integer_value(value) == want))
        return 0;
    fprintf(out, "  expected: %s %d\n", key, want);
    fprintf(out, "  got:      %s %" JSON_INTEGER_FORMAT "\n", key, json_integer_value(value));
    return 1;
}

int expect_compare(const struct expect *e, struct recipe *recipe, const json_t *report, FILE *out)
{
    int differences = compare_number(report, "corruptions", e->corruptions, out) +
                      compare_number(report, "leaks", e->leaks, out) +
                      compare_number(report, "check-errors", e->check_errors, out);
    const char *verdict = json_string_value(json_object_get(report, "verdict"));
    if (e->verdict && (!verdict || strcmp(verdict, e->verdict) != 0)) {
        fprintf(out, "  expected: verdict %s\n  got:      verdict %s\n", e->verdict,
            verdict ? verdict : "(none)");
        differences++;
    }
    const json_t *findings = json_object_get(report, "findings");
    if (!json_is_array(findings)) {
        fprintf(out, "  got:      no list of findings\n");
        return differences + 1;
    }
    return differences + compare_findings(e, recipe, findings, out);
}
