"""Tests beside the attacks, each on its own server: a stop under attack, and an expired certificate.

They print their figures, which pytest shows if they fail or with -rP.
"""

import datetime
import ssl
import time
from pathlib import Path

import pytest

from security import frames
from security.attacker import call, host_and_port, status
from security.connection import Closed, Connection
from security.server import Server
from support.credentials import tls_settings, write_certificates

# Far longer than a stop may take here, so that a stop that waits for it fails.
DRAIN_TIMEOUT_SECONDS = 30
STOPPED_WITHIN_SECONDS = 10
NO_CALLS, NO_PONGS = "no calls", "no calls and no answer to PING"
CERTIFICATE_SECONDS = 4
CONNECTION_AGE_SECONDS = 8
# The age is jittered by a tenth; then the drain timeout of `Server`, and what a busy machine adds.
CLOSED_WITHIN_SECONDS = 1.1 * CONNECTION_AGE_SECONDS + 1 + 2


def test_stops_under_attack(release_binary, credentials):
    """SIGTERM while others hold streams open that will never end: the process ends long before its
    drain timeout."""
    settings = [f"--drain-timeout={DRAIN_TIMEOUT_SECONDS}s", "--send-timeout=2s"]
    settings += [f"--access-file={credentials / 'access.toml'}", "--reflection=open"]
    token = (credentials / "token").read_text()
    with Server(release_binary, *settings) as server:
        held = hold_streams(server, token)
        began = time.monotonic()
        server.process.terminate()
        until = began + STOPPED_WITHIN_SECONDS
        while server.process.poll() is None and time.monotonic() < until:
            for connection in held.values():
                try:
                    connection.read_for(0.01)
                except Closed:
                    pass
        stopped = server.process.poll() is not None
        seconds = time.monotonic() - began
        for name, connection in held.items():
            fate = "closed" if connection.closed else "still open"
            print(f"    {name}: {fate}")
            connection.close()
    print(f"    stopped: {stopped}, after {seconds:.1f} s of {DRAIN_TIMEOUT_SECONDS} s")
    names = ", ".join(name for name, connection in held.items() if not connection.closed)
    assert stopped, f"still running {STOPPED_WITHIN_SECONDS} s after SIGTERM, because of: {names}"


def hold_streams(server: Server, token: str) -> dict[str, Connection]:
    """One connection for each kind of stream that does not end by itself."""
    empty = frames.message(b"")
    ask = frames.message(frames.get_request("42"))
    symbol = frames.message(frames.length_delimited(4, b"dyndata.v1.DynData"))
    credentials = ("authorization", f"Bearer {token}")
    not_grpc = frames.request(frames.GET, content_type="application/json")
    kinds = {
        "unread replies": (0, frames.request(frames.GET, credentials), ask, True),
        "unread health Checks": (0, frames.request(frames.HEALTH_CHECK), empty, True),
        "unread health Watches": (0, frames.request(frames.HEALTH_WATCH), empty, True),
        "unread reflection": (0, frames.request(frames.REFLECTION), symbol, False),
        "unread 415": (0, not_grpc, b"{}", True),
        "unread errors": (0, frames.request(frames.GET), b"", False),
        "idle health Watches": (65_535, frames.request(frames.HEALTH_WATCH), empty, True),
        "idle reflection": (65_535, frames.request(frames.REFLECTION), symbol, False),
        "unfinished Gets": (65_535, frames.request(frames.GET, credentials), ask[:3], False),
        "unfinished Checks": (65_535, frames.request(frames.HEALTH_CHECK), empty[:3], False),
        NO_CALLS: (65_535, b"", b"", False),
        NO_PONGS: (65_535, b"", b"", False),
    }
    held = {}
    for name, (window, block, body, end) in kinds.items():
        deadline = time.monotonic() + 60
        connection = Connection(
            host_and_port(server.address), deadline=deadline, answers_pings=name != NO_PONGS
        )
        connection.greet(initial_window_size=window)
        for stream in range(1, 9, 2) if block else ():
            connection.send(frames.headers(stream, block))
            if body:
                connection.send_data(stream, body, end=end)
        connection.read_for(0.2)
        held[name] = connection
    return held


@pytest.mark.parametrize(
    "version", (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), ids=lambda version: version.name
)
def test_a_client_certificate_expires(release_binary, tmp_path, version):
    """A client certificate expires while its connections live: no new connection gets in with it,
    resumed or not, and the old ones end at --max-connection-age."""
    context = mutual_tls(tmp_path)
    context.maximum_version = version
    settings = [*tls_settings(tmp_path), f"--tls-client-ca={tmp_path / 'ca.pem'}"]
    settings.append(f"--max-connection-age={CONNECTION_AGE_SECONDS}s")
    with Server(release_binary, *settings) as server:
        assert expires_on(server, context, version) == []


def expires_on(server: Server, context: ssl.SSLContext, version: ssl.TLSVersion) -> list[str]:
    wrong = []
    issued = time.monotonic()

    def connect(session: ssl.SSLSession | None = None) -> Connection:
        deadline = time.monotonic() + 60
        address = host_and_port(server.address)
        return Connection(address, deadline=deadline, tls=context, session=session).greet()

    def ask(connection: Connection, stream: int) -> str:
        try:
            call(connection, stream, frames.GET, frames.message(frames.get_request("42")))
            return status(connection, stream)
        except (Closed, OSError):
            return "closed"

    live = connect()
    if (answer := ask(live, 1)) != "0":
        return [f"the certificate does not get in while it is valid: {answer}"]
    session = live.socket.session
    time.sleep(max(0.0, issued + CERTIFICATE_SECONDS + 1.5 - time.monotonic()))
    for name, old in (("a new", None), ("a resumed", session)):
        if name == "a resumed" and (old is None or not old.has_ticket and not old.id):
            continue
        try:
            connection = connect(old)
            answer = ask(connection, 1)
            connection.close()
        except (ssl.SSLError, OSError, Closed):
            answer = "refused"
        print(f"    {version.name}: {name} connection after the expiry: {answer}")
        if answer == "0":
            wrong.append(f"{name} connection gets in with an expired certificate")
    print(f"    {version.name}: the old connection after the expiry: {ask(live, 3)}")
    if not live.is_closed_within(live.opened + CLOSED_WITHIN_SECONDS - time.monotonic()):
        wrong.append(f"the old connection is open after {CLOSED_WITHIN_SECONDS:.0f} s")
    print(f"    {version.name}: the old connection closed after {live.closed_after:.1f} s")
    live.close()
    return wrong


def mutual_tls(files: Path) -> ssl.SSLContext:
    """Writes a server's files and makes a client whose certificate soon expires."""
    ca = write_certificates(files)
    expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=CERTIFICATE_SECONDS)
    client = ca.issue_cert("client.test", not_after=expires.replace(tzinfo=None))
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    context.set_alpn_protocols(["h2"])
    client.configure_cert(context)
    return context
