/* SPDX-License-Identifier: MIT
 *
 * Who called: names of functions, where libunwind is installed. */
#include "record.h"

#ifdef HAVE_LIBUNWIND

#define UNW_LOCAL_ONLY
#include <libunwind.h>
#include <stdlib.h>
#include <string.h>

#define LAST_FRAME "history_run" /* what is above it is the harness */

enum { NAME_BYTES = 64, FRAMES_MAX = 12 };

/* Frames of the recorder and of struct io, which everybody comes through. */
static bool is_ours(const char *name)
{
    static const char *const prefixes[] = {"backtrace_", "note", "record_", "io_"};
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return false;
}

static size_t append(char *text, size_t used, const char *name)
{
    size_t length = strlen(name);
    if (used > 0) {
        memcpy(text + used, " < ", 3);
        used += 3;
    }
    memcpy(text + used, name, length + 1);
    return used + length;
}

char *backtrace_text(void)
{
    unw_context_t context;
    unw_cursor_t cursor;
    char *text = calloc(FRAMES_MAX, NAME_BYTES + 4);
    size_t used = 0;
    if (!text || unw_getcontext(&context) < 0 || unw_init_local(&cursor, &context) < 0)
        return text;
    for (unsigned frames = 0; frames < FRAMES_MAX;) {
        char name[NAME_BYTES];
        unw_word_t inside;
        if (unw_get_proc_name(&cursor, name, sizeof(name), &inside) < 0 ||
            strcmp(name, LAST_FRAME) == 0)
            break;
        if (used > 0 || !is_ours(name)) {
            used = append(text, used, name);
            frames++;
        }
        if (unw_step(&cursor) <= 0)
            break;
    }
    return text;
}

#else

char *backtrace_text(void)
{
    return NULL;
}

#endif
