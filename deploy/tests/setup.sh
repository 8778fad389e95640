#!/usr/bin/env bash
# Installs what `make test-deploy` needs into .tools: a Python environment, Prometheus and promtool.
# What is there already is left alone, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh
. tests/clients/python.sh

main() {
    command -v redis-server >/dev/null || apt_install redis-server
    # A certificate, so that the metrics of TLS show.
    command -v openssl >/dev/null || apt_install openssl
    python_environment deploy-venv deploy/tests/requirements.txt
    prometheus
}

# The distribution's package, unpacked and not installed: it would start a server of its own.
prometheus() {
    local directory=.tools/prometheus
    if [ ! -x "$directory/usr/bin/promtool" ]; then
        rm -rf "$directory"
        mkdir -p "$directory"
        # Where the lists of packages are missing or old, installing something refreshes them.
        (cd "$directory" && apt-get download -qq prometheus 2>/dev/null) ||
            { apt_install ca-certificates && (cd "$directory" && apt-get download -qq prometheus); }
        dpkg-deb -x "$directory"/prometheus_*.deb "$directory"
    fi
    mkdir -p .tools/bin
    ln -sf ../prometheus/usr/bin/prometheus ../prometheus/usr/bin/promtool .tools/bin/
}

main
