"""Mark, Get, BatchGet and Increment, an absent id, and the reason of an error.

Set up as dyn_data.py says; its stub has TLS, the token and the retries.

    python client.py
"""

import sys

import grpc
from dyn_data import DEADLINE_SECONDS, stub
from dyndata.v1.dyndata_pb2 import (
    BatchGetRequest,
    GetRequest,
    IncrementRequest,
    MarkRequest,
)
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

NAMESPACE = "examples"


def main():
    mark = MarkRequest(
        namespace=NAMESPACE, id="alice", int_value=100, ttl=Duration(seconds=30)
    )
    marked = stub().Mark(mark, timeout=DEADLINE_SECONDS)
    print("alice is marked until", marked.expire_time.ToJsonString())

    get = GetRequest(namespace=NAMESPACE, id="alice")
    print("Get:", describe(stub().Get(get, timeout=DEADLINE_SECONDS).entry))

    batch_get = BatchGetRequest(namespace=NAMESPACE, ids=["alice", "bob"])
    entries = stub().BatchGet(batch_get, timeout=DEADLINE_SECONDS).entries
    print("BatchGet:", ", ".join(map(describe, entries)))

    increment = IncrementRequest(
        namespace=NAMESPACE, id="visits", ttl=Duration(seconds=30)
    )
    counted = stub().Increment(increment, timeout=DEADLINE_SECONDS)
    print("Increment: visits is", counted.value)

    try:
        stub().Get(GetRequest(namespace=NAMESPACE, id=""), timeout=DEADLINE_SECONDS)
    except grpc.RpcError as error:
        print("refused:", explain(error))


def describe(entry):
    """An entry without a value means that the id is not marked, which is not an error."""
    kind = entry.WhichOneof("value")
    return f"{entry.id} is {getattr(entry, kind) if kind else 'not marked'}"


def explain(error):
    """The code, the reason (for programs) and the message (for people)."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            return f"{error.code().name} ({info.reason}): {error.details()}"
    # An error of gRPC itself, for example because it cannot reach the server.
    return f"{error.code().name}: {error.details()}"


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"error: {explain(error)}")
