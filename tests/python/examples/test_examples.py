"""Every program of examples/ against a real dyndata, with TLS and a token.

The whole output of an example is compared; only times may differ.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import redis

from examples.relay import Relay
from examples.server import ExampleServer
from support.processes import HTTP, ROOT, clean_environment, connects, free_port, running, stop, wait_until

PYTHON = sys.executable
ORIGINAL = ROOT / "tests/python/original.py"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
RUN_SECONDS = 20
# The examples' own deadline is 2 s; the rest is for interpreters to start on a busy machine.
FAIL_SECONDS = 6

TEXT = """\
alice is marked until TIME
Get: alice is 100
BatchGet: alice is 100, bob is not marked
Increment: visits is 1
refused: {code} (ID_INVALID): id must not be empty
"""

REPLIES = """\
{
  "expireTime": "TIME"
}
{
  "entry": {
    "id": "alice",
    "intValue": "100"
  }
}
{
  "entries": [
    {
      "id": "alice",
      "intValue": "100"
    },
    {
      "id": "bob"
    }
  ]
}
{
  "applied": true,
  "value": "1",
  "expireTime": "TIME"
}
"""

GRPCURL_REFUSAL = """\
ERROR:
  Code: InvalidArgument
  Message: id must not be empty
  Details:
  1)\t{
    \t  "@type": "type.googleapis.com/google.rpc.ErrorInfo",
    \t  "domain": "dyndata",
    \t  "reason": "ID_INVALID"
    \t}
  2)\t{
    \t  "@type": "type.googleapis.com/google.rpc.BadRequest",
    \t  "fieldViolations": [
    \t    {
    \t      "field": "id",
    \t      "description": "id must not be empty"
    \t    }
    \t  ]
    \t}
exit code 67
"""

BUF_REFUSAL = """\
{
   "code": "invalid_argument",
   "message": "id must not be empty",
   "details": [
      {
         "type": "google.rpc.ErrorInfo",
         "value": "CgpJRF9JTlZBTElEEgdkeW5kYXRh"
      },
      {
         "type": "google.rpc.BadRequest",
         "value": "ChoKAmlkEhRpZCBtdXN0IG5vdCBiZSBlbXB0eQ"
      }
   ]
}
exit code 24
"""

# The messages of grpcio and grpc-js when nobody listens, and when the listener stays silent.
UNAVAILABLE = r"error: UNAVAILABLE: .*([Cc]onnection refused|ECONNREFUSED)"
DEADLINE = r"error: DEADLINE_EXCEEDED: Deadline [Ee]xceeded"

# For each example: its command, what it prints, how it fails without a listener and with a silent one.
EXAMPLES = {
    "python": (
        [PYTHON, "examples/python/client.py"],
        TEXT.format(code="INVALID_ARGUMENT"),
        UNAVAILABLE,
        DEADLINE,
    ),
    "go": (
        [".tools/examples-go"],
        TEXT.format(code="InvalidArgument"),
        r"error: Unavailable: connection error: .*connection refused",
        r"error: DeadlineExceeded: ",
    ),
    "node": (
        ["node", "examples/node/client.js"],
        TEXT.format(code="INVALID_ARGUMENT"),
        UNAVAILABLE,
        DEADLINE,
    ),
    "rust": (
        ["target/debug/dyndata-example"],
        TEXT.format(code="InvalidArgument"),
        r"error: transport error: tcp connect error: .*Connection refused",
        r"error: cannot connect within the deadline",
    ),
    "grpcurl": (
        ["examples/shell/grpcurl.sh"],
        REPLIES + GRPCURL_REFUSAL,
        r"Failed to dial target host .*connection refused",
        r"Failed to dial target host .*context deadline exceeded",
    ),
    "buf curl": (
        ["examples/shell/buf-curl.sh"],
        REPLIES + BUF_REFUSAL,
        r'"code": "unavailable",\s+"message": ".*connection refused"',
        r'"code": "deadline_exceeded"',
    ),
}

# What prints the service config of each program that leaves retries to gRPC.
NODE_CONFIG = re.compile(r"const SERVICE = .*?^const SERVICE_CONFIG = \{.*?^\};$", re.DOTALL | re.MULTILINE)
GO_CONFIG = re.compile(r"serviceConfig = `(.*?)`", re.DOTALL)
# A policy that names one of these could make it take effect twice.
NOT_REPEATABLE = {"Increment", "MarkIf"}

# What Redis holds back in a test is a call then, and not the sweep of an index.
NO_INDEX = {"DYNDATA_INDEXED_NAMESPACES": ""}

# The tools of the shell have no retries.
RETRYING = ("python", "go", "node", "rust")


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    """The directory in which examples/serve.sh keeps its certificates and its token."""
    return tmp_path_factory.mktemp("credentials")


@pytest.fixture(scope="module")
def server(binary, credentials, redis_port):
    with ExampleServer(binary, credentials, redis_port, **NO_INDEX) as server:
        yield server


@pytest.fixture(scope="module")
def busy(binary, credentials, redis_port):
    """A server that handles one call at a time, and waits long for Redis."""
    settings = ["--workers", "1", "--max-in-flight", "1", "--redis-timeout", "5s"]
    with ExampleServer(binary, credentials, redis_port, *settings, **NO_INDEX) as server:
        yield server


@pytest.fixture(autouse=True)
def store(redis_port):
    """A client of the Redis, which is empty when a test begins."""
    with redis.Redis(port=redis_port, decode_responses=True) as store:
        store.flushall()
        yield store


@pytest.mark.parametrize("example", EXAMPLES)
def test_prints_what_it_should(example, server):
    command, wanted, _, _ = EXAMPLES[example]
    done = run_with(command, server.client_environment)
    printed = normal(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}: {done.stderr}"
    assert printed == wanted


@pytest.mark.parametrize("example", EXAMPLES)
def test_fails_when_nobody_listens(example, server):
    fails(example, server.client_environment_for(free_port()), EXAMPLES[example][2])


@pytest.mark.parametrize("example", EXAMPLES)
def test_fails_when_nobody_answers(example, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fails(example, server.client_environment_for(silent.getsockname()[1]), EXAMPLES[example][3])


def fails(example, environment, wanted):
    began = time.monotonic()
    done = run_with(EXAMPLES[example][0], environment)
    took = time.monotonic() - began
    assert done.returncode != 0, "the exit code is 0"
    assert took < FAIL_SECONDS, f"it took {took:.1f} s"
    assert re.search(wanted, done.stderr), f"no {wanted} in:\n{done.stderr}"
    assert done.stdout == ""


@pytest.mark.parametrize("example", RETRYING)
def test_retries_what_an_overloaded_server_refused(example, busy, store, binary):
    """Redis holds a Mark back. It takes the only place of the server until the example is refused."""
    refused_before = busy.marks_refused()
    store.client_pause(int(RUN_SECONDS * 1000), all=False)
    holder = subprocess.Popen(
        [binary, "mark", "holder", "1"],
        stdout=subprocess.DEVNULL,
        env=busy.client_environment,
    )
    example_run = None
    try:
        wait_until(lambda: busy.marks_in_flight() == 1, "the Mark is not in flight")
        command, wanted, _, _ = EXAMPLES[example]
        example_run = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=busy.client_environment
        )
        wait_until(lambda: busy.marks_refused() > refused_before, "no call was refused")
        store.client_unpause()
        printed, _ = example_run.communicate(timeout=RUN_SECONDS)
        assert holder.wait(RUN_SECONDS) == 0
        assert (example_run.returncode, normal(printed)) == (0, wanted)
    finally:
        store.client_unpause()
        for process in (holder, example_run):
            if process is not None:
                stop(process)


def python_config():
    program = "import dyn_data, json; print(json.dumps(dyn_data.SERVICE_CONFIG))"
    environment = clean_environment(PYTHONPATH="examples/python")
    return succeeds(run_with([PYTHON, "-c", program], environment))


def node_config():
    constants = NODE_CONFIG.search((ROOT / "examples/node/client.js").read_text()).group()
    program = f"{constants}\nconsole.log(JSON.stringify(SERVICE_CONFIG))"
    return succeeds(run_with(["node", "-e", program], clean_environment()))


def go_config():
    return GO_CONFIG.search((ROOT / "examples/go/main.go").read_text()).group(1)


@pytest.mark.parametrize("config", (python_config, node_config, go_config))
def test_a_retry_policy_names_only_calls_that_may_be_repeated(config):
    named = set()
    for entry in json.loads(config())["methodConfig"]:
        if "retryPolicy" in entry:
            # A name without a method would mean all methods, and those of later contracts too.
            named |= {(name["service"], name["method"]) for name in entry["name"]}
    assert {service for service, _ in named} == {"dyndata.v1.DynData"}
    methods = {method for _, method in named}
    assert methods >= {"Mark", "Get", "BatchGet"}
    assert not methods & NOT_REPEATABLE


def test_an_increment_is_not_repeated_when_the_connection_breaks(busy, store):
    """Redis holds an Increment back while the connection between caller and dyndata breaks. No answer
    can tell the caller's policy what became of it."""
    program = (
        "import dyn_data; from dyndata.v1.dyndata_pb2 import IncrementRequest; "
        "dyn_data.stub().Increment(IncrementRequest(id='visits'), timeout=10)"
    )
    # From here on Redis knows the script. Otherwise dyndata would have to send it after the break.
    environment = busy.client_environment | {"PYTHONPATH": "examples/python"}
    succeeds(run_with([PYTHON, "-c", program], environment))
    with Relay(busy.address.rpartition(":")[2]) as relay:
        environment = busy.client_environment_for(relay.port) | {"PYTHONPATH": "examples/python"}
        store.client_pause(int(RUN_SECONDS * 1000), all=False)
        caller = subprocess.Popen(
            [PYTHON, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment
        )
        try:
            wait_until(lambda: store.info("clients")["blocked_clients"], "Redis holds nothing back")
            relay.cut()
            store.client_unpause()
            _, said = caller.communicate(timeout=RUN_SECONDS)
            assert caller.returncode != 0
            assert "UNAVAILABLE" in said
        finally:
            store.client_unpause()
            stop(caller)
    wait_until(lambda: busy.metric("dyndata_calls_in_flight") == 0, "the call does not end")
    assert store.get("dyn_data/visits") == "2"


def test_dyn_data_writes_what_the_original_reads(server, store):
    call_dyn_data("dyn_data.mark_dyn_data(42, 100)", server)
    assert store.get("dyn_data/42") == "100"
    left = store.pttl("dyn_data/42")
    assert 50_000 < left <= 60_000, f"{left} ms to live"
    assert original(store, "get", "42") == "100\n"


def test_dyn_data_reads_what_the_original_wrote(server, store):
    original(store, "mark", "42", "-7")
    program = "print(dyn_data.get_dyn_data(42), dyn_data.get_dyn_data('nobody'))"
    assert call_dyn_data(program, server) == "-7 0\n"


def original(store, *arguments):
    """Runs the original application on the Redis of the test."""
    url = f"redis://127.0.0.1:{store.connection_pool.connection_kwargs['port']}"
    command = [PYTHON, ORIGINAL, "--redis-url", url, "--plain-keys", *arguments]
    return succeeds(run_with(command, clean_environment()))


def call_dyn_data(program, server):
    command = [PYTHON, "-c", f"import dyn_data; {program}"]
    return succeeds(run_with(command, server.client_environment | {"PYTHONPATH": "examples/python"}))


def test_app_marks_and_gets_over_http(server, store):
    with flask_app(server.client_environment) as url:
        assert http("GET", f"{url}/dyn_data/42") == (200, '{"id":"42","value":0}\n')
        assert http("PUT", f"{url}/dyn_data/42", b"100") == (204, "")
        assert http("GET", f"{url}/dyn_data/42") == (200, '{"id":"42","value":100}\n')
        assert store.get("dyn_data/42") == "100"
        for body in (b"many", b"9223372036854775808"):
            wanted = '{"error":"the body must be a whole number of 64 bits"}\n'
            assert http("PUT", f"{url}/dyn_data/42", body) == (400, wanted)
        wanted = '{"error":"INVALID_ARGUMENT"}\n'
        assert http("GET", f"{url}/dyn_data/%0A") == (400, wanted)


def test_app_says_503_when_dyndata_is_away(server):
    with flask_app(server.client_environment_for(free_port())) as url:
        assert http("GET", f"{url}/dyn_data/42") == (503, '{"error":"UNAVAILABLE"}\n')
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        flask_app(server.client_environment_for(silent.getsockname()[1])) as url,
    ):
        assert http("GET", f"{url}/dyn_data/42") == (504, '{"error":"DEADLINE_EXCEEDED"}\n')


@contextlib.contextmanager
def flask_app(environment):
    port = free_port()
    app = [PYTHON, "-m", "flask", "--app", "app", "run", "--port", port]
    directory = ROOT / "examples/python"
    with running(app, lambda: connects(port), environment=environment, cwd=directory):
        yield f"http://127.0.0.1:{port}"


def http(method, url, body=None):
    """The status and the body of the answer."""
    request = urllib.request.Request(url, body, method=method)
    try:
        with HTTP.open(request, timeout=RUN_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def run_with(command, environment):
    return subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        env=environment,
        check=False,
    )


def succeeds(done):
    assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stderr}"
    return done.stdout


def normal(printed):
    """Without what may differ: times, and the spaces that Go's JSON has at random."""
    return re.sub(r'": +', '": ', TIME.sub("TIME", printed))
