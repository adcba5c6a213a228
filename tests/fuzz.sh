#!/bin/bash
# SPDX-License-Identifier: MIT
#
# fuzz.sh SECONDS TARGET...: each target for SECONDS, one after the other, by libFuzzer, or with AFL
# set by AFL++.  Inputs that were worth keeping stay in $FUZZ_DIR (build/corpus), those that broke a
# promise in $FUZZ_DIR/TARGET.broken; each fuzzer also starts from what the other one kept.
# $FUZZ_DIR/totals has a line a run, and their sums are printed at the end.
set -euo pipefail

build=${BUILD:-build}
work=${FUZZ_DIR:-$build/corpus}
fuzzer=${AFL:+afl++}
fuzzer=${fuzzer:-libfuzzer}
seconds=$1
shift

seeds() {
    local dir=$work/$1.seeds
    mkdir -p "$dir" "$work/$1" "$work/$1.broken" "$work/$1.afl/default/queue"
    case $1 in
    dmlog) "$build/tests/fuzz_tool" logs "$dir" ;;
    *) "$build/tests/fuzz_tool" seeds "$dir" ;;
    esac
}

# Each runs a target and its children to the end; what it found out goes to $work/TARGET.log.
run_libfuzzer() {
    ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1 "$build/fuzz/fuzz_$1" \
        -max_total_time="$seconds" -max_len=65536 -timeout=60 -report_slow_units=60 \
        -rss_limit_mb=4096 \
        -malloc_limit_mb=1024 -print_final_stats=1 -reload=0 -ignore_crashes=1 -fork=1 \
        -artifact_prefix="$work/$1.broken/" "$work/$1" "$work/$1.seeds" \
        "$work/$1.afl/default/queue" >"$work/$1.log" 2>&1
}
run_afl() {
    local out=$work/$1.afl
    export AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_UI=1 \
        AFL_NO_AFFINITY=1 AFL_FORKSRV_INIT_TMOUT=60000
    [ "$1" = dmlog ] || export AFL_CUSTOM_MUTATOR_LIBRARY=$build/afl/fuzz_mutations.so
    mkdir -p "$work/$1.start"
    find "$work/$1" "$work/$1.seeds" "$out/default/queue" -maxdepth 1 -type f -size -64k \
        -exec cp -t "$work/$1.start" {} +
    afl-fuzz -i "$work/$1.start" -o "$work/$1.new" -t 10000 -m none -V "$seconds" \
        -- "$build/afl/fuzz_$1" 1000 >"$work/$1.afl.log" 2>&1
}

# Executions, coverage (edges of AFL++; blocks and features of libFuzzer), inputs kept.
result_libfuzzer() {
    sed -nE 's/^#([0-9]+):? .*cov: ([0-9]+) ft: ([0-9]+) corp: ([0-9]+).*/\1 \2 \3 \4/p' \
        "$work/$1.log" | tail -1
}
result_afl() {
    local out=$work/$1.new/default
    awk '/^execs_done/ {execs = $3} /^edges_found/ {edges = $3} /^corpus_count/ {kept = $3}
        END {print execs + 0, edges + 0, 0, kept + 0}' "$out/fuzzer_stats"
    cp "$out"/{crashes,hangs}/id* "$work/$1.broken/" 2>/dev/null || true
    rm -rf "$work/$1.afl" "$work/$1.start"
    mv "$work/$1.new" "$work/$1.afl"
}

broken=0
TIMEFORMAT='%U %S'
for target in "$@"; do
    seeds "$target"
    run=${fuzzer%++}
    cpu=$({ time "run_$run" "$target" || true; } 2>&1 | awk 'END {printf "%.0f", $1 + $2}')
    result=$("result_$run" "$target")
    read -r execs coverage features kept <<<"$result" || true
    echo "$target $fuzzer ${execs:-0} $cpu ${coverage:-0} ${features:-0} ${kept:-0}" |
        tee -a "$work/totals"
    found=$(find "$work/$target.broken" -type f | wc -l)
    [ "$found" = 0 ] || broken=1
    echo "$target: $found inputs broke a promise"
done
awk '
    {key = $1 " " $2; execs[key] += $3; cpu[key] += $4; last[key] = $5; all += $4}
    $6 > features[key] {features[key] = $6}
    END {
        for (key in execs)
            printf "%-18s %12d executions %7d CPU seconds, coverage %d, features %d\n", key,
                execs[key], cpu[key], last[key], features[key] | "sort"
        close("sort")
        printf "together %.2f CPU hours\n", all / 3600
    }' "$work/totals"
exit "$broken"
