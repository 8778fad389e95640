"""What every client must be able to do, on both stores, through reflection alone."""

import base64
import time

import pytest

from clients.clients import (
    BATCH_GET,
    GET,
    HEALTH,
    MARK,
    SERVICE,
    BufCurl,
    CallError,
    Grpcurl,
    PythonClient,
    own_id,
    seconds,
)

DEFAULT_TTL_SECONDS = 60
MAX_BATCH = 1000


@pytest.fixture(scope="module", params=("grpcio", "grpcurl v1", "grpcurl v1alpha", "buf v1", "buf v1alpha"))
def client(request, server):
    program, _, reflection = request.param.partition(" ")
    if program == "grpcio":
        with PythonClient(server.address) as client:
            yield client
    else:
        yield {"grpcurl": Grpcurl, "buf": BufCurl}[program](reflection, server.address)


@pytest.fixture(scope="module", params=("v1", "v1alpha"))
def grpcurl(request, server):
    return Grpcurl(request.param, server.address)


def test_lists_the_services(client):
    wanted = {SERVICE, "grpc.health.v1.Health"}
    wanted.add(f"grpc.reflection.{client.reflection}.ServerReflection")
    missing = wanted - client.list()
    assert not missing, f"not listed: {missing}"


def test_describes_the_service(client):
    text = client.describe()
    for part in client.description:
        assert part in text, f"no {part!r} in:\n{text}"


def test_marks_and_gets_an_int(client):
    # The largest there is: a client that went through a float would lose its last digits.
    marks_and_gets(client, "int", {"intValue": "9223372036854775807"})


def test_marks_and_gets_a_string(client):
    marks_and_gets(client, "string", {"stringValue": "är da: <b>&'\"\\/ \u2028 \U0001f600"})


def test_marks_and_gets_bytes(client):
    value = base64.b64encode(bytes(range(256))).decode()
    marks_and_gets(client, "bytes", {"bytesValue": value})


def test_marks_and_gets_zero_and_empty(client):
    # Set to the type's default is not the same as unset.
    marks_and_gets(client, "zero", {"intValue": "0"})
    marks_and_gets(client, "empty string", {"stringValue": ""})
    marks_and_gets(client, "empty bytes", {"bytesValue": ""})


def test_keeps_namespaces_apart(client):
    id = own_id(client, "namespaces")
    client.call(MARK, {"namespace": "chat", "id": id, "int_value": "1"})
    assert client.call(GET, {"id": id}) == {"entry": {"id": id}}
    found = client.call(GET, {"namespace": "chat", "id": id})
    assert found == {"entry": {"id": id, "intValue": "1"}}


def test_gets_the_expire_time(client):
    id = own_id(client, "expire time")
    before = time.time()
    marked = client.call(MARK, {"id": id, "int_value": "7"})
    after = time.time()
    found = client.call(GET, {"id": id, "include_expire_time": True})["entry"]
    assert found["intValue"] == "7"
    for expire_time in (marked["expireTime"], found["expireTime"]):
        # Never later than the true expiry, which itself is at most `after` plus the time to live.
        earliest, latest = before + DEFAULT_TTL_SECONDS - 0.1, after + DEFAULT_TTL_SECONDS
        assert earliest <= seconds(expire_time) <= latest, f"{expire_time} is not 60 s ahead"


def test_gets_an_absent_id(client):
    id = own_id(client, "absent")
    assert client.call(GET, {"id": id}) == {"entry": {"id": id}}
    assert client.call(GET, {"id": id, "include_expire_time": True}) == {"entry": {"id": id}}


def test_batch_gets_in_order(client):
    one, two, absent = (own_id(client, name) for name in ("batch 1", "batch 2", "batch absent"))
    client.call(MARK, {"id": one, "int_value": "1"})
    client.call(MARK, {"id": two, "string_value": "two"})
    ids = [two, absent, one, two, absent]
    held = {one: {"intValue": "1"}, two: {"stringValue": "two"}, absent: {}}
    entries = client.call(BATCH_GET, {"ids": ids})["entries"]
    assert entries == [{"id": id, **held[id]} for id in ids]

    timed = client.call(BATCH_GET, {"ids": ids, "include_expire_time": True})["entries"]
    assert ["expireTime" in entry for entry in timed] == [True, False, True, True, False]


def test_lets_a_value_expire(client):
    id = own_id(client, "expiry")
    # A Get that ends before the expire time must see the value. On a busy machine a client that is
    # a process may start too late for that; then a longer time to live has to show it.
    for milliseconds in (300, 1000, 3000, 9000):
        ttl = f"{milliseconds / 1000:.3f}s"
        marked = client.call(MARK, {"id": id, "int_value": "5", "ttl": ttl})
        found = client.call(GET, {"id": id})
        expires = seconds(marked["expireTime"])
        if time.time() < expires:
            break
    else:
        raise AssertionError("no Get ended before the value expired")
    assert found == {"entry": {"id": id, "intValue": "5"}}
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    assert client.call(GET, {"id": id}) == {"entry": {"id": id}}


def test_sees_why_an_id_is_refused(client):
    for method, request in ((GET, {}), (MARK, {"int_value": "1"})):
        error = refused(client, method, request)
        seen = (error.code, error.domain, error.reason, error.fields)
        assert seen == ("INVALID_ARGUMENT", "dyndata", "ID_INVALID", ["id"])


def test_sees_why_a_batch_is_refused(client):
    error = refused(client, BATCH_GET, {"ids": [str(id) for id in range(MAX_BATCH + 1)]})
    seen = (error.code, error.domain, error.reason, error.fields)
    assert seen == ("INVALID_ARGUMENT", "dyndata", "BATCH_TOO_LARGE", ["ids"])
    assert str(MAX_BATCH) in error.message, f"the limit is not in {error.message!r}"


def test_shows_the_details_to_a_person(grpcurl):
    # grpcurl asks reflection for the types of the details, and prints unknown ones as base64.
    shown = grpcurl.run(GET, {}).stderr.decode()
    for part in ('"reason":"ID_INVALID"', '"domain":"dyndata"', '"field":"id"'):
        # Some releases write the details with spaces.
        assert part in shown.replace(" ", ""), f"no {part} in:\n{shown}"


def test_asks_for_health(client):
    for service in ("", SERVICE):
        assert client.call(HEALTH, {"service": service}) == {"status": "SERVING"}


def marks_and_gets(client, name, value):
    id = own_id(client, name)
    client.call(MARK, {"id": id, **value})
    assert client.call(GET, {"id": id}) == {"entry": {"id": id, **value}}


def refused(client, method, request):
    try:
        reply = client.call(method, request)
    except CallError as error:
        return error
    raise AssertionError(f"answered with {reply}")
