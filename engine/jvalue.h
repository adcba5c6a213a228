/* SPDX-License-Identifier: MIT
 *
 * What an image holds, as values of JSON that any program can read. */
#ifndef ENGINE_JVALUE_H
#define ENGINE_JVALUE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Most programs read numbers as signed ones of 64 bits; what does not fit is a string of digits.
 * A new reference, NULL without memory. */
json_t *jvalue_number(uint64_t value);

/* Bytes, which may be any: as they are if they are UTF-8, else escaped as text_escape() does; and
 * so are those with a NUL, which many programs refuse.  A new reference, NULL without memory. */
json_t *jvalue_text(const void *bytes, size_t length);

#endif
