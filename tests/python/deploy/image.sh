#!/usr/bin/env bash
# Builds deploy/Containerfile with buildah and runs the image, without a registry and without an
# engine: the build image is Debian by debootstrap with this machine's Rust toolchain, and programs
# run in chroot isolation, with this machine's network. As root.
# PROFILE=release builds what is shipped; the default is quicker.
set -euo pipefail
cd "$(dirname "$0")/../../.."
. tests/python/deploy/report.sh

profile=${PROFILE:-dev}
work=$PWD/.tools/image
base=$work/base
container=

main() {
    [ "$(id -u)" -eq 0 ] || fail "chroot isolation needs root"
    tests/setup.sh image
    trap clean_up EXIT
    build_image_without_a_registry
    build
    look_inside
    run
}

# Storage of its own, so that this machine's images stay as they are.
in_work() {
    buildah --root "$work/storage" --runroot "$work/run" --storage-driver overlay "$@"
}

build_image_without_a_registry() {
    if [ ! -e "$base/complete" ]; then
        rm -rf "$base"
        mkdir -p "$work"
        debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$base" >"$work/debootstrap.log"
        touch "$base/complete"
    fi
    if in_work inspect --type image build-base >/dev/null 2>&1; then
        return
    fi
    container=$(in_work from scratch)
    in_work copy --quiet "$container" "$base" / >/dev/null
    local toolchain
    toolchain=$(rustc --print sysroot)
    in_work copy --quiet "$container" "$toolchain/bin" /usr/local/bin >/dev/null
    # Without the documentation, which is most of it.
    in_work copy --quiet "$container" "$toolchain/lib" /usr/local/lib >/dev/null
    in_work commit --quiet "$container" build-base >/dev/null
    in_work rm "$container" >/dev/null
    step "a build image: debootstrap, and $(rustc --version)"
}

build() {
    local registry=${CARGO_HOME:-$HOME/.cargo}/registry
    mkdir -p "$registry"
    # Only the docker format has room for a HEALTHCHECK. The crates that this machine has are not
    # fetched again.
    in_work build --isolation chroot --format docker --file deploy/Containerfile --tag dyndata \
        --build-arg BUILD_IMAGE=localhost/build-base --build-arg PROFILE="$profile" \
        --volume "$registry:/root/.cargo/registry" .
    step "buildah build, profile $profile"
}

look_inside() {
    container=$(in_work from dyndata)
    local root files user
    root=$(in_work mount "$container")
    user=$(in_work inspect --format '{{.Docker.Config.User}}' "$container")
    [ "$user" = 65532:65532 ] || fail "the image runs as $user"
    in_work inspect --format '{{.Docker.Config.Healthcheck.Test}}' "$container" |
        grep -q '/usr/bin/dyndata health' || fail "no HEALTHCHECK"
    if [ -e "$root/bin/sh" ] || [ -e "$root/usr/bin/sh" ]; then
        fail "a shell in the image"
    fi
    files=$(cd "$root" && find . -xdev -type f -size +0 -printf '%s %P\n')
    echo "$files"
    step "the image: $(echo "$files" | awk '{n += $1} END {printf "%.1f MB", n / 1e6}'), no shell, not root, a HEALTHCHECK"
}

run() {
    # Chroot isolation has this machine's network, where the usual ports may be in use.
    local settings=(--env DYNDATA_LISTEN=127.0.0.1:50851 --env DYNDATA_ADMIN_LISTEN=127.0.0.1:50852
        --env DYNDATA_ADDR=http://localhost:50851)
    local log=$work/serve.log tries=0
    in_work run --isolation chroot "${settings[@]}" "$container" -- /usr/bin/dyndata serve >"$log" 2>&1 &
    # By a name, so that the image's resolver is used, too.
    until in_work run --isolation chroot "${settings[@]}" "$container" -- /usr/bin/dyndata health; do
        tries=$((tries + 1))
        [ "$tries" -lt 20 ] || fail "not healthy: $(cat "$log")"
        sleep 0.5
    done
    local server
    server=$(pgrep -f -u 65532 '^/usr/bin/dyndata serve$')
    kill -TERM "$server"
    wait %% || fail "the server ended with $?: $(cat "$log")"
    step "serves, is healthy and stops as user 65532"
}

clean_up() {
    if [ -n "$container" ]; then
        in_work rm "$container" >/dev/null 2>&1 || true
    fi
}

main
