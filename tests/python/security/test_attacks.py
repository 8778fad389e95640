"""Attacks on a running server, while well-behaved clients measure; README.md says more.

Each attack is a row of the table at the end of the report. `--seconds`, `--seed` and `--over-tls`
change how the attacks are run, and `-k NAME` selects some.
"""

import pytest

from security.attacks import ATTACKS
from security.row import run_attack


def by_server(name):
    """Sorts attacks so that those which can share a server follow each other."""
    attack = ATTACKS[name]
    return attack.tls, attack.anonymous, attack.settings


@pytest.mark.parametrize("name", sorted(ATTACKS, key=by_server))
def test_attack(name, ground, options, rows):
    ground.prepare(ATTACKS[name])
    row = attack_up_to_three_times(ground, name, options)
    rows.append(row)
    if not row.server_is_well:
        ground.close()
    if row.complaints:
        pytest.fail(row.failure(), pytrace=False)


def attack_up_to_three_times(ground, name, options):
    """Runs an attack, and again if only times were too long: the machine may have stood still, and a
    fault of the server shows in each attempt."""
    attack = ATTACKS[name]
    print(" ".join(attack.run.__doc__.split()))
    for attempt in (1, 2, 3):
        row = run_attack(ground.server, ground.good, name, attack, options, ground.credentials)
        print(row.line(), row.remarks(), sep="\n")
        if attempt == 3 or not row.slow_only:
            return row
        print(row.failure(), "again", sep="\n")
