"""Watch through grpcio, which learns about the service by reflection alone."""

import time

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet

from clients.clients import BATCH_MARK, MARK, SERVICE, UNMARK, WATCH, PythonClient, own_id, python_error
from support.processes import CALL_SECONDS

SNAPSHOT_END, CHANGES = 2, 3
# A field of a later contract: number 100, a varint of 1.
LATER_FIELD = b"\xa0\x06\x01"
# Long enough for a busy machine to tell the value before it expires.
EXPIRY_SECONDS = 1.5


@pytest.fixture
def client(server):
    with PythonClient(server.address) as client:
        yield client


class Watching:
    """A Watch, and what it has told so far. Every wait ends with the deadline of the call."""

    def __init__(self, client, pool, added=b"", **request):
        method = pool.FindServiceByName(SERVICE).FindMethodByName("Watch")
        message = message_factory.GetMessageClass(method.input_type)(**request)
        reply = message_factory.GetMessageClass(method.output_type)
        invoke = client.channel.unary_stream(f"/{WATCH}", response_deserializer=reply.FromString)
        self.stream = invoke(message.SerializeToString() + added, timeout=CALL_SECONDS)
        self.known = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.cancel()

    def hear(self, kind):
        """Takes messages until one of this kind has come."""
        for message in self.stream:
            for entry in message.entries:
                field = entry.WhichOneof("value")
                self.known[entry.id] = getattr(entry, field) if field else None
                assert not entry.HasField("expire_time")
            if message.kind == kind:
                return message
        raise AssertionError("the watch has ended")

    def sees(self, id, value):
        while self.known.get(id) != value:
            self.hear(CHANGES)


def test_tells_a_snapshot_and_then_changes(client):
    number, text, absent = (own_id(client, f"watch {name}") for name in ("number", "text", "absent"))
    client.call(BATCH_MARK, {"marks": [{"id": number, "int_value": "0"}, {"id": text, "string_value": "är da"}]})
    with Watching(client, client.pool, ids=[number, text, absent, number]) as watching:
        watching.hear(SNAPSHOT_END)
        assert watching.known == {number: 0, text: "är da", absent: None}
        client.call(MARK, {"id": absent, "bytes_value": "/w=="})
        watching.sees(absent, b"\xff")
        client.call(UNMARK, {"id": number})
        watching.sees(number, None)
        for value in range(1, 21):
            client.call(MARK, {"id": number, "int_value": str(value)})
        # Values in between may be missing, but not the last one.
        watching.sees(number, 20)
        assert watching.known[text] == "är da"


def test_tells_an_expiry(client):
    id = own_id(client, "watch expiry")
    with Watching(client, client.pool, ids=[id]) as watching:
        watching.hear(SNAPSHOT_END)
        began = time.monotonic()
        client.call(MARK, {"id": id, "int_value": "1", "ttl": f"{EXPIRY_SECONDS}s"})
        watching.sees(id, 1)
        watching.sees(id, None)
        assert time.monotonic() - began >= EXPIRY_SECONDS


def test_sees_why_a_watch_is_refused(client):
    for request, code, reason in (
        ({}, "INVALID_ARGUMENT", "WATCH_TARGET_INVALID"),
        ({"ids": ["a"], "all": True}, "INVALID_ARGUMENT", "WATCH_TARGET_INVALID"),
        ({"ids": ["a", ""]}, "INVALID_ARGUMENT", "ID_INVALID"),
        ({"namespace": "plain", "all": True}, "FAILED_PRECONDITION", "NOT_INDEXED"),
    ):
        with Watching(client, client.pool, **request) as watching, pytest.raises(grpc.RpcError) as caught:
            watching.hear(SNAPSHOT_END)
        error = python_error(caught.value)
        assert (error.code, error.domain, error.reason) == (code, "dyndata", reason)


def test_ignores_a_field_of_a_later_contract(client):
    id = own_id(client, "watch later")
    with Watching(client, client.pool, added=LATER_FIELD, ids=[id]) as watching:
        watching.hear(SNAPSHOT_END)
        assert watching.known == {id: None}


def test_a_stub_ignores_what_it_does_not_know(client):
    """The stub is of a contract without KIND_CHANGES, and without values of bytes."""
    id = own_id(client, "watch older")
    with Watching(client, older_pool(client), ids=[id]) as watching:
        watching.hear(SNAPSHOT_END)
        client.call(MARK, {"id": id, "bytes_value": "/w=="})
        [entry] = watching.hear(CHANGES).entries
        assert (entry.id, entry.WhichOneof("value")) == (id, None)
        assert [field.field_number for field in UnknownFieldSet(entry)] == [4]
        client.call(MARK, {"id": id, "int_value": "7"})
        watching.sees(id, 7)


def older_pool(client):
    """The descriptors of an older contract, made from the present one."""
    file = descriptor_pb2.FileDescriptorProto()
    file.CopyFrom(client.database.FindFileContainingSymbol(SERVICE))
    messages = {message.name: message for message in file.message_type}
    remove(messages["Entry"].field, "bytes_value")
    [kind] = messages["WatchResponse"].enum_type
    remove(kind.value, "KIND_CHANGES")
    pool = descriptor_pool.DescriptorPool()
    for name in file.dependency:
        pool.Add(client.database.FindFileByName(name))
    pool.Add(file)
    return pool


def remove(elements, name):
    [element] = [element for element in elements if element.name == name]
    elements.remove(element)
