#!/bin/bash
# SPDX-License-Identifier: MIT
#
# coverage.sh BUILD ROOM...: what the last run reached, file by file and room by room, from the
# notes that gcov reads.  BUILD/uncovered gets every line that was not reached.
set -euo pipefail

build=$1
shift
: >"$build/uncovered"
for room in "$@"; do
    for source in "$room"/*.c; do
        object=$build/${source%.c}.o
        [ -e "${object%.o}.gcda" ] || { echo "$source 0 0 0 0"; continue; }
        gcov -b -t -o "$object" "$source" 2>/dev/null >"$build/gcov.text"
        sed -n "s|^ *#####: *\([0-9]*\):|$source:\1:|p" "$build/gcov.text" >>"$build/uncovered"
        awk -v source="$source" '
            /^ *-: *0:Source:/ {mine = index($0, "Source:" source) > 0}
            !mine {next}
            /^ *[0-9]+\*?: *[1-9]/ {lines++; hit++}
            /^ *#####: *[1-9]/ {lines++}
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
