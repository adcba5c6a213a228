/* SPDX-License-Identifier: MIT
 *
 * The words of a recipe line; see recipe_impl.h. */
#include <ctype.h>
#include <string.h>

#include "recipe_impl.h"

static bool word_char(char ch)
{
    return isalnum((unsigned char)ch) || ch == '_';
}

void skip_space(struct cursor *c)
{
    while (*c->p == ' ' || *c->p == '\t' || *c->p == '\r')
        c->p++;
}

bool at_end(struct cursor *c)
{
    skip_space(c);
    return *c->p == '\0' || *c->p == '\n' || *c->p == '#';
}

bool accept(struct cursor *c, const char *text)
{
    skip_space(c);
    size_t length = strlen(text);
    if (strncmp(c->p, text, length) != 0)
        return false;
    if (word_char(text[length - 1]) && word_char(c->p[length]))
        return false;
    c->p += length;
    return true;
}

int read_word(struct cursor *c, char *word, size_t size)
{
    skip_space(c);
    size_t n = 0;
    while (isalnum((unsigned char)c->p[n]) || c->p[n] == '_')
        n++;
    if (n == 0 || n >= size)
        return recipe_fail(c->r, "a word is missing at \"%.20s\"", c->p);
    memcpy(word, c->p, n);
    word[n] = '\0';
    c->p += n;
    return 0;
}

int read_text(struct cursor *c, const char **text, size_t *length)
{
    bool quoted = *c->p == '"';
    const char *start = quoted ? c->p + 1 : c->p, *end = start;
    while (*end && *end != '\n' && (quoted ? *end != '"' : !isspace((unsigned char)*end)))
        end++;
    if (quoted && *end != '"')
        return recipe_fail(c->r, "a quote is missing");
    size_t n = (size_t)(end - start);
    char *copy = recipe_alloc(c->r, n + 1, 1);
    memcpy(copy, start, n);
    *text = copy;
    if (length)
        *length = n;
    c->p = quoted ? end + 1 : end;
    return 0;
}

static int read_arg(struct cursor *c, const struct arg *arg)
{
    if (arg->kind == ARG_FLAG && *c->p != '=') {
        *(bool *)arg->to = true;
        return 0;
    }
    if (*c->p != '=')
        return recipe_fail(c->r, "%s needs a value: %s=...", arg->key, arg->key);
    c->p++;
    const char *text;
    int ret = read_text(c, &text, NULL);
    if (ret < 0)
        return ret;
    if (arg->kind == ARG_TEXT) {
        *(const char **)arg->to = text;
        return 0;
    }
    if (arg->kind == ARG_FLAG) {
        *(bool *)arg->to = strcmp(text, "yes") == 0;
        if (!*(bool *)arg->to && strcmp(text, "no") != 0)
            return recipe_fail(c->r, "%s is yes or no", arg->key);
        return 0;
    }
    struct cursor value = *c;
    value.p = text;
    ret = read_number(&value, arg->to);
    if (ret == 0 && !at_end(&value))
        return recipe_fail(c->r, "%s: \"%s\" is not a number", arg->key, text);
    return ret;
}

int read_args(struct cursor *c, const struct arg *args, size_t count)
{
    while (!at_end(c)) {
        char word[32];
        int ret = read_word(c, word, sizeof(word));
        if (ret < 0)
            return ret;
        const struct arg *arg = NULL;
        for (size_t i = 0; i < count && !arg; i++) {
            if (strcmp(args[i].key, word) == 0)
                arg = &args[i];
        }
        if (!arg)
            return recipe_fail(c->r, "\"%s\" is not known here", word);
        ret = read_arg(c, arg);
        if (ret < 0)
            return ret;
    }
    return 0;
}

int read_bytes(struct cursor *c, uint8_t **bytes, size_t *length)
{
    skip_space(c);
    if (*c->p == '"') {
        const char *text;
        int ret = read_text(c, &text, length);
        *bytes = ret < 0 ? NULL : (uint8_t *)text;
        return ret;
    }
    uint8_t *buf = recipe_alloc(c->r, strlen(c->p) / 2 + 1, 1);
    size_t n = 0;
    while (!at_end(c)) {
        int value = 0;
        for (int i = 0; i < 2; i++, c->p++) {
            int ch = tolower((unsigned char)*c->p);
            if (!isxdigit(ch))
                return recipe_fail(c->r, "hex bytes expected at \"%.10s\"", c->p);
            value = value * 16 + (isdigit(ch) ? ch - '0' : ch - 'a' + 10);
        }
        buf[n++] = (uint8_t)value;
    }
    *bytes = buf;
    *length = n;
    return 0;
}
