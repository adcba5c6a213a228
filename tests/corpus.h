/* SPDX-License-Identifier: MIT
 *
 * The folders of corpus/, each a recipe and what is expected of it. */
#ifndef TESTS_CORPUS_H
#define TESTS_CORPUS_H

#include "expect.h"
#include "recipe.h"

enum { CORPUS_NAME_BYTES = 256 };

/* How many folders have a name that starts with `prefix`; the name of number `which` of them, in
 * order, goes to `name`. */
int corpus_list(const char *prefix, int which, char name[CORPUS_NAME_BYTES]);

/* Loads both files of a folder; the test fails, and says where, if one of them is wrong.  The
 * caller frees both results. */
void corpus_load(const char *name, struct recipe **recipe, struct expect **expect);

/* Writes the image of a recipe's text to dir/file, in place of what was there; the test fails if
 * that cannot be done. */
void corpus_make(const char *dir, const char *file, const char *text);

/* Writes dir/image.qcow2 and the files beside it. */
void corpus_save(const char *name, struct recipe *recipe, const char *dir);

#endif
