"""Runs h2spec against a dyndata, plaintext and TLS, and compares its failures with the list below.

A failure that is not on the list fails the test. So does an expected failure that passes everywhere,
or the list would go stale.
"""

import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import pytest

from security.frames import GET
from security.server import Server
from support.credentials import tls_settings
from support.processes import TOOLS

# For one case. A case that waits for something that does not come takes all of it.
CASE_SECONDS = 2
ALL_SECONDS = 120
# A case that fails in every run is a failure. Others may have raced with the answer to their HEADERS.
MORE_RUNS = 2

EXPECTED = {
    "http2/3.5: Sends invalid connection preface": (
        "the connection is closed, after an answer in HTTP/1.1 (505) to what may be an HTTP/1 "
        "client; h2spec reads that as a frame, and takes its end for an error. On TLS, ALPN has "
        "settled what the client speaks, and the same answer does no harm"
    ),
}
ANSWERED_BEFORE = (
    "a race: the request is not gRPC, which its HEADERS say already, so HTTP 415 may be on its way "
    "before the offending frame is read, and h2spec takes it for the answer to that; the attacks "
    "made-you-reset and random-frames send the same in gRPC calls, which wait for their body"
)
# These cases fail or pass by chance.
SOMETIMES = {
    "http2/5.1.2: Sends HEADERS frames that causes their advertised concurrent stream limit to be "
    "exceeded": (
        "h2spec's requests are whole and are answered while it sends more, so that there are never "
        "more than 256 streams at a time; the attack stream-flood opens more, which are refused"
    ),
    'http2/8.1.2.6: Sends a HEADERS frame with the "content-length" header field which does not '
    "equal the DATA frame payload length": ANSWERED_BEFORE,
    'http2/8.1.2.6: Sends a HEADERS frame with the "content-length" header field which does not '
    "equal the sum of the multiple DATA frames payload length": ANSWERED_BEFORE,
    "http2/5.1: closed: Sends a DATA frame after sending RST_STREAM frame": ANSWERED_BEFORE,
    "http2/5.1: closed: Sends a HEADERS frame after sending RST_STREAM frame": ANSWERED_BEFORE,
    "http2/8.1: Sends a second HEADERS frame without the END_STREAM flag": ANSWERED_BEFORE,
    "http2/8.1.2.1: Sends a HEADERS frame that contains a pseudo-header field as trailers": (
        ANSWERED_BEFORE
    ),
}
LISTED = EXPECTED | SOMETIMES
TRANSPORTS = ("plaintext", "TLS")


@dataclass
class Result:
    """The titles of the cases by their outcome; failed cases with h2spec's words."""

    passed: set[str]
    skipped: set[str]
    failed: dict[str, str]


@pytest.fixture(scope="module")
def results(release_binary, credentials, figures):
    return {name: check(name, release_binary, credentials, figures) for name in TRANSPORTS}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_failure_is_listed(results, transport):
    failed = results[transport].failed
    assert {case: failed[case] for case in failed.keys() - LISTED.keys()} == {}


def test_every_expected_failure_still_fails(results):
    passed = set.union(*(result.passed for result in results.values()))
    assert EXPECTED.keys() & passed == set(), "passes now; take it off the list"


def check(name: str, binary: Path, credentials: Path, figures: list[str]) -> Result:
    """Runs h2spec, and again if there are failures that may be races."""
    settings = tls_settings(credentials) if name == "TLS" else []
    options = ["--tls", "--insecure"] if name == "TLS" else []
    result = run(binary, settings, options)
    for _ in range(MORE_RUNS):
        if result.failed.keys() <= LISTED.keys():
            break
        again = run(binary, settings, options)
        for case in sorted(result.failed.keys() & again.passed):
            figures.append(f"raced    {name}: {case}: failed, and passed in another run")
        result.failed = {case: why for case, why in result.failed.items() if case in again.failed}
        result.passed |= again.passed
    for case in sorted(result.failed.keys() & LISTED.keys()):
        figures.append(f"listed   {name}: {case}: {LISTED[case]}")
    for case in sorted(result.skipped):
        figures.append(f"skipped  {name}: {case}: by h2spec itself")
    figures.append(
        f"h2spec, {name}: {len(result.passed)} passed, {len(result.failed)} failed, "
        f"{len(result.skipped)} skipped"
    )
    return result


def run(binary: Path, settings: list[str], options: list[str]) -> Result:
    """Runs h2spec once."""
    with tempfile.TemporaryDirectory(prefix="dyndata-h2spec-") as directory:
        report = Path(directory) / "report.xml"
        with Server(binary, *settings) as server:
            host, port = server.address.rsplit(":", 1)
            command = [TOOLS / "h2spec", "--host", host, "--port", port, "--path", GET, "--strict"]
            command += ["--timeout", str(CASE_SECONDS), "--junit-report", report, *options]
            # h2spec's exit code says that something failed, which the report says better.
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                timeout=ALL_SECONDS,
                check=False,
            )
        passed, skipped, failed = set(), set(), {}
        for case in ElementTree.parse(report).iter("testcase"):
            title = f"{case.get('package')}: {case.get('classname')}"
            wrong = [*case.iter("error"), *case.iter("failure")]
            if wrong:
                failed[title] = " / ".join((wrong[0].text or "").split("\n"))
            elif case.find("skipped") is not None:
                skipped.add(title)
            else:
                passed.add(title)
    return Result(passed, skipped, failed)
