"""The status page of the admin listener in a real browser, over a real Redis.

`make test SUITE=examples ARGS='-k color_schemes --picture'` writes docs/status-light.png and
docs/status-dark.png. It takes six minutes, because the charts show five. For true latencies, let it
test a release binary: `--dyndata=target/release/dyndata`.
"""

import contextlib
import math
import random
import threading
import time

import grpc
import pytest
import redis

from examples.browser import Window, browser
from support.processes import ROOT, Dyndata, wait_until

# How many ids each namespace of the tests has.
MARKED = {"devices": 2, "online": 3}
PICTURE_SECONDS = 340
# The number of a chart and its line.
CHART = """
const charts = [...document.querySelectorAll("#presence > div")];
const chart = charts.find((chart) => chart.querySelector(".name").textContent === arguments[0]);
return chart && [chart.querySelector(".number").firstChild.textContent, chart.querySelector("path").getAttribute("d")];
"""


@pytest.fixture(scope="module")
def server(binary, redis_port):
    url = f"--redis-url=redis://127.0.0.1:{redis_port}"
    with Dyndata([binary, "serve"], url, "--indexed-namespaces=devices,online") as server:
        yield server


@pytest.fixture(scope="module")
def window(server):
    with browser() as driver:
        window = Window(driver)
        window.open(server.admin)
        yield window


@pytest.fixture(scope="module")
def marked(server):
    """Some ids are marked, and somebody watches them."""
    caller = Caller(server.address)
    for namespace, count in MARKED.items():
        for number in range(count):
            caller.call("Mark", mark(namespace, f"id {number}"))
    with caller.watch("online"):
        yield


def test_each_indexed_namespace_and_the_watches_have_a_chart(window, marked):
    for title, number in [("open watches", 1), *((f"ids in {name}", count) for name, count in MARKED.items())]:
        wait_until(lambda: shown(window, title) == str(number), f"{title} are not {number}")
    # A line needs two points.
    wait_until(lambda: "L" in window.run(CHART, "ids in online")[1], "no line")


def test_a_namespace_that_cannot_be_counted_has_a_gap(window, marked, redis_port):
    wait_until(lambda: shown(window, "ids in online") == "3", "no number")
    with redis.Redis(port=redis_port) as store:
        store.client_pause(5000)
    wait_until(lambda: shown(window, "ids in online") == "–", "the old number stays")
    assert shown(window, "open watches") == "1"
    wait_until(lambda: shown(window, "ids in online") == "3", "the number does not come back")
    # The second part of the line begins with a move.
    assert window.run(CHART, "ids in online")[1].count("M") >= 2


def test_the_page_has_two_color_schemes(window, server, pytestconfig, tmp_path):
    is_picture = pytestconfig.getoption("--picture")
    window.command(
        "Emulation.setDeviceMetricsOverride", width=1000, height=956, deviceScaleFactor=1, mobile=False
    )
    window.command("Emulation.setScrollbarsHidden", hidden=True)
    with traffic(server.address) if is_picture else contextlib.nullcontext():
        time.sleep(PICTURE_SECONDS if is_picture else 0)
        backgrounds = set()
        for scheme in ("light", "dark"):
            window.command(
                "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
            )
            backgrounds.add(window.run("return getComputedStyle(document.body).backgroundColor"))
            folder = ROOT / "docs" if is_picture else tmp_path
            window.save(folder / f"status-{scheme}.png")
    assert len(backgrounds) == 2


def shown(window, title):
    """The number of a chart, if there is such a chart."""
    chart = window.run(CHART, title)
    return chart and chart[0]


def field(number, data):
    """A field of a message: text, or bytes of a message."""
    data = data.encode() if isinstance(data, str) else data
    return bytes([number << 3 | 2, len(data)]) + data


def mark(namespace, name, seconds=120):
    return field(1, namespace) + field(2, name) + b"\x18\x01" + field(6, bytes([8, seconds]))


class Caller:
    """Makes calls on its own connection. The requests are encoded by hand."""

    def __init__(self, address):
        # Without this option, channels to one address share a connection.
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])

    def call(self, method, request):
        self.channel.unary_unary(f"/dyndata.v1.DynData/{method}")(request, timeout=5)

    @contextlib.contextmanager
    def watch(self, namespace):
        """A Watch of all ids, once its first message is there."""
        stream = self.channel.unary_stream("/dyndata.v1.DynData/Watch")(field(1, namespace) + b"\x18\x01")
        next(stream)
        yield
        stream.cancel()


@contextlib.contextmanager
def traffic(address):
    """Callers whose number rises and falls."""
    start, end = time.monotonic(), threading.Event()

    def users(namespace, size):
        caller = Caller(address)
        while not end.is_set():
            count = int(size(time.monotonic() - start))
            for number in range(count):
                caller.call("Mark", mark(namespace, f"user {number}", 8))
                end.wait(2 / count)

    def readers():
        caller = Caller(address)
        while not end.is_set():
            caller.call("Get", field(1, "online") + field(2, f"user {random.randrange(400)}"))
            if random.random() < 0.2:
                caller.call("BatchGet", field(1, "online") + b"".join(field(2, f"user {n}") for n in range(10)))
            if random.random() < 0.05:
                caller.call("Count", field(1, "online"))
            if random.random() < 0.05:
                caller.call("Touch", field(1, "devices") + field(2, f"user {random.randrange(50)}"))
            if random.random() < 0.02:
                caller.call("Unmark", field(1, "devices") + field(2, f"user {random.randrange(50)}"))
            end.wait(0.004 * (1.6 + math.sin((time.monotonic() - start) / 9)))

    def watcher():
        while not end.is_set():
            with Caller(address).watch("online"):
                end.wait(random.uniform(20, 90))
            end.wait(random.uniform(2, 20))

    online = threading.Thread(target=users, args=("online", lambda at: 220 + 150 * math.sin(at / 45)))
    devices = threading.Thread(target=users, args=("devices", lambda at: 80 + at / 4 + 40 * math.sin(at / 20)))
    others = [threading.Thread(target=readers)] + [threading.Thread(target=watcher) for _ in range(8)]
    for thread in (threads := [online, devices, *others]):
        thread.start()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()
