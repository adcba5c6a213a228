/* SPDX-License-Identifier: MIT
 *
 * See listing.h. */
#include "listing.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <time.h>

#include "jvalue.h"
#include "text.h"

/* Three digits and a unit, as qemu-img shows sizes. */
static void format_size(uint64_t bytes, char *text, size_t size)
{
    static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
    int exponent;
    frexp((double)bytes / (1000.0 / 1024.0), &exponent);
    int unit = exponent > 0 ? (exponent - 1) / 10 : 0;
    snprintf(text, size, "%0.3g %sB", ldexp((double)bytes, -10 * unit), units[unit]);
}

static void print_snapshot(const struct qcow2_snapshot *s, FILE *out)
{
    char size[32], date[32], clock[64], icount[32] = "";
    time_t when = (time_t)s->date_sec;
    struct tm tm;
    uint64_t ms = s->vm_clock_nsec / 1000000, sec = ms / 1000;
    format_size(s->vm_state_size, size, sizeof(size));
    strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", localtime_r(&when, &tm));
    snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64,
        sec / 3600, sec / 60 % 60, sec % 60, ms % 1000);
    if (s->has_icount && s->icount != UINT64_MAX)
        snprintf(icount, sizeof(icount), "%" PRIu64, s->icount);
    text_print(out, s->id, s->id_len, 9);
    fputc(' ', out);
    text_print(out, s->name, s->name_len, 16);
    fprintf(out, " %8s%20s%13s%11s\n", size, date, clock, icount);
}

int listing_print(const struct qcow2_snapshot *list, uint32_t count, FILE *out)
{
    if (count > 0)
        fprintf(out, "Snapshot list:\n%-9s %-16s %8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
            "VM CLOCK", "ICOUNT");
    for (uint32_t i = 0; i < count; i++)
        print_snapshot(&list[i], out);
    return ferror(out) ? -EIO : 0;
}

/* ---- for scripts --------------------------------------------------------------------------- */

static int set_number(json_t *object, const char *key, uint64_t value)
{
    return json_object_set_new(object, key, jvalue_number(value));
}

static int set_text(json_t *object, const char *key, const uint8_t *bytes, size_t length)
{
    return json_object_set_new(object, key, jvalue_text(bytes, length));
}

/* NULL without memory. */
static json_t *snapshot_json(const struct qcow2_snapshot *s)
{
    json_t *object = json_object();
    int failed = set_text(object, "id", s->id, s->id_len);
    failed |= set_text(object, "name", s->name, s->name_len);
    failed |= set_number(object, "vm-state-size", s->vm_state_size);
    failed |= set_number(object, "date-sec", s->date_sec);
    failed |= set_number(object, "date-nsec", s->date_nsec);
    failed |= set_number(object, "vm-clock-nsec", s->vm_clock_nsec);
    if (s->has_disk_size)
        failed |= set_number(object, "disk-size", s->disk_size);
    if (s->has_icount && s->icount != UINT64_MAX)
        failed |= set_number(object, "icount", s->icount);
    if (!failed)
        return object;
    json_decref(object);
    return NULL;
}

int listing_json(const struct qcow2_snapshot *list, uint32_t count, FILE *out)
{
    json_t *array = json_array();
    int failed = array ? 0 : -1;
    for (uint32_t i = 0; i < count && !failed; i++)
        failed = json_array_append_new(array, snapshot_json(&list[i]));
    if (!failed)
        failed = json_dumpf(array, out, JSON_INDENT(4));
    json_decref(array);
    if (ferror(out) || (!failed && fputc('\n', out) == EOF))
        return -EIO;
    return failed ? -ENOMEM : 0;
}
