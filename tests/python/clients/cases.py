"""What every client must be able to do, on every store, through reflection alone."""

import base64
import time
from datetime import datetime

from clients import SERVICE, CallError

MARK = f"{SERVICE}/Mark"
GET = f"{SERVICE}/Get"
BATCH_GET = f"{SERVICE}/BatchGet"
HEALTH = "grpc.health.v1.Health/Check"

DEFAULT_TTL_SECONDS = 60
MAX_BATCH = 1000


def lists_the_services(client):
    wanted = {SERVICE, "grpc.health.v1.Health"}
    wanted.add(f"grpc.reflection.{client.reflection}.ServerReflection")
    missing = wanted - client.list()
    assert not missing, f"not listed: {missing}"


def describes_the_service(client):
    text = client.describe()
    for part in client.description:
        assert part in text, f"no {part!r} in:\n{text}"


def marks_and_gets_an_int(client):
    # The largest there is: a client that went through a float would lose its last digits.
    marks_and_gets(client, "int", {"intValue": "9223372036854775807"})


def marks_and_gets_a_string(client):
    marks_and_gets(client, "string", {"stringValue": "är da: <b>&'\"\\/ \u2028 \U0001f600"})


def marks_and_gets_bytes(client):
    value = base64.b64encode(bytes(range(256))).decode()
    marks_and_gets(client, "bytes", {"bytesValue": value})


def marks_and_gets_zero_and_empty(client):
    # Set to the type's default is not the same as unset.
    marks_and_gets(client, "zero", {"intValue": "0"})
    marks_and_gets(client, "empty string", {"stringValue": ""})
    marks_and_gets(client, "empty bytes", {"bytesValue": ""})


def keeps_namespaces_apart(client):
    id = own_id(client, "namespaces")
    client.call(MARK, {"namespace": "chat", "id": id, "int_value": "1"})
    equal(client.call(GET, {"id": id}), {"entry": {"id": id}})
    found = client.call(GET, {"namespace": "chat", "id": id})
    equal(found, {"entry": {"id": id, "intValue": "1"}})


def gets_the_expire_time(client):
    id = own_id(client, "expire time")
    before = time.time()
    marked = client.call(MARK, {"id": id, "int_value": "7"})
    after = time.time()
    found = client.call(GET, {"id": id, "include_expire_time": True})["entry"]
    equal(found["intValue"], "7")
    for expire_time in (marked["expireTime"], found["expireTime"]):
        # Never later than the true expiry, which itself is at most `after` plus the time to live.
        earliest, latest = before + DEFAULT_TTL_SECONDS - 0.1, after + DEFAULT_TTL_SECONDS
        assert earliest <= seconds(expire_time) <= latest, f"{expire_time} is not 60 s ahead"


def gets_an_absent_id(client):
    id = own_id(client, "absent")
    equal(client.call(GET, {"id": id}), {"entry": {"id": id}})
    equal(client.call(GET, {"id": id, "include_expire_time": True}), {"entry": {"id": id}})


def batch_gets_in_order(client):
    one, two, absent = (own_id(client, name) for name in ("batch 1", "batch 2", "batch absent"))
    client.call(MARK, {"id": one, "int_value": "1"})
    client.call(MARK, {"id": two, "string_value": "two"})
    ids = [two, absent, one, two, absent]
    held = {one: {"intValue": "1"}, two: {"stringValue": "two"}, absent: {}}
    entries = client.call(BATCH_GET, {"ids": ids})["entries"]
    equal(entries, [{"id": id, **held[id]} for id in ids])

    timed = client.call(BATCH_GET, {"ids": ids, "include_expire_time": True})["entries"]
    equal(["expireTime" in entry for entry in timed], [True, False, True, True, False])


def lets_a_value_expire(client):
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
    equal(found, {"entry": {"id": id, "intValue": "5"}})
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    equal(client.call(GET, {"id": id}), {"entry": {"id": id}})


def sees_why_an_id_is_refused(client):
    for method, request in ((GET, {}), (MARK, {"int_value": "1"})):
        error = refused(client, method, request)
        seen = (error.code, error.domain, error.reason, error.fields)
        equal(seen, ("INVALID_ARGUMENT", "dyndata", "ID_INVALID", ["id"]))


def sees_why_a_batch_is_refused(client):
    error = refused(client, BATCH_GET, {"ids": [str(id) for id in range(MAX_BATCH + 1)]})
    seen = (error.code, error.domain, error.reason, error.fields)
    equal(seen, ("INVALID_ARGUMENT", "dyndata", "BATCH_TOO_LARGE", ["ids"]))
    assert str(MAX_BATCH) in error.message, f"the limit is not in {error.message!r}"


def shows_the_details_to_a_person(client):
    # grpcurl asks reflection for the types of the details; unknown ones it prints as base64.
    shown = client.run(GET, {}).stderr.decode()
    for part in ('"reason":"ID_INVALID"', '"domain":"dyndata"', '"field":"id"'):
        # Some releases write the details with spaces.
        assert part in shown.replace(" ", ""), f"no {part} in:\n{shown}"


def asks_for_health(client):
    for service in ("", SERVICE):
        equal(client.call(HEALTH, {"service": service}), {"status": "SERVING"})


CLIENT_CASES = (
    lists_the_services,
    describes_the_service,
    marks_and_gets_an_int,
    marks_and_gets_a_string,
    marks_and_gets_bytes,
    marks_and_gets_zero_and_empty,
    keeps_namespaces_apart,
    gets_the_expire_time,
    gets_an_absent_id,
    batch_gets_in_order,
    lets_a_value_expire,
    sees_why_an_id_is_refused,
    sees_why_a_batch_is_refused,
    asks_for_health,
)

# What only grpcurl does.
GRPCURL_CASES = (shows_the_details_to_a_person,)


def marks_and_gets(client, name, value):
    id = own_id(client, name)
    client.call(MARK, {"id": id, **value})
    equal(client.call(GET, {"id": id}), {"entry": {"id": id, **value}})


def refused(client, method, request):
    try:
        reply = client.call(method, request)
    except CallError as error:
        return error
    raise AssertionError(f"answered with {reply}")


def own_id(client, name):
    """An id that no other client of the same server uses."""
    return f"{client.name}/{name}"


def seconds(timestamp):
    return datetime.fromisoformat(timestamp).timestamp()


def equal(actual, wanted):
    assert actual == wanted, f"got    {actual!r}\nwanted {wanted!r}"
