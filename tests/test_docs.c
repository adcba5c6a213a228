/* SPDX-License-Identifier: MIT
 *
 * What is written about the programs' edges says the same everywhere: --help, manual pages,
 * completion, and the keys of JSON in the code that prints them. */
#include <check.h>
#include <string.h>

#include "desk.h"

static const struct program {
    const char *name, *path, *json; /* of its page and completion; the code that prints JSON */
} programs[] = {
    {"qcheck", "checker/qcheck", "checker/report_json.c"},
    {"qsnap", "engine/qsnap", "engine/listing.c"},
    {"qcrash", "faultinj/qcrash", "faultinj/output.c"},
};
enum { PROGRAMS = sizeof(programs) / sizeof(programs[0]) };

/* A shell command at the top of the tree prints just that. */
static void prints(const struct program *program, const char *command, const char *text)
{
    struct desk desk = desk_open();
    struct proc_result r =
        proc_run("P=%s F=%s J=%s D='%s'; PATH='%s':$PATH LC_ALL=C; export PATH; "
                 "options() { grep -oE -e \"(^|[^A-Za-z0-9-])$1[A-Za-z][A-Za-z-]*\" | "
                 "grep -oE -e '-.*' | sort -u; }; %s",
            program->name, program->path, program->json, desk.dir, desk.programs, command);
    ck_assert_msg(
        r.exit_code == 0 && strcmp(r.out, text) == 0, "%s: %s%s", program->name, r.out, r.err);
    proc_free(&r);
    desk_close(&desk);
}

START_TEST(help_and_page_have_the_same_options)
{
    prints(&programs[_i],
        "$P --help | options '--?' >$D/help; [ -s $D/help ] || echo none; "
        "grep -oE 'Fl [-A-Za-z]+' $F.1 | sed 's/Fl /-/' | sort -u | grep -vx -e --help -e "
        "--version "
        ">$D/page; grep -vx -e --help -e --version $D/help | diff - $D/page",
        "");
    prints(&programs[_i], "$P --help | options -- | grep -cx -e --help -e --version", "2\n");
}
END_TEST

START_TEST(completion_knows_all_options)
{
    prints(&programs[_i],
        "grep -v '^ *#' $F.bash | options -- >$D/bash; $P --help | options -- | diff - $D/bash",
        "");
}
END_TEST

START_TEST(the_page_has_all_keys)
{
    prints(&programs[_i],
        "sed -n '/^static.*json/,/^}/p; /^static int set_/,/^}/p; /^int .*json(/,/^}/p' $J | "
        "grep -oE '\"[a-z][a-z-]+\"' | tr -d '\"' | sort -u >$D/keys; "
        "[ $(wc -l <$D/keys) -gt 7 ] || echo few; "
        "while read -r key; do grep -qE \"^[.](It )?Cm (.* )?$key( |\\$)\" $F.1 || echo $key; "
        "done <$D/keys",
        "");
}
END_TEST

/* A snapshot may be called anything; what it is called must never be carried out. */
START_TEST(completion_carries_out_no_names)
{
    prints(&programs[1],
        "F=$PWD/$F; cd $D && qsnap new i 1M && qsnap create i '$(touch made)' && qsnap create i 'a "
        "b' "
        "&& bash -c \". $F.bash; COMP_WORDS=(qsnap apply i ''); COMP_CWORD=3; _qsnap; "
        "printf '%s\\n' \\\"\\${COMPREPLY[@]}\\\"; COMP_WORDS=(qsnap diff i a); _qsnap; "
        "printf '%s\\n' \\\"\\${COMPREPLY[@]}\\\"\"; ls",
        "1\n\\$\\(touch\\ made\\)\n2\na\\ b\na\\ b\ni\n");
}
END_TEST

Suite *test_docs(void);
Suite *test_docs(void)
{
    Suite *suite = suite_create("docs");
    TCase *tc = tcase_create("docs");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, help_and_page_have_the_same_options, 0, PROGRAMS);
    tcase_add_loop_test(tc, completion_knows_all_options, 0, PROGRAMS);
    tcase_add_loop_test(tc, the_page_has_all_keys, 0, PROGRAMS);
    tcase_add_test(tc, completion_carries_out_no_names);
    suite_add_tcase(suite, tc);
    return suite;
}
