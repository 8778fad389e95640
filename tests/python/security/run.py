"""`make test-security`: attacks on a running server, while a well-behaved client measures.

Each attack is a row of a table: what it sent, what became of it, and what the good client saw of
it. A row passes if the good client's calls succeed (99.9 %) in at most three times the quiet time
(p99), newcomers are let in soon, probes of the admin listener are answered, the server's memory
grows by less than 64 MiB (32 MiB where attacks.py says so) and comes back, and the attacker is closed
or bounded as attacks.py says. The exit code is 1 if a row failed. tests/security/setup.sh installs
what this needs.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from attacks import ATTACKS, Attack
from checks import CHECKS
from measure import GoodClient, Quiet
from row import Row, run_attack
from server import (
    Server,
    flags,
    serving,
    tls_settings,
    write_access_file,
    write_certificates,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dyndata", type=Path, required=True, help="the binary under test")
    parser.add_argument("--seconds", type=float, default=5, help="of each attack; default 5")
    parser.add_argument(
        "--over-tls", action="store_true", help="all of them through TLS, whatever they attack"
    )
    parser.add_argument("--only", nargs="+", choices=sorted(ATTACKS | CHECKS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    if options.list:
        for name, attack in ATTACKS.items():
            print(f"{name}: {' '.join(attack.run.__doc__.split())}")
        for name, check in CHECKS.items():
            print(f"{name}: {' '.join(check.__doc__.split())}")
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
        write_access_file(binary, certificates)
        runnable = [name for name in chosen if name not in skipped]
        # By whether it is over TLS, which costs the good client something as well.
        quiet = {False: Quiet(), True: Quiet()}
        for settings, names in groups(runnable, known, certificates, options).items():
            rows += run_group(binary, settings, names, options, certificates, quiet)
        wrong = {
            name: run_check(name, binary, certificates)
            for name in CHECKS
            if not options.only or name in options.only
        }

    print("\n" + "\n".join([Row.HEADER, Row.RULE, *(row.line() for row in rows)]))
    for name in skipped:
        missing = " ".join(sorted(set(ATTACKS[name].wants) - known))
        print(f"SKIPPED: {name}: this build has no {missing}")
    failed = [row.failure() for row in rows if row.complaints]
    failed += [f"FAILED  {name}: {why}" for name, why in wrong.items() if why]
    print("\n".join(failed))
    passed = len(rows) + len(wrong) - len(failed)
    print(f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    return 1 if failed else 0


def run_check(name: str, binary: Path, certificates: Path) -> list[str]:
    check = CHECKS[name]
    print(f"{name}: {' '.join(check.__doc__.split())}", flush=True)
    wrong = check(binary, certificates)
    print(f"    {name}: {'FAILED' if wrong else 'ok'}", flush=True)
    return wrong


def groups(
    names: list[str], known: set[str], certificates: Path, options: argparse.Namespace
) -> dict[tuple[str, ...], list[str]]:
    """The attacks that can share a server, by its settings."""
    by_settings: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        attack = ATTACKS[name]
        optional = [flag for flag in attack.settings_if_known if flag.split("=")[0] in known]
        over_tls = attack.tls or options.over_tls
        tls = tls_settings(certificates) if over_tls else []
        access = [f"--access-file={certificates / 'access.toml'}"] if attack.anonymous else []
        by_settings.setdefault((*attack.settings, *optional, *tls, *access), []).append(name)
    return by_settings


def run_group(
    binary: Path,
    settings: tuple[str, ...],
    names: list[str],
    options: argparse.Namespace,
    certificates: Path,
    quiet: dict[bool, Quiet],
) -> list[Row]:
    """Attacks one server, one attack after the other. One that does not survive is replaced."""
    rows: list[Row] = []
    waiting = list(names)
    while waiting:
        with serving(binary, *settings) as server:
            first = ATTACKS[names[0]]
            over_tls = first.tls or options.over_tls
            ca = certificates / "ca.pem" if over_tls else None
            token = certificates / "token" if first.anonymous else None
            with GoodClient(server, ca, token, quiet[over_tls]) as good:
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
