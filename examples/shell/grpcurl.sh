#!/usr/bin/env bash
# Mark, Get, BatchGet, Increment and an error, with grpcurl (github.com/fullstorydev/grpcurl, 1.8.7 or newer).
#
#     . .tools/examples/env    # see ../serve.sh
#     examples/shell/grpcurl.sh
set -euo pipefail

# grpcurl replaces the variable itself, so that no list of processes shows the token.
DYNDATA_TOKEN=$(<"$DYNDATA_TOKEN_FILE")
export DYNDATA_TOKEN

# shellcheck disable=SC2016 # grpcurl expands DYNDATA_TOKEN, not this shell
# call METHOD REQUEST: the limits for connecting and for the call are in seconds.
call() {
    grpcurl -cacert "$DYNDATA_CLIENT_TLS_CA" -connect-timeout 2 -max-time 2 \
        -expand-headers -H 'authorization: Bearer ${DYNDATA_TOKEN}' \
        -d "$2" "${DYNDATA_ADDR#https://}" "dyndata.v1.DynData/$1"
}

call Mark '{"namespace": "examples", "id": "alice", "int_value": 100, "ttl": "30s"}'
call Get '{"namespace": "examples", "id": "alice"}'
# An entry without a value means that the id is not marked, which is not an error.
call BatchGet '{"namespace": "examples", "ids": ["alice", "bob"]}'
call Increment '{"namespace": "examples", "id": "visits", "ttl": "30s"}'
# An error has a reason for programs. The exit code is the gRPC code plus 64.
call Get '{"namespace": "examples", "id": ""}' 2>&1 || echo "exit code $?"
