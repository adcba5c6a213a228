/* SPDX-License-Identifier: MIT
 *
 * Who called: names of functions, where libunwind is installed. */
#include "record.h"

#ifdef HAVE_LIBUNWIND

#define UNW_LOCAL_ONLY
#include <libunwind.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 64, FRAMES_MAX = 12 };

char *backtrace_text(unsigned skip)
{
    unw_context_t context;
    unw_cursor_t cursor;
    if (unw_getcontext(&context) < 0 || unw_init_local(&cursor, &context) < 0)
        return NULL;
    size_t room = (size_t)(NAME_BYTES + 4) * FRAMES_MAX, used = 0;
    char *text = malloc(room);
    if (!text)
        return NULL;
    text[0] = '\0';
    for (unsigned i = 0; i < skip + FRAMES_MAX; i++) {
        char name[NAME_BYTES];
        unw_word_t inside;
        if (i >= skip) {
            if (unw_get_proc_name(&cursor, name, sizeof(name), &inside) < 0)
                break;
            size_t length = strlen(name);
            if (used > 0) {
                memcpy(text + used, " < ", 3);
                used += 3;
            }
            memcpy(text + used, name, length + 1);
            used += length;
            if (strcmp(name, "main") == 0)
                break;
        }
        if (unw_step(&cursor) <= 0)
            break;
    }
    return text;
}

#else

char *backtrace_text(unsigned skip)
{
    (void)skip;
    return NULL;
}

#endif
