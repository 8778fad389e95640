"""Prometheus scrapes a server under load; the dashboard's queries give what the callers counted.

    scrape.py BINARY [SECONDS]

The queries are taken from deploy/grafana/dyndata.json as they are. Their time window is set to run
from one scrape before the load to one after it, so that nothing is extrapolated and the numbers have
to be the same, not only alike. All other queries of the dashboard have to be answered, too.
"""

import collections
import contextlib
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import grpc

from processes import ROOT, dyndata_server, fetch, redis_server, running

from children import free_port, wait_until

BIN = ROOT / ".tools/bin"
CALLERS = 4
PAUSE_SECONDS = 0.005
TOLERANCE = 0.01

# What the callers send, by method and name; the server must answer with the code. Encoded by hand:
# field 2 of each message is the id, field 3 of Mark the int.
CALLS = {
    ("Mark", "OK"): b"\x12\x0242\x18\x64",
    ("Get", "OK"): b"\x12\x0242",
    ("BatchGet", "OK"): b"\x12\x0242\x12\x06nobody",
    ("Get", "InvalidArgument"): b"",
    ("Get", "FailedPrecondition"): b"\x12\x04list",
}


class Caller(threading.Thread):
    """Calls all there is to call, again and again, on a connection of its own, and counts."""

    def __init__(self, address):
        super().__init__()
        # Without this option, channels to one address share a connection.
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self.until = None
        self.counts = collections.Counter()

    def run(self):
        while time.monotonic() < self.until:
            self.call_all()
            time.sleep(PAUSE_SECONDS)

    def call_all(self):
        for (method, expected), request in CALLS.items():
            try:
                self.channel.unary_unary(f"/dyndata.v1.DynData/{method}")(request, timeout=5)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name.title().replace("_", "")
            assert code == expected, f"{method} ended with {code}, not {expected}"
            self.counts[method, code] += 1


class Prometheus:
    """The HTTP API of a server that scrapes one target every second."""

    def __init__(self, url):
        self.url = url

    def query(self, expression, at):
        parameters = urllib.parse.urlencode({"query": expression, "time": f"{at:.3f}"})
        answer = fetch(f"{self.url}/api/v1/query?{parameters}")
        assert answer, f"Prometheus does not accept {expression}"
        return json.loads(answer)["data"]["result"]

    def scrape_after(self, moment):
        """When the first good scrape that began after `moment` began."""
        return wait_until(lambda: self.first_scrape(moment), "no scrape")

    def first_scrape(self, moment):
        for series in self.query('up{job="dyndata"}[1m]', time.time()):
            for at, value in series["values"]:
                if at > moment and value == "1":
                    return at
        return None


def main():
    binary = sys.argv[1]
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 15
    with tempfile.TemporaryDirectory() as directory, redis_server(directory) as redis_port:
        with socket.create_connection(("127.0.0.1", redis_port)) as redis:
            # What Get finds and cannot read.
            redis.sendall(b"RPUSH dyn_data/list 1\r\n")
            assert redis.recv(100) == b":1\r\n"
        url = f"redis://127.0.0.1:{redis_port}"
        with dyndata_server(binary, REDIS_URL=url) as (address, admin):
            with prometheus(directory, admin) as server:
                measure(server, address, seconds)
            check_format(admin)


@contextlib.contextmanager
def prometheus(directory, admin):
    port = free_port()
    config = pathlib.Path(directory) / "prometheus.yaml"
    target = admin.removeprefix("http://")
    rules = ROOT / "deploy/prometheus/alerts.yaml"
    # JSON is YAML.
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(rules)],
                "scrape_configs": [{"job_name": "dyndata", "static_configs": [{"targets": [target]}]}],
            }
        )
    )
    url = f"http://127.0.0.1:{port}"
    arguments = [BIN / "prometheus", f"--config.file={config}"]
    arguments += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with running(arguments, lambda: fetch(f"{url}/-/ready")):
        yield Prometheus(url)


def measure(server, address, seconds):
    callers = [Caller(address) for _ in range(CALLERS)]
    # A counter of a code begins with its first call: what is counted later starts from there.
    for caller in callers:
        caller.call_all()
        caller.counts.clear()
    start = server.scrape_after(time.time() + 0.2)
    for caller in callers:
        caller.until = time.monotonic() + seconds
        caller.start()
    for caller in callers:
        caller.join()
    # A call is counted when its answer has gone out, which can be a moment after it has come in.
    end = server.scrape_after(time.time() + 0.2)
    counts = sum((caller.counts for caller in callers), collections.Counter())
    print(f"{counts.total()} calls in {seconds:.0f} s, scraped from {start:.3f} to {end:.3f}")

    queries = dashboard(start, end)
    for title, expressions in queries.items():
        for expression in expressions:
            server.query(expression, end)
    print(f"ok     Prometheus accepts all queries of {len(queries)} panels")

    window = end - start
    good = True
    for title, label, expected in expectations(counts):
        result = server.query(queries[title][0], end)
        seen = {series["metric"].get(label): float(series["value"][1]) for series in result}
        for value, count in sorted(expected.items()):
            # A gauge is compared as it is; a rate, times its window.
            rated = "rate(" in queries[title][0]
            number = seen.pop(value, 0.0) * (window if rated else 1)
            fits = abs(number - count) <= TOLERANCE * count
            good &= fits
            print(f"{'ok    ' if fits else 'FAILED'} {title}: {value or 'all'}: {number:.1f}, callers {count}")
        for value, rate in seen.items():
            if rate != 0:
                good = False
                print(f"FAILED {title}: {value}: {rate * window:.1f}, callers none")
    if not good:
        sys.exit(1)


def expectations(counts):
    """(panel, label, what the callers counted by the values of that label)"""

    def count(key, which=lambda method, code: True):
        totals = collections.Counter()
        for (method, code), number in counts.items():
            if which(method, code):
                totals[key(method, code)] += number
        return totals

    operations = {"Mark": "mark", "Get": "get", "BatchGet": "batch_get"}
    yield "Calls per second, by method", "grpc_method", count(lambda method, code: method)
    yield "Errors per second, by code", "grpc_code", count(
        lambda method, code: code, lambda method, code: code != "OK"
    )
    # What is not valid does not reach the store.
    yield "Store operations per second", "operation", count(
        lambda method, code: operations[method], lambda method, code: code != "InvalidArgument"
    )
    yield "Store errors per second, by reason", "reason", count(
        lambda method, code: "WRONG_TYPE", lambda method, code: code == "FailedPrecondition"
    )


def dashboard(start, end):
    """The queries of each panel, with Grafana's variables replaced as Grafana would."""
    # A millisecond more, for a Prometheus that leaves out a sample at the very start of a window.
    window = f"{round((end - start) * 1000) + 1}ms"
    panels = json.loads((ROOT / "deploy/grafana/dyndata.json").read_text())["panels"]
    return {
        panel["title"]: [
            target["expr"]
            .replace("$__rate_interval", window)
            .replace("$job", "dyndata")
            .replace("$instance", ".*")
            for target in panel["targets"]
        ]
        for panel in panels
        if "targets" in panel
    }


def check_format(admin):
    text = fetch(f"{admin}/metrics")
    done = subprocess.run(
        [BIN / "promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, f"promtool check metrics:\n{done.stdout}{done.stderr}"
    print("ok     promtool check metrics")


if __name__ == "__main__":
    main()
