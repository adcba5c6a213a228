/* SPDX-License-Identifier: MIT
 *
 * qcrash as a user or a CI job calls it: arguments that make no sense, exit codes, what each output
 * style says of a promise that was broken. */
#include <check.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "desk.h"
#include "output.h"

#define LONG                                                                        \
    "./a-folder-of-this-name/with-another-one-inside/and-one-more/so-that-this-is/" \
    "a-long-path-indeed"

#define LONGER LONG "/" LONG "/" LONG

/* Address space; a sanitizer takes it all. */
#ifdef __SANITIZE_ADDRESS__
#define RATION ""
enum { SLOWER = 10 };
#else
#define RATION "ulimit -v 2000000; "
enum { SLOWER = 1 };
#endif

/* A wrong engine: its replay breaks a promise. */
#define BROKEN "apply@c512/sector/1/p0.1+apply_counts_early"

START_TEST(arguments_that_make_no_sense)
{
    static const struct {
        const char *args, *words;
    } bad[] = {
        {"", "must be run, explore, replay, flushes, mutants or list"},
        {"frobnicate", "must be run, explore, replay, flushes, mutants or list"},
        {"run nope", "there is no workload 'nope'"},
        {"run create --image nope", "No such file"},
        {"run create --model nope", "nope"},
        {"run create --unit 7", "--unit: no such option"},
        {"run --sequences 99", "--sequences: must be 1 to 6, not '99'"},
        {"run --random 5", "--random: must be two numbers"},
        {"run --random 5,7x", "--random: must be two numbers"},
        {"run --random=-5,7", "--random: must be two numbers"},
        {"run create --cap 99999999999999999999", "--cap: must be a number"},
        {"run create --budget 0", "--budget: must be a number above 0"},
        {"run create --output=xml", "--output: must be human, json, tap or table"},
        {"run create --cap", "--cap: needs a value"},
        {"run create --save x", "run: has no option --save"},
        {"run create --record nothere/log", "nothere/log: No such file"},
        {"run create --record empty", "empty: File exists"},
        {"run create delete --record x", "--record takes one workload on one image"},
        {"run create --image all --record x", "--record takes one workload on one image"},
        {"run --random 1,1 --record x", "--record takes one workload on one image"},
        {"run --s 1", "--s: no such option"},
        {"mutants --deep", "mutants: has no option --deep"},
        {"list extra", "extra: too much"},
        {"replay", "replay: something is missing"},
        {"replay create@c512", "is not an ID"},
        {"replay create@c512/sector/999/p0", "has no such state"},
        {"replay create@nope/sector/1/p0", "nope"},
        {"explore", "explore needs --base and --log"},
        {"explore --base empty --log empty", "not a dm-log-writes log"},
        {"explore --base empty --log /dev/null", "/dev/null"},
        {"flushes nope", "there is no workload 'nope'"},
        {"run ./empty", "./empty: no operation in it"},
        {"run ./binary", "./binary: not a text"},
        {"run ./", "./: Is a directory"},
        {"run " LONG "/works", "File name too long"},
        {"run create --image " LONG LONG LONG LONG, "File name too long"},
        {"run ./third", "./third:3: not an operation"},
    };
    struct desk desk = desk_open();
    desk_works(&desk, "printf '# nothing; dance' > empty; printf 'fl\\0ush' > binary");
    desk_works(&desk, "mkdir -p " LONG " && echo flush > " LONG "/works");
    desk_works(&desk, "printf 'flush; flush\\n\\ndance' > third");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char command[600];
        snprintf(command, sizeof(command), "qcrash %s", bad[i].args);
        desk_want(&desk, command, 1, "", bad[i].words);
    }
    desk_close(&desk);
}
END_TEST

/* Both files or none, whatever the length of the name and of the disk. */
START_TEST(what_is_recorded)
{
    struct desk desk = desk_open();
    desk_works(&desk, "qsnap new huge 16T -o cluster_size=64k && mkdir -p " LONGER " old.base");
    desk_works(&desk, "qcrash run write --image huge --cap 64 --record " LONGER "/log >/dev/null");
    desk_want(&desk, "cmp huge " LONGER "/log.base && ls " LONGER, 0, "log\nlog.base\n", "");
    desk_want(&desk, "qcrash run write --record old >/dev/null", 1, "", "old.base: File exists");
    desk_want(&desk, "ls old", 2, "", "");
    desk_close(&desk);
}
END_TEST

START_TEST(exit_codes_and_styles)
{
    struct desk desk = desk_open();
    desk_want(&desk, "qcrash run create", 0, "every promise kept", "");
    desk_want(&desk, "qcrash run create --output=tap", 0, "ok 1 - create on c512", "");
    desk_want(&desk, "qcrash run create --output=table", 0, "| create | 1 |", "");
    desk_want(&desk, "qcrash replay " BROKEN, 2, "must be durable before", "");
    desk_want(&desk, "qcrash replay " BROKEN " --output=tap", 2, "not ok 1 ", "");
    desk_want(&desk, "qcrash replay " BROKEN " --output=json", 2, "\"id\": \"" BROKEN "\"", "");
    desk_want(&desk, "qcrash replay " BROKEN " --save s.qcow2; qcheck s.qcow2", 2, "damage:", "");
    desk_want(&desk, "qcrash list", 0, "apply_counts_early", "");
    desk_want(&desk, "qcrash --help", 0, "usage: qcrash run", "");
    desk_want(&desk, "qcrash --version", 0, "qcrash ", "");
    desk_close(&desk);
}
END_TEST

START_TEST(json_has_the_keys_that_scripts_need)
{
    static const char *const keys[] = {"states-legal", "states-certified", "states-executed",
        "states-distinct", "states-per-second", "violations", "exhaustive", "seed"};
    struct desk desk = desk_open();
    struct proc_result r = desk_run(&desk, "qcrash run create --output=json --seed 7");
    json_t *o = json_loads(r.out, 0, NULL);
    ck_assert_ptr_nonnull(o);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        ck_assert_msg(json_object_get(o, keys[i]) != NULL, "no %s in %s", keys[i], r.out);
    ck_assert_int_eq(json_integer_value(json_object_get(o, "seed")), 7);
    ck_assert(json_is_true(json_object_get(o, "exhaustive")));
    json_decref(o);
    proc_free(&r);
    desk_close(&desk);
}
END_TEST

/* An image may be a file anywhere; what is found on it is found again by its path. */
START_TEST(images_with_long_paths)
{
    struct desk desk = desk_open();
    desk_works(&desk, "mkdir -p " LONG " && qsnap new " LONG "/i 256k -o cluster_size=512");
    desk_works(&desk, "qsnap write " LONG "/i 0 4k --pattern 1");
    desk_want(&desk, "qcrash run create --image " LONG "/i --faults", 0,
        "create    " LONG "/i write-stop ", "");
    desk_want(&desk, "qcrash replay create@" LONG "/i/sector/1/p0.0", 0, "kept", "");
    desk_close(&desk);
}
END_TEST

/* Names of files may be any bytes, several states may shrink to one; none gets lost. */
START_TEST(each_violation_is_told_once)
{
    char *text;
    size_t length;
    struct output output = {.style = OUTPUT_JSON, .out = open_memstream(&text, &length)};
    static const char *const ids[] = {"a@\xff/sector/1/l", "a@\xff/sector/1/l", "a@b/sector/1/l"};
    for (int i = 0; i < 3; i++) {
        struct story story = {.invariant = INVARIANT_COPIED};
        snprintf(story.id, sizeof(story.id), "%s", ids[i]);
        ck_assert_int_eq(output_story(&output, &story), 0);
    }
    ck_assert_int_eq(output_finish(&output), 0);
    fclose(output.out);
    json_t *o = json_loads(text, 0, NULL), *list = json_object_get(o, "violations");
    ck_assert_uint_eq(json_array_size(list), 2);
    ck_assert_str_eq(
        json_string_value(json_object_get(json_array_get(list, 0), "id")), "a@\\xff/sector/1/l");
    json_decref(o);
    free(text);
    output_release(&output);
}
END_TEST

START_TEST(a_budget_that_does_not_suffice_is_said)
{
    struct desk desk = desk_open();
    desk_want(&desk, "qcrash run --sequences 4 --budget 1", 0, "NOT complete; left out: from ", "");
    desk_want(
        &desk, "qcrash run --sequences 4 --budget 1 --output=json", 0, "\"exhaustive\": false", "");
    desk_close(&desk);
}
END_TEST

/* ---- what comes from others ---------------------------------------------------------------- */

/* An image that is none, or that was damaged before anything ran, breaks no promise of ours. */
START_TEST(images_that_are_none)
{
    struct desk desk = desk_open();
    const char *told = "the image is damaged already, or is none";
    desk_works(&desk, "yes | head -c 70000 > text; : > nothing; truncate -s 5G large");
    desk_works(&desk, "qsnap new hurt 1M && printf '\\377' | dd of=hurt bs=1 seek=196608 "
                      "conv=notrunc status=none");
    desk_want(&desk, "qcrash run create --image text", 1, "", told);
    desk_want(&desk, "qcrash run create --image nothing", 1, "", told);
    desk_want(&desk, "qcrash run create --image hurt", 1, "", told);
    desk_want(&desk, "qcrash run create --image hurt --faults", 1, "", told);
    desk_want(&desk, "qcrash run repair --image hurt", 0, "every promise kept", "");
    desk_want(&desk, "qcrash run create --image large", 1, "", "File too large");
    desk_close(&desk);
}
END_TEST

static void put_le(uint8_t *p, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++, value >>= 8)
        p[i] = (uint8_t)value;
}

/* A log of one entry, which is followed by nothing but a hole up to `size` bytes. */
static const struct hostile_log {
    uint64_t magic, version, promised;
    uint32_t sector_bytes;
    uint64_t sector, count, flags, size;
    int exit_code;
    const char *words; /* on stderr */
} hostile_logs[] = {
#define MAGIC UINT64_C(0x6a736677736872)
#define CUT   "ends inside an entry"
#define NONE  "not a dm-log-writes log"
#define FAR   "are not explored"
    {MAGIC, 1, 1, 512, 4, 1, 0, 1536, 0, ""},
    /* it is none */
    {1, 1, 1, 512, 4, 1, 0, 1536, 1, NONE},
    {MAGIC, 2, 1, 512, 4, 1, 0, 1536, 1, NONE},
    {MAGIC, 1, 1, 0, 4, 1, 0, 1536, 1, NONE},
    {MAGIC, 1, 1, 33, 4, 1, 0, 1536, 1, NONE},
    {MAGIC, 1, 1, 1 << 30, 4, 1, 0, 1536, 1, NONE},
    {MAGIC, 1, 1, UINT32_MAX, 4, 1, 0, 1536, 1, NONE},
    {MAGIC, 1, 1, 512, 4, 1, 0, 27, 1, NONE},
    /* cut short */
    {MAGIC, 1, 1, 512, 4, 1, 0, 28, 1, CUT},
    {MAGIC, 1, 1, 512, 4, 1, 0, 700, 1, CUT},
    {MAGIC, 1, 1, 512, 4, 1, 0, 1535, 1, CUT},
    {MAGIC, 1, 2, 512, 4, 1, 0, 1536, 1, CUT},
    {MAGIC, 1, UINT64_MAX, 512, 4, 1, 0, 1536, 1, CUT},
    {MAGIC, 1, UINT64_MAX, 512, 4, 1, 0, 1536, 1, CUT},
    {MAGIC, 1, UINT64_MAX, 512, 4, 1, 0, UINT64_C(1) << 43, 1, CUT}, /* zeros without end */
    /* lengths and places that cannot be */
    {MAGIC, 1, 1, 512, 4, UINT64_MAX, 0, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, 4, UINT64_MAX / 512, 0, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, 4, (UINT64_MAX >> 9) - 3, 0, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, UINT64_MAX, 1, 0, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, UINT64_MAX >> 9, 1, 0, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, UINT64_MAX >> 9, 1, 4, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, 4, UINT64_MAX, 4, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, 4, UINT64_MAX, 8, 1536, 1, CUT}, /* a mark */
    {MAGIC, 1, 1, 512, 4, 1, 32, 1536, 1, CUT},
    {MAGIC, 1, 1, 512, 4, 1, UINT64_MAX, 1536, 1, CUT},
    /* more than is looked at */
    {MAGIC, 1, 1, 512, UINT64_C(1) << 23, 1, 0, 1536, 1, FAR},
    {MAGIC, 1, 1, 512, UINT64_C(1) << 53, 1, 0, 1536, 1, FAR},
    {MAGIC, 1, 1, 512, 0, (UINT64_C(1) << 23) + 1, 0, UINT64_C(1) << 43, 1, FAR},
    /* a discard of everything, and of what was never there, is one */
    {MAGIC, 1, 1, 512, 0, UINT64_C(1) << 53, 4, 1536, 2, ""},
    {MAGIC, 1, 1, 512, UINT64_C(1) << 52, UINT64_C(1) << 52, 4, 1536, 0, ""},
    {MAGIC, 1, 1, 512, 4, 1, 8, 1536, 0, ""},
};

static void write_hostile_log(const struct desk *desk, const struct hostile_log *log)
{
    uint8_t bytes[1536] = {0};
    uint64_t head = log->sector_bytes == 512 ? 512 : 32;
    char path[4096];
    put_le(bytes + head, log->sector, 8);
    put_le(bytes + head + 8, log->count, 8);
    put_le(bytes + head + 16, log->flags, 8);
    put_le(bytes, log->magic, 8);
    put_le(bytes + 8, log->version, 8);
    put_le(bytes + 16, log->promised, 8);
    put_le(bytes + 24, log->sector_bytes, 4);
    snprintf(path, sizeof(path), "%s/log", desk->dir);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, sizeof(bytes), file), sizeof(bytes));
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(truncate(path, (off_t)log->size), 0);
}

/* One line, at once, with little memory. */
START_TEST(logs_of_strangers)
{
    const struct hostile_log *log = &hostile_logs[_i];
    struct desk desk = desk_open();
    desk_works(&desk, "qsnap new base 64k -o cluster_size=512");
    write_hostile_log(&desk, log);
    struct proc_result r =
        desk_run(&desk, RATION "timeout 20 qcrash explore --base base --log log");
    ck_assert_msg(r.exit_code == log->exit_code, "exit %d: %s%s", r.exit_code, r.out, r.err);
    ck_assert_msg(strstr(r.err, log->words) != NULL, "%s", r.err);
    ck_assert_uint_eq(strcspn(r.err, "\n") + (r.err[0] != '\0'), strlen(r.err));
    ck_assert_int_eq(r.exit_code == 1, r.out[0] == '\0');
    proc_free(&r);
    desk_close(&desk);
}
END_TEST

/* Writes of `length` bytes of noise each, `step` apart; with a flush behind each one, or as writes
 * with FUA, or without anything. */
static const struct long_log {
    uint32_t entries, length, step, flags;
    bool flushed;
    const char *image, *options; /* how the image begins */
    unsigned seconds;            /* of processor time */
} long_logs[] = {
    {200000, 0, 0, 1, false, "1M", "", 5}, /* flushes: they are one */
    {16384, 4096, 4096, 0, false, "128M", "--budget 1", 3},
    {60000, 512, 0, 0, false, "1M", "--budget 1", 5},   /* versions of one sector */
    {60000, 512, 512, 0, false, "1M", "--budget 1", 3}, /* sizes */
    {16384, 4096, 4096, 2, false, "128M", "--budget 1", 3},
    {60000, 512, 0, 2, false, "1M", "--budget 1", 3},
    {20000, 512, 0, 0, true, "1M", "--budget 1", 3}, /* steps */
};

static void write_long_log(const struct desk *desk, const struct long_log *log)
{
    uint8_t head[512] = {0}, data[4096];
    char path[4096];
    snprintf(path, sizeof(path), "%s/log", desk->dir);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    put_le(head, MAGIC, 8);
    put_le(head + 8, 1, 8);
    put_le(head + 16, log->entries * (log->flushed ? UINT64_C(2) : 1), 8);
    put_le(head + 24, sizeof(head), 4);
    fwrite(head, sizeof(head), 1, file);
    for (uint64_t i = 0; i < log->entries; i++) {
        for (size_t at = 0; at < log->length; at += 8)
            put_le(data + at, (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + at, 8);
        put_le(head, (1 << 20 | i * log->step) / sizeof(head), 8);
        put_le(head + 8, log->length / sizeof(head), 8);
        put_le(head + 16, log->flags, 8);
        fwrite(head, sizeof(head), 1, file);
        fwrite(data, 1, log->length, file);
        put_le(head + 8, 0, 8);
        put_le(head + 16, 1, 8);
        if (log->flushed)
            fwrite(head, sizeof(head), 1, file);
    }
    ck_assert_int_eq(fclose(file), 0);
}

/* How far it comes within the budget is the machine's; that it ends is not. */
START_TEST(logs_that_are_long)
{
    const struct long_log *log = &long_logs[_i];
    struct desk desk = desk_open();
    char command[200];
    write_long_log(&desk, log);
    desk_works(&desk, "qsnap new base 1M -o cluster_size=512");
    snprintf(command, sizeof(command), "truncate -s %s base", log->image);
    desk_works(&desk, command);
    snprintf(command, sizeof(command), "ulimit -t %u; qcrash explore --base base --log log %s",
        log->seconds * SLOWER, log->options);
    desk_want(&desk, command, 0, "states: legal ", ""); /* all of them, or not complete */
    desk_close(&desk);
}
END_TEST

/* A disk of terabytes is hardly longer to look at than what is mapped of it.  Nor is it one with an
 * L1 table of 32 MiB, of which who goes on makes copies: there is room for them. */
START_TEST(a_disk_of_terabytes)
{
    struct desk desk = desk_open();
    char command[200];
    desk_works(&desk, "qsnap new huge 16T -o cluster_size=64k && qsnap new large 2048T");
    snprintf(command, sizeof(command),
        "ulimit -t %d; qcrash run write --image huge --faults --cap 64", 10 * SLOWER);
    desk_want(&desk, command, 0, "every promise kept", "");
    snprintf(command, sizeof(command),
        "ulimit -t %d; qcrash run write --image large --cap 4 --samples 4", 30 * SLOWER);
    desk_want(&desk, command, 0, "every promise kept", "");
    desk_close(&desk);
}
END_TEST

/* Control bytes of names reach no terminal, and a quote ends no word of a shell. */
START_TEST(names_are_shown_and_not_obeyed)
{
    static const struct {
        const char *command;
        int exit_code;
        const char *out, *err;
    } rows[] = {
        {"qcrash \"$e\"", 1, "", "qcrash: x\\x1b[2Jy: must be run"},
        {"qcrash run \"$e\"", 1, "", "x\\x1b[2Jy"},
        {"qcrash run \"--$e\"", 1, "", "--x\\x1b[2Jy: no such option"},
        {"qcrash run \"./$e/w\"", 1, "", "./x\\x1b[2Jy/w"},
        {"qcrash run create --image \"$e\"", 1, "", "'x\\x1b[2Jy': No such"},
        {"qcrash run create --model \"$e\"", 1, "", "'x\\x1b[2Jy'"},
        {"qcrash run create --cap \"$e\"", 1, "", "'x\\x1b[2Jy'"},
        {"qcrash replay \"$e\"", 1, "", "'x\\x1b[2Jy' is not an ID"},
        {"qcrash explore --base b --log \"$e\"", 1, "", "log 'x\\x1b[2Jy': No such"},
        {"qcrash explore --base \"$e\" --log l", 1, "", "base 'x\\x1b[2Jy': No such"},
        {"cp b \"$e\"; qcrash run create --image \"$e\"", 0, "create    x\\x1b[2Jy", ""},
        {"cp b \"$e\"; qcrash run create --image \"$e\" --output=tap", 0, "on x\\x1b[2Jy under",
            ""},
        {"qsnap list \"$e\"", 1, "", "qsnap: x\\x1b[2Jy: No such"},
        {"qsnap list b \"--$e\"", 1, "", "here: --x\\x1b[2Jy;"},
        {"qsnap write b \"$e\" 1", 1, "", "x\\x1b[2Jy: not a size"},
        {"qsnap apply b \"$e\"", 1, "", "x\\x1b[2Jy"},
        {"qcheck b \"--$e\"", 1, "", "--x\\x1b[2Jy"},
        {"qcheck b \"-j$e\"", 1, "", "x\\x1b[2Jy: not a number"},
        {"qcheck b --deploy --allow=\"$e\"", 1, "", "x\\x1b[2Jy: no such rule"},
    };
    struct desk desk = desk_open();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char command[600];
        snprintf(command, sizeof(command),
            "rm -f b x* l*; qsnap new b 64k -o cluster_size=512; qcrash run write --image b "
            "--record l "
            ">/dev/null; e=$(printf 'x\033[2Jy'); %s",
            rows[i].command);
        FILE *script;
        char path[4096];
        snprintf(path, sizeof(path), "%s/script", desk.dir);
        script = fopen(path, "w");
        ck_assert_ptr_nonnull(script);
        fputs(command, script);
        fclose(script);
        struct proc_result r = desk_run(&desk, "sh ./script");
        ck_assert_msg(r.exit_code == rows[i].exit_code, "%s: exit %d\n%s%s", rows[i].command,
            r.exit_code, r.out, r.err);
        ck_assert_msg(strstr(r.out, rows[i].out) != NULL, "%s: %s", rows[i].command, r.out);
        ck_assert_msg(strstr(r.err, rows[i].err) != NULL, "%s: %s", rows[i].command, r.err);
        ck_assert_msg(!strchr(r.out, 27) && !strchr(r.err, 27), "%s", rows[i].command);
        proc_free(&r);
    }
    desk_close(&desk);
}
END_TEST

START_TEST(hints_of_a_log_can_be_run)
{
    char *text;
    size_t length;
    struct output output = {.style = OUTPUT_TAP,
        .out = open_memstream(&text, &length),
        .base = "it's",
        .log = "the log"};
    struct story story = {.invariant = INVARIANT_COPIED};
    snprintf(story.id, sizeof(story.id), "the log@log/sector/1/l");
    ck_assert_int_eq(output_story(&output, &story), 0);
    output_line(&output, "the log", "log", "sector", &output.total);
    fclose(output.out);
    ck_assert_ptr_nonnull(strstr(
        text, "# qcrash replay 'the log@log/sector/1/l' --base 'it\\x27s' --log 'the log'\n"));
    free(text);
    output_release(&output);
}
END_TEST

Suite *test_qcrash(void);
Suite *test_qcrash(void)
{
    Suite *suite = suite_create("qcrash");
    TCase *tcase = tcase_create("command line");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, arguments_that_make_no_sense);
    tcase_add_test(tcase, what_is_recorded);
    tcase_add_test(tcase, exit_codes_and_styles);
    tcase_add_test(tcase, json_has_the_keys_that_scripts_need);
    tcase_add_test(tcase, images_with_long_paths);
    tcase_add_test(tcase, each_violation_is_told_once);
    tcase_add_test(tcase, a_budget_that_does_not_suffice_is_said);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("strangers");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, images_that_are_none);
    tcase_add_loop_test(
        tcase, logs_of_strangers, 0, sizeof(hostile_logs) / sizeof(hostile_logs[0]));
    tcase_add_loop_test(tcase, logs_that_are_long, 0, sizeof(long_logs) / sizeof(long_logs[0]));
    tcase_add_test(tcase, a_disk_of_terabytes);
    tcase_add_test(tcase, names_are_shown_and_not_obeyed);
    tcase_add_test(tcase, hints_of_a_log_can_be_run);
    suite_add_tcase(suite, tcase);
    return suite;
}
