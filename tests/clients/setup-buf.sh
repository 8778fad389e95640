#!/usr/bin/env bash
# Installs buf from npm into .tools, for `make check` (buf lint) and `make test-clients` (buf curl).
# Does nothing when the pinned version is there.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=1.75.0
buf=.tools/npm/node_modules/.bin/buf

if [ "$("$buf" --version 2>&1 || true)" = "$version" ]; then
    exit 0
fi

if ! command -v npm >/dev/null; then
    . tests/clients/apt.sh
    apt_install npm
fi

# The binary comes in a package of its own for each platform; the install script only checks it.
npm install --prefix .tools/npm --no-save --no-audit --no-fund --ignore-scripts --loglevel=error \
    "@bufbuild/buf@$version"
"$buf" --version >/dev/null
