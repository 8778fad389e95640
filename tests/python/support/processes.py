"""Processes that a test starts: what they are given, when they are ready, how they end.

Needs nothing but Python, so that the suites with other environments can use it as well.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time

START_SECONDS = 20
STOP_SECONDS = 10


def clean_environment():
    """Ours, without what would change the settings of dyndata, its log, or bring a proxy in."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DYNDATA_")
        and name not in ("REDIS_URL", "RUST_LOG", "RUST_BACKTRACE")
        and not name.lower().endswith("_proxy")
    }


def wait_until(ready, complaint):
    """Returns what `ready` returns as soon as that is true."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if result := ready():
            return result
        time.sleep(0.02)
    raise TimeoutError(f"{complaint} after {START_SECONDS} s")


def stop(process):
    """Ends a process: politely, then not."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


def stop_group(process):
    """Ends a process that leads a group, and what it has started: politely, then not."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def free_port():
    """A port that was free just now. Below those that the system gives to outgoing connections, so
    that it is still free when a server starts again on it."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
