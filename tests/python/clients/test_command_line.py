"""`dyndata --output json` prints the same JSON as grpcurl, byte for byte.

A script around grpcurl can therefore use dyndata's own client instead, and the other way round. What
`batch-mark` shows while it runs, it shows on a terminal only.
"""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from concurrent import futures

import grpc
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
from support.processes import (
    CALL_SECONDS,
    START_SECONDS,
    clean_environment,
    output,
    run,
    stop,
    wait_until,
)

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


# What the bar says, and how it is removed: back to the start of the line, and erase the line.
PROGRESS = re.compile(r"[\d,]+ marked, \S+, \S+")
ERASED = "\r\x1b[2K"


class Terminal:
    """A pseudo-terminal, and what was written to it."""

    def __init__(self):
        self._reader, self.writer = pty.openpty()
        rows_and_columns = struct.pack("HHHH", 24, 100, 0, 0)
        fcntl.ioctl(self.writer, termios.TIOCSWINSZ, rows_and_columns)
        self._text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._reader)
        os.close(self.writer)

    @property
    def text(self):
        while select.select([self._reader], [], [], 0)[0]:
            self._text += os.read(self._reader, 4096).decode()
        return self._text


@contextlib.contextmanager
def batch_mark(server, binary, **streams):
    """A `dyndata batch-mark` that reads its items from a pipe. Each item is a call."""
    process = subprocess.Popen(
        [binary, "batch-mark", "--batch-size", "1", "--addr", f"http://{server.address}"],
        stdin=subprocess.PIPE,
        env=clean_environment(TERM="xterm"),
        **streams,
    )
    try:
        yield process
    finally:
        stop(process)
        process.stdin.close()


def mark_until(process, done):
    """Gives the process one item after the other until `done()` is true. Returns their number."""
    deadline = time.monotonic() + START_SECONDS
    count = 0
    while not done():
        assert time.monotonic() < deadline, f"not done after {count} items"
        item = {"id": "progress", "intValue": str(count)}
        process.stdin.write(json.dumps(item).encode() + b"\n")
        process.stdin.flush()
        count += 1
        # Without a pause, the pipe would fill up with thousands of items.
        time.sleep(0.01)
    return count


def test_batch_mark_shows_its_progress_on_a_terminal(server, binary):
    with (
        Terminal() as terminal,
        batch_mark(server, binary, stdout=subprocess.PIPE, stderr=terminal.writer) as process,
    ):
        count = mark_until(process, lambda: PROGRESS.search(terminal.text))
        printed, _ = process.communicate(timeout=CALL_SECONDS)
        assert process.returncode == 0
        calls = "1 call" if count == 1 else f"{count} calls"
        assert printed.decode() == f"marked {count}, in {calls}\n"
        # The bar is gone when the command ends.
        assert terminal.text.endswith(ERASED), repr(terminal.text)


def test_an_error_of_batch_mark_takes_the_place_of_its_progress(server, binary):
    with (
        Terminal() as terminal,
        batch_mark(server, binary, stdout=subprocess.PIPE, stderr=terminal.writer) as process,
    ):
        count = mark_until(process, lambda: PROGRESS.search(terminal.text))
        printed, _ = process.communicate(b"no item\n", timeout=CALL_SECONDS)
        assert (process.returncode, printed) == (64, b"")
        items = "1 item before was" if count == 1 else f"{count} items before were"
        left = terminal.text.rpartition(ERASED)[2]
        assert re.fullmatch(rf"error: line {count + 1}: .* \({items} marked\)\r\n", left), repr(left)


@pytest.mark.parametrize("stdout", ("terminal", "pipe"))
def test_batch_mark_shows_no_progress_where_standard_error_is_no_terminal(server, binary, stdout):
    with (
        Terminal() as terminal,
        batch_mark(
            server,
            binary,
            stdout=terminal.writer if stdout == "terminal" else subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process,
    ):
        # Far longer than the bar waits before it is drawn.
        until = time.monotonic() + 0.5
        count = mark_until(process, lambda: time.monotonic() > until)
        printed, errors = process.communicate(timeout=CALL_SECONDS)
        assert (process.returncode, errors) == (0, b"")
        if stdout == "terminal":
            wait_until(lambda: "calls" in terminal.text, "no summary")
            printed = terminal.text.replace("\r\n", "\n").encode()
        assert printed.decode() == f"marked {count}, in {count} calls\n"


def test_a_server_without_the_call_is_said_to_be_older(binary):
    # A gRPC server that has no service at all.
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        done = run([binary, "incr", "42", "--addr", f"http://127.0.0.1:{port}"])
    finally:
        server.stop(None)
    assert (done.returncode, done.stdout) == (1, b"")
    error = done.stderr.decode()
    assert error.startswith("error: Unimplemented: "), error
    assert "does not know this call, so it is probably older than this client" in error


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
