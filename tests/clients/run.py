"""`make test-clients`: real foreign clients against a real dyndata, on both stores.

Each client knows the service through reflection alone. Prints a line for each case and closes with
the counts; the exit code is 1 if a case failed. tests/clients/setup.sh installs what this needs.
"""

import argparse
import shutil
import sys
from pathlib import Path

from cases import CLIENT_CASES, GRPCURL_CASES
from clients import BufCurl, Grpcurl, PythonClient
from command_line import CommandLine
from processes import dyndata_server, redis_server
from report import Report
from takeover import (
    Original,
    expire_times_are_never_late,
    redis_cli_shows_the_layout,
    takeover_cases,
)

ROOT = Path(__file__).resolve().parents[2]
GRPCURL_V1 = ROOT / ".tools/bin/grpcurl"
GRPCURL_V1ALPHA = ROOT / ".tools/bin/grpcurl-v1alpha"
BUF = ROOT / ".tools/npm/node_modules/.bin/buf"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dyndata", type=Path, required=True, help="the binary under test")
    binary = parser.parse_args().dyndata.resolve()
    if shutil.which(binary) is None:
        parser.error(f"there is no program {binary}; cargo build makes it")
    for program in (GRPCURL_V1, GRPCURL_V1ALPHA, BUF, "redis-server", "redis-cli"):
        if shutil.which(program) is None:
            parser.error(f"{program} is missing; tests/clients/setup.sh installs it")

    report = Report()
    with report.guard("redis-server starts"), redis_server() as redis_port:
        redis = f"redis://127.0.0.1:{redis_port}"
        with report.guard("redis: serves"), dyndata_server(binary, "--redis-url", redis) as address:
            test_store(report, "redis", binary, address)
            test_plain_keys(report, address, redis_port)
        settings = ["--redis-url", redis, "--key-format", "python-bytes"]
        with report.guard("python-bytes: serves"), dyndata_server(binary, *settings) as address:
            test_takeover(report, "python-bytes", Original(redis_port), address)
    with report.guard("embedded: serves"), dyndata_server(binary) as address:
        test_store(report, "embedded", binary, address)

    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


def test_store(report, store, binary, address):
    """What must be so on every store."""
    grpcurls = [Grpcurl(GRPCURL_V1, "v1", address), Grpcurl(GRPCURL_V1ALPHA, "v1alpha", address)]
    bufs = [BufCurl(BUF, "v1", address), BufCurl(BUF, "v1alpha", address)]
    with PythonClient(address) as python:
        for client in (python, *grpcurls, *bufs):
            cases = CLIENT_CASES + (GRPCURL_CASES if client in grpcurls else ())
            for case in cases:
                title = case.__name__.replace("_", " ")
                report.case(f"{store}, {client.name}: {title}", case, client)
    for title, case in CommandLine(binary, grpcurls[0], address).cases():
        report.case(f"{store}, dyndata: {title}", case)


def test_plain_keys(report, address, redis_port):
    test_takeover(report, "plain", Original(redis_port, "--plain-keys"), address)
    with PythonClient(address) as client:
        name = "plain keys: redis-cli GET prints 100 and PTTL about 60,000"
        report.case(name, redis_cli_shows_the_layout, client, redis_port)
        name = "redis, grpcio: expire times are never later than Redis's own"
        report.case(name, expire_times_are_never_late, client, redis_port)


def test_takeover(report, key_format, original, address):
    with PythonClient(address) as client:
        for title, case in takeover_cases(original, client):
            report.case(f"{key_format} keys: {title}", case)


if __name__ == "__main__":
    sys.exit(main())
