"""HTTP/2 frames, HPACK blocks and gRPC messages as bytes, valid or not.

Everything is written by hand and without state, so that a frame can be made once and sent a million
times, and so that frames which the standard forbids are possible.
"""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

INITIAL_WINDOW_SIZE = 4
LARGEST_WINDOW = 2**31 - 1
LARGEST_FRAME = 16_384
DEFAULT_WINDOW = 65_535

CANCEL = 8
ERRORS = (
    "NO_ERROR PROTOCOL_ERROR INTERNAL_ERROR FLOW_CONTROL_ERROR SETTINGS_TIMEOUT STREAM_CLOSED "
    "FRAME_SIZE_ERROR REFUSED_STREAM CANCEL COMPRESSION_ERROR CONNECT_ERROR ENHANCE_YOUR_CALM "
    "INADEQUATE_SECURITY HTTP_1_1_REQUIRED"
).split()

GET = "/dyndata.v1.DynData/Get"
MARK = "/dyndata.v1.DynData/Mark"
BATCH_GET = "/dyndata.v1.DynData/BatchGet"
BATCH_MARK = "/dyndata.v1.DynData/BatchMark"
MARK_IF = "/dyndata.v1.DynData/MarkIf"
INCREMENT = "/dyndata.v1.DynData/Increment"
COUNT = "/dyndata.v1.DynData/Count"
LIST = "/dyndata.v1.DynData/List"
WATCH = "/dyndata.v1.DynData/Watch"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

# The field of a Watch for all ids of its namespace.
WATCH_ALL = b"\x18\x01"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload
    )


def settings(**values: int) -> bytes:
    """SETTINGS; `settings(initial_window_size=0)` and so on."""
    numbers = {
        "header_table_size": 1,
        "enable_push": 2,
        "max_concurrent_streams": 3,
        "initial_window_size": INITIAL_WINDOW_SIZE,
        "max_frame_size": 5,
        "max_header_list_size": 6,
    }
    pairs = (struct.pack(">HI", numbers[name], value) for name, value in values.items())
    return frame(SETTINGS, payload=b"".join(pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def ping(payload: bytes = b"security") -> bytes:
    return frame(PING, payload=payload)


def headers(stream: int, block: bytes, *, end: bool = False) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block)


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def pieces(payload: bytes) -> list[bytes]:
    """Splits a payload into pieces that fit into a frame; an empty payload is one piece."""
    return [payload[at : at + LARGEST_FRAME] for at in range(0, len(payload) or 1, LARGEST_FRAME)]


def integer(value: int, bits: int, first: int = 0) -> bytes:
    """An HPACK integer with a prefix of `bits` bits (RFC 7541, 5.1)."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out = bytearray([first | limit])
    value -= limit
    while value >= 128:
        out.append(128 | value % 128)
        value //= 128
    out.append(value)
    return bytes(out)


def field(name: str, value: str | bytes, first: int = 0) -> bytes:
    """A literal header field with a literal name; by default it is not added to the table."""
    value = value.encode() if isinstance(value, str) else value
    return bytes([first]) + integer(len(name), 7) + name.encode() + integer(len(value), 7) + value


def request(path: str, *extra: tuple[str, str], **changes: str) -> bytes:
    """The header block of a gRPC request. `changes` replaces a header, with _ for - in its name;
    an empty value leaves it out."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "security.test",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    for name, value in changes.items():
        name = name.replace("_", "-")
        fields[":method" if name == "method" else name] = value
    every = [pair for pair in fields.items() if pair[1]]
    return b"".join(field(name, value) for name, value in [*every, *extra])


def message(payload: bytes, *, length: int | None = None, compressed: int = 0) -> bytes:
    """A gRPC message with its prefix, whose length may be wrong on purpose."""
    return struct.pack(">BI", compressed, len(payload) if length is None else length) + payload


def length_delimited(number: int, payload: bytes) -> bytes:
    """A protobuf field of a string, bytes or message."""
    return bytes([number << 3 | 2]) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(128 | value % 128)
        value //= 128
    out.append(value)
    return bytes(out)


def namespace(name: str) -> bytes:
    """The field of a namespace, with which each request begins that is not for the empty one."""
    return length_delimited(1, name.encode())


def get_request(id: str) -> bytes:
    return length_delimited(2, id.encode())


def mark_request(id: str, value: bytes) -> bytes:
    """A Mark with a time to live of an hour, which is longer than the attack. A MarkIf begins like it."""
    hour = length_delimited(6, b"\x08" + varint(3600))
    return length_delimited(2, id.encode()) + length_delimited(5, value) + hour


def batch_get_request(ids: list[str]) -> bytes:
    return b"".join(length_delimited(2, id.encode()) for id in ids)


def batch_mark_request(ids: list[str], value: bytes) -> bytes:
    """A BatchMark that gives each id the same value."""
    rest = length_delimited(4, value)
    items = (length_delimited(1, id.encode()) + rest for id in ids)
    return b"".join(length_delimited(2, item) for item in items)


def watch_request(ids: list[str]) -> bytes:
    """A Watch of these ids."""
    return batch_get_request(ids)
