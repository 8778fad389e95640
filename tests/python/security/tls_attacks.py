"""Attacks on a TLS port, for servers with --tls-cert."""

import shutil
import socket
import ssl
import subprocess
import time

from security import frames
from security.attacker import Attacker, call, status
from security.connection import Closed, Connection
from security.crowds import CLOSED_WITHIN_SECONDS, crowd, keep_crowd, living
from security.floods import rapid_reset
from security.malformed import CLIENT_HELLO


def all_closed_in_time(attacker: Attacker, connections: list[Connection]) -> None:
    until = time.monotonic() + CLOSED_WITHIN_SECONDS
    while living(connections) and time.monotonic() < until:
        time.sleep(0.05)
    left = len(living(connections))
    attacker.expect(not left, f"{left} of {len(connections)} open after {CLOSED_WITHIN_SECONDS} s")


def half_open_handshakes(attacker: Attacker) -> None:
    """1,000 connections that send nothing, half a ClientHello, or all but its last byte."""
    hello = client_hello()
    connections = crowd(attacker, 1_000)
    for number, connection in enumerate(connections):
        send_all(connection, (b"", hello[: len(hello) // 2], hello[:-1])[number % 3])
    all_closed_in_time(attacker, connections)


def silent_handshakes(attacker: Attacker) -> None:
    """990 connections that send no ClientHello; closed ones are replaced."""
    keep_crowd(attacker, 990)


def half_hellos(attacker: Attacker) -> None:
    """990 connections that send half a ClientHello; closed ones are replaced."""
    hello = client_hello()

    def begin(connection: Connection) -> None:
        if connection.frames_sent:
            connection.receive()
        else:
            connection.send(hello[: len(hello) // 2])

    keep_crowd(attacker, 990, begin)


def unfinished_handshakes(attacker: Attacker) -> None:
    """200 connections that send a whole ClientHello, for which the server signs an answer, and never
    finish. They are replaced as soon as they are closed."""
    hello = client_hello()
    while attacker.running():
        connections = crowd(attacker, 200)
        for connection in connections:
            send_all(connection, hello)
        all_closed_in_time(attacker, connections)
        for connection in connections:
            attacker.let_go(connection)


def dripping_handshakes(attacker: Attacker) -> None:
    """A ClientHello with a byte every 100 ms, which is too slow to be complete in time."""
    hello = client_hello()
    connections = crowd(attacker, 200)
    for at in range(65):
        for connection in living(connections):
            send_all(connection, hello[at : at + 1])
        time.sleep(0.1)
    all_closed_in_time(attacker, connections)


def handshake_flood(attacker: Attacker) -> None:
    """Complete handshakes as fast as possible, each closed at once. The server's signature costs more than
    anything else that an anonymous peer can ask for."""
    context = attacker.tls("h2")
    while attacker.running():
        with attacker.connection(tls=context) as connection:
            connection.greet()


def plaintext_on_tls(attacker: Attacker) -> None:
    """HTTP/2 and HTTP/1.1 without TLS on the TLS port; the server closes at once."""
    variants = (
        frames.PREFACE + frames.settings(),
        b"GET / HTTP/1.1\r\nHost: security.test\r\n\r\n",
        b"\x00" * 100,
        attacker.random.randbytes(500),
        CLIENT_HELLO,
    )

    def attack(connection: Connection) -> None:
        connection.send(variants[attacker.connections % len(variants)])
        attacker.expect(connection.is_closed_within(CLOSED_WITHIN_SECONDS), "not closed")

    attacker.again(attack)


def garbage_after_handshake(attacker: Attacker) -> None:
    """A valid handshake, and then records that are not encrypted with its keys."""
    variants = (
        b"\x17\x03\x03\x00\x40" + attacker.random.randbytes(64),
        b"\x16\x03\x03\x00\x10" + attacker.random.randbytes(16),
        b"\x17\x03\x03\xff\xff" + bytes(65_535),
        b"\x15\x03\x03\x00\x02\x01\x00",
        frames.PREFACE,
    )

    def attack(connection: Connection) -> None:
        connection.greet()
        connection.read_for(0.05)
        # Writes to the socket directly, without TLS.
        connection.socket = socket.socket(fileno=connection.socket.detach())
        connection.socket.setblocking(False)
        garbage = variants[attacker.connections % len(variants)]
        connection.send(garbage)
        attacker.expect(connection.is_closed_within(1), f"not closed after {garbage[:8]!r}")

    attacker.again(attack, tls=attacker.tls("h2"))


def renegotiation(attacker: Attacker) -> None:
    """TLS 1.2 clients that ask for renegotiation: refused (CVE-2011-1473)."""
    openssl = shutil.which("openssl")
    if openssl is None:
        attacker.notes["openssl is missing: not tried"] += 1
        return
    host, port = attacker.address
    command = [openssl, "s_client", "-connect", f"{host}:{port}", "-servername", "localhost"]

    def said(keys: str) -> str:
        done = subprocess.run(
            [*command, "-tls1_2", "-alpn", "h2"],
            input=keys,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        return done.stdout + done.stderr

    # Each handshake prints a line for each certificate that it verifies.
    once = said("").count("verify return:")
    attacker.expect(once > 0, "openssl says nothing of the certificate")
    while attacker.running():
        attacker.connections += 1
        # A line with only R asks for renegotiation.
        answer = said("R\n" * 20)
        attacker.expect("RENEGOTIATING" in answer, "openssl did not ask for renegotiation")
        renegotiated = answer.count("verify return:") > once
        attacker.expect(not renegotiated, "the server renegotiates")
        attacker.fates["refused" if not renegotiated else "renegotiated"] += 1


def wrong_alpn(attacker: Attacker) -> None:
    """Clients that offer http/1.1 or unknown protocols are refused in the handshake. A client that offers
    none may be served, if it then speaks HTTP/2."""
    ask = frames.message(frames.get_request("42"))
    while attacker.running():
        for protocols in (("http/1.1",), ("spdy/3", "h3")):
            try:
                with attacker.connection(tls=attacker.tls(*protocols)) as connection:
                    connection.greet()
                    connection.read_for(1)
                    attacker.expect(False, f"ALPN {protocols} is accepted")
            except (ssl.SSLError, OSError) as refusal:
                attacker.fates["refused"] += 1
                attacker.notes[f"{protocols}: {getattr(refusal, 'reason', refusal)}"] += 1
        try:
            with attacker.connection(tls=attacker.tls()) as connection:
                connection.greet()
                call(connection, 1, frames.GET, ask)
                attacker.notes[f"no ALPN: status {status(connection, 1)}"] += 1
        except (ssl.SSLError, OSError):
            attacker.notes["no ALPN: refused"] += 1
        time.sleep(0.01)


def rapid_reset_tls(attacker: Attacker) -> None:
    """Rapid reset, inside TLS."""
    rapid_reset(attacker, tls=attacker.tls("h2"))


def client_hello() -> bytes:
    """A whole ClientHello, made by OpenSSL, for a connection that never gets its answer."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def send_all(connection: Connection, payload: bytes) -> None:
    try:
        connection.send(payload)
    except Closed:
        pass
