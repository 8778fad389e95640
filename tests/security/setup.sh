#!/usr/bin/env bash
# Installs what `make test-security` needs, pinned, into .tools: a Python environment, and h2spec.
# What is there already is left alone, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh

main() {
    python
    h2spec
}

python() {
    local venv=.tools/security-venv requirements=tests/security/requirements.txt
    # The copy inside says what was installed, so that a changed pin is noticed.
    if [ -x "$venv/bin/python" ] && cmp -s "$requirements" "$venv/requirements.txt"; then
        return
    fi
    # Debian's python3 alone can start venv, but has no ensurepip to fill it with.
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3 python3-venv
    fi
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
    cp "$requirements" "$venv/requirements.txt"
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
