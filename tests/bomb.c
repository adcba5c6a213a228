/* SPDX-License-Identifier: MIT
 *
 * See bomb.h. */
#include "bomb.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct recipe *bomb_text(const char *text)
{
    char error[RECIPE_ERROR_BYTES];
    struct recipe *recipe = NULL;
    ck_assert_msg(recipe_text("bomb", text, &recipe, error) == 0, "%s", error);
    return recipe;
}

struct recipe *bomb_build(const char *format, unsigned number)
{
    char text[1024];
    snprintf(text, sizeof(text), format, number);
    return bomb_text(text);
}

uint64_t bomb_eval(struct recipe *recipe, const char *expression)
{
    char error[RECIPE_ERROR_BYTES];
    uint64_t value = 0;
    ck_assert_msg(recipe_eval(recipe, expression, &value, error) == 0, "%s", error);
    return value;
}

void bomb_write_entries(
    struct recipe *recipe, uint64_t host_off, uint64_t raw, uint64_t step, size_t count)
{
    uint8_t *bytes = malloc(count * 8);
    ck_assert_ptr_nonnull(bytes);
    for (size_t i = 0; i < count; i++)
        store_be64(bytes + i * 8, raw + i * step);
    ck_assert_int_eq(io_write(recipe_io(recipe), host_off, bytes, count * 8), 0);
    free(bytes);
}

void bomb_write_records(
    struct recipe *recipe, uint64_t host_off, const struct bomb_record *records, unsigned count)
{
    enum { RECORD_BYTES = 64 };
    uint8_t *bytes = calloc(count, RECORD_BYTES), head[12];
    ck_assert_ptr_nonnull(bytes);
    for (unsigned i = 0; i < count; i++) {
        uint8_t *p = bytes + (size_t)i * RECORD_BYTES;
        char id[16];
        snprintf(id, sizeof(id), "%08u", records[i].id);
        store_be64(p, records[i].l1_off);
        store_be32(p + 8, records[i].l1_size);
        store_be16(p + 12, 8);  /* length of the ID */
        store_be32(p + 36, 16); /* extra data: VM state size, then the disk's */
        store_be64(p + 48, records[i].disk_size);
        memcpy(p + 56, id, 8);
    }
    ck_assert_int_eq(io_write(recipe_io(recipe), host_off, bytes, (size_t)count * RECORD_BYTES), 0);
    store_be32(head, count);
    store_be64(head + 4, host_off);
    ck_assert_int_eq(io_write(recipe_io(recipe), QCOW2_HDR_SNAPSHOT_COUNT, head, sizeof(head)), 0);
    free(bytes);
}

double bomb_seconds(void)
{
    return (double)clock() / CLOCKS_PER_SEC;
}

void bomb_within(double before, unsigned seconds, const char *what)
{
    double took = bomb_seconds() - before;
    const char *limits = getenv("LIMITS");
    ck_assert_msg(took < seconds * BOMB_SLOWER, "%s: %f s", what, took);
    if (limits && strcmp(limits, "print") == 0)
        printf("| %s | %.1f s | | %u s |\n", what, took, seconds);
    fflush(stdout);
}

struct report bomb_repair(struct recipe *recipe, bool lossy)
{
    const struct repair_options how = {.lossy = lossy};
    struct check_options options = {.threads = 1};
    struct report report;
    report_init(&report, 10);
    repair_image(recipe_io(recipe), NULL, &options, &how, &report);
    return report;
}

struct report bomb_repair_within(
    struct recipe *recipe, bool lossy, int exit_code, unsigned seconds, const char *what)
{
    double before = bomb_seconds();
    struct report report = bomb_repair(recipe, lossy);
    bomb_within(before, seconds, what);
    ck_assert_msg(report_exit_code(&report) == exit_code, "%s: exit %d %s", what,
        report_exit_code(&report), report.problem);
    return report;
}
