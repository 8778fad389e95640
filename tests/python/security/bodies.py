"""Request bodies that never end, and bodies that go on after the answer."""

import itertools
import time
from collections import Counter

from security import frames
from security.attacker import Attacker, status
from security.connection import Closed, Connection
from security.floods import STREAMS, stream_ids

# Pause between two checks of which calls the server has ended.
PAUSE_SECONDS = 0.05
# The limits of a body that goes on after its answer: 4 MiB and a window of 1 MiB, and 2 s. The rest is
# a margin for a busy machine.
DISCARDED_BYTES = 5 << 20
DISCARDED_SECONDS = 5


class OpenCalls:
    """A connection whose calls never end: HEADERS, and as much of a body as the windows allow. A call
    that the server ends is replaced by a new one."""

    def __init__(
        self,
        connection: Connection,
        block: bytes,
        body: bytes = b"",
        *,
        calls: int = STREAMS,
        end: bool = False,
    ):
        self.connection = connection
        # The number of calls that the server ended with each status.
        self.ended: Counter[str] = Counter()
        self._block = block
        self._body = body
        self._calls = calls
        self._end = end
        self._ids = itertools.count(1, 2)
        # The unsent rest of each stream's body.
        self._left: dict[int, bytes] = {}

    def go_on(self) -> None:
        """Replaces the calls that have ended, and sends as much of the bodies as the windows allow."""
        connection = self.connection
        connection.receive()
        for stream in self._left.keys() & connection.over:
            del self._left[stream]
            answer = connection.answers.pop(stream, {})
            said = answer.get("grpc-status") or answer.get(":status")
            said = said or connection.reset_streams.get(stream, "nothing")
            self.ended[f"ended with {said}"] += 1
        begun = list(itertools.islice(self._ids, self._calls - len(self._left)))
        if begun:
            heads = b"".join(frames.headers(stream, self._block) for stream in begun)
            connection.send(heads, len(begun))
            self._left.update((stream, self._body) for stream in begun)
        for stream, left in self._left.items():
            if left:
                self._left[stream] = self._send_some(stream, left)

    def _send_some(self, stream: int, left: bytes) -> bytes:
        connection = self.connection
        while left and stream not in connection.over:
            size = min(len(left), frames.LARGEST_FRAME, connection.room(stream))
            if size <= 0:
                break
            part, left = left[:size], left[size:]
            connection.send_data(stream, part, end=self._end and not left)
        return left


def keep_open(attacker: Attacker, connections: int, *call: bytes, **how) -> None:
    """Keeps calls open on a number of connections until the attack ends."""
    settings = how.pop("settings", {})

    def start() -> OpenCalls:
        return OpenCalls(attacker.open().greet(**settings), *call, **how)

    everything: list[OpenCalls] = []
    while attacker.running():
        while len(everything) < connections:
            everything.append(start())
        for at, calls in enumerate(everything):
            if not attacker.running():
                break
            try:
                calls.go_on()
            except Closed:
                attacker.let_go(calls.connection)
                attacker.notes.update(calls.ended)
                everything[at] = start()
        time.sleep(PAUSE_SECONDS)
    for calls in everything:
        attacker.notes.update(calls.ended)


def unfinished_bodies(attacker: Attacker) -> None:
    """Requests of almost the largest size without their last byte, which the server has to buffer."""
    most_of_it = frames.message(bytes(257_000), length=258_000)
    block = frames.request(frames.BATCH_GET)

    def attack(connection: Connection) -> None:
        connection.greet()
        for stream in stream_ids(STREAMS):
            connection.send(frames.headers(stream, block))
            connection.send_body(stream, most_of_it, end=False)
        connection.read_for(max(0.0, attacker.ends - time.monotonic()))
        for answer in connection.answers.values():
            attacker.notes[f"status {answer.get('grpc-status', 'none yet')}"] += 1

    attacker.again(attack)


def unfinished_heads(attacker: Attacker) -> None:
    """10 connections with 256 calls each that have HEADERS and never a body. None of them may count as
    a call in flight."""
    keep_open(attacker, 10, frames.request(frames.GET))


def unfinished_heads_everywhere(attacker: Attacker) -> None:
    """The same on 200 connections, with the start of a message, so that every worker reaches its limit
    of unfinished bodies."""
    keep_open(attacker, 200, frames.request(frames.MARK), frames.message(b"", length=100))


def unfinished_bodies_everywhere(attacker: Attacker) -> None:
    """Requests of almost 250 KB without their end, on 50 connections of each of four processes, so that
    every worker reaches its limit of buffered bytes."""
    body = frames.message(bytes(249_000), length=250_000)
    keep_open(attacker, 50, frames.request(frames.BATCH_GET), body, calls=8)


def slow_bodies(attacker: Attacker) -> None:
    """Slow loris: HEADERS, and then a byte of DATA a second. A call must end when its request is not
    complete after 3 s, whatever the deadline of its caller."""
    streams = list(stream_ids(128))
    paths = (frames.GET, frames.MARK, frames.BATCH_GET, frames.HEALTH_CHECK)
    with attacker.connection() as connection:
        connection.greet()
        for at, stream in enumerate(streams):
            block = frames.request(paths[at % len(paths)], grpc_timeout="1H")
            connection.send(frames.headers(stream, block))
        for byte in frames.message(b"\x12\x0242"):
            if time.monotonic() - connection.opened >= 6.5:
                break
            connection.send(
                b"".join(
                    frames.data(stream, bytes([byte]))
                    for stream in streams
                    if stream not in connection.answers and stream not in connection.reset_streams
                ),
                len(streams),
            )
            connection.read_for(1)
        for at, stream in enumerate(streams):
            answer = status(connection, stream, 0.01)
            attacker.expect(answer == "4", f"{paths[at % len(paths)]}: {answer} after 6.5 s, not 4")


def endless_bodies(attacker: Attacker) -> None:
    """Calls that are answered before their body is there, by callers without credentials: a message
    that is too large, no token, and no gRPC. The bodies go on for ever, at full speed or a byte at a
    time; what is read of them after the answer is bounded in bytes and in time."""
    too_large = frames.message(b"", length=1 << 30)
    heads = (
        (frames.request(frames.HEALTH_CHECK), too_large),
        (frames.request(frames.MARK), too_large),
        (frames.request(frames.MARK, content_type="application/json"), b"{"),
    )

    def attack(connection: Connection) -> None:
        connection.greet().settle()
        after: dict[int, int] = {}
        streams = stream_ids(8 * len(heads))
        for at, stream in enumerate(streams):
            block, start = heads[at % len(heads)]
            connection.send(frames.headers(stream, block))
            connection.send_data(stream, start)
        began = time.monotonic()
        while time.monotonic() < began + DISCARDED_SECONDS and attacker.running():
            for at, stream in enumerate(streams):
                if stream in connection.reset_streams:
                    continue
                size = min(1 if at % 2 else frames.LARGEST_FRAME, connection.room(stream))
                if size > 0:
                    connection.send_data(stream, bytes(size))
                    if stream in connection.over:
                        after[stream] = after.get(stream, 0) + size
            connection.read_for(0.01)
            if connection.reset_streams.keys() >= set(streams):
                break
        lasted = time.monotonic() - began
        for at, stream in enumerate(streams):
            name = ("too large", "no token", "no gRPC")[at % len(heads)]
            attacker.expect(
                stream in connection.reset_streams or lasted < DISCARDED_SECONDS,
                f"{name}: not reset within {DISCARDED_SECONDS} s",
            )
            attacker.expect(
                after.get(stream, 0) <= DISCARDED_BYTES,
                f"{name}: more than {DISCARDED_BYTES >> 20} MiB were read after the answer",
            )
            attacker.notes[f"{name}: answered {answer(connection, stream)}"] += 1
        most = max(after.values(), default=0)
        attacker.notes[f"at most {most / 2**20:.0f} MiB after an answer"] += 1
        attacker.notes[f"reset within {lasted:.0f} s"] += 1

    attacker.again(attack)


def answer(connection: Connection, stream: int) -> str:
    said = connection.answers.get(stream, {})
    return said.get("grpc-status") or said.get(":status") or "not at all"
