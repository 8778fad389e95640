#!/usr/bin/env bash
# Installs the foreign clients of `make test-clients`, each from its registry by name and pinned:
# redis-server, a Python environment, buf, and two releases of grpcurl; and what the pages' examples
# use besides. Everything but Debian's packages goes into .tools. What is there already is left
# alone, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh
. tests/clients/python.sh

# One release that asks for reflection v1, and the last that knows v1alpha only.
grpcurl_v1=v1.9.3
grpcurl_v1alpha=v1.8.7

main() {
    redis
    programs
    python_environment clients-venv tests/clients/requirements.txt
    bash tests/clients/setup-buf.sh
    local release
    release=$(v1_release)
    grpcurl grpcurl "$release"
    grpcurl grpcurl-v1alpha "$grpcurl_v1alpha"
}

programs() {
    local program
    for program in curl openssl; do
        command -v "$program" >/dev/null || apt_install "$program"
    done
}

redis() {
    if ! command -v redis-server >/dev/null || ! command -v redis-cli >/dev/null; then
        apt_install redis-server
    fi
}

# grpcurl NAME RELEASE builds a release as .tools/bin/NAME.
grpcurl() {
    local name=$1 release=$2 package=github.com/fullstorydev/grpcurl/cmd/grpcurl
    # go install names every binary grpcurl, and grpcurl does not know its own version: the folder
    # says the release.
    local directory="$PWD/.tools/grpcurl/$release"
    if [ ! -x "$directory/grpcurl" ]; then
        need_go
        GOBIN="$directory" go install "$package@$release"
    fi
    mkdir -p .tools/bin
    ln -sf "$directory/grpcurl" ".tools/bin/$name"
}

# Debian 12 has Go 1.19, for which this is the newest release; it asks for reflection v1 as well.
v1_release() {
    if [ -x ".tools/grpcurl/$grpcurl_v1/grpcurl" ]; then
        echo "$grpcurl_v1"
        return
    fi
    need_go >&2
    case "$(go env GOVERSION)" in
    go1.18* | go1.19* | go1.20*) echo v1.8.9 ;;
    *) echo "$grpcurl_v1" ;;
    esac
}

need_go() {
    if ! command -v go >/dev/null; then
        apt_install golang-go
    fi
}

main
