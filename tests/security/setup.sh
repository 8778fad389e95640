#!/usr/bin/env bash
# Installs what `make test-security` needs, pinned, into .tools: a Python environment, and h2spec.
# What is there already is left alone, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh
. tests/clients/python.sh

main() {
    python_environment security-venv tests/security/requirements.txt
    h2spec
}

h2spec() {
    local pins=tests/security/h2spec/go.mod directory="$PWD/.tools/h2spec"
    if [ ! -x "$directory/h2spec" ] || ! cmp -s "$pins" "$directory/go.mod"; then
        if ! command -v go >/dev/null; then
            apt_install golang-go
        fi
        # Inside the module, so that its go.mod and go.sum are what is installed.
        (cd tests/security/h2spec && GOBIN="$directory" go install github.com/summerwind/h2spec/cmd/h2spec)
        cp "$pins" "$directory/go.mod"
    fi
    mkdir -p .tools/bin
    ln -sf "$directory/h2spec" .tools/bin/h2spec
}

main
