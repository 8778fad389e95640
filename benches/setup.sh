#!/bin/sh
# Installs what the benchmark runs beside the service. Running it again changes nothing.
set -eu

benches=$(cd "$(dirname "$0")" && pwd)
tools=$benches/../.tools
environment=$tools/bench-venv
generated=$tools/bench-python

# A program, and the Debian package that has it. perf and strace count system calls; one is enough.
missing=
need() {
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need redis-server redis-server
need redis-benchmark redis-tools
need h2load nghttp2-client
need webdis webdis
need setpriv util-linux
command -v perf >/dev/null 2>&1 || need strace strace
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"

if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" -eq 0 ] || sudo=sudo
    # A service that the package starts by itself would run beside what is measured.
    $sudo apt-get update -q
    # shellcheck disable=SC2086 # a list of packages
    $sudo env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
fi

if ! "$environment/bin/python" -c 'import grpc, grpc_tools, redis' 2>/dev/null; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check \
        'grpcio>=1.70,<2' 'grpcio-tools>=1.70,<2' 'redis>=6,<9'
fi

mkdir -p "$generated"
"$environment/bin/python" -m grpc_tools.protoc -I "$benches/../proto" \
    --python_out="$generated" --grpc_python_out="$generated" dyndata/v1/dyndata.proto
