"""Calls at a steady rate through a proxy, with a count of how they ended."""

import collections
import threading
import time

import grpc

CHANNELS = 8
CALLS_A_SECOND = 300
CALL_SECONDS = 5
MARK = "/dyndata.v1.DynData/Mark"
GET = "/dyndata.v1.DynData/Get"
# The requests as bytes: field 2 is the id, 3 an int, 4 a string.
GET_REQUEST = b"\x12\x0242"
MARK_REQUEST = GET_REQUEST + b"\x18\x01"


def mark_request(text):
    """A Mark of a string."""
    length, rest = b"", len(text)
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return GET_REQUEST + b"\x22" + length + bytes([rest]) + text


def channel(port, service_config=None):
    """A channel with a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if service_config:
        options.append(("grpc.service_config", service_config))
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


class Load:
    """Alternates Marks and Gets in a thread of its own, from `with` to the end of the block."""

    def __init__(self, port, service_config=None):
        self.channels = [channel(port, service_config) for _ in range(CHANNELS)]
        self.started = 0
        self.ended = collections.Counter()
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        for each in self.channels:
            grpc.channel_ready_future(each).result(CALL_SECONDS)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        deadline = time.monotonic() + 2 * CALL_SECONDS
        while self.ended.total() < self.started and time.monotonic() < deadline:
            time.sleep(0.01)
        for each in self.channels:
            each.close()

    def run(self):
        calls = [
            (each.unary_unary(method), request)
            for each in self.channels
            for method, request in ((MARK, MARK_REQUEST), (GET, GET_REQUEST))
        ]
        due = time.monotonic()
        while not self.stop.is_set():
            call, request = calls[self.started % len(calls)]
            self.started += 1
            call.future(request, timeout=CALL_SECONDS).add_done_callback(self.count)
            due += 1 / CALLS_A_SECOND
            time.sleep(max(0.0, due - time.monotonic()))

    def count(self, call):
        how = "OK" if call.code() is grpc.StatusCode.OK else f"{call.code().name}: {call.details()}"
        with self.lock:
            self.ended[how] += 1
