#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make lint: what a machine can hold of the rules of the house.  Flags of the compiler come as
# arguments.  Every rule is tried; the exit code tells whether one was broken.
set -uo pipefail

broken=0
complain() {
    broken=1
    printf 'lint: %s\n' "$1"
    [ $# -lt 2 ] || sed 's/^/  /' <<<"$2"
}
# rule MESSAGE COMMAND...: whatever the command prints breaks the rule.
rule() {
    local message=$1 found
    shift
    found=$("$@" 2>&1)
    [ -z "$found" ] || complain "$message" "$found"
}
# tool NAME COMMAND...: a program that fails breaks the rule.
tool() {
    local name=$1 found
    shift
    command -v "$1" >/dev/null || [ "$1" = xargs ] || { complain "$1 is missing: make deps"; return; }
    found=$("$@" 2>&1) || complain "$name" "$found"
}
matches() { grep -nE "$@" /dev/null; }

rooms=$(ls -d engine checker faultinj tests 2>/dev/null)
mapfile -t sources < <(find $rooms -name '*.c' | sort)
mapfile -t headers < <(find $rooms -name '*.h' | sort)
mapfile -t pages < <(find $rooms -name '*.1' | sort)
mapfile -t tables < <(find $rooms -name '*.def' | sort)
mapfile -t scripts < <(find $rooms .ci -name '*.sh' -o -name '*.bash' -o -path .ci/run | sort)
code=("${sources[@]}" "${headers[@]}")
product=() mains=(checker/qcheck.c engine/qsnap.c faultinj/qcrash.c)
for file in "${code[@]}"; do
    [[ $file == tests/* || " ${mains[*]} " == *" $file "* ]] || product+=("$file")
done

# ---- who may know whom ----------------------------------------------------------------------

# includes ROOM-FILES...: those whose quoted includes are neither of the same room nor allowed.
includes() {
    local allowed=$1 file name
    shift
    for file in "$@"; do
        for name in $(sed -n 's/^#include "\(.*\)"/\1/p' "$file"); do
            [ -e "${file%/*}/$name" ] || [[ " $allowed " == *" $name "* ]] ||
                echo "$file includes $name"
        done
    done
}
# Only where git knows what belongs to the tree.
strangers() {
    git ls-files 2>/dev/null | sed 's,/.*,,' | sort -u |
        grep -vxE 'engine|checker|faultinj|tests|corpus|Makefile|README[.]md|LICENSE|[.].*'
}
rule "at the top are the rooms, Makefile, README.md, LICENSE" strangers
inside() { printf '%s\n' "${code[@]}" | grep -E "$1"; }
rule "engine knows only itself" includes "" $(inside '^engine/')
rule "checker knows of the engine only io.h, the pure format, threads and text" \
    includes "io.h qcow2.h codec.h crew.h text.h jvalue.h" $(inside '^checker/')
rule "a fault model knows only io.h" includes "io.h" $(inside '^faultinj/fault')

# ---- size and shape -------------------------------------------------------------------------

long_files() { wc -l "$@" | awk '$1 > 500 && $2 != "total" {print $2 ": " $1 " lines"}'; }
long_functions() {
    awk 'FNR == 1 {start = 0}
         /^{/ {start = FNR}
         /^}/ && start {if (FNR - start - 1 > 70)
                            print FILENAME ":" start ": " FNR - start - 1 " lines"
                        start = 0}' "$@"
}
no_licence() {
    local file
    for file; do
        head -n 3 "$file" | grep -q 'SPDX-License-Identifier: MIT' || echo "$file"
    done
}
rule "files have up to 500 lines" long_files "${code[@]}"
rule "functions have up to 70 lines" long_functions "${code[@]}"
rule "lines have up to 100 columns" matches '^.{101}' "${code[@]}"
rule "SPDX line" no_licence "${code[@]}" "${tables[@]}" "${pages[@]}" "${scripts[@]}" Makefile

# ---- words ----------------------------------------------------------------------------------

rule "unsafe or forbidden functions" \
    matches '\b(strcpy|strcat|sprintf|vsprintf|gets|alloca|tmpnam|longjmp|setjmp)\(' "${code[@]}"
rule "exit() only in the programs" matches '\b_?exit\(' "${product[@]}"
rule "only io_file.c talks to the kernel about files" matches \
    '\b(pread|pwrite|fsync|fdatasync|ftruncate|fallocate|preadv|pwritev)(64)?\(' \
    $(printf '%s\n' "${product[@]}" | grep -v '^engine/io_file')
rule "typedef only for function types" matches '^typedef [^(]*;' "${code[@]}"
rule "an offset says of what: host_off, guest_off" \
    matches 'int(32|64)_t \*?offset\b' "${code[@]}"
rule "unfinished work" matches '\b(TOD[O]|FIXM[E]|XX[X])\b' "${code[@]}" "${scripts[@]}"
rule "white space at the end of a line" matches '[[:space:]]$' "${code[@]}" "${scripts[@]}" Makefile
rule "tabs in C" matches $'\t' "${code[@]}"

# Variables that can change outlive a call only where a signal handler needs them.
mutable_statics() {
    local object source name
    for object in $(find "$build" -name '*.o' ! -name 'test_*' ! -path '*/san/*'); do
        source=${object#"$build"/} source=${source%.o}.c
        [ -e "$source" ] || continue
        for name in $(objdump -t "$object" | awk '$0 ~ / O [.](data|bss)/ && $0 !~ /[.]rel[.]ro/ \
                      {sub(/[.][0-9]+$/, "", $NF); print $NF}'); do
            grep -qE "sig_atomic_t.*\b$name\b" "$source" || echo "$source: $name"
        done
    done
}
build=${BUILD:-build}
rule "mutable file-scope or static variables" mutable_statics

# ---- tools ----------------------------------------------------------------------------------

[ ${#pages[@]} -eq 0 ] || tool mandoc mandoc -Tlint -W warning "${pages[@]}"
for script in "${scripts[@]}"; do
    tool "$script" bash -n "$script"
done
tool clang-format clang-format --dry-run -Werror "${code[@]}"
tool "clang's warnings" clang "$@" -fsyntax-only "${sources[@]}"
tool cppcheck cppcheck --quiet --std=c11 --language=c --error-exitcode=1 --inline-suppr -j 2 \
    --enable=warning,performance,portability --suppress=missingIncludeSystem \
    --suppress=internalAstError --suppress=syntaxError:tests/* \
    -D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 \
    -Iengine -Ichecker -Ifaultinj -Itests "${sources[@]}"
# What the analyser cannot follow is left to the sanitizers of `make san`: memory that is handed
# over through a pointer to a pointer or kept in a container (leaks), and buffers that a function
# behind a pointer fills (uninitialised values).
analyse() {
    printf '%s\n' "${product[@]}" "${mains[@]}" | grep '[.]c$' |
        xargs -P 2 -n 1 gcc "${flags[@]}" -O2 -fanalyzer -Wno-error -Wno-analyzer-malloc-leak \
            -Wno-analyzer-use-of-uninitialized-value -S -o /dev/null 2>&1 |
        grep -A 3 'warning:'
}
flags=("$@")
tidy() {
    printf '%s\n' "${sources[@]}" |
        xargs -P 2 -n 4 sh -c 'clang-tidy --quiet "$@" -- '"$(printf '%q ' "${flags[@]}")"' 2>&1' sh |
        grep -v '^[0-9]* warnings\? generated' | grep -E -A 6 'error:|warning:'
}
rule "gcc -fanalyzer" analyse
rule clang-tidy tidy

[ "$broken" = 0 ] && echo "lint: clean"
exit "$broken"
