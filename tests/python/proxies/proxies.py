"""dyndata processes behind a real nginx or HAProxy, with the configuration that docs/proxies.md has.

The page's addresses are replaced by loopback ones: two dyndata processes have an address each, and
the same ports, as on two hosts.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/clients"))

from children import clean_environment, free_port, stop, wait_until  # noqa: E402
from pages import Page  # noqa: E402

PAGE = Page(ROOT / "docs/proxies.md")
# The page's addresses of the two hosts, and the loopback addresses that take their place.
HOSTS = {"10.0.0.1": "127.0.0.2", "10.0.0.2": "127.0.0.3"}
EXIT_SECONDS = 60
DOWN_SECONDS = 1.5


class Ports:
    """The ports of one test, by their numbers in the page: the proxy's, gRPC, admin."""

    def __init__(self):
        self.by_page = {number: str(free_port()) for number in ("50050", "50051", "9464")}
        self.proxy, self.grpc, self.admin = self.by_page.values()

    def replace_in(self, text):
        known = "|".join(map(re.escape, [*HOSTS, *self.by_page]))
        return re.sub(rf"\b({known})\b", lambda match: (HOSTS | self.by_page)[match.group()], text)


class Dyndata:
    """One dyndata on an address of its own, that can be started again."""

    def __init__(self, binary, host, ports, redis_port, settings):
        self.host, self.ports = host, ports
        self.arguments = [binary, "serve", "--listen", f"{host}:{ports.grpc}"]
        self.arguments += ["--admin-listen", f"{host}:{ports.admin}"]
        self.arguments += ["--redis-url", f"redis://127.0.0.1:{redis_port}", *settings]
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=clean_environment(),
        )
        wait_until(self.ready, f"dyndata on {self.host} is not ready")

    def ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"dyndata exited with {self.process.returncode}")
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.ports.admin}/readyz", timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, name):
        """The value of a metric without labels."""
        url = f"http://{self.host}:{self.ports.admin}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return float(re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)[1])

    def restart(self):
        """As a rolling restart does it: SIGTERM, wait for the end, start, wait until it is ready."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(EXIT_SECONDS)
        assert code == 0, f"dyndata on {self.host} exited with {code}"
        # A new version has to be put in place, so nobody listens for a while.
        time.sleep(DOWN_SECONDS)
        self.start()


@contextlib.contextmanager
def dyndatas(binary, ports, redis_port, *settings):
    """One dyndata for each host of the page; yields them."""
    servers = [Dyndata(binary, host, ports, redis_port, settings) for host in HOSTS.values()]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            if server.process:
                stop(server.process)


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
        # Whatever a distribution's file has besides is none of the page's concern.
        configuration.write_text(
            f"pid {directory}/pid;\nerror_log {directory}/error.log;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{page}}}\n"
        )
        arguments = ["nginx", "-p", directory, "-c", configuration, "-g", "daemon off;"]
        with listening(arguments, ports.proxy):
            yield


@contextlib.contextmanager
def haproxy(ports):
    """HAProxy with the page's `frontend` and `backend`."""
    with tempfile.TemporaryDirectory(prefix="dyndata-haproxy-") as directory:
        configuration = Path(directory) / "haproxy.cfg"
        # One thread, so that all clients share one connection to each dyndata.
        page = ports.replace_in(block("haproxy"))
        configuration.write_text(f"global\n    nbthread 1\n\n{page}")
        with listening(["haproxy", "-db", "-f", configuration], ports.proxy):
            yield


def block(language):
    """The first code block of the page in a language."""
    return PAGE.blocks(language)[0]


@contextlib.contextmanager
def listening(arguments, port):
    """A program from when it listens on; what it printed is shown if it never does."""
    # Debian has both in /usr/sbin, which not everybody has in PATH.
    environment = clean_environment() | {"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
        try:
            wait_until(lambda: process.poll() is not None or connects(port), arguments[0])
            if process.poll() is not None:
                log.seek(0)
                said = log.read().decode(errors="replace")
                raise AssertionError(f"{arguments[0]} exited with {process.returncode}: {said}")
            yield
        finally:
            stop(process)


def connects(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0
