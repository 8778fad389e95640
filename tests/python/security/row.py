"""One attack as a row of the table: starts it, watches the server and the good clients, and judges."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from security.attacks import Attack
from security.measure import GoodClient, Usage, p99
from security.recovery import recover
from security.server import ENOUGH_MEBIBYTES, Sampler, Server
from support.processes import ROOT, clean_environment, stop

LEAST_SUCCESS_PERCENT = 99.9
LARGEST_RATIO = 3.0
# The p99 of a short run depends on its few slowest calls, and the machine may have other work. It can
# only show disasters.
SHORT_SECONDS = 20
LARGEST_RATIO_WHEN_SHORT = 20.0
# A smaller quiet p99 counts as this, since the noise of a busy machine would decide below it.
QUIET_FLOOR_MILLISECONDS = 5.0
# The limit for the p99 of new connections: far more than they need, and far less than a client waits.
# The table has their p99 without an attack.
LARGEST_CONNECTION_MILLISECONDS = 500
LEAST_CONNECTIONS_PERCENT = 99
ATTACKER_GRACE_SECONDS = 20
LOWER_PRIORITY = 10
LARGEST_LOG_LINES_PER_SECOND = 20


@dataclass(frozen=True)
class Options:
    """How the attacks are run."""

    # The duration of each attack.
    seconds: float
    seed: int
    # Attacks that have nothing to do with TLS go through it as well.
    over_tls: bool


@dataclass
class Row:
    """The result of an attack."""

    name: str
    seconds: float
    sent: int
    connections: int
    calls: int
    success_percent: float
    quiet_p99: float
    p99: float
    quiet_connection_p99: float
    connection_p99: float
    probe_p99: float
    growth: float
    log_lines: int
    others_cores: float
    fates: Counter
    notes: Counter
    expected: str
    reconnects: int
    server_is_well: bool = True
    complaints: list[str] = field(default_factory=list)
    slow_only: bool = False

    HEADER = (
        "| attack | s | frames sent | connections | good calls | good % | quiet p99 ms | p99 ms | "
        "ratio | new connection quiet p99 ms | new connection p99 ms | probe p99 ms | "
        "RSS growth MiB | log lines | the attacker | |"
    )
    RULE = "|---" + "|--:" * 13 + "|---|---|"

    @property
    def ratio(self) -> float:
        return self.p99 / max(self.quiet_p99, QUIET_FLOOR_MILLISECONDS)

    def line(self) -> str:
        fates = ", ".join(f"{count} {fate}" for fate, count in self.fates.most_common(4))
        cells = (
            self.name,
            f"{self.seconds:.0f}",
            f"{self.sent:,}",
            f"{self.connections:,}",
            f"{self.calls:,}",
            f"{self.success_percent:.2f}",
            f"{self.quiet_p99:.1f}",
            f"{self.p99:.1f}",
            f"{self.ratio:.1f}",
            f"{self.quiet_connection_p99:.1f}",
            f"{self.connection_p99:.1f}",
            f"{self.probe_p99:.1f}",
            f"{self.growth:.1f}",
            f"{self.log_lines:,}",
            f"{fates} (expected: {self.expected})",
            "FAILED" if self.complaints else "ok",
        )
        return "| " + " | ".join(cells) + " |"

    def failure(self) -> str:
        lines = [f"FAILED  {self.name}", *(f"          {line}" for line in self.complaints)]
        lines.append(f"          others had {self.others_cores:.1f} cores meanwhile")
        return "\n".join(lines)

    def remarks(self) -> str:
        """Further observations of the attack."""
        return "\n".join(f"    {count:,} x {note}" for note, count in self.notes.most_common(12))


def run_attack(
    server: Server,
    good: GoodClient,
    name: str,
    attack: Attack,
    options: Options,
    certificates: Path,
) -> Row:
    quiet_p99 = good.quiet_p99()
    connections_before, lines_before = server.connections(), server.log_lines()
    usage = Usage(server, good)
    # Starts a new window; the earlier calls do not count for this row.
    reconnects_before = good.window()["reconnects"]
    began = time.monotonic()
    good.begin_newcomers()
    attackers = start(server, name, attack, options, certificates)
    with Sampler(server, lambda: [attacker.kill() for attacker in attackers]) as memory:
        reports, complaints = gather(attackers, attack, options)
    seconds = time.monotonic() - began
    window, newcomers = good.window(), good.end_newcomers()
    others = usage.others(seconds)

    report = merged(reports)
    if memory.growth > ENOUGH_MEBIBYTES:
        complaints = [f"stopped: memory grew by more than {ENOUGH_MEBIBYTES} MiB"]
    else:
        complaints += [f"{why} ({times} times)" for why, times in report["complaints"].items()]
        if complaint := attack.fate(report):
            complaints.append(complaint)
    row = Row(
        name=name,
        seconds=seconds,
        sent=report["sent"],
        connections=report["connections"],
        calls=len(window["milliseconds"]),
        success_percent=100 * window["good"] / max(1, len(window["milliseconds"])),
        quiet_p99=quiet_p99,
        p99=p99(window["milliseconds"]),
        quiet_connection_p99=good.quiet_connection_p99(),
        connection_p99=p99(newcomers["connections"]["milliseconds"]),
        probe_p99=p99(newcomers["probes"]["milliseconds"]),
        growth=memory.growth,
        log_lines=server.log_lines() - lines_before,
        others_cores=others,
        fates=report["fates"],
        notes=report["notes"],
        expected=attack.expected,
        reconnects=window["reconnects"] - reconnects_before,
    )
    judge(row, attack, window, newcomers, complaints)
    recovery = recover(server, good, memory.start, connections_before)
    if recovery:
        row.complaints.append(recovery)
        row.server_is_well, row.slow_only = False, False
    return row


def judge(
    row: Row, attack: Attack, window: dict, newcomers: dict, complaints: list[str]
) -> None:
    if row.growth >= attack.growth_mebibytes:
        complaints.append(f"memory grew by {row.growth:.0f} MiB")
    if row.reconnects:
        complaints.append(f"the good client lost its connection {row.reconnects} times")
    if row.log_lines > 20 + LARGEST_LOG_LINES_PER_SECOND * row.seconds:
        complaints.append(f"{row.log_lines} lines of log, which an attacker can thus fill")
    row.slow_only = not complaints
    probes = newcomers["probes"]
    # One probe may be closed to make room for others. An orchestrator acts on several failures in a row.
    if sum(probes["failures"].values()) > max(1, len(probes["milliseconds"]) // 100):
        complaints.append(f"probes of the admin listener: {probes['failures']}")
    if attack.lets_others_connect:
        judge_connections(row, newcomers["connections"], complaints)
    if row.success_percent < LEAST_SUCCESS_PERCENT:
        complaints.append(f"good calls: {row.success_percent:.2f} %: {window['failures']}")
    largest = LARGEST_RATIO if row.seconds >= SHORT_SECONDS else LARGEST_RATIO_WHEN_SHORT
    if row.ratio > largest:
        complaints.append(f"p99 is {row.ratio:.1f} times the quiet one")
    row.slow_only = row.slow_only and bool(complaints)
    row.complaints = complaints


def judge_connections(row: Row, new: dict, complaints: list[str]) -> None:
    failed, made = sum(new["failures"].values()), len(new["milliseconds"])
    if 100 * failed > (100 - LEAST_CONNECTIONS_PERCENT) * made:
        complaints.append(f"{failed} of {made} new connections: {new['failures']}")
    if row.connection_p99 > LARGEST_CONNECTION_MILLISECONDS:
        complaints.append(f"new connections take {row.connection_p99:.0f} ms (p99)")


def start(
    server: Server, name: str, attack: Attack, options: Options, certificates: Path
) -> list[subprocess.Popen]:
    seconds = max(options.seconds, attack.seconds)
    command = ["nice", "-n", str(LOWER_PRIORITY), sys.executable, "-m", "security.attacker", name]
    command += ["--address", server.address, "--admin", server.admin, "--seconds", str(seconds)]
    command += ["--certificates", str(certificates)]
    command += ["--over-tls"] if options.over_tls else []
    return [
        subprocess.Popen(
            [*command, "--seed", str(options.seed + number)],
            cwd=ROOT / "tests/python",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        for number in range(attack.processes)
    ]


def gather(
    attackers: list[subprocess.Popen], attack: Attack, options: Options
) -> tuple[list[dict], list[str]]:
    """The attackers' reports, and what is wrong with their ends."""
    reports, complaints = [], []
    until = time.monotonic() + max(options.seconds, attack.seconds) + ATTACKER_GRACE_SECONDS
    for attacker in attackers:
        try:
            said, _ = attacker.communicate(timeout=max(0.1, until - time.monotonic()))
            reports.append(json.loads(said))
        except subprocess.TimeoutExpired:
            stop(attacker)
            complaints.append("the attack does not end")
        except json.JSONDecodeError:
            complaints.append(f"the attack exited with {attacker.returncode}")
    return reports, complaints


def merged(reports: list[dict]) -> dict:
    """The sum of the reports of the attack's processes."""
    whole = {"sent": 0, "connections": 0}
    whole |= {name: Counter() for name in ("fates", "notes", "complaints")}
    for report in reports:
        for name in whole:
            # Only a Counter can be added to a Counter.
            more = report[name]
            whole[name] += Counter(more) if isinstance(more, dict) else more
    return whole
