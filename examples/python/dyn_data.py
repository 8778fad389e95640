"""The two functions of an application that wrote to Redis itself, now as calls of dyndata.

    pip install -r requirements.txt
    python -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. dyndata/v1/dyndata.proto
    . ../../.tools/examples/env    # see ../serve.sh
    python -c 'import dyn_data; dyn_data.mark_dyn_data(42, 100); print(dyn_data.get_dyn_data(42))'
"""

import functools
import json
import os
from pathlib import Path

import grpc
from dyndata.v1.dyndata_pb2 import GetRequest, MarkRequest
from dyndata.v1.dyndata_pb2_grpc import DynDataStub
from google.protobuf.duration_pb2 import Duration

ONLINE_LAST_SECONDS = 60
DEADLINE_SECONDS = 2
SERVICE = "dyndata.v1.DynData"
# Calls that may be repeated. The writes among them are safe as long as each id has one writer.
# Increment and MarkIf are left out: if a connection breaks, a retry could count twice.
RETRIED = ["Mark", "Get", "BatchGet", "BatchMark", "Unmark", "BatchUnmark", "Touch"]
# An overloaded server tells gRPC when to retry.
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
RETRIED_NAMES = [{"service": SERVICE, "method": method} for method in RETRIED]
SERVICE_CONFIG = {"methodConfig": [{"name": RETRIED_NAMES, "retryPolicy": RETRY_POLICY}]}


def mark_dyn_data(id, value):
    """Stores the number of an id for the next minute."""
    ttl = Duration(seconds=ONLINE_LAST_SECONDS)
    stub().Mark(MarkRequest(id=str(id), int_value=value, ttl=ttl), timeout=DEADLINE_SECONDS)


def get_dyn_data(id):
    """The number of an id, or 0 if there is none, since an unset field reads as 0 in protobuf."""
    return stub().Get(GetRequest(id=str(id)), timeout=DEADLINE_SECONDS).entry.int_value


@functools.cache
def stub():
    """The channel of this process. The first call makes it, since a channel does not survive a fork."""
    address = os.environ["DYNDATA_ADDR"].removeprefix("https://")
    authorities = Path(os.environ["DYNDATA_CLIENT_TLS_CA"]).read_bytes()
    token = Path(os.environ["DYNDATA_TOKEN_FILE"]).read_text().strip()
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(authorities), grpc.access_token_call_credentials(token)
    )
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    return DynDataStub(grpc.secure_channel(address, credentials, options))
