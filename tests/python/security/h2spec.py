"""Runs h2spec against a dyndata, plaintext and TLS, and compares what fails with the list below.

A failure that is not on the list fails; so does one on the list that no longer fails anywhere, or
the list would go stale. What is skipped is said. tests/security/setup.sh installs h2spec.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from frames import GET
from server import flags, serving, tls_settings, write_certificates

ROOT = Path(__file__).resolve().parents[2]
H2SPEC = ROOT / ".tools/bin/h2spec"
# For one case. Cases that wait for what does not come take all of it.
CASE_SECONDS = 2
ALL_SECONDS = 120
# More of these cases may race with the answer to their HEADERS; what never passes is a failure.
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
# What fails or passes as it happens.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dyndata", type=Path, required=True, help="the binary under test")
    binary = parser.parse_args().dyndata.resolve()
    for program in (binary, H2SPEC):
        if shutil.which(program) is None:
            parser.error(f"there is no program {program}")

    passed, new = check("plaintext", binary, [], [])
    if "--tls-cert" in flags(binary):
        with tempfile.TemporaryDirectory(prefix="dyndata-h2spec-") as directory:
            write_certificates(Path(directory))
            settings = tls_settings(Path(directory))
            passed_on_tls, new_on_tls = check("TLS", binary, settings, ["--tls", "--insecure"])
        passed &= passed_on_tls
        new += new_on_tls
    else:
        print("SKIPPED: h2spec over TLS: this build has no --tls-cert")
    stale = sorted(EXPECTED.keys() & passed)
    for case in stale:
        print(f"FAILED   {case}: passes now; take it off the list in h2spec.py")
    return 1 if new or stale else 0


def check(
    name: str, binary: Path, settings: list[str], options: list[str]
) -> tuple[set[str], list[str]]:
    """Runs h2spec, again if it must; what passed, and what failed every time and is not listed."""
    passed, skipped, failed = run(binary, settings, options)
    for _ in range(MORE_RUNS):
        if failed.keys() <= LISTED.keys():
            break
        passed_again, _, failed_again = run(binary, settings, options)
        for case in sorted(failed.keys() & passed_again):
            print(f"raced    {name}: {case}: failed, and passed in another run", flush=True)
        failed = {case: why for case, why in failed.items() if case in failed_again}
        passed |= passed_again
    new = sorted(failed.keys() - LISTED.keys())
    for case in sorted(failed.keys() & LISTED.keys()):
        print(f"listed   {name}: {case}: {LISTED[case]}")
    for case in sorted(skipped):
        print(f"skipped  {name}: {case}: by h2spec itself")
    for case in new:
        print(f"FAILED   {name}: {case}\n           {failed[case]}")
    print(
        f"h2spec, {name}: {len(passed)} passed, {len(failed)} failed ({len(new)} of them not "
        f"listed), {len(skipped)} skipped",
        flush=True,
    )
    return passed, new


def run(
    binary: Path, settings: list[str], options: list[str]
) -> tuple[set[str], set[str], dict[str, str]]:
    """What passed, what was skipped, and what failed with what h2spec says of it."""
    with tempfile.TemporaryDirectory(prefix="dyndata-h2spec-") as directory:
        report = Path(directory) / "report.xml"
        with serving(binary, *settings) as server:
            host, port = server.address.rsplit(":", 1)
            command = [H2SPEC, "--host", host, "--port", port, "--path", GET, "--strict"]
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
    return passed, skipped, failed


if __name__ == "__main__":
    sys.exit(main())
