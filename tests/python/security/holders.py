"""Attacks on the server's memory: clients that do not read replies, and headers that grow when they
are decoded. bodies.py has the requests that do not end."""

import gzip
import time

from security import frames
from security.attacker import Attacker, call, status
from security.connection import Closed, Connection, Stalled
from security.floods import STREAMS, stream_ids

VALUE_BYTES = 65_536
BATCH = 1_000
# The size of a receive buffer that is soon full.
SMALL_BUFFER = 4_096


def mark_value(attacker: Attacker, id: str, size: int) -> str:
    """Marks a value of this size, and returns its id."""
    with attacker.connection() as connection:
        connection.greet()
        call(connection, 1, frames.MARK, frames.message(frames.mark_request(id, bytes(size))))
        answer = status(connection, 1)
        attacker.expect(answer == "0", f"{size} bytes cannot be marked: {answer}")
    return id


def mark_largest(attacker: Attacker) -> str:
    """Marks the largest value that is allowed, and returns its id."""
    # A short id keeps the request of a batch small.
    return mark_value(attacker, "L", VALUE_BYTES)


def slow_readers(attacker: Attacker, path: str, payload: bytes, connections: int, **how) -> None:
    """Many streams ask for large replies and take none of them. A connection that the server closes is
    replaced."""
    settings = how.pop("settings", {"initial_window_size": 0})
    window = how.pop("window", 0)
    block = frames.request(path)

    def start() -> Connection:
        connection = attacker.open(**how)
        try:
            connection.greet(**settings).settle()
            if window:
                connection.send(frames.window_update(0, window))
            for stream in stream_ids(STREAMS):
                connection.send(frames.headers(stream, block))
                connection.send_body(stream, frames.message(payload))
        except (Closed, Stalled):
            pass
        return connection

    readers = [start() for _ in range(connections)]
    while attacker.running():
        time.sleep(0.05)
        for at, connection in enumerate(readers):
            if not connection.reads:
                continue
            try:
                connection.receive()
            except Closed:
                attacker.let_go(connection)
                readers[at] = start()
                continue
            refused = {at for at, said in connection.answers.items() if "grpc-status" in said}
            if len(refused | connection.reset_streams.keys()) >= STREAMS:
                # The server has refused or reset every stream, so this connection holds no memory any more.
                attacker.let_go(connection)
                readers[at] = start()
    for connection in readers:
        for code, count in connection.resets.items():
            attacker.notes[f"reset with {code}"] += count
        for answer in connection.answers.values():
            attacker.notes[f"status {answer.get('grpc-status', 'none yet')}"] += 1


def window_0_gets(attacker: Attacker) -> None:
    """Gets of the largest value, with a window of 0: the server has the reply and cannot send it."""
    id = mark_largest(attacker)
    slow_readers(attacker, frames.GET, frames.get_request(id), 8)


def window_0_batches(attacker: Attacker) -> None:
    """BatchGets that name the largest value a thousand times: a request of a few kilobytes for a reply
    of 64 MiB."""
    id = mark_largest(attacker)
    slow_readers(attacker, frames.BATCH_GET, frames.batch_get_request([id] * BATCH), 2)


def small_replies(attacker: Attacker) -> None:
    """Gets of 4,000 bytes on 100 connections of each of two processes, with a window of 0. One such reply
    is small, but all of them together are not."""
    id = mark_value(attacker, "S", 4_000)
    slow_readers(attacker, frames.GET, frames.get_request(id), 100)


def window_1_dribble(attacker: Attacker) -> None:
    """A window that grows by a byte at a time, so that each reply makes slow progress."""
    id = mark_largest(attacker)
    block = frames.request(frames.GET)
    payload = frames.message(frames.get_request(id))
    readers = []
    for _ in range(4):
        connection = attacker.open().greet(initial_window_size=0)
        for stream in stream_ids(STREAMS):
            connection.send(frames.headers(stream, block) + frames.data(stream, payload, end=True))
        readers.append(connection)
    dribble = b"".join(frames.window_update(stream, 1) for stream in stream_ids(STREAMS))
    while attacker.running():
        for connection in list(readers):
            try:
                connection.send(dribble, STREAMS)
            except (Closed, Stalled):
                readers.remove(connection)
        time.sleep(0.25)
    attacker.notes["bytes taken"] += sum(connection.data_bytes for connection in readers)


def slow_socket(attacker: Attacker) -> None:
    """The largest windows, and a socket that is never read, so that the server cannot write."""
    id = mark_largest(attacker)
    slow_readers(
        attacker,
        frames.GET,
        frames.get_request(id),
        8,
        reads=False,
        receive_buffer=SMALL_BUFFER,
        settings={"initial_window_size": frames.LARGEST_WINDOW},
        window=frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW,
    )


def slow_socket_batches(attacker: Attacker) -> None:
    """The same with the largest replies."""
    id = mark_largest(attacker)
    slow_readers(
        attacker,
        frames.BATCH_GET,
        frames.batch_get_request([id] * BATCH),
        2,
        reads=False,
        receive_buffer=SMALL_BUFFER,
        settings={"initial_window_size": frames.LARGEST_WINDOW},
        window=frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW,
    )


def header_bomb(attacker: Attacker) -> None:
    """Requests with many and with huge headers, beyond the 16 KiB of a header list."""
    variants = (
        [(f"x-{number}", "v" * 20) for number in range(1_000)],
        [("x-long", "v" * 17_000)],
        [("x-long", "v" * 60_000)],
        [("x", "")] * 2_000,
        [("cookie", "c" * 100)] * 300,
    )
    blocks = [frames.request(frames.GET, *variant) for variant in variants]

    def attack(connection: Connection) -> None:
        connection.greet()
        pieces = frames.pieces(blocks[attacker.connections % len(blocks)])
        for stream in stream_ids(200):
            for at, piece in enumerate(pieces):
                last = frames.END_HEADERS if at == len(pieces) - 1 else 0
                kind = frames.CONTINUATION if at else frames.HEADERS
                connection.send(frames.frame(kind, last, stream, piece))
        connection.read_for(0.2)
        for answer in connection.answers.values():
            said = answer.get("grpc-status") or f"HTTP {answer.get(':status')}"
            attacker.notes[said] += 1
            attacker.expect(said == "HTTP 431", f"answered with {said}, not HTTP 431")
        for code, count in connection.resets.items():
            attacker.notes[f"reset with {code}"] += count

    attacker.again(attack)


def hpack_bomb(attacker: Attacker) -> None:
    """An entry of almost 4 KiB in the dynamic table, referred to sixteen thousand times in one frame:
    16 KiB that decode to 64 MiB."""
    entry = frames.field("x", "v" * 4_000, first=0x40)
    newest = b"\xbe"
    start = frames.request(frames.GET) + entry
    room = frames.LARGEST_FRAME - len(start)

    def attack(connection: Connection) -> None:
        connection.greet()
        for stream in stream_ids(1_000):
            connection.send(frames.headers(stream, start + newest * room, end=True))
        connection.read_for(1)

    attacker.again(attack)


def gzip_bomb(attacker: Attacker) -> None:
    """64 MiB of zeros in 64 KiB of gzip. The server must refuse it and not decompress it."""
    bomb = frames.message(gzip.compress(bytes(64 << 20), 9), compressed=1)

    def attack(connection: Connection) -> None:
        connection.greet()
        for stream in stream_ids(100):
            if not attacker.running():
                return
            block = frames.request(frames.MARK, grpc_encoding="gzip")
            connection.send(frames.headers(stream, block))
            connection.send_body(stream, bomb)
            answer = status(connection, stream)
            attacker.notes[f"status {answer}"] += 1
            attacker.expect(answer == "12", f"answered with {answer}, not 12 (UNIMPLEMENTED)")

    attacker.again(attack)
