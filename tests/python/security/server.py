"""The server under attack: a process, its memory, and what it says of its connections."""

import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import trustme

sys.path.append(str(Path(__file__).resolve().parents[1] / "clients"))

from children import clean_environment, stop  # noqa: E402

START_SECONDS = 20
DRAIN = "--drain-timeout=1s"
SAMPLE_SECONDS = 0.05
# An attack that gets this far has won; the machine belongs to others as well.
ENOUGH_MEBIBYTES = 1024
# A server that goes on growing when its attacker is gone ends here.
LARGEST_BYTES = 3 << 30


class ServerGone(Exception):
    """The server under attack has ended."""


class Server:
    """A dyndata on the embedded store."""

    def __init__(self, process: subprocess.Popen, log: Path):
        self.process = process
        self.log = log
        self.address = self._said(r"serving gRPC on (\S+:\d+)")
        self.admin = self._said(r"on (http://\S+:\d+)")

    def rss(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        if found is None:
            raise ServerGone
        return int(found.group(1)) / 1024

    def cpu_seconds(self) -> float:
        return process_cpu_seconds(self.process.pid)

    def has_ended(self) -> bool:
        """Whether the process is gone, or is about to be."""
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            return False
        return True

    def connections(self) -> int:
        """Open connections, as /metrics says."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.admin}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        return int(re.search(r"^dyndata_connections (\d+)", text, re.MULTILINE).group(1))

    def log_lines(self) -> int:
        return self.log.read_bytes().count(b"\n")

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-3:])[-400:]

    def _said(self, pattern: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.log.read_text(errors="replace")):
                return found.group(1)
            if self.process.poll() is not None:
                raise AssertionError(f"dyndata exited:\n{self.log_tail()}")
            time.sleep(0.02)
        raise AssertionError(f"dyndata does not say {pattern}:\n{self.log_tail()}")


@contextlib.contextmanager
def serving(binary: Path, *settings: str) -> Iterator[Server]:
    """A server for the time of a block."""
    with tempfile.TemporaryDirectory(prefix="dyndata-security-") as directory:
        log = Path(directory) / "log"
        with log.open("wb") as output:
            drain = [] if any("--drain-timeout" in flag for flag in settings) else [DRAIN]
            process = subprocess.Popen(
                [binary, "serve", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"]
                + [*drain, *settings],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                env=clean_environment(),
            )
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (LARGEST_BYTES, LARGEST_BYTES))
        try:
            yield Server(process, log)
        finally:
            stop(process)


class Sampler:
    """Watches a server's memory; its peak is what counts."""

    def __init__(self, server: Server, on_enough):
        self.peak = self.start = server.rss()
        self._server = server
        self._on_enough = on_enough
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        return self.peak - self.start

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            try:
                self.peak = max(self.peak, self._server.rss())
            except (ServerGone, OSError):
                return
            if self.growth > ENOUGH_MEBIBYTES:
                self._on_enough()
                return


def process_cpu_seconds(pid: int) -> float:
    """What a process has used; a process that has been waited for counts with our children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def flags(binary: Path) -> set[str]:
    """The flags that `dyndata serve` has."""
    done = subprocess.run(
        [binary, "serve", "--help"], capture_output=True, text=True, timeout=20, check=True
    )
    return set(re.findall(r"--[a-z][a-z-]+", done.stdout))


def write_certificates(directory: Path) -> trustme.CA:
    """A CA, and a server certificate by it for localhost."""
    ca = trustme.CA()
    server = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    server.private_key_pem.write_to_path(str(directory / "server.key"))
    (directory / "server.pem").write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
    return ca


def write_access_file(binary: Path, directory: Path) -> None:
    """An access file with one caller, who may do everything, and the caller's token."""
    command = [binary, "token", "new", "--name", "good", "--allow", "read,write"]
    done = subprocess.run(
        [*command, "--namespace", "*"], capture_output=True, text=True, timeout=20, check=True
    )
    token, entry = done.stdout.split("# For the access file:\n")
    (directory / "token").write_text(re.search(r"^dyn_\S+$", token, re.MULTILINE).group())
    (directory / "access.toml").write_text(entry)


def tls_settings(certificates: Path) -> list[str]:
    return [
        f"--tls-cert={certificates / 'server.pem'}",
        f"--tls-key={certificates / 'server.key'}",
    ]
