/* SPDX-License-Identifier: MIT
 *
 * Names as an image or a folder has them, on a terminal: whoever made them must not move the
 * cursor, or make a line look like another one. */
#ifndef ENGINE_TEXT_H
#define ENGINE_TEXT_H

#include <stddef.h>
#include <stdio.h>

/* Bytes, which may be any, as text in UTF-8: what is such text as it is, but each byte of what
 * controls a terminal or the order of writing, of the characters in `also` (ASCII; NULL: none), and
 * of what is no UTF-8, as \xNN.  Ended by NUL and cut, before a character, to fit. */
void text_escape(const void *bytes, size_t length, const char *also, char *out, size_t out_len);

/* Prints the bytes so, filled up with blanks to `width` bytes. */
void text_print(FILE *out, const void *bytes, size_t length, size_t width);

/* A line for people, whatever the names in it are: shown so, cut after some thousand bytes. */
void text_line(FILE *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Takes half a character off the end of what was cut at some byte. */
void text_trim(char *text);

#endif
