"""Checks that the server is as it was before an attack."""

import http.client
import ssl
import time

from security import frames
from security.attacker import call, host_and_port, status
from security.connection import Closed, Connection
from security.measure import GoodClient
from security.server import Server, ServerGone

# The memory that the allocator may keep. mimalloc returns pages only when it is used again, so it may
# keep all the memory that an attack needed.
LASTING_GROWTH_MEBIBYTES = 64
RECOVERY_SECONDS = 10


def recover(server: Server, good: GoodClient, memory: float, connections: int) -> str | None:
    """Waits until the server is as it was before the attack; returns what is not."""
    until = time.monotonic() + RECOVERY_SECONDS
    good.window()
    while True:
        wrong = []
        try:
            if (still := server.connections()) > connections:
                wrong.append(f"{still - connections} connections are still open")
            if (more := server.rss() - memory) > LASTING_GROWTH_MEBIBYTES:
                wrong.append(f"memory is still {more:.0f} MiB more")
        except (OSError, http.client.HTTPException, ServerGone) as error:
            if server.has_ended():
                return f"the server is gone: {server.log_tail()}"
            wrong.append(f"/metrics fails: {error!r}")
        if not wrong or time.monotonic() > until:
            break
        time.sleep(0.1)
    if said := serves(server, good):
        wrong.append(said)
    good.window()
    if failures := good.be_quiet()["failures"]:
        wrong.append(f"good calls fail: {failures}")
    if wrong:
        return f"{RECOVERY_SECONDS} s after the attack: {', '.join(wrong)}"
    return None


def serves(server: Server, good: GoodClient) -> str | None:
    """Makes a call on a new connection; returns what is wrong with the answer."""
    context = None
    if good.ca:
        context = ssl.create_default_context(cafile=str(good.ca))
        context.set_alpn_protocols(["h2"])
    token = good.token_file.read_text() if good.token_file else None
    credentials = {"authorization": f"Bearer {token}"} if token else {}
    until = time.monotonic() + 5
    try:
        connection = Connection(host_and_port(server.address), deadline=until, tls=context)
        connection.greet()
        call(connection, 1, frames.GET, frames.message(frames.get_request("42")), **credentials)
        answer = status(connection, 1)
        connection.close()
    except (OSError, Closed) as error:
        return f"a new connection fails: {error!r}"
    return None if answer == "0" else f"a new connection is answered with {answer}"
