# Sourced by the set-up scripts: how a missing Debian package gets here.

# apt_install PACKAGE... installs from the distribution, with sudo where we are not root.
apt_install() {
    if ! command -v apt-get >/dev/null; then
        echo "error: install $* and try again (there is no apt-get here to do it)" >&2
        exit 1
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "error: install $* and try again (not root, and there is no sudo)" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "installing $* with apt-get" >&2
    # The lists may be missing or old; a failure to refresh them shows in the install.
    "${as_root[@]}" apt-get update -qq || true
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >&2; then
        echo "error: cannot install $*; install it yourself and try again" >&2
        exit 1
    fi
}
