"""One attacking connection, which records how it ended."""

import contextlib
import select
import socket
import ssl
import struct
import time
from collections import Counter

from hpack import Decoder, HPACKError

from security import frames

# After a GOAWAY with an error, the server must close within this time.
GOAWAY_GRACE_SECONDS = 3
READ_BYTES = 65_536


class Closed(Exception):
    """The server closed the connection."""


class Stalled(Exception):
    """The server stopped reading before the attack ended."""


class Connection:
    """An HTTP/2 client that may break the rules. It reads whenever it writes, so that it sees a GOAWAY
    and neither side waits for the other. With `reads=False` it never reads."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        deadline: float,
        reads: bool = True,
        source: str | None = None,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
        answers_pings: bool = True,
    ):
        self.deadline = deadline
        self.reads = reads
        self.answers_pings = answers_pings
        self.opened = time.monotonic()
        self.closed = False
        self.closed_after = 0.0
        self.stalled = False
        self.goaway: str | None = None
        self.frames_sent = 0
        self.resets: Counter[str] = Counter()
        # The streams that the server has reset, each with the first code.
        self.reset_streams: dict[int, str] = {}
        # The streams that the server has reset or ended.
        self.over: set[int] = set()
        self.answers: dict[int, dict[str, str]] = {}
        self.data_bytes = 0
        # The window of the connection for DATA.
        self.send_window = frames.DEFAULT_WINDOW
        # The window of a stream is the first one plus this change.
        self._first_window = frames.DEFAULT_WINDOW
        self._stream_windows: Counter[int] = Counter()
        self.raw = b""
        self._buffer = bytearray()
        # Answers to the server's SETTINGS, which apply once they are acknowledged, and to its PINGs, for
        # which a graceful end waits. They are sent between other frames.
        self._ack = b""
        self._decoder = Decoder()
        plain = socket.socket()
        if receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            plain.bind((source, 0))
        plain.settimeout(5)
        plain.connect(address)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain
        if tls:
            self.socket = tls.wrap_socket(plain, server_hostname="localhost", session=session)
        self.socket.setblocking(False)

    def greet(self, **values: int) -> "Connection":
        """Sends the preface, with these settings."""
        self.send(frames.PREFACE + frames.settings(**values), 1)
        return self

    def settle(self) -> "Connection":
        """Waits until the server has announced its windows, so that a lot can be sent without an error."""
        if self.reads:
            self.read_until(lambda: self.send_window > frames.DEFAULT_WINDOW, 1)
        else:
            time.sleep(0.1)
        return self

    def send(self, payload: bytes, count: int = 1) -> None:
        """Sends `count` frames, which are in one payload."""
        rest = memoryview(self._ack + payload)
        self._ack = b""
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self._wait_to_send()
            except OSError:
                self._end()
        self.frames_sent += count
        if self.reads:
            self.receive()

    def room(self, stream: int) -> int:
        """The bytes of DATA that the server accepts now on a stream."""
        return min(self.send_window, self._first_window + self._stream_windows[stream])

    def send_data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Sends one frame of DATA, and updates the windows."""
        self.send_window -= len(payload)
        self._stream_windows[stream] -= len(payload)
        self.send(frames.data(stream, payload, end=end))

    def send_body(self, stream: int, payload: bytes, *, end: bool = True) -> None:
        """Sends a request body as the windows allow. With `reads=False` it ignores them."""
        parts = frames.pieces(payload)
        for at, part in enumerate(parts):
            left = max(0.1, self.deadline - time.monotonic())
            has_room = lambda part=part: self.room(stream) >= len(part) or stream in self.over
            if self.reads and not self.read_until(has_room, left):
                self.stalled = True
                raise Stalled
            if stream in self.reset_streams or (self.reads and self.room(stream) < len(part)):
                # The server has already answered and accepts no more.
                return
            self.send_data(stream, part, end=end and at == len(parts) - 1)

    def receive(self) -> None:
        """Reads all that has arrived; raises Closed at the end of the connection."""
        while True:
            try:
                chunk = self.socket.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError:
                chunk = b""
            if not chunk:
                self._close()
                raise Closed
            self._parse(chunk)

    def read_for(self, seconds: float) -> None:
        """Reads for a time; raises Closed at the end of the connection."""
        self.read_until(lambda: False, seconds)

    def read_until(self, ready, seconds: float) -> bool:
        """Reads until `ready()` is true. Returns False if that takes longer than the time."""
        until = time.monotonic() + seconds
        while not ready():
            if (left := until - time.monotonic()) <= 0:
                return False
            if self._ack:
                self.send(b"", 0)
            self._poll(select.POLLIN, min(left, 0.1))
            self.receive()
        return True

    def is_closed_within(self, seconds: float) -> bool:
        with contextlib.suppress(Closed):
            self.read_for(seconds)
        return self.closed

    def fate(self) -> str:
        """How the connection ended. Call this once, at the end."""
        if self.goaway and not self.goaway.startswith("NO_ERROR") and not self.closed:
            if not self.is_closed_within(GOAWAY_GRACE_SECONDS):
                return f"GOAWAY {self.goaway} but not closed"
        elif not self.closed and self.reads:
            with contextlib.suppress(Closed):
                self.receive()
        if self.goaway:
            return f"GOAWAY {self.goaway}"
        if self.closed:
            return "closed"
        return "stalled" if self.stalled else "open"

    def close_write(self) -> None:
        """Closes the sending half of the connection."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()

    def _wait_to_send(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.stalled = True
            raise Stalled
        wanted = select.POLLOUT | (select.POLLIN if self.reads else 0)
        self._poll(wanted, min(left, 0.5))
        if self.reads:
            self.receive()

    def _poll(self, wanted: int, seconds: float) -> None:
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return
        poll = select.poll()
        poll.register(self.socket, wanted)
        poll.poll(max(1, seconds * 1000))

    def _end(self) -> None:
        """Reads what the server sent before a write failed, up to the end of the connection."""
        while True:
            self.receive()
            self._poll(select.POLLIN, 0.1)

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self.closed_after = time.monotonic() - self.opened

    def _parse(self, chunk: bytes) -> None:
        if len(self.raw) < 4096:
            self.raw += chunk[:4096]
        self._buffer += chunk
        at = 0
        while len(self._buffer) - at >= 9:
            high, low, kind, flags, stream = struct.unpack_from(">HBBBI", self._buffer, at)
            length = high << 8 | low
            if len(self._buffer) - at < 9 + length:
                break
            self._on_frame(kind, flags, stream, self._buffer[at + 9 : at + 9 + length])
            at += 9 + length
        del self._buffer[:at]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind in (frames.HEADERS, frames.DATA) and flags & frames.END_STREAM:
            self.over.add(stream)
        if kind == frames.GOAWAY and len(payload) >= 8:
            code = struct.unpack_from(">I", payload, 4)[0]
            self.goaway = f"{error(code)} {payload[8:].decode(errors='replace')}".strip()
        elif kind == frames.RST_STREAM and len(payload) == 4:
            code = error(struct.unpack(">I", payload)[0])
            self.resets[code] += 1
            # What was on its way to a stream that is reset already gets another code.
            self.reset_streams.setdefault(stream, code)
            self.over.add(stream)
        elif kind == frames.HEADERS:
            with contextlib.suppress(HPACKError):
                fields = dict(self._decoder.decode(bytes(payload)))
                self.answers.setdefault(stream, {}).update(fields)
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self._ack += frames.frame(frames.SETTINGS, frames.ACK)
            for name, value in struct.iter_unpack(">HI", payload):
                if name == frames.INITIAL_WINDOW_SIZE:
                    self._first_window = value
        elif kind == frames.PING and not flags & frames.ACK and self.answers_pings:
            self._ack += frames.frame(frames.PING, frames.ACK, payload=bytes(payload))
        elif kind == frames.WINDOW_UPDATE:
            more = struct.unpack(">I", payload)[0]
            if stream == 0:
                self.send_window += more
            else:
                self._stream_windows[stream] += more
        elif kind == frames.DATA:
            self.data_bytes += len(payload)


def error(code: int) -> str:
    return frames.ERRORS[code] if code < len(frames.ERRORS) else str(code)
