#!/bin/bash
# SPDX-License-Identifier: MIT
#
# coverage.sh BUILD ROOM...: what the last run reached, file by file and room by room, from the
# notes that gcov reads.  BUILD/uncovered gets every line that was not reached; those that
# unreached.def gives no reason for are printed, and then the exit code is 1; so are reasons that
# explain nothing.
set -euo pipefail

build=$1
shift
: >"$build/uncovered"
for room in "$@"; do
    for source in "$room"/*.c; do
        object=$build/${source%.c}.o
        [ -e "${object%.o}.gcda" ] || { echo "$source 0 0 0 0"; continue; }
        gcov -b -t -o "$object" "$source" 2>/dev/null >"$build/gcov.text"
        # Of what a file includes only its own lines count.
        awk -v source="$source" -v unreached="$build/uncovered" '
            /^ *-: *0:Source:/ {mine = index($0, "Source:" source) > 0}
            !mine {next}
            /^ *[0-9]+\*?: *[1-9]/ {lines++; hit++}
            /^ *#####: *[1-9]/ {
                lines++
                line = $0
                sub(/^ *#####: */, "", line)
                split(line, part, ":")
                sub(/^[0-9]+: */, "", line)
                print source ":" part[1] ": " line >>unreached
            }
            /^branch/ {branches++; if ($0 !~ /never executed|taken 0( |%|$)/) taken++}
            END {print source, hit + 0, lines + 0, taken + 0, branches + 0}' "$build/gcov.text"
    done
done | awk '
    function percent(a, b) {return b ? 100 * a / b : 100}
    {
        room = $1; sub("/.*", "", room)
        printf "%-32s lines %5.1f %%  branches %5.1f %%\n", $1, percent($2, $3), percent($4, $5)
        for (i = 2; i <= 5; i++) {sum[room, i] += $i; all[i] += $i}
        rooms[room]
    }
    END {
        for (room in rooms)
            printf "%-32s lines %5.1f %%  branches %5.1f %%\n", room "/",
                percent(sum[room, 2], sum[room, 3]), percent(sum[room, 4], sum[room, 5])
        printf "%-32s lines %5.1f %% of %d  branches %5.1f %% of %d\n", "together",
            percent(all[2], all[3]), all[3], percent(all[4], all[5]), all[5]
    }'

awk -v reasons=tests/unreached.def '
    BEGIN {
        while ((getline rule < reasons) > 0) {
            if (rule ~ /^(#|$)/)
                continue
            maybe[++count] = sub(/^\? /, "", rule)
            split(rule, part, " :: ")
            file[count] = "^" part[1] "$"; text[count] = part[2]
        }
    }
    {
        name = $0; sub(/:.*/, "", name)
        line = $0; sub(/^[^ ]* /, "", line); sub(/ *\/\*.*$/, "", line)
        for (i = 1; i <= count; i++)
            if (name ~ file[i] && line ~ text[i]) {explained++; used[i]++; next}
        print "not reached, and no reason given: " $0
        open++
    }
    END {
        for (i = 1; i <= count; i++)
            if (!used[i] && !maybe[i])
                print "a reason that explains nothing: " file[i] " :: " text[i]
        printf "%d lines not reached for a reason of tests/unreached.def, %d without one\n",
            explained, open
        exit open > 0
    }' "$build/uncovered"
