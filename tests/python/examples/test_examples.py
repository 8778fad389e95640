"""`make test-examples`: every example of examples/ against a real dyndata, with TLS and a token.

What an example prints is compared as a whole; times may differ, and nothing else. Prints a line for
each case and closes with the counts; the exit code is 1 if a case failed. setup.sh beside this
installs what is needed.
"""

import argparse
import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import redis

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/clients"))

from children import clean_environment, free_port, stop, wait_until  # noqa: E402
from processes import redis_server  # noqa: E402

from server import serve  # noqa: E402

PYTHON = sys.executable
ORIGINAL = ROOT / "tests/clients/original.py"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
RUN_SECONDS = 20
# The examples' own deadline is 2 s; the rest is for interpreters to start on a busy machine.
FAIL_SECONDS = 6

TEXT = """\
alice is marked until TIME
Get: alice is 100
BatchGet: alice is 100, bob is not marked
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

# How each says that nobody listens, and that somebody listens and says nothing.
UNAVAILABLE = r"error: UNAVAILABLE: .*([Cc]onnection refused|ECONNREFUSED)"
DEADLINE = r"error: DEADLINE_EXCEEDED: Deadline [Ee]xceeded"

# name -> command, what it prints, how it fails without a listener and with a silent one
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

# Those that retry; the shell's tools have no such thing.
RETRYING = ("python", "go", "node", "rust")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dyndata", type=Path, required=True, help="the binary under test")
    binary = parser.parse_args().dyndata.resolve()

    results = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dyndata-examples-"))
        redis_port = stack.enter_context(redis_server())
        store = stack.enter_context(redis.Redis(port=redis_port, decode_responses=True))
        settings = ["--redis-url", f"redis://127.0.0.1:{redis_port}"]
        server = stack.enter_context(serve(binary, Path(directory), *settings))
        for name, case in cases(server, store):
            results.append(passes(name, case, store))
        # One call at a time, and Redis may take long to answer.
        settings += ["--workers", "1", "--max-in-flight", "1", "--redis-timeout", "5s"]
        busy = stack.enter_context(serve(binary, Path(directory), *settings))
        for example in RETRYING:
            name = f"{example}: retries what an overloaded server refused"
            case = partial(retries_when_told, example, busy, store, binary)
            results.append(passes(name, case, store))
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return 0 if all(results) else 1


def cases(server, store):
    """(name, case) for each; a case takes nothing."""
    for example in EXAMPLES:
        yield f"{example}: prints what it should", partial(prints, example, server)
    for example in EXAMPLES:
        yield f"{example}: fails when nobody listens", partial(fails_closed, example, server)
        yield f"{example}: fails when nobody answers", partial(fails_silent, example, server)
    yield "dyn_data.py: writes what the original reads", partial(original_reads, server, store)
    yield "dyn_data.py: reads what the original wrote", partial(reads_original, server, store)
    yield "app.py: marks and gets over HTTP", partial(flask_serves, server, store)
    yield "app.py: says 503 when dyndata is away", partial(flask_fails, server)


def passes(name, case, store):
    """Runs one case on an empty store, and says how it went."""
    store.flushall()
    try:
        case()
    except AssertionError as failure:
        why = str(failure)
    except Exception:
        # Not foreseen by a case, so where it came from matters.
        why = traceback.format_exc()
    else:
        print("ok     ", name, flush=True)
        return True
    print("FAILED ", name, flush=True)
    for line in why.strip().splitlines():
        print("         ", line, flush=True)
    return False


def prints(example, server):
    command, wanted, _, _ = EXAMPLES[example]
    done = run(command, server.environment)
    printed = normal(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}: {done.stderr}"
    equal(printed, wanted)


def fails_closed(example, server):
    fails(example, server.at(free_port()), EXAMPLES[example][2])


def fails_silent(example, server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fails(example, server.at(silent.getsockname()[1]), EXAMPLES[example][3])


def fails(example, environment, wanted):
    began = time.monotonic()
    done = run(EXAMPLES[example][0], environment)
    took = time.monotonic() - began
    assert done.returncode != 0, "the exit code is 0"
    assert took < FAIL_SECONDS, f"it took {took:.1f} s"
    assert re.search(wanted, done.stderr), f"no {wanted} in:\n{done.stderr}"
    equal(done.stdout, "")


def retries_when_told(example, busy, store, binary):
    """A Mark that Redis holds back takes the server's only place, until the example was refused."""
    refused_before = busy.marks_refused()
    store.client_pause(int(RUN_SECONDS * 1000), all=False)
    holder = subprocess.Popen(
        [binary, "mark", "holder", "1"],
        stdout=subprocess.DEVNULL,
        env=busy.environment,
    )
    example_run = None
    try:
        wait_until(lambda: busy.marks_in_flight() == 1, "the Mark is not in flight")
        command, wanted, _, _ = EXAMPLES[example]
        example_run = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=busy.environment
        )
        wait_until(lambda: busy.marks_refused() > refused_before, "no call was refused")
        store.client_unpause()
        printed, _ = example_run.communicate(timeout=RUN_SECONDS)
        equal(holder.wait(RUN_SECONDS), 0)
        equal((example_run.returncode, normal(printed)), (0, wanted))
    finally:
        store.client_unpause()
        for process in (holder, example_run):
            if process is not None:
                stop(process)


def original_reads(server, store):
    call_dyn_data("dyn_data.mark_dyn_data(42, 100)", server)
    equal(store.get("dyn_data/42"), "100")
    left = store.pttl("dyn_data/42")
    assert 50_000 < left <= 60_000, f"{left} ms to live"
    equal(original(store, "get", "42"), "100\n")


def reads_original(server, store):
    original(store, "mark", "42", "-7")
    program = "print(dyn_data.get_dyn_data(42), dyn_data.get_dyn_data('nobody'))"
    equal(call_dyn_data(program, server), "-7 0\n")


def original(store, *arguments):
    """The application as it was, on a Redis of its own making."""
    url = f"redis://127.0.0.1:{store.connection_pool.connection_kwargs['port']}"
    command = [PYTHON, ORIGINAL, "--redis-url", url, "--plain-keys", *arguments]
    return succeeds(run(command, clean_environment()))


def call_dyn_data(program, server):
    command = [PYTHON, "-c", f"import dyn_data; {program}"]
    return succeeds(run(command, server.environment | {"PYTHONPATH": "examples/python"}))


def flask_serves(server, store):
    with flask_app(server.environment) as url:
        equal(http("GET", f"{url}/dyn_data/42"), (200, '{"id":"42","value":0}\n'))
        equal(http("PUT", f"{url}/dyn_data/42", b"100"), (204, ""))
        equal(http("GET", f"{url}/dyn_data/42"), (200, '{"id":"42","value":100}\n'))
        equal(store.get("dyn_data/42"), "100")
        for body in (b"many", b"9223372036854775808"):
            wanted = '{"error":"the body must be a whole number of 64 bits"}\n'
            equal(http("PUT", f"{url}/dyn_data/42", body), (400, wanted))
        wanted = '{"error":"INVALID_ARGUMENT"}\n'
        equal(http("GET", f"{url}/dyn_data/%0A"), (400, wanted))


def flask_fails(server):
    with flask_app(server.at(free_port())) as url:
        equal(http("GET", f"{url}/dyn_data/42"), (503, '{"error":"UNAVAILABLE"}\n'))
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        flask_app(server.at(silent.getsockname()[1])) as url,
    ):
        equal(http("GET", f"{url}/dyn_data/42"), (504, '{"error":"DEADLINE_EXCEEDED"}\n'))


@contextlib.contextmanager
def flask_app(environment):
    port = free_port()
    app = subprocess.Popen(
        [PYTHON, "-m", "flask", "--app", "app", "run", "--port", str(port)],
        cwd=ROOT / "examples/python",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Werkzeug's and the application's log; what it answers says enough.
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        wait_until(lambda: listens(app, port), "the Flask application does not listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(app)


def listens(app, port):
    if app.poll() is not None:
        raise AssertionError(f"the Flask application exited with {app.returncode}")
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def http(method, url, body=None):
    """The status and the body of the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, method=method)
    try:
        with opener.open(request, timeout=RUN_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def run(command, environment):
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


def equal(actual, wanted):
    if isinstance(wanted, str) and "\n" in wanted:
        assert actual == wanted, f"got:\n{actual}\nwanted:\n{wanted}"
    assert actual == wanted, f"got    {actual!r}\nwanted {wanted!r}"


if __name__ == "__main__":
    sys.exit(main())
