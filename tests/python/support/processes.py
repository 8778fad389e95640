"""Processes that the tests start: their environment, when they are ready, how they end."""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ROOT / ".tools/bin"
BUF = ROOT / ".tools/npm/node_modules/.bin/buf"

CALL_SECONDS = 20
START_SECONDS = 20
STOP_SECONDS = 10
# HTTP requests must not go through a proxy that the environment names.
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def clean_environment(**changes):
    """Our environment without settings of dyndata, its log, and without HTTP proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DYNDATA_")
        and name not in ("REDIS_URL", "RUST_LOG", "RUST_BACKTRACE")
        and not name.lower().endswith("_proxy")
    }
    return kept | changes


def run(arguments, stdin=b"", *, seconds=CALL_SECONDS):
    """Runs a program to its end, within a deadline. The caller judges its exit code."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        input=stdin,
        capture_output=True,
        timeout=seconds,
        env=clean_environment(),
        check=False,
    )


def output(arguments, stdin=b"", *, seconds=CALL_SECONDS):
    """The bytes that a program writes to standard output; the program must succeed."""
    done = run(arguments, stdin, seconds=seconds)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise AssertionError(f"{arguments[0]} exited with {done.returncode}: {said}")
    return done.stdout


def wait_until(ready, complaint):
    """Calls `ready` until its result is true, and returns that result."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if result := ready():
            return result
        time.sleep(0.02)
    raise TimeoutError(f"{complaint} after {START_SECONDS} s")


def stop(process):
    """Ends a process with SIGTERM, and with SIGKILL if it does not end in time."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_SECONDS)


def stop_group(process):
    """Ends the leader of a process group together with everything that it has started."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


def free_port():
    """A port that was free just now. It is below those that the system gives to outgoing
    connections, so that a server can be stopped and started again on it."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def connects(port):
    """Whether somebody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def fetch(url, timeout=CALL_SECONDS):
    """The body of an HTTP answer, or None if there is no answer or it is an error."""
    try:
        with HTTP.open(url, timeout=timeout) as answer:
            return answer.read().decode()
    except OSError:
        return None


@contextlib.contextmanager
def running(arguments, ready, *, environment=None, cwd=None):
    """A process from the moment when `ready()` is true. Its output is part of the failure if that
    never happens."""
    # Debian has servers in /usr/sbin, which not every PATH contains.
    environment = clean_environment(PATH=f"{os.environ['PATH']}:/usr/sbin") | (environment or {})
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cwd,
            env=environment,
        )

        def said():
            log.seek(0)
            return log.read().decode(errors="replace")

        try:
            wait_until(lambda: process.poll() is not None or ready(), f"{arguments[0]} is not ready")
            if process.poll() is not None:
                raise AssertionError(f"{arguments[0]} exited with {process.returncode}:\n{said()}")
            yield process
        except TimeoutError as late:
            raise AssertionError(f"{late}:\n{said()}") from late
        finally:
            stop(process)


@contextlib.contextmanager
def redis_server():
    """A real Redis that keeps nothing on disk; yields its port."""
    with tempfile.TemporaryDirectory(prefix="dyndata-redis-") as directory:
        port = free_port()
        arguments = ["redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", directory]
        arguments += ["--save", "", "--appendonly", "no"]
        with running(arguments, lambda: redis_answers(port)):
            yield port


def redis_answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64) == b"+PONG\r\n"
    except OSError:
        return False


class Dyndata:
    """A `dyndata serve` process for the time of a block. It can be started again.

    `command` is what starts it; flags for the addresses of both listeners and `settings` follow.
    """

    def __init__(self, command, *settings, host="127.0.0.1", port=0, admin_port=0, **environment):
        self.command = [*command, f"--listen={host}:{port}", f"--admin-listen={host}:{admin_port}"]
        self.command += settings
        self.environment = environment
        self.process = None

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.log = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dyndata-"))) / "log"
            stack.callback(lambda: self.process and stop(self.process))
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def start(self):
        """Starts the process and waits until it is ready."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(argument) for argument in self.command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=clean_environment() | self.environment,
            )
        try:
            self.address = wait_until(lambda: self._said(r"serving gRPC on (\S+:\d+)"), "no address")
            self.admin = wait_until(lambda: self._said(r"on (http://\S+:\d+)"), "no admin address")
            wait_until(lambda: fetch(f"{self.admin}/readyz", timeout=1), "not ready")
        except TimeoutError as late:
            raise AssertionError(f"dyndata: {late}:\n{self._log_text()}") from late

    def metrics(self):
        """The text of /metrics."""
        with HTTP.open(f"{self.admin}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def metric(self, name, **labels):
        """The value of a metric: the sum of all its samples that have these labels."""
        total = 0.0
        for names, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", self.metrics(), re.MULTILINE):
            if labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', names)).items():
                total += float(value)
        return total

    def _said(self, pattern):
        if self.process.poll() is not None:
            raise AssertionError(f"dyndata exited with {self.process.returncode}:\n{self._log_text()}")
        found = re.search(pattern, self._log_text())
        return found and found.group(1)

    def _log_text(self):
        return self.log.read_text(errors="replace")
