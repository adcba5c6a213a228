/* SPDX-License-Identifier: MIT
 *
 * See desk.h. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "desk.h"

struct desk desk_open(void)
{
    char *qcheck = realpath(QCHECK_PROGRAM, NULL);
    ck_assert_ptr_nonnull(qcheck);
    *strrchr(qcheck, '/') = '\0';
    return (struct desk){proc_mkdir(), qcheck};
}

void desk_close(struct desk *desk)
{
    proc_rmdir(desk->dir);
    free(desk->programs);
}

/* A shell command in the folder, with the programs in the path. */
struct proc_result desk_run(const struct desk *desk, const char *command)
{
    return proc_run("cd '%s' && PATH='%s':'%s/tests':$PATH TZ=UTC timeout 60 sh -c \"%s\"",
        desk->dir, desk->programs, desk->programs, command);
}

void desk_want(
    const struct desk *desk, const char *command, int exit_code, const char *out, const char *err)
{
    struct proc_result r = desk_run(desk, command);
    ck_assert_msg(r.exit_code == exit_code, "%s: exit %d\n%.2000s%.2000s", command, r.exit_code,
        r.out, r.err);
    ck_assert_msg(strstr(r.out, out) != NULL, "%s: printed\n%.2000s", command, r.out);
    ck_assert_msg(strstr(r.err, err) != NULL, "%s: said\n%.2000s", command, r.err);
    proc_free(&r);
}

void desk_works(const struct desk *desk, const char *command)
{
    desk_want(desk, command, 0, "", "");
}
