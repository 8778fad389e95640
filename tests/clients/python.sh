# Sourced by the set-up scripts, after apt.sh: a Python environment of pinned packages.

# python_environment NAME REQUIREMENTS... makes .tools/NAME, unless it is there with just these.
python_environment() {
    local venv=.tools/$1 file arguments=()
    shift
    # The copy inside says what was installed, so that a changed pin is noticed.
    if [ -x "$venv/bin/python" ] && cat "$@" | cmp -s - "$venv/requirements.txt"; then
        return
    fi
    # Debian's python3 alone can start venv, but has no ensurepip to fill it with.
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3 python3-venv
    fi
    for file in "$@"; do
        arguments+=(-r "$file")
    done
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "${arguments[@]}"
    cat "$@" >"$venv/requirements.txt"
}
