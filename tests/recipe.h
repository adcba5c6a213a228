/* SPDX-License-Identifier: MIT
 *
 * Recipes: qcow2 images as text.  A recipe builds a healthy image of any kind, byte for byte the
 * same every time, and then breaks it by name; corpus/README.md tells the language.
 *
 * The builder is a third implementation on purpose: it shares the pure format (qcow2.h) with the
 * engine and the checker and nothing else.  Out of memory aborts, this is test code. */
#ifndef TESTS_RECIPE_H
#define TESTS_RECIPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io.h"
#include "qcow2.h"

struct recipe;

enum { RECIPE_ERROR_BYTES = 512 };

/* Builds the image of a recipe.  -EINVAL with "file:line: message" in `error` when the recipe is
 * wrong.  recipe_text() takes the text itself and a name for messages. */
int recipe_load(const char *path, struct recipe **out, char error[RECIPE_ERROR_BYTES]);
int recipe_text(
    const char *name, const char *text, struct recipe **out, char error[RECIPE_ERROR_BYTES]);
void recipe_free(struct recipe *recipe); /* NULL is allowed */

/* The image, damage included, without what is unreadable.  Owned by the recipe. */
struct io *recipe_io(struct recipe *recipe);

/* The external data file and its name as the header has it; NULL when there is none. */
struct io *recipe_data_io(struct recipe *recipe);
const char *recipe_data_name(const struct recipe *recipe);

/* The geometry as built, whatever was damaged later. */
const struct qcow2_geometry *recipe_geometry(const struct recipe *recipe);

/* True when the recipe declares ranges that cannot be read. */
bool recipe_has_unreadable(const struct recipe *recipe);

/* A copy of the image on which those ranges fail with -EIO; the caller closes it. */
int recipe_branch(struct recipe *recipe, struct io **out);

/* The value of an expression; names mean what they mean in the recipe. */
int recipe_eval(
    struct recipe *recipe, const char *expression, uint64_t *value, char error[RECIPE_ERROR_BYTES]);

/* Writes the image (and the data file beside it, under its own name) as a new file. */
int recipe_save(struct recipe *recipe, const char *path);

/* What guest data is made of: one byte over and over, or bytes that follow from the seed and the
 * guest offset, with four bits of entropy each so that they compress. */
struct recipe_pattern {
    bool seeded;
    uint64_t value;
};
void recipe_pattern_fill(
    const struct recipe_pattern *pattern, uint64_t guest_off, uint8_t *buf, size_t length);

#endif
