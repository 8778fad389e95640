#!/usr/bin/env bash
# Installs what `make test-proxies` needs: nginx, HAProxy and redis-server from the distribution, and the
# Python environment of `make test-clients`. What is there already is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/clients/apt.sh
. tests/clients/python.sh

# Debian has the proxies in /usr/sbin, which not everybody has in PATH.
PATH=$PATH:/usr/sbin
for package in nginx haproxy redis-server; do
    command -v "$package" >/dev/null || apt_install "$package"
done
python_environment clients-venv tests/clients/requirements.txt
