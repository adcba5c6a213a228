#!/bin/bash
# SPDX-License-Identifier: MIT
#
# fuzz.sh SECONDS TARGET...: each target for SECONDS, one after the other, by libFuzzer, or with AFL
# set by AFL++.  Inputs that were worth keeping stay in $FUZZ_DIR (build/corpus), those that broke a
# promise in $FUZZ_DIR/TARGET.broken.
set -euo pipefail

build=${BUILD:-build}
work=${FUZZ_DIR:-$build/corpus}
seconds=$1
shift

seeds() {
    local dir=$work/$1.seeds
    mkdir -p "$dir" "$work/$1" "$work/$1.broken"
    case $1 in
    dmlog) "$build/tests/fuzz_tool" logs "$dir" ;;
    *) "$build/tests/fuzz_tool" seeds "$dir" ;;
    esac
}

broken=0
for target in "$@"; do
    seeds "$target"
    if [ -n "${AFL:-}" ]; then
        export AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_UI=1 \
            AFL_NO_AFFINITY=1 AFL_QUIET=1
        [ "$target" = dmlog ] || export AFL_CUSTOM_MUTATOR_LIBRARY=$build/afl/fuzz_mutations.so
        timeout -s INT "$seconds" afl-fuzz -i "$work/$target.seeds" -o "$work/$target.afl" \
            -t 10000 -m none -- "$build/afl/fuzz_$target" >/dev/null || true
        unset AFL_CUSTOM_MUTATOR_LIBRARY
        grep -hE '^(execs_done|run_time|edges_found|saved_crashes|saved_hangs)' \
            "$work/$target.afl/default/fuzzer_stats" | sed "s/^/$target: /"
        cp "$work/$target.afl"/default/{crashes,hangs}/id* "$work/$target.broken/" 2>/dev/null || true
    else
        ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1 "$build/fuzz/fuzz_$target" \
            -max_total_time="$seconds" -max_len=65536 -timeout=60 -rss_limit_mb=4096 \
            -malloc_limit_mb=1024 -print_final_stats=1 -reload=0 -ignore_crashes=1 -fork=1 \
            -artifact_prefix="$work/$target.broken/" "$work/$target" "$work/$target.seeds" \
            >"$work/$target.log" 2>&1 || true
        echo "$target: $(grep -E '^#[0-9]+:? ' "$work/$target.log" | tail -1)"
    fi
    found=$(find "$work/$target.broken" -type f | wc -l)
    [ "$found" = 0 ] || broken=1
    echo "$target: $found inputs broke a promise"
done
exit "$broken"
