/* SPDX-License-Identifier: MIT
 *
 * See jvalue.h. */
#include "jvalue.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

json_t *jvalue_number(uint64_t value)
{
    if (value <= INT64_MAX)
        return json_integer((json_int_t)value);
    char digits[24];
    snprintf(digits, sizeof(digits), "%" PRIu64, value);
    return json_string(digits);
}

json_t *jvalue_text(const void *bytes, size_t length)
{
    json_t *string = length > 0 && memchr(bytes, 0, length) ? NULL : json_stringn(bytes, length);
    if (string)
        return string;
    size_t room = length * 4 + 1; /* \xNN */
    char *escaped = malloc(room);
    if (!escaped)
        return NULL;
    text_escape(bytes, length, "\"\\", escaped, room);
    string = json_string(escaped);
    free(escaped);
    return string;
}
