#!/usr/bin/env bash
# Boots a Debian in a container of systemd's own (systemd-nspawn, without a network), installs the
# package given as argument in it, and starts the unit for real: sandbox, credential, notification,
# watchdog, reload, socket activation, upgrade, purge. As root, on a machine that need not have booted
# with systemd itself.
set -euo pipefail
cd "$(dirname "$0")/../../.."
. tests/python/deploy/report.sh

package=$1
machine=$PWD/.tools/systemd-root
report=$PWD/.tools/systemd-report

main() {
    [ "$(id -u)" -eq 0 ] || fail "containers need root"
    tests/setup.sh package-systemd
    if [ ! -e "$machine/complete" ]; then
        rm -rf "$machine"
        mkdir -p "$machine"
        debootstrap --variant=minbase --include=systemd,systemd-sysv,redis-server bookworm "$machine" >.tools/systemd-debootstrap.log
        touch "$machine/complete"
    fi
    prepare
    # What is written in there is gone with it, so that every run starts from the same state.
    timeout 180 systemd-nspawn --quiet --directory "$machine" --volatile=overlay --boot --private-network \
        --register=no --keep-unit --console=read-only --bind "$report:/report" \
        </dev/null >"$report/console" 2>&1 || true
    cat "$report/log"
    grep -q '^passed$' "$report/log" || fail "see $report"
}

# A unit that runs the checks at the end of the boot, and then ends it all.
prepare() {
    local units=$machine/etc/systemd/system
    rm -rf "$report"
    mkdir -p "$report" "$units/multi-user.target.wants"
    cp "$package" "$machine/root/dyndata.deb"
    cp tests/python/deploy/systemd_inside.sh "$machine/root/inside.sh"
    cat >"$units/inside.service" <<'UNIT'
[Unit]
After=redis-server.service
[Service]
Type=oneshot
ExecStart=/bin/bash /root/inside.sh
ExecStopPost=/bin/systemctl poweroff --force
StandardOutput=append:/report/log
StandardError=append:/report/log
[Install]
WantedBy=multi-user.target
UNIT
    ln -sf ../inside.service "$units/multi-user.target.wants/inside.service"
}

main
