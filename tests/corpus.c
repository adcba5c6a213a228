/* SPDX-License-Identifier: MIT */
#include "corpus.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CORPUS "corpus"

static int is_case(const struct dirent *entry)
{
    char path[512];
    snprintf(path, sizeof(path), CORPUS "/%s/expect", entry->d_name);
    return access(path, R_OK) == 0;
}

int corpus_list(const char *prefix, int which, char name[CORPUS_NAME_BYTES])
{
    struct dirent **entries;
    int count = scandir(CORPUS, &entries, is_case, alphasort), found = 0;
    if (count < 0)
        return 0;
    for (int i = 0; i < count; i++) {
        if (strncmp(entries[i]->d_name, prefix, strlen(prefix)) == 0 && found++ == which)
            snprintf(name, CORPUS_NAME_BYTES, "%s", entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    return found;
}

static struct recipe *load_recipe(const char *folder, const char *file)
{
    char path[600], error[RECIPE_ERROR_BYTES] = "";
    struct recipe *recipe = NULL;
    snprintf(path, sizeof(path), CORPUS "/%s/%s", folder, file);
    ck_assert_msg(recipe_load(path, &recipe, error) == 0, "%s", error);
    return recipe;
}

void corpus_load(const char *name, struct recipe **recipe, struct expect **expect)
{
    char path[600], error[RECIPE_ERROR_BYTES] = "";
    snprintf(path, sizeof(path), CORPUS "/%s/expect", name);
    ck_assert_msg(expect_load(path, expect, error) == 0, "%s", error);
    *recipe = load_recipe(name, "recipe");
}

static void save(struct recipe *recipe, const char *dir, const char *file)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    ck_assert_msg(recipe_save(recipe, path) == 0, "cannot write %s", path);
}

void corpus_make(const char *dir, const char *file, const char *text)
{
    char path[4096], error[RECIPE_ERROR_BYTES] = "";
    struct recipe *recipe = NULL;
    ck_assert_msg(recipe_text(file, text, &recipe, error) == 0, "%s", error);
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    unlink(path);
    save(recipe, dir, file);
    recipe_free(recipe);
}

static char *read_text(const char *folder, const char *file)
{
    char path[600], *text = NULL;
    size_t room = 0;
    snprintf(path, sizeof(path), CORPUS "/%s/%s", folder, file);
    FILE *in = fopen(path, "r");
    ck_assert_msg(in && getdelim(&text, &room, '\0', in) > 0, "cannot read %s", path);
    fclose(in);
    return text;
}

/* The text with each {} replaced by n, each {+} by n + 1. */
static char *number_text(const char *text, unsigned n)
{
    char *numbered = NULL;
    size_t length;
    FILE *out = open_memstream(&numbered, &length);
    ck_assert_ptr_nonnull(out);
    while (*text) {
        bool this = strncmp(text, "{}", 2) == 0, next = strncmp(text, "{+}", 3) == 0;
        if (this || next)
            fprintf(out, "%u", n + next);
        else
            fputc(*text, out);
        text += this ? 2 : next ? 3 : 1;
    }
    fclose(out);
    return numbered;
}

/* A neighbour called recipe.FROM-TO{}...: many files, alike but for their number. */
static void save_many(const char *folder, const char *file, const char *dir)
{
    unsigned from, to;
    int prefix = 0;
    ck_assert_msg(sscanf(file, "recipe.%u-%u%n", &from, &to, &prefix) == 2, "%s: FROM-TO{}", file);
    char *text = read_text(folder, file);
    for (unsigned n = from; n <= to; n++) {
        char *name = number_text(file + prefix, n), *numbered = number_text(text, n);
        char error[RECIPE_ERROR_BYTES];
        struct recipe *recipe = NULL;
        ck_assert_msg(recipe_text(name, numbered, &recipe, error) == 0, "%s", error);
        save(recipe, dir, name);
        recipe_free(recipe);
        free(name);
        free(numbered);
    }
    free(text);
}

void corpus_save(const char *name, struct recipe *recipe, const char *dir)
{
    save(recipe, dir, "image.qcow2");
    char path[600];
    snprintf(path, sizeof(path), CORPUS "/%s", name);
    DIR *folder = opendir(path);
    ck_assert_ptr_nonnull(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (strncmp(entry->d_name, "recipe.", 7) != 0)
            continue;
        if (strstr(entry->d_name, "{}")) {
            save_many(name, entry->d_name, dir);
            continue;
        }
        struct recipe *neighbour = load_recipe(name, entry->d_name);
        save(neighbour, dir, entry->d_name + 7);
        recipe_free(neighbour);
    }
    closedir(folder);
}
