#!/usr/bin/env bash
# Gives each libFuzzer target a number of inputs, and reports how many it took and how much code they
# reached. Ends at the first crash, whose input is then in fuzz/artifacts.
#
#     fuzz/run.sh [CASES [TARGET...]]
set -euo pipefail
cd "$(dirname "$0")/.."

cases=${1:-1000000}
shift || true
# Ends a target that has become very slow.
max_seconds=3600
# An input that takes longer is a finding.
max_seconds_per_input=10
tool=.tools/cargo-fuzz/bin/cargo-fuzz

tests/setup.sh fuzz
cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null

# Without a sanitizer, no nightly toolchain is needed, and a target takes more than twice as many
# inputs a second. Sanitizers find bugs of unsafe code, of which there is none here.
options=(--sanitizer none --target-dir target/fuzz)
$tool build "${options[@]}"

targets=("$@")
test $# -gt 0 || readarray -t targets < <($tool list)
summary=
for target in "${targets[@]}"; do
    echo "== $target"
    log=target/fuzz/$target.log
    mkdir -p "fuzz/corpus/$target"
    # libFuzzer logs a line for each input that reaches new code. These lines are hidden, and so are
    # hints about sanitizers and dictionaries.
    $tool run "${options[@]}" "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -runs="$cases" -max_total_time=$max_seconds -timeout=$max_seconds_per_input 2>&1 |
        tee "$log" | grep --text --line-buffered -Ev \
        '^#[0-9]+\s+(NEW|REDUCE|RELOAD)|NEW_FUNC|^WARNING: Failed to find function|dictionary|^"'
    runs=$(sed -nE 's/^Done ([0-9]+) runs .*/\1/p' "$log")
    summary+="$target: $(grep --text -E '^#[0-9]+\s+DONE' "$log")"$'\n'
    if [ "$runs" -lt "$cases" ]; then
        echo "error: $target took $runs of $cases inputs in $max_seconds s" >&2
        exit 1
    fi
done
printf '== all\n%s' "$summary"
