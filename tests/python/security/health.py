"""Health checks and reflection, which callers without credentials may use."""

import time

from security import frames
from security.attacker import Attacker, call, status
from security.bodies import keep_open
from security.connection import Connection, Stalled
from security.floods import BURST, STREAMS, bursts, stream_ids
from security.malformed import INVALID_ARGUMENT, OK, RESOURCE_EXHAUSTED

# The server's --send-timeout in these attacks, and a margin for a busy machine.
SEND_TIMEOUT_SECONDS = 2
RESET_WITHIN_SECONDS = SEND_TIMEOUT_SECONDS + 1.5
# The size of a receive buffer that is soon full.
SMALL_BUFFER = 4_096


def unfinished_checks(attacker: Attacker) -> None:
    """80 health Checks on one connection. Each sends 1.9 MB of a message of 4 MB, and never the rest."""
    body = frames.message(bytes(1_900_000), length=4_000_000)
    keep_open(attacker, 1, frames.request(frames.HEALTH_CHECK), body, calls=80)


def unfinished_reflection(attacker: Attacker) -> None:
    """Reflection streams on 10 connections. Each sends almost all of a message of 4 MB."""
    body = frames.message(bytes(3_900_000), length=4_000_000)
    keep_open(attacker, 10, frames.request(frames.REFLECTION), body, calls=16)


def unfinished_everywhere(attacker: Attacker) -> None:
    """Health Checks with 1,000 bytes of a message that never ends, on 100 connections of each of two
    processes, so that every worker reaches its limit."""
    body = frames.message(bytes(1_000), length=1_001)
    keep_open(attacker, 100, frames.request(frames.HEALTH_CHECK), body)


def lying_lengths(attacker: Attacker) -> None:
    """Messages of health and reflection whose length prefix is wrong, or that are not messages."""
    ask = frames.length_delimited(1, b"dyndata.v1.DynData")
    cases = (
        (frames.message(ask), OK),
        (frames.message(ask, length=len(ask) + 1), INVALID_ARGUMENT),
        (frames.message(ask, length=len(ask) - 1), INVALID_ARGUMENT),
        (frames.message(ask)[:3], INVALID_ARGUMENT),
        (b"", INVALID_ARGUMENT),
        (frames.message(b"\xff" * 20), INVALID_ARGUMENT),
        (frames.message(b"\x0a\xff\xff\xff\xff\x0f"), INVALID_ARGUMENT),
        (frames.message(ask, length=100_000), RESOURCE_EXHAUSTED),
        (frames.message(ask, length=0xFFFF_FFFF), RESOURCE_EXHAUSTED),
    )

    def attack(connection: Connection) -> None:
        connection.greet()
        paths = (frames.HEALTH_CHECK, frames.HEALTH_WATCH, frames.REFLECTION)
        path = paths[attacker.connections % len(paths)]
        for stream, (payload, expected) in zip(stream_ids(len(cases)), cases, strict=True):
            # A valid Watch or reflection stream does not end.
            if expected == OK and path != frames.HEALTH_CHECK:
                continue
            call(connection, stream, path, payload)
            answer = status(connection, stream, 1)
            attacker.notes[f"status {answer}"] += 1
            # A reflection stream may end with OK after bytes that are not a message.
            fine = (expected, OK) if path == frames.REFLECTION else (expected,)
            attacker.expect(answer in fine, f"{path}: {payload[:20]!r}: {answer}, not {expected}")

    attacker.again(attack)


def watch_flood(attacker: Attacker) -> None:
    """Health watches on 200 connections, 256 on each, by clients that take the first message."""
    ask = frames.message(b"")
    keep_open(attacker, 200, frames.request(frames.HEALTH_WATCH), ask, end=True)


def check_flood(attacker: Attacker) -> None:
    """Complete health Checks on all streams, whose answers are read."""
    ask = frames.message(b"")
    keep_open(attacker, 8, frames.request(frames.HEALTH_CHECK), ask, end=True)


def open_watches(attacker: Attacker) -> None:
    """Health watches and reflection streams, which have no deadline, on all streams of a client that
    takes no message."""
    check = frames.message(b"")
    # Asks a hundred times for the file that contains this symbol.
    ask = frames.message(frames.length_delimited(4, b"dyndata.v1.DynData")) * 100
    for number in range(8):
        connection = attacker.open().greet(initial_window_size=0).settle()
        for stream in stream_ids(STREAMS):
            if number % 2:
                part = frames.headers(stream, frames.request(frames.REFLECTION))
                payload = frames.data(stream, ask)
            else:
                part = frames.headers(stream, frames.request(frames.HEALTH_WATCH))
                payload = frames.data(stream, check, end=True)
            connection.send(part + payload, 2)
    attacker.rest()


def never_taken(attacker: Attacker, name: str, block: bytes, body: bytes, *, end: bool) -> None:
    """Opens calls on all streams with a window of 0, so that the server cannot send the answers. Each
    stream must be over within --send-timeout."""
    while attacker.running():
        held = []
        for _ in range(8):
            connection = attacker.open().greet(initial_window_size=0)
            held.append(connection)
            for stream in stream_ids(STREAMS):
                part = frames.headers(stream, block)
                part += frames.data(stream, body, end=end) if body else b""
                connection.send(part, 2)
        until = time.monotonic() + RESET_WITHIN_SECONDS
        left = len(held) * STREAMS
        while left and time.monotonic() < until:
            for connection in held:
                connection.read_for(0.01)
            left = sum(STREAMS - len(connection.over) for connection in held)
        attacker.expect(not left, f"{name}: streams are left after {RESET_WITHIN_SECONDS} s")
        attacker.notes[f"{name}: {left} of {len(held) * STREAMS} streams left"] += 1
        for connection in held:
            for code, count in connection.resets.items():
                attacker.notes[f"{name}: reset with {code}"] += count
            attacker.let_go(connection)


def window_0_checks(attacker: Attacker) -> None:
    """Replies of health Checks, with a window of 0."""
    ask = frames.message(b"")
    never_taken(attacker, "Check", frames.request(frames.HEALTH_CHECK), ask, end=True)


def window_0_not_grpc(attacker: Attacker) -> None:
    """The text of HTTP 415, with a window of 0."""
    block = frames.request(frames.GET, content_type="application/json")
    never_taken(attacker, "415", block, b"{}", end=True)


def window_0_errors(attacker: Attacker) -> None:
    """Errors of callers without credentials, whose requests never end, with a window of 0."""
    never_taken(attacker, "UNAUTHENTICATED", frames.request(frames.GET), b"", end=False)


def unread_errors(attacker: Attacker) -> None:
    """Calls without credentials and with wrong content types, by clients that never read the answers."""
    ask = frames.message(frames.get_request("42"))
    blocks = (frames.request(frames.GET), frames.request(frames.GET, content_type="text/plain"))

    def attack(connection: Connection) -> None:
        connection.greet(initial_window_size=frames.LARGEST_WINDOW)
        calls = bursts(
            lambda stream: (
                frames.headers(stream, blocks[stream // 2 % 2])
                + frames.data(stream, ask, end=True)
            )
        )
        try:
            while attacker.running():
                connection.send(next(calls), 2 * BURST)
        except Stalled:
            attacker.notes["the server stopped reading"] += 1
            raise

    attacker.again(attack, reads=False, receive_buffer=SMALL_BUFFER)
