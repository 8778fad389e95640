"""Many connections that are idle, or that do nothing useful."""

import time
from collections.abc import Callable

from security import frames
from security.attacker import Attacker, NotAsExpected
from security.connection import Closed, Connection

PREFACE_SECONDS = 5
# The preface timeout, and a margin for a busy machine.
CLOSED_WITHIN_SECONDS = PREFACE_SECONDS + 1.5


def crowd(attacker: Attacker, size: int, **how) -> list[Connection]:
    """Opens many connections; a refused one counts as closed."""
    connections = []
    for _ in range(size):
        try:
            connections.append(attacker.open(**how))
        except OSError:
            attacker.notes["connect failed"] += 1
    return connections


def keep_crowd(
    attacker: Attacker, size: int, go_on: Callable[[Connection], None] | None = None, **how
) -> None:
    """Keeps a number of connections open until the attack ends. A connection that the server closes is
    replaced. `go_on` is called for each connection five times a second."""
    while attacker.running():
        began = time.monotonic()
        for connection in list(attacker.held):
            try:
                if go_on:
                    go_on(connection)
                else:
                    connection.receive()
            except Closed:
                attacker.let_go(connection)
        crowd(attacker, size - len(attacker.held), **how)
        time.sleep(max(0.0, began + 0.2 - time.monotonic()))


def living(connections: list[Connection]) -> list[Connection]:
    """The connections that the server has not closed."""
    left = []
    for connection in connections:
        try:
            connection.receive()
            left.append(connection)
        except Closed:
            pass
    return left


def unfinished_preface(attacker: Attacker) -> None:
    """900 connections that send 0 to 23 bytes of the preface, and no more. One address may have 1,000
    connections, and the good clients need some of those."""
    began = time.monotonic()
    connections = []
    for number in range(900):
        for connection in crowd(attacker, 1):
            connection.send(frames.PREFACE[: number % len(frames.PREFACE)])
            connections.append(connection)
    opened = time.monotonic()
    while living(connections) and time.monotonic() < opened + CLOSED_WITHIN_SECONDS:
        time.sleep(0.05)
    left = len(living(connections))
    attacker.notes[f"opened within {opened - began:.1f} s"] += 1
    attacker.expect(not left, f"{left} of {len(connections)} open after {CLOSED_WITHIN_SECONDS} s")


def silent_after_preface(attacker: Attacker) -> None:
    """500 connections that send the preface and SETTINGS and then nothing. A pool of connections does the
    same, so they may stay until nobody answers the keepalive."""
    for connection in crowd(attacker, 500):
        connection.greet()
    attacker.rest()


def idle_crowd(attacker: Attacker, size: int, cap: int, source: str | None = None) -> None:
    """More idle connections than a limit allows. Those beyond it are closed at once, the others stay."""
    connections = crowd(attacker, size, source=source)
    attacker.expect(len(connections) == size, f"only {len(connections)} of {size} could connect")
    for connection in connections:
        try:
            connection.greet()
        except Closed:
            pass
    deadline = time.monotonic() + 2
    while len(living(connections)) > cap and time.monotonic() < deadline:
        time.sleep(0.1)
    left = len(living(connections))
    attacker.notes[f"{left} left open"] += 1
    attacker.expect(left <= cap, f"{left} connections open with a limit of {cap}")
    attacker.expect(left >= cap - 10, f"only {left} connections open with a limit of {cap}")
    attacker.rest()


def idle_5000(attacker: Attacker) -> None:
    """5,000 idle connections to a server with --max-connections=1000. Two of the 1,000 belong to the good
    client."""
    idle_crowd(attacker, 5_000, 1_000)


def idle_5000_one_peer(attacker: Attacker) -> None:
    """5,000 idle connections from one address to a server with --max-connections-per-peer=1000. Other
    addresses can still connect."""
    idle_crowd(attacker, 5_000, 1_000, source="127.0.0.9")
    for last in (10, 11, 12):
        another = attacker.open(source=f"127.0.0.{last}").greet()
        if another.is_closed_within(0.5):
            raise NotAsExpected("another address is refused as well")


def reconnects(attacker: Attacker) -> None:
    """Connections that are opened and closed as fast as possible."""
    while attacker.running():
        for connection in crowd(attacker, 50):
            connection.close()
            attacker.held.remove(connection)
            attacker.fates["closed by the attacker"] += 1
        time.sleep(0.05)
