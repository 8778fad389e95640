"""What every client must be able to do, on both stores, through reflection alone."""

import base64
import time

import pytest

from clients.clients import (
    BATCH_GET,
    BATCH_MARK,
    BATCH_UNMARK,
    GET,
    HEALTH,
    INCREMENT,
    MARK,
    MARK_IF,
    SERVICE,
    TOUCH,
    UNMARK,
    BufCurl,
    CallError,
    GrpcJs,
    Grpcurl,
    PythonClient,
    own_id,
    seconds,
)

DEFAULT_TTL_SECONDS = 60
MAX_BATCH = 1000
CLIENTS = ("grpcio", "grpc-js", "grpcurl v1", "grpcurl v1alpha", "buf v1", "buf v1alpha")


@pytest.fixture(scope="module", params=CLIENTS)
def client(request, server):
    program, _, reflection = request.param.partition(" ")
    if program == "grpcio":
        with PythonClient(server.address) as client:
            yield client
    elif program == "grpc-js":
        yield GrpcJs(server.address)
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


def test_unmarks(client):
    id = own_id(client, "unmark")
    client.call(MARK, {"id": id, "int_value": "1"})
    assert client.call(UNMARK, {"id": id}) == {"removed": True}
    assert client.call(UNMARK, {"id": id}) == {}
    assert client.call(GET, {"id": id}) == {"entry": {"id": id}}


def test_unmarks_only_an_equal_value(client):
    id = own_id(client, "unmark if equal")
    values = ({"int_value": "1"}, {"string_value": "1"}, {"bytes_value": base64.b64encode(b"1").decode()})
    for held in values:
        client.call(MARK, {"id": id, **held})
        for other in values:
            if other != held:
                assert client.call(UNMARK, {"id": id, "if_equal": other}) == {}
        assert client.call(UNMARK, {"id": id, "if_equal": held}) == {"removed": True}


def test_batch_marks_and_batch_unmarks(client):
    ids = [own_id(client, f"batch mark {number}") for number in range(4)]
    values = [
        {"intValue": "-9223372036854775808"},
        {"stringValue": ""},
        {"bytesValue": base64.b64encode(bytes(range(256))).decode()},
        {"intValue": "0"},
    ]
    marks = [{"id": id, **value, "ttl": "30s"} for id, value in zip(ids, values)]
    # Only the last item of an id counts.
    marks.insert(0, {"id": ids[0], "string_value": "first"})
    assert client.call(BATCH_MARK, {"marks": marks}) == {}
    entries = client.call(BATCH_GET, {"ids": ids})["entries"]
    assert entries == [{"id": id, **value} for id, value in zip(ids, values)]

    absent = own_id(client, "batch unmark absent")
    removed = client.call(BATCH_UNMARK, {"ids": [ids[0], absent, ids[2], ids[0]]})
    assert removed == {"removedCount": 2}
    assert client.call(BATCH_UNMARK, {"ids": [absent]}) == {}
    entries = client.call(BATCH_GET, {"ids": ids})["entries"]
    assert [len(entry) > 1 for entry in entries] == [False, True, False, True]


def test_marks_if_a_condition_holds(client):
    id = own_id(client, "mark if")
    absent = {"id": id}
    # The condition, whether it holds, and what is marked before the call.
    for number, (condition, holds, previous) in enumerate((
        ({"if_present": True}, False, absent),
        ({"if_absent": True}, True, absent),
        ({"if_absent": True}, False, {"id": id, "intValue": "1"}),
        ({"if_equal": {"string_value": "1"}}, False, {"id": id, "intValue": "1"}),
        ({"if_equal": {"int_value": "1"}}, True, {"id": id, "intValue": "1"}),
        ({"if_present": True}, True, {"id": id, "intValue": "4"}),
        ({}, True, {"id": id, "intValue": "5"}),
    )):
        before = time.time()
        reply = client.call(MARK_IF, {"id": id, "int_value": str(number), **condition})
        expire_time = reply.pop("expireTime", None)
        applied = {"applied": True} if holds else {}
        assert reply == {**applied, "previous": previous}
        assert (expire_time is not None) == holds, f"{condition} at {number}"
        if holds:
            assert seconds(expire_time) >= before + DEFAULT_TTL_SECONDS - 0.1
    assert client.call(GET, {"id": id}) == {"entry": {"id": id, "intValue": "6"}}


def test_touches(client):
    one, two, absent = (own_id(client, name) for name in ("touch 1", "touch 2", "touch absent"))
    client.call(BATCH_MARK, {"marks": [{"id": one, "int_value": "1"}, {"id": two, "string_value": "two"}]})
    before = time.time()
    entries = client.call(TOUCH, {"ids": [two, absent, one, two], "ttl": "600s"})["entries"]
    after = time.time()
    for entry in entries:
        if entry["id"] != absent:
            assert before + 599.9 <= seconds(entry.pop("expireTime")) <= after + 600
    held = {one: {"intValue": "1"}, two: {"stringValue": "two"}, absent: {}}
    assert entries == [{"id": id, **held[id]} for id in (two, absent, one, two)]
    # It is the stored expiry that has changed.
    found = client.call(GET, {"id": one, "include_expire_time": True})["entry"]
    assert seconds(found["expireTime"]) > before + 599


def test_increments(client):
    id = own_id(client, "increment")
    for request, number in (
        ({}, 1),
        ({"delta": "9"}, 10),
        ({"delta": "-30"}, -20),
        ({"delta": "0"}, -20),
        ({"delta": "9223372036854775807"}, 2**63 - 21),
    ):
        reply = client.call(INCREMENT, {"id": id, **request})
        assert seconds(reply.pop("expireTime")) > time.time()
        assert reply == {"applied": True, "value": str(number)}
    assert client.call(GET, {"id": id}) == {"entry": {"id": id, "intValue": str(2**63 - 21)}}


def test_limits_a_rate(client):
    """Three calls in a window that begins with the first. The others learn when it ends."""
    id = own_id(client, "rate")
    request = {"id": id, "max": "3", "ttl": "600s", "ttl_policy": "TTL_POLICY_KEEP"}
    replies = [client.call(INCREMENT, request) for _ in range(5)]
    ends = [seconds(reply.pop("expireTime")) for reply in replies]
    granted = [{"applied": True, "value": str(number)} for number in (1, 2, 3)]
    assert replies == [*granted, {"value": "3"}, {"value": "3"}]
    assert max(ends) - min(ends) < 0.1, "the window moved"
    request = {"id": own_id(client, "no rate"), "min": "1", "delta": "-1"}
    # Nothing is there: the number is 0 and has no expiry. 0 and false are left out in JSON.
    assert client.call(INCREMENT, request) == {}


def test_sees_why_a_write_is_refused(client):
    text = own_id(client, "text")
    client.call(MARK, {"id": text, "string_value": "1"})
    full = own_id(client, "full")
    client.call(MARK, {"id": full, "int_value": str(2**63 - 1)})
    for method, request, code, reason in (
        (UNMARK, {"id": text, "if_equal": {}}, "INVALID_ARGUMENT", "CONDITION_INVALID"),
        (BATCH_UNMARK, {}, "INVALID_ARGUMENT", "BATCH_EMPTY"),
        (BATCH_MARK, {"marks": [{"id": text}]}, "INVALID_ARGUMENT", "VALUE_MISSING"),
        (MARK_IF, {"id": text, "int_value": "1", "if_absent": False}, "INVALID_ARGUMENT", "CONDITION_INVALID"),
        (TOUCH, {"ids": [text], "ttl": "0s"}, "INVALID_ARGUMENT", "TTL_OUT_OF_RANGE"),
        (INCREMENT, {"id": text, "min": "2", "max": "1"}, "INVALID_ARGUMENT", "RANGE_INVALID"),
        (INCREMENT, {"id": text}, "FAILED_PRECONDITION", "NOT_AN_INTEGER"),
        (INCREMENT, {"id": full}, "OUT_OF_RANGE", "COUNTER_OVERFLOW"),
    ):
        error = refused(client, method, request)
        seen = (error.code, error.domain, error.reason, error.outcome)
        assert seen == (code, "dyndata", reason, "not_executed"), f"{method} {request}"


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
