"""dyndata behind nginx and HAProxy, with what docs/proxies.md says."""

import json
import time
from types import SimpleNamespace

import grpc
import pytest

from clients.clients import python_error
from proxies import load, proxies
from proxies.load import Load

# The page's value for each proxy.
SHUTDOWN_DELAYS = {"nginx": "0s", "haproxy": "2s"}
LARGE_MARKS = 20
WATCHING_CHANNELS = 48
CALLS_OF_A_CHANNEL = 20


@pytest.fixture(scope="module", params=SHUTDOWN_DELAYS)
def behind(request, binary, redis_port):
    """The port of a proxy, and the servers behind it."""
    ports = proxies.Ports()
    delay = f"--shutdown-delay={SHUTDOWN_DELAYS[request.param]}"
    # No call may fail, even on a busy machine. The callers wait for 5 s.
    timeout = "--redis-timeout=4s"
    proxy = {"nginx": proxies.nginx, "haproxy": proxies.haproxy}[request.param]
    with proxies.dyndatas(binary, ports, redis_port, delay, timeout) as servers, proxy(ports):
        yield SimpleNamespace(proxy=ports.proxy, servers=servers)


def test_a_mark_of_1_mb_is_told_message_too_large(behind):
    request = load.mark_request(b"x" * (1 << 20))
    with load.channel(behind.proxy) as channel:
        for number in range(LARGE_MARKS):
            try:
                channel.unary_unary(load.MARK)(request, timeout=load.CALL_SECONDS)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, f"call {number}: {error}"
                reason = python_error(error).reason
                assert reason == "MESSAGE_TOO_LARGE", f"call {number}: {reason}"
            else:
                raise AssertionError(f"call {number} was answered")


def test_channels_with_client_side_health_checks_are_served(behind):
    # Each channel has one Health/Watch open, and calls only while the answer is SERVING.
    config = json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "healthCheckConfig": {"serviceName": "dyndata.v1.DynData"},
        }
    )
    channels = [load.channel(behind.proxy, config) for _ in range(WATCHING_CHANNELS)]
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


@pytest.mark.parametrize("service_config", (None, proxies.block("json")), ids=("no policy", "retry policy"))
def test_a_rolling_restart_loses_no_call(behind, service_config):
    with Load(behind.proxy, service_config) as calls:
        time.sleep(1)
        for server in behind.servers:
            proxies.restart(server)
        time.sleep(1)
    ended = calls.ended.total()
    assert ended == calls.started, f"{calls.started - ended} of {calls.started} calls never ended"
    failed = ended - calls.ended["OK"]
    assert not failed, f"{failed} of {calls.started} calls failed: {dict(calls.ended)}"
