# Sourced by the tests that are scripts: what they say.

# step WHAT... says what has been seen to work.
step() {
    echo "ok     $*"
}

# fail WHY... ends the test.
fail() {
    echo "FAILED $*" >&2
    exit 1
}
