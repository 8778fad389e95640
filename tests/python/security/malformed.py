"""Bytes that are not gRPC or not HTTP/2, and lengths that are wrong."""

from security import frames
from security.attacker import Attacker, call, status
from security.connection import Closed, Connection
from security.floods import stream_ids

# A TLS 1.2 ClientHello up to its random bytes; nothing after it matters to a plaintext port.
CLIENT_HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(range(32)) + bytes(200)
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = "0", "3", "8", "12"


def http_1(attacker: Attacker) -> None:
    """HTTP/1.1 on the gRPC port: the server says what is wrong, and closes."""
    requests = (
        b"GET / HTTP/1.1\r\nHost: security.test\r\n\r\n",
        b"POST /dyndata.v1.DynData/Get HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
        # A head that never ends.
        b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * 10_000,
    )

    def attack(connection: Connection) -> None:
        bytes_sent = requests[attacker.connections % len(requests)]
        try:
            connection.send(bytes_sent)
            connection.read_for(6)
        finally:
            # The server may close before it has read all of a long request.
            if len(bytes_sent) < 1_000:
                said = connection.raw.startswith(b"HTTP/1.1 505 ")
                attacker.expect(said, f"answered with {connection.raw[:20]!r}, not HTTP/1.1 505")
            connection.close_write()
            connection.is_closed_within(1)

    attacker.again(attack)


def other_protocols(attacker: Attacker) -> None:
    """A TLS ClientHello, random bytes and a wrong preface on the plaintext port: closed at once."""
    settings = frames.settings()
    variants = (
        lambda: CLIENT_HELLO,
        lambda: attacker.random.randbytes(1_000),
        lambda: b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + settings,
        lambda: b"\x00" * 100,
        lambda: settings * 10,
    )

    def attack(connection: Connection) -> None:
        connection.send(variants[attacker.connections % len(variants)]())
        attacker.expect(connection.is_closed_within(1), "not closed within 1 s")

    attacker.again(attack)


def lying_lengths(attacker: Attacker) -> None:
    """Length prefixes of gRPC that do not fit their message, and frames that are longer than allowed or
    that never end."""
    ask = frames.get_request("42")
    cases = (
        (frames.message(ask, length=len(ask) + 1), INVALID_ARGUMENT),
        (frames.message(ask, length=len(ask) - 1), INVALID_ARGUMENT),
        (frames.message(ask, length=0), INVALID_ARGUMENT),
        (frames.message(ask) + frames.message(ask), INVALID_ARGUMENT),
        (frames.message(ask)[:3], INVALID_ARGUMENT),
        (b"", INVALID_ARGUMENT),
        (frames.message(ask, length=0xFFFF_FFFF), RESOURCE_EXHAUSTED),
        (frames.message(ask, length=10_000_000), RESOURCE_EXHAUSTED),
        (frames.message(ask, compressed=7), INVALID_ARGUMENT),
        # Lengths inside the message: an id of 4 GiB, one of 2^63 bytes, a group, a bad tag.
        (frames.message(b"\x12\xff\xff\xff\xff\x0f"), INVALID_ARGUMENT),
        (frames.message(b"\x12" + b"\xff" * 8 + b"\x7f42"), INVALID_ARGUMENT),
        (frames.message(b"\x13" * 200), INVALID_ARGUMENT),
        (frames.message(b"\xff" * 20), INVALID_ARGUMENT),
    )
    too_long = (frames.LARGEST_FRAME + 1, 2**24 - 1)

    def attack(connection: Connection) -> None:
        connection.greet()
        for stream, (payload, expected) in zip(stream_ids(len(cases)), cases, strict=True):
            call(connection, stream, frames.GET, payload)
            answer = status(connection, stream)
            attacker.notes[f"status {answer}"] += 1
            attacker.expect(answer == expected, f"{payload[:20]!r}: {answer}, not {expected}")
        length = too_long[attacker.connections % 2]
        header = length.to_bytes(3, "big") + b"\x00\x00" + (101).to_bytes(4, "big")
        connection.send(header + bytes(1_000))
        attacker.expect(connection.is_closed_within(1), "a frame that is too long is accepted")
        attacker.expect(
            (connection.goaway or "").startswith("FRAME_SIZE_ERROR"),
            f"a frame that is too long: GOAWAY {connection.goaway}, not FRAME_SIZE_ERROR",
        )

    attacker.again(attack)


def random_frames(attacker: Attacker) -> None:
    """Frames of every kind with random flags, streams and payloads, and valid frames that are cut short
    or have a flipped bit."""
    block = frames.request(frames.GET)
    good = (
        frames.headers(1, block)
        + frames.data(1, frames.message(frames.get_request("42")), end=True)
        + frames.ping()
        + frames.window_update(0, 1000)
        + frames.settings(initial_window_size=100)
    )
    random = attacker.random

    def some_frame() -> bytes:
        stream = random.choice((0, 1, 3, 5, 2, random.randrange(2**31)))
        kind = random.choice((*range(10), random.randrange(256)))
        payload = random.randbytes(random.choice((0, 1, 4, 5, 6, 8, random.randrange(300))))
        if kind == frames.HEADERS and random.random() < 0.7:
            payload = block
        return frames.frame(kind, random.randrange(256), stream, payload)

    def spoiled() -> bytes:
        spoiled = bytearray(good)
        if random.random() < 0.5:
            return bytes(spoiled[: random.randrange(len(spoiled))])
        spoiled[random.randrange(len(spoiled))] ^= 1 << random.randrange(8)
        return bytes(spoiled)

    def attack(connection: Connection) -> None:
        connection.greet()
        connection.send(b"".join(some_frame() for _ in range(10)) + spoiled(), 15)
        # Half of the connections go on; the others are left in the middle of a frame.
        connection.read_for(0.01)

    attacker.again(attack)


def wrong_calls(attacker: Attacker) -> None:
    """Unknown services and methods, wrong content types and HTTP methods, wrong or missing headers. Each
    has a defined answer, and none of them is UNKNOWN."""
    ask = frames.message(frames.get_request("42"))
    cases = (
        ("/dyndata.v1.DynData/Delete", {}, UNIMPLEMENTED),
        ("/dyndata.v1.DynData/", {}, UNIMPLEMENTED),
        ("/dyndata.v1.Other/Get", {}, UNIMPLEMENTED),
        ("/", {}, UNIMPLEMENTED),
        ("/" + "x" * 8_000, {}, UNIMPLEMENTED),
        ("/../../etc/passwd", {}, UNIMPLEMENTED),
        (frames.GET, {"content_type": "application/json"}, "HTTP 415"),
        (frames.GET, {"content_type": "application/grpc-web"}, "HTTP 415"),
        (frames.GET, {"content_type": ""}, "HTTP 415"),
        (frames.GET, {"grpc_timeout": "soon"}, INVALID_ARGUMENT),
        (frames.GET, {"grpc_timeout": "999999999S"}, INVALID_ARGUMENT),
        (frames.GET, {"te": ""}, OK),
    )

    def attack(connection: Connection) -> None:
        connection.greet()
        for stream, (path, changes, expected) in zip(stream_ids(len(cases)), cases, strict=True):
            if not attacker.running():
                return
            call(connection, stream, path, ask, **changes)
            answer = status(connection, stream, 0.5)
            attacker.notes[answer] += 1
            attacker.expect(answer == expected, f"{path[:30]} {changes}: {answer}, not {expected}")

    attacker.again(attack)


def malformed_requests(attacker: Attacker) -> None:
    """Header blocks that RFC 9113 calls malformed. The stream or the connection ends, and no call
    happens."""
    blocks = (
        frames.request("", method=""),
        frames.request(frames.GET, (":path", "/again")),
        frames.request(frames.GET, ("connection", "keep-alive")),
        frames.request(frames.GET, ("Upper-Case", "no")),
        frames.request(frames.GET, (":status", "200")),
        frames.request("no slash"),
        frames.field("te", "trailers") + frames.request(frames.GET),
        # An index that is in no table, a table larger than agreed, a string that is cut short.
        b"\xff\xff\xff\x7f",
        b"\x3f\xff\xff\x7f",
        b"\x00\x7f",
    )

    def attack(connection: Connection) -> None:
        connection.greet()
        block = blocks[attacker.connections % len(blocks)]
        call_made = frames.headers(1, block) + frames.data(
            1, frames.message(frames.get_request("42")), end=True
        )
        try:
            connection.send(call_made, 2)
            connection.read_for(0.05)
        except Closed:
            pass
        answer = connection.answers.get(1, {}).get("grpc-status")
        attacker.expect(answer != OK, f"block {block[:30]!r} is served")
        attacker.notes["reset" if connection.resets else connection.fate()] += 1

    attacker.again(attack)
