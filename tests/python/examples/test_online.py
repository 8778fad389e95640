"""The page of examples/online in a real browser, against a real dyndata on a real Redis."""

import contextlib
import hashlib
import json
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request

import pytest
import redis

from examples.browser import Window, browser
from examples.relay import Relay
from examples.server import ExampleServer
from support.processes import HTTP, ROOT, connects, free_port, running, wait_until

PICTURE = ROOT / "docs/online.png"
CALL_SECONDS = 20
TTL_SECONDS = 3
# On a quiet machine, a change shows within a second. The report prints the true time.
SHOWN_SECONDS = 10
# Most windows that the page serves.
MAX_BROWSERS = 200
# How often to try to show a flush of Redis.
FLUSHES = 5
# For the list of a slow browser: how many names it has, and how often it changes.
CROWD, CHANGES = 200, 60

# Writes down when the list changes, with the clock that Redis has too.
RECORD = """
window.history_ = [];
const record = () => history_.push([Date.now(), ...[...document.querySelectorAll("li bdi")].map(e => e.textContent)]);
new MutationObserver(record).observe(document.querySelector("ul"), {childList: true});
record();
"""
# Types a name and presses the button. Returns when.
JOIN = """
document.querySelector("input").value = arguments[0];
document.querySelector("button").click();
return Date.now();
"""
# The colours of each text, and of what is behind it.
COLORS = """
const background = (element) => {
  const color = getComputedStyle(element).backgroundColor;
  return color === "rgba(0, 0, 0, 0)" ? background(element.parentElement) : color;
};
return [...document.querySelectorAll("h1, h2, label, input, button, bdi, small, #connection, #problem")]
  .map((element) => [getComputedStyle(element).color, background(element)]);
"""
LOST = "Connection lost. This list may be out of date."
NAMES = "return [...document.querySelectorAll('li bdi')].map(e => e.textContent)"


@pytest.fixture(scope="module")
def server(binary, redis_port, tmp_path_factory):
    with ExampleServer(binary, tmp_path_factory.mktemp("credentials"), redis_port) as server:
        yield server


@pytest.fixture(scope="module")
def relay(server):
    """What is between the application and dyndata."""
    with Relay(server.address.rpartition(":")[2]) as relay:
        yield relay


@pytest.fixture(scope="module")
def app(server, relay):
    """The address of the application."""
    with online_app(server.client_environment_for(relay.port)) as url:
        yield url


@pytest.fixture
def store(redis_port):
    with redis.Redis(port=redis_port, decode_responses=True) as store:
        yield store


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


@pytest.fixture
def first(driver, app, store):
    """A window that "Ada" uses, alone."""
    first = Window(driver)
    first.open(app)
    wait_until(lambda: first.text("#connection") == "Connected", "the page is not connected")
    shows(first, [])
    first.run(RECORD)
    first.run(JOIN, "Ada")
    shows(first, ["Ada"])
    yield first
    first.open("about:blank")


@pytest.fixture
def second(driver, app, first):
    """A second window."""
    second = Window(driver, new=True)
    second.open(app)
    yield second
    driver.switch_to.window(first.handle)
    if second.handle in driver.window_handles:
        second.close()
        driver.switch_to.window(first.handle)


@contextlib.contextmanager
def online_app(environment, port=None):
    port = port or free_port()
    environment |= {"PORT": str(port), "ONLINE_TTL_SECONDS": str(TTL_SECONDS)}
    directory = ROOT / "examples/online"
    with running([sys.executable, "app.py"], lambda: connects(port), environment=environment, cwd=directory):
        yield f"http://127.0.0.1:{port}"


def names(window):
    return window.run(NAMES)


def shows(window, wanted):
    wait_until(lambda: names(window) == wanted, f"the window does not show {wanted}")


def times_shown(window, wanted, after):
    """Each time since `after` at which the window began to show exactly these names."""
    return [at for at, *names in window.run("return history_") if at >= after and names == wanted]


def first_shown(window, wanted, after):
    """When the window first showed exactly these names, in milliseconds since the time `after`."""
    failure = f"the window does not show {wanted}"
    return wait_until(lambda: times_shown(window, wanted, after), failure)[0] - after


def test_a_window_that_opens_and_closes_shows_in_the_other(server, first, second, figures):
    joined = second.run(JOIN, "Bob")
    arrived = first_shown(first, ["Ada", "Bob"], joined)
    shows(second, ["Ada", "Bob"])
    assert second.text("#count") == "2 windows online"
    notes = second.run("return [...document.querySelectorAll('li')].map(e => e.textContent)")
    assert notes == ["Ada", "Bobthis window"]

    unmarked = server.unmarks()
    closed = time.time() * 1000
    second.close()
    left = first_shown(first, ["Ada"], closed)
    assert first.text("#news") == "Bob has left."
    assert server.unmarks() == unmarked + 1, "the mark has expired, which takes longer"
    tell(figures, "a window that opens", arrived)
    tell(figures, "a window that closes", left)


def test_a_window_without_heartbeat_leaves_when_its_mark_expires(first, second, store, figures):
    """The network of the window is cut, so that nothing can say that it leaves."""
    second.run(JOIN, "Bob")
    shows(first, ["Ada", "Bob"])
    [key] = [key for key in store.scan_iter("dyn_data:*") if store.get(key) == "s:Bob"]
    second.cut_network()
    expired = last_expiry(store, key)
    tell(figures, "an expiry", first_shown(first, ["Ada"], expired))
    failure = "You may not be shown as online: no answer. Trying again."
    wait_until(lambda: second.text("#problem") == failure, "the window hides its failure")


def test_a_new_snapshot_replaces_the_list_after_a_lost_connection(server, relay, first, second):
    """Bob leaves while the application has no connection to dyndata."""
    second.run(JOIN, "Bob")
    shows(first, ["Ada", "Bob"])
    with relay.closed():
        wait_until(lambda: first.text("#connection") == LOST, "the window hides that its list is old")
        assert names(first) == ["Ada", "Bob"]
        second.close()
        wait_until(lambda: first.text("#problem"), "the window hides that nobody hears its heartbeat")
    wait_until(lambda: first.text("#connection") == "Connected", "the page does not connect again")
    shows(first, ["Ada"])
    wait_until(lambda: not first.text("#problem"), "the heartbeat does not work again")


def test_a_window_connects_again_when_the_application_comes_back(server, relay, driver):
    window = Window(driver)
    environment = server.client_environment_for(relay.port)
    port = free_port()
    with online_app(environment, port) as url:
        window.open(url)
        wait_until(lambda: window.text("#connection") == "Connected", "the page is not connected")
        window.run(JOIN, "Ada")
        shows(window, ["Ada"])
    wait_until(lambda: window.text("#connection") == LOST, "the window hides that its list is old")
    wait_until(lambda: window.text("#problem"), "the window hides that nobody hears its heartbeat")
    with online_app(environment, port):
        wait_until(lambda: window.text("#connection") == "Connected", "the page does not connect again")
        shows(window, ["Ada"])
        wait_until(lambda: not window.text("#problem"), "the heartbeat does not work again")
        window.open("about:blank")


def test_a_dyndata_that_does_not_answer_is_noticed(server, first):
    """The connection stays open, so that only its silence tells."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: first.text("#connection") == LOST, "the window hides that its list is old")
    finally:
        server.process.send_signal(signal.SIGCONT)
    wait_until(lambda: first.text("#connection") == "Connected", "the page does not connect again")
    shows(first, ["Ada"])


def test_values_that_redis_has_lost_come_back_with_the_next_heartbeat(first, second, store):
    second.run(JOIN, "Bob")
    shows(first, ["Ada", "Bob"])
    flushed = time.time() * 1000
    # The application gathers changes for 50 ms, so that a heartbeat right after a flush hides it.
    # Heartbeats come once a second; the next flush is at another time between two of them.
    for _ in range(FLUSHES):
        store.flushall()
        time.sleep(1.3)
        if times_shown(first, [], flushed):
            break
    first_shown(first, [], flushed)
    shows(first, ["Ada", "Bob"])


def test_a_refused_name_is_explained_and_the_former_one_stays(first, store):
    first.run(JOIN, " ")
    wait_until(lambda: first.text("#problem") == "Please enter a name.", "no message")
    first.run(JOIN, "x" * 41)
    wait_until(lambda: first.text("#problem") == "The name is too long: at most 40 characters.", "no message")
    # The heartbeat goes on with the former name, past the time to live.
    time.sleep(TTL_SECONDS + 1)
    assert names(first) == ["Ada"]
    assert first.text("#problem"), "the message is gone"
    first.run(JOIN, "Åsa <b>東京</b>")
    shows(first, ["Åsa <b>東京</b>"])
    assert first.text("#problem") == ""


def test_the_page_in_light_and_dark(first, app, store, pytestconfig, tmp_path):
    people = ["Åsa", "Grace", "Edsger", "محمد"]
    secrets = {name: f"{number:032x}" for number, name in enumerate(people)}
    first.size(720, 540)
    for name, secret in secrets.items():
        status, answer = post(f"{app}/here", {"window": secret, "name": name, "hidden": True})
        # Others see only the hash.
        assert (status, answer["id"]) == (200, hashlib.sha256(secret.encode()).hexdigest()[:32])
    shows(first, ["Ada", "Edsger", "Grace", "Åsa", "محمد"])
    backgrounds = set()
    for scheme in ("dark", "light"):
        first.command(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        colors = first.run(COLORS)
        backgrounds.add(colors[0][1])
        for text, background in colors:
            assert contrast(text, background) >= 4.5, f"{text} on {background} in {scheme}"
        first.save(tmp_path / f"{scheme}.png")
    assert len(backgrounds) == 2
    if pytestconfig.getoption("--picture"):
        PICTURE.write_bytes((tmp_path / "light.png").read_bytes())
    for secret in secrets.values():
        assert post(f"{app}/left", {"window": secret}) == (204, None)
    shows(first, ["Ada"])


GOOD = {"window": "0" * 32, "name": "Eve"}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("here", GOOD | {"name": ""}, 400, "Please enter a name."),
        ("here", GOOD | {"name": 7}, 400, "Please enter a name."),
        ("here", GOOD | {"name": " \u200b\t"}, 400, "Please enter a name."),
        ("here", GOOD | {"name": "a\0b"}, 400, "The name has a character that cannot be shown."),
        ("here", GOOD | {"name": "a\ud800"}, 400, "The name has a character that cannot be shown."),
        ("here", GOOD | {"name": "x" * 41}, 400, "The name is too long: at most 40 characters."),
        ("here", GOOD | {"window": "0"}, 400, "window must be 32 hexadecimal digits"),
        ("here", {"name": "Eve"}, 400, "window must be 32 hexadecimal digits"),
        ("here", ["Eve"], 400, "the body must be a JSON object"),
        ("here", GOOD | {"name": "x" * 1000}, 413, "The data value transmitted exceeds the capacity limit."),
        ("left", {}, 400, "window must be 32 hexadecimal digits"),
    ],
)
def test_bad_input_is_explained(app, path, body, status, message):
    assert post(f"{app}/{path}", body) == (status, {"error": message})


def test_another_site_cannot_post(app):
    """A form of another site can send text, but no JSON."""
    status, answer = post(f"{app}/here", GOOD, content_type="text/plain")
    assert (status, list(answer)) == (415, ["error"])


def test_a_slow_browser_skips_to_the_last_list(app):
    """The browser reads nothing while lists of 25 kB come, far more than its connection holds."""
    crowd = [{"window": f"{number:032x}", "name": f"{number:040}", "hidden": True} for number in range(CROWD)]
    for window in crowd:
        assert post(f"{app}/here", window)[0] == 200
    with EventReader(app) as slow:
        for number in range(CHANGES):
            changed = crowd[0] | {"name": f"change {number}"}
            assert post(f"{app}/here", changed)[0] == 200
            # Time for a list of its own.
            time.sleep(0.06)
        wait_until(lambda: slow.read() and changed["name"] in slow.names(), "the last list does not come")
        assert len(slow.lists) < CHANGES / 2, "it got what it could have skipped"
        assert len(slow.names()) == CROWD
    for window in crowd:
        post(f"{app}/left", {"window": window["window"]})


def test_too_many_browsers_are_refused_until_one_leaves(server, app):
    with contextlib.ExitStack() as stack:
        readers = []
        while get(f"{app}/events") == 200:
            readers.append(stack.enter_context(EventReader(app)))
            readers[-1].read()
            assert len(readers) <= MAX_BROWSERS
        assert server.watches_open() == 1, "there is one Watch for all browsers"
        readers.pop().close()
        wait_until(lambda: get(f"{app}/events") == 200, "a browser that has left takes a place")


class EventReader:
    """A browser's stream of events, which is read only by `read`."""

    def __init__(self, url):
        host, _, port = url.removeprefix("http://").partition(":")
        self.socket = socket.socket()
        # Little is on its way to a browser that does not read.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        self.socket.connect((host, int(port)))
        self.socket.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        self.socket.settimeout(CALL_SECONDS)
        self.received = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def read(self):
        """Reads what has come, at least something."""
        # From now on the browser is quick.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        self.received += self.socket.recv(65_536)
        return True

    @property
    def lists(self):
        found = re.findall(rb"event: people\ndata: (.*)\n\n", self.received)
        return [[person["name"] for person in json.loads(text)["people"]] for text in found]

    def names(self):
        """The names of the last list."""
        return self.lists[-1] if self.lists else []


def tell(figures, what, milliseconds):
    """Judges how long a change took to show, and prints it in the report."""
    figures.append(f"examples/online: {what} shows in the other window after {milliseconds:.0f} ms")
    assert milliseconds < SHOWN_SECONDS * 1000


def last_expiry(store, key):
    """Waits until a key expires. Returns when that was, in milliseconds."""
    expiries = []

    def gone():
        expiry = store.pexpiretime(key)
        if expiry > 0:
            expiries.append(expiry)
        return expiry < 0

    wait_until(gone, f"{key} does not expire")
    return expiries[-1]


def post(url, body, content_type="application/json"):
    """The status and the answer, which is JSON or empty."""
    headers = {"Content-Type": content_type}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    try:
        with HTTP.open(request, timeout=CALL_SECONDS) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def get(url):
    """The status of an answer, of which nothing is read."""
    try:
        with HTTP.open(url, timeout=CALL_SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def contrast(text, background):
    """The contrast of two colours, as the Web Content Accessibility Guidelines define it."""
    darker, lighter = sorted(map(luminance, (text, background)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color):
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (int(number) / 255 for number in re.findall(r"\d+", color)[:3])
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))
