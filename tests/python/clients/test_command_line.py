"""`dyndata --output json` prints the same JSON as grpcurl, byte for byte.

A script around grpcurl can therefore use dyndata's own client instead, and the other way round.
"""

import re

import pytest

from clients.clients import (
    BATCH_GET,
    BATCH_MARK,
    BATCH_UNMARK,
    GET,
    HEALTH,
    INCREMENT,
    MARK_IF,
    TOUCH,
    UNMARK,
    Grpcurl,
)
from support.processes import output

# The arguments of `dyndata mark` that give each id its value. None leaves the id absent.
ENTRIES = {
    "int": ["-9223372036854775808"],
    "zero": ["0"],
    "string": ["--type", "string", "här, för 30 minuter"],
    "empty": ["--type", "string", ""],
    # grpcurl's JSON is Go's, which escapes more than JSON must.
    "html": ["--type", "string", "<a href='x'>\"&\"</a>"],
    "separators": ["--type", "string", "\u2028 \u2029"],
    "controls": ["--type", "string", "\\ / \t \n \x01 \x7f \x85 \U0001f600"],
    # Bytes that are not UTF-8, as Python carries them in an argument.
    "bytes": ["--type", "bytes", "\udcff\udc80\udcfe plain"],
    "absent": None,
    "id <&>": ["1"],
}

# On Redis an expire time is the clock plus PTTL, so that two replies may differ by a millisecond.
TIMED_TRIES = 20
ALL_IDS = [*ENTRIES, "absent", "int"]


@pytest.fixture(scope="module")
def marked(server, binary):
    """The server with each of the entries, written by `dyndata mark`."""
    for id, arguments in ENTRIES.items():
        if arguments is not None:
            mark = ["mark", "--addr", f"http://{server.address}", "--ttl", "1h", id, *arguments]
            output([binary, *mark])
    return server


@pytest.mark.parametrize("options", ([], ["--expire-time"]), ids=("", "with expire time"))
@pytest.mark.parametrize("id", ENTRIES)
def test_get_prints_the_json_of_grpcurl(marked, binary, id, options):
    compare(marked, binary, ["get", *options, id], GET, {"id": id})


@pytest.mark.parametrize("options", ([], ["--expire-time"]), ids=("", "with expire time"))
def test_batch_get_prints_the_json_of_grpcurl(marked, binary, options):
    compare(marked, binary, ["batch-get", *options, *ALL_IDS], BATCH_GET, {"ids": ALL_IDS})


def test_health_prints_the_json_of_grpcurl(server, binary):
    compare(server, binary, ["health"], HEALTH, {})


# A command, the same call with grpcurl, and the value of the id before each of them.
WRITES = {
    "unmark": (["unmark", "id"], UNMARK, {"id": "id"}, "1"),
    "unmark not": (["unmark", "id", "--if-equal", "2"], UNMARK, {"id": "id", "if_equal": {"int_value": 2}}, "1"),
    "batch-unmark": (["batch-unmark", "id", "none"], BATCH_UNMARK, {"ids": ["id", "none"]}, "1"),
    "batch-mark": (["batch-mark", "id=2"], BATCH_MARK, {"marks": [{"id": "id", "int_value": 2}]}, None),
    "mark-if": (
        ["mark-if", "id", "2", "--if-present"],
        MARK_IF,
        {"id": "id", "int_value": 2, "if_present": True},
        "<1>",
    ),
    "mark-if not": (
        ["mark-if", "id", "2", "--if-absent"],
        MARK_IF,
        {"id": "id", "int_value": 2, "if_absent": True},
        "<1>",
    ),
    "touch": (["touch", "id", "none"], TOUCH, {"ids": ["id", "none"]}, "är da"),
    "incr": (["incr", "id", "-5"], INCREMENT, {"id": "id", "delta": -5}, "1"),
    "incr from nothing": (["incr", "id"], INCREMENT, {"id": "id"}, None),
    "incr not": (["incr", "id", "--max", "1"], INCREMENT, {"id": "id", "max": 1}, "1"),
}
# Each call gives another expire time.
TIME = re.compile(r'"expireTime": "[^"]+Z"')


@pytest.mark.parametrize("name", WRITES)
def test_a_write_prints_the_json_of_grpcurl(server, binary, name):
    command, method, request, value = WRITES[name]
    options = ["--addr", f"http://{server.address}", "--output", "json", "--namespace", "writes"]

    def prepare():
        output([binary, "unmark", "id", *options])
        if value is not None:
            output([binary, "mark", "id", value, *options])

    prepare()
    ours = output([binary, *command, *options]).decode()
    prepare()
    theirs = Grpcurl("v1", server.address).run(method, {**request, "namespace": "writes"})
    assert theirs.returncode == 0
    assert TIME.sub("TIME", ours) == TIME.sub("TIME", theirs.stdout.decode())


def compare(server, binary, command, method, request):
    timed = "--expire-time" in command
    if timed:
        request = {**request, "include_expire_time": True}
    grpcurl = Grpcurl("v1", server.address)
    for _ in range(TIMED_TRIES if timed else 1):
        address = f"http://{server.address}"
        ours = output([binary, *command, "--addr", address, "--output", "json"]).decode()
        theirs = grpcurl.run(method, request)
        assert theirs.returncode == 0
        if ours == theirs.stdout.decode():
            return
    assert ours == theirs.stdout.decode()
