#!/bin/bash
# SPDX-License-Identifier: MIT
#
# make deps: installs what building and testing need and is not there yet.
set -euo pipefail

build="gcc make pkg-config zlib1g-dev libzstd-dev libjansson-dev libunwind-dev"
tests="check qemu-utils hyperfine valgrind libfuse3-dev fuse3"
lint="clang clang-format clang-tidy cppcheck mandoc"
fuzz="afl++" # clang has the other fuzzer

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "This is no Debian or Ubuntu. Please install what these packages have there:"
    echo "  to build: $build"
    echo "  to test:  $tests"
    echo "  to lint:  $lint"
    echo "  to fuzz:  $fuzz"
    exit 0
fi

missing=()
for package in $build $tests $lint $fuzz; do
    status=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing: ${missing[*]}"
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends "${missing[@]}"
