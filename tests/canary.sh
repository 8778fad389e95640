#!/usr/bin/env bash
# Runs a command and fails if a secret of the tests is in anything that it prints.
#
# Every secret that the tests make up has this in it (CANARY in tests/support/mod.rs).
set -euo pipefail
canary=c4n4ry-7f3a9

output=$(mktemp)
trap 'rm -f "$output"' EXIT
"$@" 2>&1 | tee "$output"
if grep --text --line-number "$canary" "$output" | sed "s/$canary/SECRET/g"; then
    echo "$*: the lines above have a secret of the tests in them" >&2
    exit 1
fi
echo "$*: no secret in $(wc -l <"$output") lines"
