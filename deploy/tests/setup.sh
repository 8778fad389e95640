#!/usr/bin/env bash
# Installs what `make test-deploy` needs into .tools: a Python environment, Prometheus and promtool.
# What is there already is left alone, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh

main() {
    command -v redis-server >/dev/null || apt_install redis-server
    # A certificate, so that the metrics of TLS show.
    command -v openssl >/dev/null || apt_install openssl
    python
    prometheus
}

python() {
    local venv=.tools/deploy-venv requirements=deploy/tests/requirements.txt
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
