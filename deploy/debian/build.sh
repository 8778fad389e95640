#!/usr/bin/env bash
# Builds the Debian package from target/release/dyndata into target/debian, and prints its path. A
# second package (.ddeb) has the symbols for backtraces.
# Installs cargo-deb into .tools if it is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/setup.sh package

mkdir -p target/deb
rm -f target/deb/*.1
for command in '' serve mark get batch-get health 'token new' 'config check'; do
    page=dyndata${command:+-}${command// /-}
    # shellcheck disable=SC2086 # a command is words
    target/release/dyndata man $command >"target/deb/$page.1"
done
for shell in bash zsh fish; do
    target/release/dyndata completions "$shell" >"target/deb/dyndata.$shell"
done
# Removes older versions, so that dyndata_*.deb matches one file.
rm -f target/debian/*.deb target/debian/*.ddeb
.tools/cargo-deb/bin/cargo-deb --no-build --dbgsym --quiet
