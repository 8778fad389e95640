#!/usr/bin/env bash
# Installs what `make test-examples` needs, pinned, and generates the stubs of the examples, with the
# commands that they give themselves. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh
. tests/clients/python.sh

main() {
    if ! command -v openssl >/dev/null; then
        apt_install openssl
    fi
    # redis-server, grpcurl, buf and with it npm
    tests/clients/setup.sh
    python_example
    go_example
    node
}

python_example() {
    local venv=examples-venv
    python_environment "$venv" examples/python/requirements.txt tests/examples/requirements.txt
    (
        cd examples/python
        "../../.tools/$venv/bin/python" -m grpc_tools.protoc -I ../../proto \
            --python_out=. --grpc_python_out=. dyndata/v1/dyndata.proto
    )
}

go_example() {
    if ! command -v go >/dev/null; then
        apt_install golang-go
    fi
    # From 1.21 on, Go fetches the release that go.mod names by itself.
    case "$(cd / && go env GOVERSION)" in
    go1.1[0-9]* | go1.20*)
        echo "error: examples/go needs Go 1.24, or 1.21 that fetches it; here is $(cd / && go env GOVERSION)" >&2
        exit 1
        ;;
    esac
    local generated=examples/go/dyndatapb/dyndata_grpc.pb.go source newer=yes
    for source in proto/dyndata/v1/dyndata.proto examples/go/go.mod examples/go/buf.gen.yaml; do
        [ "$generated" -nt "$source" ] || newer=no
    done
    if [ "$newer" = no ]; then
        # The generators are built at the first time, which takes most of it.
        (cd examples/go && PATH="$PWD/../../.tools/npm/node_modules/.bin:$PATH" go generate)
    fi
    (cd examples/go && go build -o ../../.tools/examples-go .)
}

node() {
    local installed=examples/node/node_modules/.package-lock.json
    if [ ! "$installed" -nt examples/node/package-lock.json ]; then
        npm ci --prefix examples/node --no-audit --no-fund --ignore-scripts --loglevel=error
    fi
}

main
