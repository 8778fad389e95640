"""`make test-security`: attacks on a running server, while a well-behaved client measures.

Each attack is a row of a table: what it sent, what became of it, and what the good client saw of
it. A row passes if the good client's calls succeed (99.9 %) in at most three times the quiet time
(p99), the server's memory grows by less than 64 MiB and comes back, and the attacker is closed or
bounded as attacks.py says. The exit code is 1 if a row failed. tests/security/setup.sh installs
what this needs.
"""

import argparse
import random
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path

from attacks import ATTACKS, Attack
from measure import QUIET_WINDOWS, GoodClient
from row import Row, run_attack
from server import Server, flags, serving, tls_settings, write_certificates


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dyndata", type=Path, required=True, help="the binary under test")
    parser.add_argument("--seconds", type=float, default=5, help="of each attack; default 5")
    parser.add_argument("--only", nargs="+", choices=sorted(ATTACKS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    if options.list:
        for name, attack in ATTACKS.items():
            print(f"{name}: {' '.join(attack.run.__doc__.split())}")
        return 0
    binary = options.dyndata.resolve()
    if shutil.which(binary) is None:
        parser.error(f"there is no program {binary}; cargo build makes it")

    print(f"seed {options.seed}, {options.seconds:g} s for each attack", flush=True)
    known = flags(binary)
    chosen = [name for name in ATTACKS if not options.only or name in options.only]
    skipped = [name for name in chosen if not known.issuperset(ATTACKS[name].wants)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dyndata-security-") as directory:
        certificates = Path(directory)
        write_certificates(certificates)
        runnable = [name for name in chosen if name not in skipped]
        # By whether it is over TLS, which costs the good client something as well.
        quiet = {False: deque(maxlen=QUIET_WINDOWS), True: deque(maxlen=QUIET_WINDOWS)}
        for settings, names in groups(runnable, known, certificates).items():
            rows += run_group(binary, settings, names, options, certificates, quiet)

    print("\n" + "\n".join([Row.HEADER, Row.RULE, *(row.line() for row in rows)]))
    for name in skipped:
        missing = " ".join(sorted(set(ATTACKS[name].wants) - known))
        print(f"SKIPPED: {name}: this build has no {missing}")
    failed = [row for row in rows if row.complaints]
    for row in failed:
        print(row.failure())
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed else 0


def groups(
    names: list[str], known: set[str], certificates: Path
) -> dict[tuple[str, ...], list[str]]:
    """The attacks that can share a server, by its settings."""
    by_settings: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        attack = ATTACKS[name]
        optional = [flag for flag in attack.settings_if_known if flag.split("=")[0] in known]
        tls = tls_settings(certificates) if attack.tls else []
        by_settings.setdefault((*attack.settings, *optional, *tls), []).append(name)
    return by_settings


def run_group(
    binary: Path,
    settings: tuple[str, ...],
    names: list[str],
    options: argparse.Namespace,
    certificates: Path,
    quiet: dict[bool, deque[float]],
) -> list[Row]:
    """Attacks one server, one attack after the other. One that does not survive is replaced."""
    rows: list[Row] = []
    waiting = list(names)
    while waiting:
        with serving(binary, *settings) as server:
            tls = ATTACKS[names[0]].tls
            ca = certificates / "ca.pem" if tls else None
            with GoodClient(server, ca, quiet[tls]) as good:
                while waiting:
                    name = waiting.pop(0)
                    row = attack_once_or_twice(server, good, name, options, certificates)
                    rows.append(row)
                    if not row.server_is_well:
                        break
    return rows


def attack_once_or_twice(
    server: Server, good: GoodClient, name: str, options: argparse.Namespace, certificates: Path
) -> Row:
    """Latency alone is tried again, once, if something else had the processors meanwhile."""
    attack: Attack = ATTACKS[name]
    print(f"{name}: {' '.join(attack.run.__doc__.split())}", flush=True)
    for attempt in (1, 2):
        row = run_attack(server, good, name, attack, options, certificates)
        print(row.line(), flush=True)
        if row.notes:
            print(row.remarks(), flush=True)
        if row.complaints:
            print(row.failure(), flush=True)
        if attempt == 2 or not row.may_be_noise:
            break
        print(f"{name}: again, others had {row.others_cores:.1f} cores", flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
