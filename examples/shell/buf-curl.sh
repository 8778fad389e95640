#!/usr/bin/env bash
# Mark, Get, BatchGet, Increment and an error, with buf curl (npm install @bufbuild/buf).
#
#     . .tools/examples/env    # see ../serve.sh
#     examples/shell/buf-curl.sh
set -euo pipefail

proto=$(dirname "$0")/../../proto

# call METHOD REQUEST: --timeout is sent as the deadline. The token comes from a pipe, so that no list
# of processes shows it. Without --schema, buf would use reflection (and need --reflect-header '*'). If
# it could not reach the server, it would then only say that there is no such service.
call() {
    buf curl --protocol grpc --cacert "$DYNDATA_CLIENT_TLS_CA" --timeout 2s \
        --header "@"<(echo "authorization: Bearer $(<"$DYNDATA_TOKEN_FILE")") \
        --schema "$proto" --data "$2" "$DYNDATA_ADDR/dyndata.v1.DynData/$1"
}

call Mark '{"namespace": "examples", "id": "alice", "int_value": 100, "ttl": "30s"}'
call Get '{"namespace": "examples", "id": "alice"}'
# An entry without a value means that the id is not marked, which is not an error.
call BatchGet '{"namespace": "examples", "ids": ["alice", "bob"]}'
call Increment '{"namespace": "examples", "id": "visits", "ttl": "30s"}'
# An error has a reason for programs. The exit code is the gRPC code times 8.
call Get '{"namespace": "examples", "id": ""}' 2>&1 || echo "exit code $?"
