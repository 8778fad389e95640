"""The good client as seen from here, and who had the processors meanwhile."""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from server import Server, clean_environment, process_cpu_seconds, stop

HERE = Path(__file__).parent
WARM_UP_SECONDS = 0.5
QUIET_SECONDS = 0.75
# The quiet p99 is the median of the last windows': of the machine as it is now, without the one
# moment at which it did something else.
QUIET_WINDOWS = 5


class GoodClient:
    """The well-behaved client, for the time of a block."""

    def __init__(self, server: Server, ca: Path | None, quiet: deque[float]):
        """`quiet` has what was measured on servers before this one."""
        self.ca = ca
        self.quiet = quiet
        command = [sys.executable, HERE / "good.py", "--address", server.address]
        self.process = subprocess.Popen(
            command + (["--ca", ca] if ca else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )

    def __enter__(self) -> "GoodClient":
        self.window()
        time.sleep(WARM_UP_SECONDS)
        self.window()
        self.be_quiet()
        while len(self.quiet) < QUIET_WINDOWS:
            self.be_quiet()
        return self

    def __exit__(self, *_) -> None:
        stop(self.process)

    def window(self) -> dict:
        """How the calls since the last window went."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def be_quiet(self) -> dict:
        """Measures while nothing is attacked."""
        time.sleep(QUIET_SECONDS)
        window = self.window()
        self.quiet.append(p99(window["milliseconds"]))
        return window

    def quiet_p99(self) -> float:
        return statistics.median(self.quiet)

    def cpu_seconds(self) -> float:
        return process_cpu_seconds(self.process.pid)


class Usage:
    """Who had the processors."""

    def __init__(self, server: Server, good: GoodClient):
        self._ours = lambda: (
            server.cpu_seconds() + good.cpu_seconds() + children_seconds() + own_seconds()
        )
        self._before = busy_seconds() - self._ours()

    def others(self, seconds: float) -> float:
        """Cores that somebody else kept busy; to be asked when the attackers have ended."""
        return max(0.0, (busy_seconds() - self._ours() - self._before) / seconds)


def busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def p99(milliseconds: list[float]) -> float:
    ordered = sorted(milliseconds)
    return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else math.inf
