"""The server under attack: a process, its memory, its log and its connections."""

import os
import re
import resource
import subprocess
import threading
from pathlib import Path

from support.processes import Dyndata

DRAIN = "--drain-timeout=1s"
SAMPLE_SECONDS = 0.05
# An attack that gets this far has succeeded; the machine belongs to others as well.
ENOUGH_MEBIBYTES = 1024
# A server that goes on growing without its attacker ends here.
LARGEST_BYTES = 3 << 30


class ServerGone(Exception):
    """The server under attack has ended."""


class Server(Dyndata):
    """A dyndata on the embedded store."""

    def __init__(self, binary: Path, *settings: str):
        drain = [] if any("--drain-timeout" in flag for flag in settings) else [DRAIN]
        super().__init__([binary, "serve"], *drain, *settings)

    def start(self) -> None:
        super().start()
        resource.prlimit(self.process.pid, resource.RLIMIT_DATA, (LARGEST_BYTES, LARGEST_BYTES))

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
        """Whether the process is gone, or ends within a second."""
        try:
            self.process.wait(1)
        except subprocess.TimeoutExpired:
            return False
        return True

    def connections(self) -> int:
        """The number of open connections that /metrics shows."""
        return int(self.metric("dyndata_connections"))

    def log_lines(self) -> int:
        return self.log.read_bytes().count(b"\n")

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-3:])[-400:]


class Sampler:
    """Watches the memory of a server for the time of a block, and keeps its peak."""

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
    """Processor time of a process; 0 when it has ended, since it then counts with our children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
