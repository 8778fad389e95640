"""Prometheus scrapes a server under load; the dashboard's queries give what the callers counted.

The queries are taken from deploy/grafana/dyndata.json as they are. Their time window runs from one
scrape before the load to one after it, so that nothing is extrapolated and the numbers have to be
the same, not only alike. Prometheus has to answer all other queries of the dashboard, too.
"""

import collections
import contextlib
import json
import socket
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from support.processes import ROOT, TOOLS, Dyndata, fetch, free_port, output, running, wait_until

SECONDS = 15
CALLERS = 4
PAUSE_SECONDS = 0.005
# A call is counted when its answer has gone out, which can be a moment after it has come in.
COUNTED_SECONDS = 1
TOLERANCE = 0.01
# They are marked before the callers begin, in an indexed namespace.
PRESENT = ("ann", "bob", "cleo")

# The requests of the callers, by method and by the code that the server must answer with. They are
# encoded by hand: field 2 of each message is the id, field 3 of Mark the int.
CALLS = {
    ("Mark", "OK"): b"\x12\x0242\x18\x64",
    ("Get", "OK"): b"\x12\x0242",
    ("BatchGet", "OK"): b"\x12\x0242\x12\x06nobody",
    ("Get", "InvalidArgument"): b"",
    ("Get", "FailedPrecondition"): b"\x12\x04list",
}


class Caller(threading.Thread):
    """Makes all the calls of CALLS again and again on its own connection, and counts them."""

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
        """The time of the first successful scrape after `moment`."""
        return wait_until(lambda: self.first_scrape(moment), "no scrape")

    def first_scrape(self, moment):
        for series in self.query('up{job="dyndata"}[1m]', time.time()):
            for at, value in series["values"]:
                if at > moment and value == "1":
                    return at
        return None


@contextlib.contextmanager
def prometheus(directory, admin):
    port = free_port()
    config = Path(directory) / "prometheus.yaml"
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
    arguments = [TOOLS / "prometheus", f"--config.file={config}"]
    arguments += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}"]
    with running(arguments, lambda: fetch(f"{url}/-/ready")):
        yield Prometheus(url)


@dataclass
class Measured:
    """What the callers and Prometheus counted, and the server, which is still there."""

    server: Dyndata
    prometheus: Prometheus
    counts: collections.Counter
    window: float
    end: float
    queries: dict


@pytest.fixture(scope="module")
def measured(release_binary, redis_port, tmp_path_factory):
    with socket.create_connection(("127.0.0.1", redis_port)) as redis:
        # A Get of this key ends with FAILED_PRECONDITION.
        redis.sendall(b"RPUSH dyn_data/list 1\r\n")
        assert redis.recv(100) == b":1\r\n"
    directory = tmp_path_factory.mktemp("prometheus")
    url = f"redis://127.0.0.1:{redis_port}"
    with (
        Dyndata([release_binary, "serve"], f"--redis-url={url}", "--indexed-namespaces=online") as server,
        prometheus(directory, server.admin) as scraper,
    ):
        yield measure(server, scraper)


def measure(server, scraper):
    callers = [Caller(server.address) for _ in range(CALLERS)]
    for name in PRESENT:
        # Fields 1 to 3: namespace, id, int.
        request = b"\x0a\x06online" + bytes([0x12, len(name)]) + name.encode() + b"\x18\x01"
        callers[0].channel.unary_unary("/dyndata.v1.DynData/Mark")(request, timeout=5)
    # A counter of a code begins with its first call, so there is one of each before the counting.
    for caller in callers:
        caller.call_all()
        caller.counts.clear()
    start = scraper.scrape_after(time.time() + COUNTED_SECONDS)
    for caller in callers:
        caller.until = time.monotonic() + SECONDS
        caller.start()
    for caller in callers:
        caller.join()
    end = scraper.scrape_after(time.time() + COUNTED_SECONDS)
    counts = sum((caller.counts for caller in callers), collections.Counter())
    return Measured(server, scraper, counts, end - start, end, dashboard(start, end))


def test_prometheus_accepts_all_queries(measured):
    assert measured.queries
    for expressions in measured.queries.values():
        for expression in expressions:
            measured.prometheus.query(expression, measured.end)


PANELS = (
    "Calls per second, by method",
    "Errors per second, by code",
    "Store operations per second",
    "Store errors per second, by reason",
    "Marked ids, by namespace",
)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_shows_what_the_callers_counted(measured, panel):
    label, expected = expectations(measured.counts)[panel]
    query = measured.queries[panel][0]
    result = measured.prometheus.query(query, measured.end)
    seen = {series["metric"].get(label): float(series["value"][1]) for series in result}
    # A gauge is compared as it is; a rate, times its window.
    window = measured.window if "rate(" in query else 1
    shown = {value: number * window for value, number in seen.items() if number != 0}
    assert shown == pytest.approx(dict(expected), rel=TOLERANCE)


def test_promtool_accepts_the_metrics(measured):
    output([TOOLS / "promtool", "check", "metrics"], measured.server.metrics().encode())


def expectations(counts):
    """For each panel, a label and what the callers counted by the values of that label."""

    def count(key, which=lambda method, code: True):
        totals = collections.Counter()
        for (method, code), number in counts.items():
            if which(method, code):
                totals[key(method, code)] += number
        return totals

    operations = {"Mark": "mark", "Get": "get", "BatchGet": "batch_get"}
    methods = count(lambda method, code: method)
    errors = count(lambda method, code: code, lambda method, code: code != "OK")
    # An invalid request does not reach the store.
    stored = count(
        lambda method, code: operations[method], lambda method, code: code != "InvalidArgument"
    )
    reasons = count(
        lambda method, code: "WRONG_TYPE", lambda method, code: code == "FailedPrecondition"
    )
    present = {"online": len(PRESENT)}
    labels = ("grpc_method", "grpc_code", "operation", "reason", "namespace")
    return dict(zip(PANELS, zip(labels, (methods, errors, stored, reasons, present))))


def dashboard(start, end):
    """The queries of each panel, with Grafana's variables replaced as Grafana would."""
    # One millisecond longer, since some releases of Prometheus exclude a sample at the very start.
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
