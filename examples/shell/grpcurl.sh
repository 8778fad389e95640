#!/usr/bin/env bash
# Mark, Get, BatchGet and an error, with grpcurl (github.com/fullstorydev/grpcurl, 1.8.7 or newer).
#
#     . .tools/examples/env    # see ../serve.sh
#     examples/shell/grpcurl.sh
set -euo pipefail

# grpcurl puts the variable into the header itself, so that the token is in no list of processes.
DYNDATA_TOKEN=$(<"$DYNDATA_TOKEN_FILE")
export DYNDATA_TOKEN

# shellcheck disable=SC2016 # it is not this shell that expands DYNDATA_TOKEN
# call METHOD REQUEST: both limits in seconds, for connecting and for the call.
call() {
    grpcurl -cacert "$DYNDATA_CLIENT_TLS_CA" -connect-timeout 2 -max-time 2 \
        -expand-headers -H 'authorization: Bearer ${DYNDATA_TOKEN}' \
        -d "$2" "${DYNDATA_ADDR#https://}" "dyndata.v1.DynData/$1"
}

call Mark '{"namespace": "examples", "id": "alice", "int_value": 100, "ttl": "30s"}'
call Get '{"namespace": "examples", "id": "alice"}'
# An entry without a value is an id that nobody marked lately: an answer, not an error.
call BatchGet '{"namespace": "examples", "ids": ["alice", "bob"]}'
# An error has a reason that programs can switch on; the exit code is gRPC's and 64.
call Get '{"namespace": "examples", "id": ""}' 2>&1 || echo "exit code $?"
