"""dyndata processes behind a real nginx or HAProxy, with the configuration of docs/proxies.md.

The addresses on the page are replaced by loopback addresses. Each of the two dyndata processes has
its own address, and both use the same ports, as on two hosts.
"""

import contextlib
import re
import signal
import tempfile
import time
from pathlib import Path

from support.pages import Page
from support.processes import ROOT, Dyndata, connects, free_port, running

PAGE = Page(ROOT / "docs/proxies.md")
# The loopback address for each of the page's two hosts.
HOSTS = {"10.0.0.1": "127.0.0.2", "10.0.0.2": "127.0.0.3"}
EXIT_SECONDS = 60
DOWN_SECONDS = 1.5


class Ports:
    """The ports of one test, by their numbers on the page: the proxy's, gRPC, admin."""

    def __init__(self):
        self.by_page = {number: str(free_port()) for number in ("50050", "50051", "9464")}
        self.proxy, self.grpc, self.admin = self.by_page.values()

    def replace_in(self, text):
        known = "|".join(map(re.escape, [*HOSTS, *self.by_page]))
        return re.sub(rf"\b({known})\b", lambda match: (HOSTS | self.by_page)[match.group()], text)


@contextlib.contextmanager
def dyndatas(binary, ports, redis_port, *settings):
    """One dyndata for each host of the page; yields them."""
    settings = [f"--redis-url=redis://127.0.0.1:{redis_port}", *settings]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Dyndata(
                    [binary, "serve"], *settings, host=host, port=ports.grpc, admin_port=ports.admin
                )
            )
            for host in HOSTS.values()
        ]


def restart(server):
    """Restarts one server as a rolling restart does: SIGTERM, wait for its end, start it again and
    wait until it is ready."""
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(EXIT_SECONDS)
    assert code == 0, f"dyndata on {server.address} exited with {code}"
    # Somebody has to install a new version, so nobody listens for a while.
    time.sleep(DOWN_SECONDS)
    server.start()


@contextlib.contextmanager
def nginx(ports):
    """nginx with the page's `upstream` and `server`."""
    page = ports.replace_in(block("nginx"))
    with tempfile.TemporaryDirectory(prefix="dyndata-nginx-") as directory:
        temporary = "".join(
            f"{kind}_temp_path {directory}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        configuration = Path(directory) / "nginx.conf"
        # Around the page's configuration, only what nginx needs to start here.
        configuration.write_text(
            f"pid {directory}/pid;\nerror_log {directory}/error.log;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{page}}}\n"
        )
        arguments = ["nginx", "-p", directory, "-c", configuration, "-g", "daemon off;"]
        with running(arguments, lambda: connects(ports.proxy)):
            yield


@contextlib.contextmanager
def haproxy(ports):
    """HAProxy with the page's `frontend` and `backend`."""
    with tempfile.TemporaryDirectory(prefix="dyndata-haproxy-") as directory:
        configuration = Path(directory) / "haproxy.cfg"
        # With one thread, all clients share one connection to each dyndata.
        page = ports.replace_in(block("haproxy"))
        configuration.write_text(f"global\n    nbthread 1\n\n{page}")
        with running(["haproxy", "-db", "-f", configuration], lambda: connects(ports.proxy)):
            yield


def block(language):
    """The first code block of the page in a language."""
    return PAGE.blocks(language)[0]
