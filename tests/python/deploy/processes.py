"""The processes of the deployment tests: each has a port of its own, and an end."""

import contextlib
import pathlib
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/clients"))

from children import clean_environment, free_port, stop, wait_until  # noqa: E402

SECONDS = 20


@contextlib.contextmanager
def running(arguments, ready, **settings):
    """A process from when `ready()` is true on; its output is shown if that never happens."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=clean_environment() | settings,
        )
        try:
            wait_until(lambda: process.poll() is None and ready(), f"{arguments[0]} is not ready")
            yield process
        except TimeoutError:
            log.seek(0)
            print(log.read().decode(errors="replace"))
            raise
        finally:
            stop(process)


@contextlib.contextmanager
def redis_server(directory):
    """A Redis that keeps nothing on disk; yields its port."""
    port = free_port()
    arguments = ["redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", directory]
    with running(arguments, lambda: connects(port)):
        yield port


@contextlib.contextmanager
def dyndata_server(binary, **settings):
    """A dyndata that is ready; yields its gRPC address and the URL of its admin listener."""
    address, admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
    settings |= {"DYNDATA_LISTEN": address, "DYNDATA_ADMIN_LISTEN": admin}
    with running([binary, "serve"], lambda: fetch(f"http://{admin}/readyz"), **settings):
        yield address, f"http://{admin}"


def fetch(url):
    """The body of an answer, or None if there is none or it is an error."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            return answer.read().decode()
    except urllib.error.URLError:
        return None


def connects(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
