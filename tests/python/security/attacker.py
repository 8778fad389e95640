"""One attacking process: runs one attack by its name, and reports as a line of JSON.

It runs at a low priority, so that the measurements show what the attack makes the server do and not
who gets the processor.
"""

import argparse
import contextlib
import json
import random
import ssl
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from security import frames
from security.connection import Closed, Connection, Stalled

# Pause between two connections of a flood. A real attacker would not wait, but a long attack would run
# out of local ports here, and then measure the kernel.
PAUSE_SECONDS = 0.01
# The time within which the server must close a connection that breaks a rule.
CLOSED_WITHIN_SECONDS = 5


class NotAsExpected(Exception):
    """The server did not bound this attack."""


@dataclass
class Attacker:
    """The argument of an attack: addresses, duration, and counters."""

    address: tuple[str, int]
    seconds: float
    random: random.Random
    certificates: Path | None = None
    admin: tuple[str, int] | None = None
    # Attacks that have nothing to do with TLS go through it as well.
    over_tls: bool = False
    sent: int = 0
    connections: int = 0
    fates: Counter = field(default_factory=Counter)
    notes: Counter = field(default_factory=Counter)
    complaints: Counter = field(default_factory=Counter)
    held: list[Connection] = field(default_factory=list)

    def __post_init__(self):
        self.ends = time.monotonic() + self.seconds

    def running(self) -> bool:
        return time.monotonic() < self.ends

    def rest(self) -> None:
        """Waits until the attack's time is over."""
        time.sleep(max(0.0, self.ends - time.monotonic()))

    def open(self, **how) -> Connection:
        """A connection that stays until the end of the attack."""
        address = how.pop("address", self.address)
        if self.over_tls and address == self.address:
            how.setdefault("tls", self.tls("h2"))
        connection = Connection(address, deadline=self.ends, **how)
        self.connections += 1
        self.held.append(connection)
        return connection

    @contextlib.contextmanager
    def connection(self, **how) -> Iterator[Connection]:
        """A connection for the time of a block. The block ends early if the server closes the connection."""
        connection = self.open(**how)
        try:
            yield connection
        except (Closed, Stalled):
            pass
        finally:
            self.let_go(connection)

    def let_go(self, connection: Connection) -> None:
        self.held.remove(connection)
        self.fates[connection.fate()] += 1
        self.sent += connection.frames_sent
        connection.close()

    def again(self, attack: Callable[[Connection], None], **how) -> None:
        """Attacks on new connections, one after the other, until the attack's time is over."""
        while self.running():
            with self.connection(**how) as connection:
                attack(connection)
            time.sleep(PAUSE_SECONDS)

    def until_closed(self, connection: Connection) -> Iterator[None]:
        """Repeats the loop's body for as long as the server may take to close the connection."""
        connection.deadline = connection.opened + CLOSED_WITHIN_SECONDS
        while time.monotonic() < connection.deadline:
            yield

    def expect(self, fulfilled: bool, complaint: str) -> None:
        if not fulfilled:
            self.complaints[complaint] += 1

    def report(self) -> dict:
        for connection in list(self.held):
            self.let_go(connection)
        return {
            "sent": self.sent,
            "connections": self.connections,
            "fates": self.fates,
            "notes": self.notes,
            "complaints": self.complaints,
        }

    def tls(self, *protocols: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A TLS client that offers these protocols by ALPN."""
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        if version is not None:
            context.maximum_version = version
        return context


def host_and_port(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def call(connection: Connection, stream: int, path: str, payload: bytes, **changes: str) -> None:
    """Sends a complete call."""
    connection.send(frames.headers(stream, frames.request(path, **changes)))
    connection.send_body(stream, payload)


def status(connection: Connection, stream: int, seconds: float = 3) -> str:
    """The gRPC status of a call, or what came instead."""
    answer = lambda: connection.answers.get(stream, {})
    http = lambda: answer().get(":status", "")
    ended = lambda: (
        "grpc-status" in answer() or http() not in ("", "200") or stream in connection.reset_streams
    )
    closed = False
    try:
        connection.read_until(ended, seconds)
    except Closed:
        closed = True
    if "grpc-status" in answer():
        return answer()["grpc-status"]
    if http() not in ("", "200"):
        return f"HTTP {http()}"
    if stream in connection.reset_streams:
        return "reset"
    return "closed" if closed else "no answer"


def main() -> int:
    from security.attacks import ATTACKS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attack", choices=sorted(ATTACKS))
    parser.add_argument("--address", required=True, help="HOST:PORT")
    parser.add_argument("--admin", required=True, help="http://HOST:PORT")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--certificates", type=Path)
    parser.add_argument("--over-tls", action="store_true")
    options = parser.parse_args()

    attacker = Attacker(
        host_and_port(options.address),
        options.seconds,
        random.Random(options.seed),
        options.certificates,
        host_and_port(options.admin),
        options.over_tls and not ATTACKS[options.attack].tls,
    )
    try:
        ATTACKS[options.attack].run(attacker)
    except Exception:
        # An attack that fails to run must not pass.
        attacker.complaints[traceback.format_exc()] += 1
    print(json.dumps(attacker.report()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
