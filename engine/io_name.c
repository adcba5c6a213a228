/* SPDX-License-Identifier: MIT
 *
 * The names of other files that an image holds, as paths.  Not to be trusted: a name is a plain
 * path or it is refused, and a chain of them may come back to where it was. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io.h"

/* No protocol such as nbd: or json: before the first slash, no NUL in it. */
static bool is_plain(const uint8_t *name, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (name[i] == '\0' || name[i] == ':')
            return false;
        if (name[i] == '/')
            return memchr(name + i, '\0', length - i) == NULL;
    }
    return length > 0;
}

int io_file_named(const char *beside, const uint8_t *name, size_t length, char **path)
{
    if (!is_plain(name, length))
        return -EINVAL;
    const char *slash = strrchr(beside, '/');
    size_t folder = name[0] == '/' || !slash ? 0 : (size_t)(slash - beside) + 1;
    char *text = malloc(folder + length + 1);
    if (!text)
        return -ENOMEM;
    memcpy(text, beside, folder);
    memcpy(text + folder, name, length);
    text[folder + length] = '\0';
    *path = text;
    return 0;
}

int io_chain_add(struct io_chain *chain, const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return 0; /* opening it says why */
    for (size_t i = 0; i < chain->depth; i++) {
        if (chain->seen[i].dev == st.st_dev && chain->seen[i].ino == st.st_ino)
            return -EEXIST;
    }
    if (chain->depth > IO_CHAIN_MAX)
        return -ELOOP;
    chain->seen[chain->depth].dev = st.st_dev;
    chain->seen[chain->depth++].ino = st.st_ino;
    return 0;
}
