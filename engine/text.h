/* SPDX-License-Identifier: MIT
 *
 * Names as an image or a folder has them, on a terminal: whoever made them must not move the
 * cursor, or make a line look like another one. */
#ifndef ENGINE_TEXT_H
#define ENGINE_TEXT_H

#include <stddef.h>
#include <stdio.h>

/* Prints `length` bytes, which may be any: text in UTF-8 as it is, but each byte of what controls a
 * terminal or the order of writing, and of what is no UTF-8, as \xNN.  Filled up with blanks to
 * `width` bytes. */
void text_print(FILE *out, const void *bytes, size_t length, size_t width);

#endif
