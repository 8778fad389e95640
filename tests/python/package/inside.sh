#!/usr/bin/env bash
# test_systemd.py runs this in the Debian that it has booted.
set -euo pipefail

main() {
    trap 'describe $?' EXIT
    dpkg -i /root/dyndata.deb >/dev/null
    is dyndata.service inactive
    settings
    starts
    reloads
    watchdog
    restarts_behind_a_socket
    removes
    echo passed
}

# Redis requires the password that the credential contains.
settings() {
    echo secret >/etc/dyndata/redis-password
    chmod 600 /etc/dyndata/redis-password
    redis-cli config set requirepass secret >/dev/null
    mkdir -p /etc/systemd/system/dyndata.service.d
    cat >/etc/systemd/system/dyndata.service.d/override.conf <<'UNIT'
[Service]
LoadCredential=redis-password:/etc/dyndata/redis-password
WatchdogSec=2s
UNIT
    cat >>/etc/dyndata/dyndata.env <<'SETTINGS'
REDIS_URL=redis://127.0.0.1:6379
DYNDATA_REDIS_PASSWORD_FILE=/run/credentials/dyndata.service/redis-password
SETTINGS
    systemctl daemon-reload
}

starts() {
    timeout 30 systemctl start dyndata
    is dyndata.service active
    healthy
    dyndata mark 42 100 >/dev/null
    [ "$(redis-cli -a secret --no-auth-warning get dyn_data/42)" = 100 ]
    [ "$(stat -c %u "/proc/$(pid)")" -ge 61184 ]
    step "systemctl start: in its sandbox, with its credential, as user $(stat -c %u "/proc/$(pid)")"
    grep -E '^(Threads|CapEff|NoNewPrivs|Seccomp):|^Max open files' "/proc/$(pid)/status" "/proc/$(pid)/limits" -h
}

reloads() {
    local before
    before=$(pid)
    systemctl reload dyndata
    sleep 1
    [ "$(pid)" = "$before" ]
    healthy
    step "systemctl reload"
}

watchdog() {
    local before
    before=$(pid)
    # This is longer than WatchdogSec=. The process is the same, so it has notified the watchdog.
    sleep 4
    [ "$(pid)" = "$before" ]
    kill -STOP "$before"
    for _ in $(seq 40); do
        sleep 0.5
        [ "$(pid)" = "$before" ] || [ "$(pid)" = 0 ] || break
    done
    [ "$(pid)" != "$before" ]
    healthy
    step "a process that hangs is started again by the watchdog"
}

restarts_behind_a_socket() {
    systemctl stop dyndata
    systemctl start dyndata.socket
    is dyndata.service inactive
    healthy
    is dyndata.service active
    step "dyndata.socket starts the service at the first connection"
    # Calls run before, during and after the restart, and all are answered. The first answers may say
    # that Redis is not connected yet, which callers may retry.
    systemctl restart dyndata &
    local said
    for _ in $(seq 20); do
        said=$(dyndata mark 42 101 2>&1) || [[ $said == *BACKEND_UNAVAILABLE* ]] || {
            echo "$said"
            return 1
        }
    done
    wait %%
    step "restarted behind its socket, with every call answered"
    dpkg -i /root/dyndata.deb >/dev/null 2>&1
    healthy
    is dyndata.socket active
    step "installed again while it runs"
}

removes() {
    dpkg -r dyndata >/dev/null 2>&1
    is dyndata.service inactive
    is dyndata.socket inactive
    [ -e /etc/dyndata/dyndata.env ]
    dpkg -P dyndata >/dev/null 2>&1
    [ ! -e /etc/dyndata/dyndata.env ]
    step "removed: stopped first; purged: no settings left"
}

healthy() {
    for _ in $(seq 40); do
        if dyndata health >/dev/null 2>&1; then
            return
        fi
        sleep 0.25
    done
    dyndata health
}

is() {
    [ "$(systemctl is-active "$1")" = "$2" ]
}

pid() {
    systemctl show --property MainPID --value dyndata
}

step() {
    echo "ok     $*"
}

describe() {
    if [ "$1" -ne 0 ]; then
        systemctl status --no-pager --full dyndata.service dyndata.socket || true
        journalctl --no-pager -u dyndata -n 30 || true
    fi
}

main
