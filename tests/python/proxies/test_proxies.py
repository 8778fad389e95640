"""`make test-proxies`: dyndata behind nginx and HAProxy, as docs/proxies.md says.

Prints a line for each case and closes with the counts; the exit code is 1 if a case failed.
tests/proxies/setup.sh installs what this needs.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import grpc

import load
import proxies
from load import Load

from clients import python_error
from processes import redis_server
from report import Report

# What the page says for each proxy.
SHUTDOWN_DELAYS = {"nginx": "0s", "haproxy": "2s"}
LARGE_MARKS = 20
WATCHING_CHANNELS = 48
CALLS_OF_A_CHANNEL = 20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dyndata", type=Path, required=True, help="the binary under test")
    binary = parser.parse_args().dyndata.resolve()
    if shutil.which(binary) is None:
        parser.error(f"there is no program {binary}; cargo build makes it")

    report = Report()
    with report.guard("redis-server starts"), redis_server() as redis_port:
        for name, proxy in (("nginx", proxies.nginx), ("haproxy", proxies.haproxy)):
            ports = proxies.Ports()
            delay = f"--shutdown-delay={SHUTDOWN_DELAYS[name]}"
            with (
                report.guard(f"{name}: serves"),
                proxies.dyndatas(binary, ports, redis_port, delay) as servers,
                proxy(ports),
            ):
                for title, case in cases(ports, servers):
                    report.case(f"{name}: {title}", case)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


def cases(ports, servers):
    yield "a Mark of 1 MB is told MESSAGE_TOO_LARGE", lambda: is_told_too_large(ports)
    title = f"{WATCHING_CHANNELS} channels with client-side health checks are served"
    yield title, lambda: serves_channels_that_watch(ports)
    title = "a rolling restart loses no call, %s a retry policy"
    yield title % "without", lambda: loses_nothing(ports, servers)
    policy = proxies.block("json")
    yield title % "with", lambda: loses_nothing(ports, servers, policy)


def is_told_too_large(ports):
    request = load.mark_request(b"x" * (1 << 20))
    with load.channel(ports.proxy) as channel:
        for number in range(LARGE_MARKS):
            try:
                channel.unary_unary(load.MARK)(request, timeout=load.CALL_SECONDS)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, f"call {number}: {error}"
                reason = python_error(error).reason
                assert reason == "MESSAGE_TOO_LARGE", f"call {number}: {reason}"
            else:
                raise AssertionError(f"call {number} was answered")


def serves_channels_that_watch(ports):
    # Each channel has one Health/Watch open, and calls only while the answer is SERVING.
    config = json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": "dyndata.v1.DynData"},
        }
    )
    channels = [load.channel(ports.proxy, config) for _ in range(WATCHING_CHANNELS)]
    try:
        calls = []
        for _ in range(CALLS_OF_A_CHANNEL):
            for channel in channels:
                get = channel.unary_unary(load.GET)
                calls.append(get.future(load.GET_REQUEST, timeout=load.CALL_SECONDS))
            time.sleep(0.05)
        failed = [call.details() for call in calls if call.code() is not grpc.StatusCode.OK]
    finally:
        for channel in channels:
            channel.close()
    assert not failed, f"{len(failed)} of {len(calls)} failed: {set(failed)}"


def loses_nothing(ports, servers, service_config=None):
    with Load(ports.proxy, service_config) as calls:
        time.sleep(1)
        for server in servers:
            server.restart()
        time.sleep(1)
    ended = calls.ended.total()
    assert ended == calls.started, f"{calls.started - ended} of {calls.started} calls never ended"
    failed = ended - calls.ended["OK"]
    assert not failed, f"{failed} of {calls.started} calls failed: {dict(calls.ended)}"


if __name__ == "__main__":
    sys.exit(main())
