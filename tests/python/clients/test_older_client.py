"""Callers and servers of different ages: a new build must not surprise the clients of an older one.

The older client is made from older.proto, the contract before the calls that came after Mark, Get and
BatchGet. It knows nothing of the present contract.
"""

import sys

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet

from clients.clients import (
    BATCH_GET,
    BATCH_MARK,
    GET,
    INCREMENT,
    MARK,
    MARK_IF,
    SERVICE,
    TOUCH,
    UNMARK,
    PythonClient,
    python_error,
)
from support.credentials import write_access_file
from support.processes import CALL_SECONDS, ROOT, Dyndata, output

CONTRACT = ROOT / "tests/python/clients/older.proto"
NAMESPACE = "older"
# A field of a later contract: number 100, a varint of 1.
LATER_FIELD = b"\xa0\x06\x01"
# A call of a later contract.
LATER_CALL = f"{SERVICE}/NotYet"


class OlderClient:
    """grpcio with the messages of the older contract."""

    def __init__(self, address, descriptors):
        self.channel = grpc.insecure_channel(address)
        pool = descriptor_pool.DescriptorPool()
        for file in descriptors.file:
            pool.Add(file)
        self.service = pool.FindServiceByName(SERVICE)

    def call(self, method, **fields):
        """Returns the reply. The fields are those of the request, a message as a dictionary."""
        return self.send(method, self.request(method, **fields).SerializeToString())

    def request(self, method, **fields):
        return self._class(method, "input_type")(namespace=NAMESPACE, **fields)

    def send(self, method, request):
        """A call with the bytes of its request."""
        reply = self._class(method, "output_type")
        invoke = self.channel.unary_unary(f"/{method}", response_deserializer=reply.FromString)
        return invoke(request, timeout=CALL_SECONDS)

    def _class(self, method, direction):
        method = self.service.FindMethodByName(method.rpartition("/")[2])
        return message_factory.GetMessageClass(getattr(method, direction))


@pytest.fixture(scope="module")
def descriptors(tmp_path_factory):
    """The older contract, compiled."""
    compiled = tmp_path_factory.mktemp("older") / "descriptors"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{CONTRACT.parent}", CONTRACT]
    output([*protoc, "--include_imports", f"--descriptor_set_out={compiled}"])
    return descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())


@pytest.fixture(scope="module")
def older(server, descriptors):
    client = OlderClient(server.address, descriptors)
    with client.channel:
        yield client


@pytest.fixture(scope="module")
def present(server):
    with PythonClient(server.address) as client:
        yield client


VALUES = {
    "int": {"int_value": -(2**63)},
    "zero": {"int_value": 0},
    "string": {"string_value": "är da"},
    "empty": {"string_value": ""},
    "bytes": {"bytes_value": b"\xff\x00"},
}


@pytest.mark.parametrize("name", VALUES)
def test_an_older_client_marks_and_gets(older, name):
    value = VALUES[name]
    marked = older.call(MARK, id=name, ttl={"seconds": 1800}, **value)
    got = older.call(GET, id=name, include_expire_time=True)
    batch = older.call(BATCH_GET, ids=[name, "absent", name], include_expire_time=True)

    [(field, wanted)] = value.items()
    for entry in (got.entry, batch.entries[0], batch.entries[2]):
        assert (entry.id, entry.WhichOneof("value")) == (name, field)
        assert getattr(entry, field) == wanted
        # On Redis an expire time is the clock plus PTTL, so it may differ by some milliseconds.
        apart = entry.expire_time.ToMilliseconds() - marked.expire_time.ToMilliseconds()
        assert abs(apart) < 5_000
    absent = batch.entries[1]
    assert (absent.id, absent.WhichOneof("value")) == ("absent", None)
    assert not absent.HasField("expire_time")
    for reply in (marked, got, batch):
        assert unknown_fields(reply) == [], "the reply has fields that the client does not know"


def test_an_older_client_reads_what_the_new_calls_write(older, present):
    present.call(BATCH_MARK, {"namespace": NAMESPACE, "marks": [{"id": "new", "string_value": "a"}]})
    assert older.call(GET, id="new").entry.string_value == "a"
    present.call(MARK_IF, {"namespace": NAMESPACE, "id": "new", "bytes_value": "YQ=="})
    assert older.call(GET, id="new").entry.bytes_value == b"a"
    older.call(MARK, id="new", int_value=41)
    present.call(INCREMENT, {"namespace": NAMESPACE, "id": "new"})
    assert older.call(GET, id="new").entry.int_value == 42
    present.call(TOUCH, {"namespace": NAMESPACE, "ids": ["new"], "ttl": "1800s"})
    got = older.call(GET, id="new", include_expire_time=True)
    assert got.entry.int_value == 42
    assert unknown_fields(got) == []
    present.call(UNMARK, {"namespace": NAMESPACE, "id": "new"})
    assert older.call(GET, id="new").entry.WhichOneof("value") is None


def test_an_older_client_reads_the_reason_of_an_error(older):
    with pytest.raises(grpc.RpcError) as caught:
        older.call(MARK, id="", int_value=1)
    error = python_error(caught.value)
    seen = (error.code, error.domain, error.reason, error.fields, error.outcome)
    assert seen == ("INVALID_ARGUMENT", "dyndata", "ID_INVALID", ["id"], "not_executed")


def test_fields_of_a_later_contract_are_ignored(older):
    for method, fields in (
        (MARK, {"id": "later", "int_value": 7}),
        (GET, {"id": "later"}),
        (BATCH_GET, {"ids": ["later"]}),
    ):
        reply = older.send(method, older.request(method, **fields).SerializeToString() + LATER_FIELD)
    assert reply.entries[0].int_value == 7


def test_the_older_contract_is_a_part_of_the_present_one(descriptors, present):
    older = descriptors.file[-1]
    file = present.database.FindFileContainingSymbol(SERVICE)
    messages = {message.name: message for message in file.message_type}
    # The older build would ignore a new field on these, so there must be none.
    for message in older.message_type:
        assert messages[message.name] == message
    [older_service], [service] = older.service, file.service
    assert older_service.name == service.name
    methods = {method.name: method for method in service.method}
    assert [method.name for method in older_service.method] == ["Mark", "Get", "BatchGet"]
    for method in older_service.method:
        assert methods[method.name] == method


def test_an_unknown_call_is_unimplemented(older):
    error = unknown_call(older.channel)
    assert (error.code, error.domain, error.reason) == ("UNIMPLEMENTED", "dyndata", "UNIMPLEMENTED")


def test_only_a_known_caller_hears_that_a_call_is_unknown(binary, tmp_path):
    write_access_file(binary, tmp_path)
    token = (tmp_path / "token").read_text()
    access = f"--access-file={tmp_path / 'access.toml'}"
    with (
        Dyndata([binary, "serve"], access) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        error = unknown_call(channel)
        assert (error.code, error.reason) == ("UNAUTHENTICATED", "UNAUTHENTICATED")
        error = unknown_call(channel, ("authorization", f"Bearer {token}"))
        assert (error.code, error.reason) == ("UNIMPLEMENTED", "UNIMPLEMENTED")


def unknown_call(channel, *metadata):
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{LATER_CALL}")(b"", timeout=CALL_SECONDS, metadata=metadata)
    return python_error(caught.value)


def unknown_fields(message):
    """The numbers of the fields that a message and those inside it have beyond its type."""
    found = [field.field_number for field in UnknownFieldSet(message)]
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for inner in value if descriptor.is_repeated else [value]:
                found += unknown_fields(inner)
    return found
