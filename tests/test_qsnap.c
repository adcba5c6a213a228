/* SPDX-License-Identifier: MIT
 *
 * qsnap as a user or a script calls it: every command with its result, arguments that make no
 * sense, images that it must refuse, and a process that is killed in the middle. */
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "desk.h"
#include "io.h"

/* One line that says `words`, exit 1, and a.qcow2 as it was. */
static void refuses(const struct desk *desk, const char *command, const char *words)
{
    desk_works(desk, "cp --sparse=always a.qcow2 before");
    struct proc_result r = desk_run(desk, command);
    ck_assert_msg(r.exit_code == 1, "%s: exit %d\n%s", command, r.exit_code, r.err);
    ck_assert_msg(strstr(r.err, words) != NULL, "%s: said\n%s", command, r.err);
    char *line_end = strchr(r.err, '\n');
    ck_assert_msg(line_end && line_end[1] == '\0', "%s: not one line:\n%s", command, r.err);
    proc_free(&r);
    desk_works(desk, "cmp a.qcow2 before");
}

/* ---- commands ------------------------------------------------------------------------------ */

START_TEST(a_session)
{
    struct desk desk = desk_open();
    desk_works(&desk, "qsnap new a.qcow2 4M -o cluster_size=4k");
    desk_works(&desk, "qsnap write a.qcow2 100k 64k --pattern 0x41");
    desk_works(&desk, "qsnap create a.qcow2 one");
    desk_works(
        &desk, "qsnap write a.qcow2 120k 4k --pattern 66 && qsnap create a.qcow2 two --id deux");
    desk_works(&desk, "qsnap discard a.qcow2 100k 8k && qsnap resize a.qcow2 5M");
    desk_want(&desk, "qsnap diff a.qcow2 one two", 0, "0x1e000 0x1000\n", "");
    desk_want(&desk, "qsnap diff a.qcow2 deux", 0, "0x19000 0x2000\n0x400000 0x100000\n", "");
    desk_want(&desk, "qsnap list a.qcow2 --output=json | tr -d ' \\n'", 0, "\"id\":\"deux\"", "");
    desk_works(&desk, "qemu-img snapshot -l a.qcow2 > l1 && qsnap list a.qcow2 > l2 && cmp l1 l2");
    desk_works(&desk, "qsnap export a.qcow2 1 one.raw && qemu-img convert -l snapshot.name=one "
                      "-O raw a.qcow2 q.raw && cmp -n 4194304 one.raw q.raw");
    desk_want(&desk, "stat -c %s one.raw", 0, "4194304\n", "");
    desk_want(&desk, "qsnap read a.qcow2 122879 3 | od -An -tx1", 0, " 41 42 42", "");
    desk_works(&desk, "printf abcdef > src && qsnap write a.qcow2 5 6 --from src");
    desk_want(&desk, "qsnap read a.qcow2 0 12 | tr '\\000' .", 0, ".....abcdef.", "");
    desk_works(&desk, "qsnap apply a.qcow2 one && qsnap delete a.qcow2 deux && qcheck a.qcow2");
    desk_want(&desk, "qemu-img info a.qcow2", 0, "virtual size: 4 MiB", "");
    desk_works(&desk, "qemu-img check -q a.qcow2 && qsnap read a.qcow2 0 4M | cmp - one.raw");
    desk_works(&desk, "qsnap delete a.qcow2 one");
    desk_want(&desk, "qsnap list a.qcow2 | wc -c", 0, "0\n", "");
    desk_close(&desk);
}
END_TEST

START_TEST(arguments_that_make_no_sense)
{
    static const struct {
        const char *args, *words;
    } bad[] = {
        {"", "usage:"},
        {"frobnicate a.qcow2", "usage:"},
        {"create a.qcow2", "usage:"},
        {"create a.qcow2 x y", "usage:"},
        {"create a.qcow2 x --pattern 3", "no such option"},
        {"apply a.qcow2 one --id 3", "no such option"},
        {"apply a.qcow2 one -U", "no such option"},
        {"write -U a.qcow2 0 1k", "--force-share; usage: qsnap write"},
        {"create a.qcow2 x --id", "--id; usage: qsnap create"},
        {"create a.qcow2 x --what", "--what; usage: qsnap create"},
        {"list a.qcow2 -x", "-x; usage: qsnap list"},
        {"list a.qcow2 --output=xml", "not an output format"},
        {"write a.qcow2 0 1k --pattern 256", "not a byte"},
        {"write a.qcow2 0 1k --pattern 1 --from src", "exclude each other"},
        {"write a.qcow2 0 1k --from nowhere", "nowhere: No such file"},
        {"write a.qcow2 0 1k --from src", "shorter than the range"},
        {"write a.qcow2 0 1k --from .", "Is a directory"},
        {"write a.qcow2 4M 1", "passes the end"},
        {"write a.qcow2 0 12q", "not a size"},
        {"write a.qcow2 -- -1 5", "not a size"},
        {"read a.qcow2 0 99E", "not a size"},
        {"read a.qcow2 18446744073709551615 2", "passes the end"},
        {"discard a.qcow2 4M 1", "passes the end"},
        {"resize a.qcow2 16E", ""},
        {"new a.qcow2 1M", "File exists"},
        {"new b.qcow2 1M -o cluster_size=3k", ""},
        {"new b.qcow2 1M -o frobnicate=1", ""},
        {"new b.qcow2 1M -o compat=0.10,refcount_bits=8", ""},
        {"apply a.qcow2 nothing", "nothing"},
        {"delete a.qcow2 ''", ""},
        {"export a.qcow2 one src", "File exists"},
        {"export a.qcow2 one no/such/folder", "No such file"},
        {"create a.qcow2 x --id 1", ""},
        {"list nowhere.qcow2", "No such file"},
        {"list .", ""},
        {"list src", "not a qcow2 image"},
    };
    struct desk desk = desk_open();
    desk_works(&desk, "qsnap new a.qcow2 4M && qsnap create a.qcow2 one && printf abc > src");
    desk_works(&desk, "cp a.qcow2 before");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char command[256];
        snprintf(command, sizeof(command), "qsnap %s", bad[i].args);
        struct proc_result r = desk_run(&desk, command);
        ck_assert_msg(r.exit_code == 1, "%s: exit %d", command, r.exit_code);
        ck_assert_msg(r.err[0] && strstr(r.err, bad[i].words), "%s: said %s", command, r.err);
        ck_assert_msg(r.out[0] == '\0', "%s: printed %s", command, r.out);
        proc_free(&r);
        desk_want(&desk, "test -e b.qcow2", 1, "", "");
        desk_works(&desk, "cmp a.qcow2 before");
    }
    desk_close(&desk);
}
END_TEST

START_TEST(names_of_several_snapshots)
{
    struct desk desk = desk_open();
    desk_works(
        &desk, "qsnap new a.qcow2 1M && qsnap create a.qcow2 twin && qsnap create a.qcow2 twin");
    refuses(&desk, "qsnap apply a.qcow2 twin", "twin");
    desk_works(&desk, "qsnap create a.qcow2 1"); /* the name is the ID of another: the ID counts */
    desk_works(&desk, "qsnap delete a.qcow2 1 && qsnap list a.qcow2 > list");
    desk_want(&desk, "grep -c twin list", 0, "1\n", "");
    desk_works(&desk, "qsnap delete a.qcow2 twin && qcheck -q a.qcow2");
    desk_close(&desk);
}
END_TEST

/* ---- images it must refuse ----------------------------------------------------------------- */

START_TEST(images_that_are_refused)
{
    static const struct {
        const char *make, *command, *words;
    } rows[] = {
        {"qemu-img create -qf qcow2 a.qcow2 1M && printf '\\\\001' | dd of=a.qcow2 bs=1 seek=79 "
         "conv=notrunc status=none",
            "qsnap create a.qcow2 x", "qcheck --repair"},
        {"qemu-img create -qf qcow2 a.qcow2 1M && printf '\\\\002' | dd of=a.qcow2 bs=1 seek=79 "
         "conv=notrunc status=none",
            "qsnap write a.qcow2 0 1", "qcheck --repair"},
        {"qemu-img create -qf qcow2 a.qcow2 1M && printf '\\\\200' | dd of=a.qcow2 bs=1 seek=79 "
         "conv=notrunc status=none",
            "qsnap list a.qcow2", "unknown incompatible"},
        {"qemu-img create -qf qcow2 -o refcount_bits=1 a.qcow2 1M && qsnap write a.qcow2 0 1",
            "qsnap create a.qcow2 x", "refcount"},
        {"qemu-img create -qf qcow2 -o data_file=d.raw a.qcow2 1M", "qsnap create a.qcow2 x",
            "external data file"},
        {"printf 'image luks=4k\\ndata 0 64k\\n' > r && mkimage r a.qcow2",
            "qsnap read a.qcow2 0 1", "crypt"},
        {"qemu-img create -qf qcow2 a.qcow2 1M && truncate -s 300 a.qcow2",
            "qsnap create a.qcow2 x", ""},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct desk desk = desk_open();
        desk_works(&desk, rows[i].make);
        refuses(&desk, rows[i].command, rows[i].words);
        desk_close(&desk);
    }
}
END_TEST

START_TEST(an_image_in_use)
{
    struct desk desk = desk_open();
    desk_works(&desk, "qsnap new a.qcow2 1M && qsnap create a.qcow2 one");
    char path[4096];
    snprintf(path, sizeof(path), "%s/a.qcow2", desk.dir);
    struct io *io;
    ck_assert_int_eq(io_file_open(path, IO_FILE_WRITE, &io, NULL), 0);
    refuses(&desk, "qsnap create a.qcow2 x", "in use");
    refuses(&desk, "qsnap read a.qcow2 0 1", "in use");
    desk_want(&desk, "qsnap list -U a.qcow2", 0, "one", "");
    io_close(io);
    desk_works(&desk, "qsnap create a.qcow2 two");
    desk_close(&desk);
}
END_TEST

/* ---- backing files ------------------------------------------------------------------------- */

START_TEST(data_of_a_backing_chain)
{
    struct desk desk = desk_open();
    desk_works(&desk, "mkdir sub && head -c 700000 /dev/urandom > sub/base.raw");
    desk_works(&desk, "qemu-img create -qf qcow2 -b base.raw -F raw sub/mid.qcow2");
    desk_works(&desk, "qemu-img create -qf qcow2 -b sub/mid.qcow2 -F qcow2 a.qcow2 2M");
    desk_works(&desk, "qsnap write a.qcow2 1000 3 --pattern 7 && qsnap create a.qcow2 one");
    desk_works(&desk, "qsnap write a.qcow2 650k 100k --pattern 8 && qsnap discard a.qcow2 64k 64k");
    desk_works(
        &desk, "qemu-img convert -O raw a.qcow2 q.raw && qsnap read a.qcow2 0 2M | cmp - q.raw");
    desk_works(&desk, "qsnap export a.qcow2 one one.raw && cmp -n 1000 one.raw sub/base.raw");
    desk_works(
        &desk, "qsnap resize a.qcow2 3M && qsnap read a.qcow2 2M 1M | cmp -n 1048576 - /dev/zero");
    desk_works(&desk, "qsnap apply a.qcow2 one && qsnap read a.qcow2 0 2M | cmp - one.raw");
    desk_works(&desk, "qcheck -q --backing a.qcow2 && qemu-img check -q a.qcow2");
    refuses(&desk,
        "qsnap resize a.qcow2 512k && qsnap resize a.qcow2 1M | cat >&2 && "
        "cp before a.qcow2; exit 1",
        "backing file is longer");
    desk_close(&desk);
}
END_TEST

START_TEST(backing_files_that_are_refused)
{
    static const struct {
        const char *make, *words;
    } rows[] = {
        {"qemu-img create -qf qcow2 -u -b gone.raw -F raw a.qcow2 1M", "gone.raw"},
        {"qemu-img create -qf qcow2 -u -b nbd://host/disk -F raw a.qcow2 1M", "plain path"},
        {"qemu-img create -qf qcow2 -u -b 'json:{}' -F raw a.qcow2 1M", "plain path"},
        {"qemu-img create -qf qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 1M && qemu-img create -qf qcow2 "
         "-u -b a.qcow2 -F qcow2 b.qcow2 1M",
            "backing"},
        {"truncate -s 1M base.vmdk && qemu-img create -qf qcow2 -u -b base.vmdk -F vmdk a.qcow2 1M",
            "neither raw nor qcow2"},
        {"truncate -s 1M b.raw && qemu-img create -qf qcow2 -u -b b.raw a.qcow2 1M 2>/dev/null; "
         "qemu-img create -qf qcow2 -o compat=0.10 a.qcow2 1M && printf 'b.raw' | dd of=a.qcow2 "
         "bs=1 seek=200 conv=notrunc status=none && printf '\\\\310\\\\000\\\\000\\\\000\\\\005' | "
         "dd of=a.qcow2 bs=1 seek=15 conv=notrunc status=none",
            "of which format"},
        {"mkdir b.raw && qemu-img create -qf qcow2 -u -b b.raw -F raw a.qcow2 1M", "b.raw"},
        {"mkfifo b.raw && qemu-img create -qf qcow2 -u -b b.raw -F raw a.qcow2 1M", "b.raw"},
        {"truncate -s 1M b.raw && qemu-img create -qf qcow2 -u -b b.raw -F qcow2 a.qcow2 1M",
            "not a qcow2 image"},
        {"qemu-img create -qf qcow2 -u -b gone.raw -F raw mid.qcow2 1M && qemu-img create -qf "
         "qcow2 "
         "-u -b mid.qcow2 -F qcow2 a.qcow2 1M",
            "gone.raw"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct desk desk = desk_open();
        desk_works(&desk, rows[i].make);
        refuses(&desk, "qsnap read a.qcow2 0 1k", rows[i].words);
        refuses(&desk, "qsnap write a.qcow2 0 1", rows[i].words);
        desk_works(&desk, "qsnap create a.qcow2 x && qsnap delete a.qcow2 x && qcheck -q a.qcow2");
        desk_close(&desk);
    }
}
END_TEST

/* Names are the image's: they are shown, but control no terminal, and are no second line. */
START_TEST(names_on_a_terminal)
{
    static const struct {
        const char *bytes, *shown, *json;
    } names[] = {
        {"gr\\\\303\\\\274\\\\303\\\\237 \\\\342\\\\202\\\\254", "gr\xc3\xbc\xc3\x9f \xe2\x82\xac",
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac"},
        {"a\\\\033[2Jb\\\\rc\\\\177", "a\\x1b[2Jb\\x0dc\\x7f", "a\\u001B[2Jb\\rc\x7f"},
        {"a\\\\302\\\\2332J", "a\\xc2\\x9b2J",
            "a\xc2\x9b"
            "2J"},                                             /* a control character of Unicode */
        {"a\\\\233\\\\303", "a\\x9b\\xc3", "a\\\\x9b\\\\xc3"}, /* no UTF-8 */
        {"\\\\355\\\\240\\\\200\\\\300\\\\257", "\\xed\\xa0\\x80\\xc0\\xaf",
            "\\\\xed\\\\xa0\\\\x80\\\\xc0\\\\xaf"}, /* a surrogate, an overlong slash */
        {"\\\\342\\\\200\\\\256txt", "\\xe2\\x80\\xaetxt",
            "\xe2\x80\xae"
            "txt"}, /* from right to left */
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct desk desk = desk_open();
        char command[300], line[100];
        snprintf(command, sizeof(command),
            "qsnap new a.qcow2 1M && qsnap create a.qcow2 \\\"\\$(printf '%s')\\\"",
            names[i].bytes);
        desk_works(&desk, command);
        snprintf(line, sizeof(line), "1         %s", names[i].shown);
        desk_want(&desk, "qsnap list a.qcow2", 0, line, "");
        snprintf(line, sizeof(line), "\"name\": \"%s\"", names[i].json);
        desk_want(&desk, "qsnap list a.qcow2 --output=json", 0, line, "");
        snprintf(command, sizeof(command), "qsnap list \\\"\\$(printf '%s')\\\"", names[i].bytes);
        desk_want(&desk, command, 1, "", names[i].shown);
        desk_close(&desk);
    }
}
END_TEST

/* ---- a failing world ----------------------------------------------------------------------- */

START_TEST(no_room_for_the_file)
{
    struct desk desk = desk_open();
    desk_works(&desk, "qsnap new a.qcow2 4M && qsnap write a.qcow2 0 64k --pattern 1 && "
                      "qsnap create a.qcow2 one");
    /* A limit on the file's size stands for the full disk. */
    static const char *const commands[] = {"qsnap create a.qcow2 two", "qsnap write a.qcow2 1M 1M",
        "qsnap write a.qcow2 0 64k --pattern 2", "qsnap apply a.qcow2 one"};
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        char limited[256];
        snprintf(limited, sizeof(limited), "ulimit -f \\$((\\$(stat -c %%s a.qcow2) / 512)); %s",
            commands[i]);
        desk_want(&desk, limited, 1, "", "File too large");
        desk_want(&desk, "qcheck -q a.qcow2; test \\$? = 0 -o \\$? = 3", 0, "", "");
        desk_want(&desk, "qsnap read a.qcow2 65535 1 | od -An -tx1", 0, "01", "");
    }
    desk_works(&desk, "qcheck -q --repair a.qcow2 && qsnap apply a.qcow2 one && qcheck -q a.qcow2");
    desk_close(&desk);
}
END_TEST

/* The process dies at some moment of a loop of operations; what it leaves must be sound, at worst
 * with leaks, and whole: each disk is one of those there were.  An L1 table that was not yet, or no
 * longer, pointed to is a leak as well. */
START_TEST(killed_in_the_middle)
{
    struct desk desk = desk_open();
    desk_works(
        &desk, "qsnap new a.qcow2 8M -o cluster_size=512 && qsnap write a.qcow2 0 8M --pattern 1");
    desk_works(&desk, "qsnap create a.qcow2 one && qsnap write a.qcow2 0 8M --pattern 2");
    for (int i = 0; i < 12; i++) {
        char command[512];
        snprintf(command, sizeof(command),
            "setsid sh -c 'while :; do qsnap create a.qcow2 x; qsnap apply a.qcow2 one; "
            "qsnap apply a.qcow2 x; qsnap delete a.qcow2 x; done' >/dev/null 2>&1 & loop=\\$!; "
            "sleep 0.%02d; kill -9 -\\$loop; wait; "
            "until qsnap list a.qcow2 >/dev/null 2>&1; do sleep 0.02; done", /* the lock is gone */
            7 + i * 5);
        desk_works(&desk, command);
        /* COPIED is set where counts were raised for a snapshot that is not there yet: harmless. */
        desk_want(&desk,
            "qcheck a.qcow2 > said; test \\$? = 0 -o \\$? = 3 || "
            "! grep -E '^  (damage|danger):' said | grep -v copied-set",
            0, "", "");
        desk_works(&desk,
            "qsnap export a.qcow2 one one.raw && tr -d '\\\\001' < one.raw | wc -c > n "
            "&& echo 0 | cmp - n && rm one.raw");
        desk_works(&desk, "qsnap read a.qcow2 0 8M > disk && (tr -d '\\\\001' < disk | cmp -s - "
                          "/dev/null || tr -d '\\\\002' < disk | cmp - /dev/null)");
        desk_works(&desk, "qcheck -q --repair a.qcow2");
        desk_works(&desk, "qsnap delete a.qcow2 x 2>/dev/null; qcheck -q a.qcow2");
    }
    desk_close(&desk);
}
END_TEST

Suite *test_qsnap(void);
Suite *test_qsnap(void)
{
    Suite *suite = suite_create("qsnap");
    TCase *tc = tcase_create("commands");
    tcase_set_timeout(tc, 300);
    tcase_add_test(tc, a_session);
    tcase_add_test(tc, arguments_that_make_no_sense);
    tcase_add_test(tc, names_of_several_snapshots);
    tcase_add_test(tc, images_that_are_refused);
    tcase_add_test(tc, an_image_in_use);
    tcase_add_test(tc, data_of_a_backing_chain);
    tcase_add_test(tc, backing_files_that_are_refused);
    tcase_add_test(tc, names_on_a_terminal);
    tcase_add_test(tc, no_room_for_the_file);
    tcase_add_test(tc, killed_in_the_middle);
    suite_add_tcase(suite, tc);
    return suite;
}
