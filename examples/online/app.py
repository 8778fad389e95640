"""A web page that shows who is online. One Watch serves all browsers.

    pip install -r requirements.txt
    python -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. dyndata/v1/dyndata.proto
    . ../../.tools/examples/env    # see ../serve.sh
    python app.py                  # then open http://127.0.0.1:5000 in two windows

Each browser window is an id of the indexed namespace "online", and its value is the name that the user
typed. The page marks it again and again, and unmarks it when the window closes. If the window vanishes
without that, the mark expires.
"""

import functools
import hashlib
import heapq
import json
import os
import random
import re
import socket
import threading
import time
import unicodedata
from pathlib import Path

import grpc
from dyndata.v1.dyndata_pb2 import MarkRequest, UnmarkRequest, WatchRequest, WatchResponse
from dyndata.v1.dyndata_pb2_grpc import DynDataStub
from flask import Flask, Response, request, send_file
from google.protobuf.duration_pb2 import Duration
from werkzeug.exceptions import BadRequest, HTTPException
from werkzeug.serving import WSGIRequestHandler

NAMESPACE = "online"
DEADLINE_SECONDS = 2
# A mark survives two lost heartbeats. Browsers run the timers of hidden pages about once a minute.
TTL_SECONDS = int(os.environ.get("ONLINE_TTL_SECONDS", "15"))
HIDDEN_TTL_SECONDS = 150
HEARTBEATS_PER_TTL = 3

# A Watch has a message every 10 s. After a longer silence its list may be out of date.
SILENCE_SECONDS = 25
# After an hour, a new Watch begins with a new snapshot.
WATCH_SECONDS = 3600
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.2, 5

# Each browser hears something this often, and gets at most one list in each pause.
PING_SECONDS = 3
PAUSE_SECONDS = 0.05
# A browser that reads nothing for so long is disconnected.
SOCKET_SECONDS = 20
SEND_BUFFER_BYTES = 64 * 1024
MAX_BROWSERS = 200
MAX_NAMES_SHOWN = 200

WINDOW = re.compile(r"[0-9a-f]{32}")
MAX_NAME_LENGTH = 40
# Control characters, halves of a character, and separators of lines and paragraphs.
REFUSED_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 512
browsers = threading.BoundedSemaphore(MAX_BROWSERS)


class People:
    """Who is online, as the Watch tells it. The threads of the browsers wait here for the next version.

    There are no queues. A browser that is slow skips versions, and then gets the whole list.
    """

    def __init__(self):
        self._condition = threading.Condition()
        self._thread = None
        # By id. The names are None until the first snapshot.
        self._names = None
        self._snapshot = {}
        # When the Watch told something last, or None while there is no Watch.
        self._heard = None
        self._version = 0
        self._encoded = (None, "")

    def wait(self, seen, seconds):
        """Waits for another version than the one seen. Returns the version, the list as JSON, and
        whether the list is up to date."""
        with self._condition:
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, daemon=True)
                self._thread.start()
            self._condition.wait_for(lambda: self._version != seen, seconds)
            if self._encoded[0] != self._version:
                self._encoded = (self._version, self._encode())
            live = self._heard is not None and time.monotonic() - self._heard < SILENCE_SECONDS
            return *self._encoded, live

    def _encode(self):
        """The list in the order of names, or an empty text if there is none yet. The page shows a part
        of a very long list."""
        if self._names is None:
            return ""
        ordered = heapq.nsmallest(
            MAX_NAMES_SHOWN, self._names.items(), key=lambda person: (person[1].casefold(), person[0])
        )
        people = [{"id": id, "name": name} for id, name in ordered]
        return json.dumps({"count": len(self._names), "people": people})

    def _follow(self):
        """Watches for as long as the process lives, and starts again when a Watch ends."""
        backoff = MIN_BACKOFF_SECONDS
        while True:
            try:
                watch = WatchRequest(namespace=NAMESPACE, all=True)
                for message in stub().Watch(watch, timeout=WATCH_SECONDS):
                    self._apply(message)
                    backoff = MIN_BACKOFF_SECONDS
            except grpc.RpcError as error:
                app.logger.warning("watch: %s: %s", error.code().name, error.details())
            with self._condition:
                self._heard, self._snapshot = None, {}
                self._new_version()
            time.sleep(random.uniform(backoff / 2, backoff))
            backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)

    def _apply(self, message):
        with self._condition:
            if message.kind == WatchResponse.KIND_CHANGES:
                update(self._names, message.entries)
                self._new_version()
            elif message.kind == WatchResponse.KIND_SNAPSHOT:
                update(self._snapshot, message.entries)
                return
            elif message.kind == WatchResponse.KIND_SNAPSHOT_END:
                # The snapshot replaces everything. Who is not in it has left.
                update(self._snapshot, message.entries)
                self._names, self._snapshot = self._snapshot, {}
                self._new_version()
            self._heard = time.monotonic()

    def _new_version(self):
        self._version += 1
        self._condition.notify_all()


def update(names, entries):
    for entry in entries:
        # An entry without a value has left. A value of another type is not from this application.
        if entry.WhichOneof("value") == "string_value":
            names[entry.id] = entry.string_value
        else:
            names.pop(entry.id, None)


people = People()


@app.get("/")
def page():
    return send_file(Path(__file__).with_name("online.html"), max_age=0)


@app.get("/events")
def events():
    """Server-sent events: `people` with the whole list, and `watch`, which says if it is up to date."""
    if not browsers.acquire(blocking=False):
        return {"error": "too many windows are open; try again later"}, 503
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = Response(event_stream(), mimetype="text/event-stream", headers=headers)
    response.call_on_close(browsers.release)
    return response


def event_stream():
    seen = 0
    while True:
        version, text, live = people.wait(seen, PING_SECONDS)
        if text and version != seen:
            yield f"event: people\ndata: {text}\n\n"
        seen = version
        yield f"event: watch\ndata: {'live' if live else 'lost'}\n\n"
        time.sleep(PAUSE_SECONDS)


@app.post("/here")
def here():
    """The heartbeat of a window. The answer says what its id is, and when the next heartbeat is due."""
    body = json_object()
    id, name = window_id(body), valid_name(body)
    # The next heartbeat tries again, so a failed one is not repeated.
    hidden = body.get("hidden") is True
    ttl = max(TTL_SECONDS, HIDDEN_TTL_SECONDS) if hidden else TTL_SECONDS
    mark = MarkRequest(namespace=NAMESPACE, id=id, string_value=name, ttl=Duration(seconds=ttl))
    stub().Mark(mark, timeout=DEADLINE_SECONDS)
    return {"id": id, "next_seconds": TTL_SECONDS / HEARTBEATS_PER_TTL}


@app.post("/left")
def left():
    """A window closes. If this call or a late heartbeat goes wrong, the mark expires by itself."""
    unmark = UnmarkRequest(namespace=NAMESPACE, id=window_id(json_object()))
    stub().Unmark(unmark, timeout=DEADLINE_SECONDS)
    return "", 204


def json_object():
    body = request.get_json()
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def window_id(body):
    """The id of a window is a hash, because all browsers see it. Only the window knows its own secret,
    so that no one else can mark or unmark it."""
    window = body.get("window")
    if not isinstance(window, str) or not WINDOW.fullmatch(window):
        raise BadRequest("window must be 32 hexadecimal digits")
    return hashlib.sha256(window.encode()).hexdigest()[:32]


def valid_name(body):
    name = body.get("name")
    name = name.strip() if isinstance(name, str) else ""
    if not any(character.isprintable() and not character.isspace() for character in name):
        raise BadRequest("Please enter a name.")
    if len(name) > MAX_NAME_LENGTH:
        raise BadRequest(f"The name is too long: at most {MAX_NAME_LENGTH} characters.")
    if any(unicodedata.category(character) in REFUSED_CATEGORIES for character in name):
        raise BadRequest("The name has a character that cannot be shown.")
    return name


@app.errorhandler(HTTPException)
def refused(error):
    return {"error": error.description}, error.code


@app.errorhandler(grpc.RpcError)
def failed(error):
    app.logger.error("dyndata: %s: %s", error.code().name, error.details())
    return {"error": f"dyndata does not answer ({error.code().name})"}, 503


@functools.cache
def stub():
    """The channel of this process. The first call makes it, since a channel does not survive a fork."""
    address = os.environ["DYNDATA_ADDR"].removeprefix("https://")
    authorities = Path(os.environ["DYNDATA_CLIENT_TLS_CA"]).read_bytes()
    token = Path(os.environ["DYNDATA_TOKEN_FILE"]).read_text().strip()
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(authorities), grpc.access_token_call_credentials(token)
    )
    options = [
        # A Watch may wait on a connection that has died without a word. Pings find that, also while no
        # window sends heartbeats.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC's own limit is two minutes.
        ("grpc.max_reconnect_backoff_ms", MAX_BACKOFF_SECONDS * 1000),
    ]
    return DynDataStub(grpc.secure_channel(address, credentials, options))


class Handler(WSGIRequestHandler):
    """Ends a connection whose browser does not read or write for too long."""

    timeout = SOCKET_SECONDS

    def setup(self):
        # Lists that wait for a slow browser are old. Without a limit, Linux keeps megabytes of them.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().setup()


if __name__ == "__main__":
    # Complains at once if the environment is not set.
    stub()
    app.run(port=int(os.environ.get("PORT", "5000")), threaded=True, request_handler=Handler)
