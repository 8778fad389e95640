#!/usr/bin/env bash
# Builds the Debian package from target/release/dyndata, in target/debian; prints its path. The
# symbols for backtraces are a package of their own beside it (.ddeb).
# Installs cargo-deb into .tools if it is not there.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=3.8.0
cargo_deb=.tools/cargo-deb/bin/cargo-deb

# The debug build of the tool is quicker to install, and packs just as well.
if [ "$("$cargo_deb" --version 2>/dev/null || true)" != "$version" ]; then
    cargo install cargo-deb --version "$version" --locked --debug --quiet --root .tools/cargo-deb
fi
# dpkg-shlibdeps says which packages the libraries are in; objcopy splits off the debug symbols.
if ! command -v dpkg-shlibdeps >/dev/null || ! command -v objcopy >/dev/null; then
    . tests/clients/apt.sh
    apt_install dpkg-dev binutils
fi

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
# Only this version's, so that one name is all that matches.
rm -f target/debian/*.deb target/debian/*.ddeb
"$cargo_deb" --no-build --dbgsym --quiet
