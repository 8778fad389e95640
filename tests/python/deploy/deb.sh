#!/usr/bin/env bash
# Installs the package given as argument on this machine, runs it as its unit would, and removes it.
# As root. Refuses a machine that has dyndata installed or configured: it purges both at the end.
set -euo pipefail
cd "$(dirname "$0")/../../.."
. tests/python/deploy/report.sh

package=$1
unit=/usr/lib/systemd/system/dyndata.service
environment=/etc/dyndata/dyndata.env

main() {
    refuse_what_is_in_use
    tests/setup.sh package-install
    trap clean_up EXIT

    dpkg -i "$package"
    step "dpkg -i"
    verify
    starts_as_the_unit_would

    dpkg -r dyndata
    # Debian masks a removed package's units until it is purged; that is systemd's and dpkg's to keep.
    [ "$(left | grep -Ev '^/var/lib/|^/etc/systemd/system/dyndata[.](service|socket)$')" = \
        "$(printf '%s\n' /etc/dyndata "$environment")" ] || fail "dpkg -r left: $(left)"
    step "dpkg -r leaves the configuration"
    dpkg -P dyndata
    [ -z "$(left)" ] || fail "dpkg -P left: $(left)"
    step "dpkg -P leaves nothing"
}

refuse_what_is_in_use() {
    [ "$(id -u)" -eq 0 ] || fail "dpkg needs root"
    if dpkg-query -W dyndata >/dev/null 2>&1 || [ -n "$(left)" ]; then
        fail "dyndata is installed or configured here; purge it first"
    fi
}

verify() {
    [ "$(stat -c %a:%U "$environment")" = 640:root ] || fail "$environment is not root's alone"
    dpkg-query -W -f '${Conffiles}' dyndata | grep -q "$environment" || fail "not a conffile"
    # In a chroot or container, man itself may be missing; everything else that is said is a fault.
    local said
    said=$(systemd-analyze verify "$unit" "${unit%.service}.socket" 2>&1 | grep -v "Command 'man " || true)
    [ -z "$said" ] || fail "systemd-analyze verify: $said"
    step "systemd-analyze verify"
    systemd-analyze security --offline=true --threshold=15 --no-pager "$unit" | tail -1
    step "systemd-analyze security: 1.5 or better"
    local page
    for page in dyndata dyndata-serve dyndata-mark dyndata-token-new; do
        [ -s "/usr/share/man/man1/$page.1.gz" ] || fail "no man page $page"
    done
    bash -n /usr/share/bash-completion/completions/dyndata
    step "man pages and completions"
}

# What systemd would do, less the sandbox: the unit's command, its settings, a user with no name,
# rights or files, and a socket to say READY=1 to.
starts_as_the_unit_would() {
    local command
    command=$(sed -n 's/^ExecStart=//p' "$unit")
    # shellcheck disable=SC2086 # the unit's command is words
    (cd tests/python && timeout 60 python3 -m deploy.as_unit "$environment" $command)
    step "starts, is healthy, reloads and stops as an unprivileged user"
}

# What there is of dyndata in the places where packages put things.
left() {
    find /etc/dyndata /etc/systemd/system /usr/bin /usr/share /usr/lib/systemd /var/lib/systemd \
        /var/lib/dpkg/info \( -name '*dyndata*' -o -path '/etc/dyndata/*' \) 2>/dev/null | sort
}

clean_up() {
    dpkg -P dyndata >/dev/null 2>&1 || true
}

main
