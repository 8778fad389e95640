"""What makes the server hold memory: readers that do not read, requests that do not end, headers
that grow when they are unpacked."""

import gzip
import time

import frames
from attacker import Attacker, call, status
from connection import Closed, Connection, Stalled
from floods import stream_ids

STREAMS = 256
VALUE_BYTES = 65_536
BATCH = 1_000
# Room in this process for a receive buffer that is soon full.
SMALL_BUFFER = 4_096


def mark_largest(attacker: Attacker) -> str:
    """Marks the largest value that is allowed, and gives its id."""
    # Short, so that a batch of it is, too.
    id = "L"
    with attacker.connection() as connection:
        connection.greet()
        call(
            connection, 1, frames.MARK, frames.message(frames.mark_request(id, bytes(VALUE_BYTES)))
        )
        answer = status(connection, 1)
        attacker.expect(answer == "0", f"the largest value cannot be marked: {answer}")
    return id


def slow_readers(attacker: Attacker, path: str, payload: bytes, connections: int, **how) -> None:
    """Many streams on some connections ask for large replies and take none of them. A connection
    that the server closes is opened anew."""
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
            if len(refused | connection.reset_streams) >= STREAMS:
                # Every stream was refused or reset: nothing is held any more, so anew.
                attacker.let_go(connection)
                readers[at] = start()
    for connection in readers:
        for code, count in connection.resets.items():
            attacker.notes[f"reset with {code}"] += count
        for answer in connection.answers.values():
            attacker.notes[f"status {answer.get('grpc-status', 'none yet')}"] += 1


def window_0_gets(attacker: Attacker) -> None:
    """Gets of the largest value, with a window of 0: the reply is ready and cannot leave."""
    id = mark_largest(attacker)
    slow_readers(attacker, frames.GET, frames.get_request(id), 8)


def window_0_batches(attacker: Attacker) -> None:
    """BatchGets that name the largest value a thousand times: a request of some kilobytes, whose
    reply would be of 64 MiB."""
    id = mark_largest(attacker)
    slow_readers(attacker, frames.BATCH_GET, frames.batch_get_request([id] * BATCH), 2)


def window_1_dribble(attacker: Attacker) -> None:
    """A window that is opened a byte at a time, so that a reply always makes some progress."""
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
    """The largest windows, and a socket that is never read: what is written has nowhere to go."""
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
    """The same with the largest replies that there are."""
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


def unfinished_bodies(attacker: Attacker) -> None:
    """Requests of almost the largest size that lack their last byte: gathered, and never run."""
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


def slow_bodies(attacker: Attacker) -> None:
    """Slow loris: HEADERS, and then a byte of DATA a second. A call ends at --max-deadline (5 s)
    whatever its caller's deadline."""
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
    """An entry of almost 4 KiB in the dynamic table, named sixteen thousand times in one frame: 16
    KiB that would be 64 MiB."""
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
    """64 MiB of zeros in 64 KiB of gzip; to be refused, not inflated."""
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


def open_watches(attacker: Attacker) -> None:
    """Health watches and reflection streams, which have no deadline, as many as there is room for,
    by a client that takes no message."""
    check = frames.message(b"")
    # The file that contains this symbol, again and again.
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
