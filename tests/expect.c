/* SPDX-License-Identifier: MIT
 *
 * Reading expect files; the comparison is in expect_compare.c. */
#include "expect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static char *copy(const char *text)
{
    char *s = text ? strdup(text) : NULL;
    if (text && !s)
        abort();
    return s;
}

static void *grown(void *array, size_t count, size_t size)
{
    void *p = realloc(array, (count + 1) * size);
    if (!p)
        abort();
    memset((char *)p + count * size, 0, size);
    return p;
}

static int set_number(int *to, const char *text)
{
    char *end;
    long n = text ? strtol(text, &end, 10) : -1;
    if (!text || *end || n < 0 || n > 1 << 30)
        return -EINVAL;
    *to = (int)n;
    return 0;
}

/* check-name key=value ... */
static int parse_finding(struct expect *e, const char *line, char *save)
{
    const char *check = strtok_r(NULL, " \t", &save);
    if (!check)
        return -EINVAL;
    e->findings = grown(e->findings, e->finding_count, sizeof(*e->findings));
    struct expect_finding *f = &e->findings[e->finding_count++];
    f->line = copy(line);
    f->check = copy(check);
    for (char *word; (word = strtok_r(NULL, " \t", &save));) {
        char *equals = strchr(word, '=');
        if (!equals || f->key_count == sizeof(f->keys) / sizeof(f->keys[0]))
            return -EINVAL;
        *equals = '\0';
        f->keys[f->key_count++] = (struct expect_key){copy(word), copy(equals + 1)};
    }
    return 0;
}

/* data OFFSET LENGTH pattern=BYTE | seed=N [snapshot=ID] */
static int parse_content(struct expect *e, char *save)
{
    const char *word = strtok_r(NULL, " \t", &save);
    const char *guest_off = strtok_r(NULL, " \t", &save), *length = strtok_r(NULL, " \t", &save);
    if (!length || strcmp(word, "data") != 0)
        return -EINVAL;
    e->contents = grown(e->contents, e->content_count, sizeof(*e->contents));
    struct expect_content *content = &e->contents[e->content_count++];
    content->guest_off = copy(guest_off);
    content->length = copy(length);
    bool has_pattern = false;
    while ((word = strtok_r(NULL, " \t", &save))) {
        bool seeded = strncmp(word, "seed=", 5) == 0;
        if (seeded || strncmp(word, "pattern=", 8) == 0) {
            content->pattern = (struct recipe_pattern){
                .seeded = seeded, .value = strtoull(strchr(word, '=') + 1, NULL, 0)};
            has_pattern = true;
        } else if (strncmp(word, "snapshot=", 9) == 0) {
            free(content->snapshot_id);
            content->snapshot_id = copy(word + 9);
        } else {
            return -EINVAL;
        }
    }
    return has_pattern ? 0 : -EINVAL;
}

static int set_text(char **to, const char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    free(*to);
    *to = copy(text);
    return **to ? 0 : -EINVAL;
}

static int parse_line(struct expect *e, char *line)
{
    const struct {
        const char *word;
        int *to;
    } numbers[] = {
        {"exit", &e->exit_code},
        {"corruptions", &e->corruptions},
        {"leaks", &e->leaks},
        {"check-errors", &e->check_errors},
        {"repair-exit", &e->repair_exit},
    };
    char *whole = copy(line), *save, *word = strtok_r(line, " \t", &save);
    int ret = -EINVAL;
    if (!word || *word == '#')
        ret = 0;
    else if (strcmp(word, "finding") == 0)
        ret = parse_finding(e, whole, save);
    else if (strcmp(word, "after") == 0)
        ret = parse_content(e, save);
    else if (strcmp(word, "args") == 0)
        ret = set_text(&e->args, save);
    else if (strcmp(word, "repair-args") == 0)
        ret = set_text(&e->repair_args, save);
    else if (strcmp(word, "verdict") == 0)
        ret = set_text(&e->verdict, save);
    else if (strcmp(word, "qemu") == 0 && strncmp(save, "exit ", 5) == 0)
        ret = set_number(&e->qemu_exit, save + 5);
    else if (strcmp(word, "repair-qemu") == 0 && strncmp(save, "exit ", 5) == 0)
        ret = set_number(&e->repair_qemu_exit, save + 5);
    for (size_t i = 0; word && i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (strcmp(word, numbers[i].word) == 0)
            ret = set_number(numbers[i].to, strtok_r(NULL, " \t", &save));
    }
    free(whole);
    return ret;
}

int expect_load(const char *path, struct expect **out, char error[RECIPE_ERROR_BYTES])
{
    FILE *file = fopen(path, "r");
    if (!file) {
        int err = errno;
        snprintf(error, RECIPE_ERROR_BYTES, "%s: %s", path, strerror(err));
        return -err;
    }
    struct expect *e = grown(NULL, 0, sizeof(*e));
    e->exit_code = e->corruptions = e->leaks = e->check_errors = EXPECT_ANY;
    e->repair_exit = e->qemu_exit = e->repair_qemu_exit = EXPECT_ANY;
    char *line = NULL;
    size_t room = 0;
    int ret = 0;
    for (unsigned n = 1; ret == 0 && getline(&line, &room, file) >= 0; n++) {
        line[strcspn(line, "\n")] = '\0';
        char *text = copy(line);
        ret = parse_line(e, line);
        if (ret < 0)
            snprintf(error, RECIPE_ERROR_BYTES, "%s:%u: not understood: %s", path, n, text);
        free(text);
    }
    free(line);
    fclose(file);
    if (ret == 0)
        *out = e;
    else
        expect_free(e);
    return ret;
}

void expect_free(struct expect *e)
{
    if (!e)
        return;
    for (size_t i = 0; i < e->finding_count; i++) {
        struct expect_finding *f = &e->findings[i];
        for (size_t k = 0; k < f->key_count; k++) {
            free(f->keys[k].key);
            free(f->keys[k].value);
        }
        free(f->line);
        free(f->check);
    }
    for (size_t i = 0; i < e->content_count; i++) {
        free(e->contents[i].guest_off);
        free(e->contents[i].length);
        free(e->contents[i].snapshot_id);
    }
    free(e->findings);
    free(e->contents);
    free(e->verdict);
    free(e->args);
    free(e->repair_args);
    free(e);
}
