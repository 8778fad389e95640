"""Starts the good clients and reads their measurements; counts who used the processors."""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from security.server import Server, process_cpu_seconds
from support.processes import ROOT, clean_environment, stop

WARM_UP_SECONDS = 0.5
QUIET_SECONDS = 0.75
# The quiet p99 is the median over the last windows, so that one disturbed window does not matter.
QUIET_WINDOWS = 5


@dataclass
class Quiet:
    """The p99 of each of the last windows without an attack."""

    calls: deque[float] = field(default_factory=lambda: deque(maxlen=QUIET_WINDOWS))
    connections: deque[float] = field(default_factory=lambda: deque(maxlen=QUIET_WINDOWS))


class GoodClient:
    """The well-behaved clients for the time of a block: the long-lived one and the newcomers."""

    def __init__(self, server: Server, ca: Path | None, token_file: Path | None, quiet: Quiet):
        """`quiet` has the measurements on earlier servers."""
        self.ca = ca
        self.token_file = token_file
        self._quiet = quiet
        who = ["--address", server.address]
        who += ["--ca", ca] if ca else []
        who += ["--token-file", token_file] if token_file else []
        self.process = helper("good", *who)
        self.newcomers = helper("newcomer", *who, "--admin", server.admin)

    def __enter__(self) -> "GoodClient":
        self.window()
        time.sleep(WARM_UP_SECONDS)
        self.window()
        self.be_quiet()
        while len(self._quiet.calls) < QUIET_WINDOWS:
            self.be_quiet()
        return self

    def __exit__(self, *_) -> None:
        stop(self.process)
        stop(self.newcomers)

    def window(self) -> dict:
        """The results of the calls since the last window."""
        say(self.process)
        return json.loads(self.process.stdout.readline())

    def begin_newcomers(self) -> None:
        say(self.newcomers)

    def end_newcomers(self) -> dict:
        """The results of new connections and probes since `begin_newcomers`."""
        say(self.newcomers)
        return json.loads(self.newcomers.stdout.readline())

    def be_quiet(self) -> dict:
        """Measures a window without an attack."""
        self.window()
        self.begin_newcomers()
        time.sleep(QUIET_SECONDS)
        window, new = self.window(), self.end_newcomers()
        self._quiet.calls.append(p99(window["milliseconds"]))
        self._quiet.connections.append(p99(new["connections"]["milliseconds"]))
        return window

    def quiet_p99(self) -> float:
        return statistics.median(self._quiet.calls)

    def quiet_connection_p99(self) -> float:
        return statistics.median(self._quiet.connections)

    def cpu_seconds(self) -> float:
        return process_cpu_seconds(self.process.pid) + process_cpu_seconds(self.newcomers.pid)


def helper(program: str, *arguments: str | Path) -> subprocess.Popen:
    """A process that answers each line on its standard input with a line."""
    return subprocess.Popen(
        [sys.executable, "-m", f"security.{program}", *arguments],
        cwd=ROOT / "tests/python",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def say(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


class Usage:
    """The use of the processors from now on."""

    def __init__(self, server: Server, good: GoodClient):
        self._ours = lambda: (
            server.cpu_seconds() + good.cpu_seconds() + children_seconds() + own_seconds()
        )
        self._before = busy_seconds() - self._ours()

    def others(self, seconds: float) -> float:
        """The number of cores that other processes kept busy. Valid once the attackers have ended."""
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
