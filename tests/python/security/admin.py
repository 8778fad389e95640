"""Attacks on the admin listener. If its probes fail, an orchestrator restarts a healthy process."""

import contextlib
import time

from security.attacker import Attacker
from security.connection import Closed, Connection, Stalled
from security.crowds import crowd, keep_crowd, living

SMALL_BUFFER = 4_096


def silent(attacker: Attacker) -> None:
    """400 connections to the admin listener that send nothing; closed ones are replaced."""
    keep_crowd(attacker, 400, address=attacker.admin)


def slow_heads(attacker: Attacker) -> None:
    """400 connections to the admin listener that send the head of a request a byte at a time, and never
    its end."""

    def drip(connection: Connection) -> None:
        connection.send(b"GET /livez HTTP/1.1\r\nX: " if not connection.frames_sent else b"x")

    keep_crowd(attacker, 400, drip, address=attacker.admin)


def unread_replies(attacker: Attacker) -> None:
    """100 connections that ask the admin listener for its page again and again, and never read."""
    ask = b"GET / HTTP/1.1\r\nHost: security.test\r\n\r\n" * 1_000

    def begin(connection: Connection) -> None:
        if connection.frames_sent:
            return
        # Sends as much as the server reads at once; it soon stops reading.
        connection.deadline = time.monotonic() + 0.01
        try:
            connection.send(ask)
        except Stalled:
            connection.frames_sent += 1
        connection.deadline = attacker.ends

    keep_crowd(
        attacker, 100, begin, address=attacker.admin, reads=False, receive_buffer=SMALL_BUFFER
    )


def request_flood(attacker: Attacker) -> None:
    """Requests for the most expensive page, each on its own connection, 32 at a time."""
    ask = b"GET /metrics HTTP/1.1\r\nHost: security.test\r\nConnection: close\r\n\r\n"
    while attacker.running():
        connections = crowd(attacker, 32, address=attacker.admin)
        for connection in connections:
            # A connection that the server closes to make room counts as answered.
            with contextlib.suppress(Closed):
                connection.send(ask)
        until = time.monotonic() + 1
        while living(connections) and time.monotonic() < until:
            time.sleep(0.001)
        for connection in connections:
            attacker.let_go(connection)
