"""The well-behaved client: about 200 Gets and Marks a second over two long-lived connections.

It is its own process, at the normal priority. Calls begin at a fixed rate, even if the previous call
has not ended, so that a server that stands still delays many calls. For each line on standard input
it writes a line of JSON with the results of the calls since the previous line.
"""

import argparse
import gc
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc

from security import frames

CALLS_PER_SECOND = 200
CONNECTIONS = 2
DEADLINE_SECONDS = 1


class Window:
    """Counts of the calls that began between two lines of input."""

    def __init__(self):
        self.lock = threading.Lock()
        self.started = time.monotonic()
        self.running = 0
        self.good = 0
        self.milliseconds: list[float] = []
        self.failures: Counter[str] = Counter()

    def begin(self) -> None:
        with self.lock:
            self.running += 1

    def end(self, call: grpc.Future, began: float, reply_starts: bytes) -> None:
        milliseconds = (time.monotonic() - began) * 1000
        code = call.code()
        if code is grpc.StatusCode.OK:
            outcome = "" if call.result().startswith(reply_starts) else "OK with a wrong reply"
        else:
            outcome = f"{code.name}: {call.details()}"
        with self.lock:
            self.running -= 1
            self.milliseconds.append(round(milliseconds, 3))
            if outcome:
                self.failures[outcome] += 1
            else:
                self.good += 1

    def report(self, reconnects: int) -> dict:
        seconds = time.monotonic() - self.started
        while self.running:
            time.sleep(0.005)
        return {
            "seconds": seconds,
            "good": self.good,
            "failures": self.failures,
            "milliseconds": self.milliseconds,
            "reconnects": reconnects,
        }


class Client:
    """The connections, and the calls that use them in turn."""

    def __init__(self, address: str, ca: Path | None, token: str | None, number: int):
        self.window = Window()
        self.metadata = (("authorization", f"Bearer {token}"),) if token else None
        self.reconnects = 0
        self.calls = []
        for at in range(CONNECTIONS):
            channel = self.channel(address, ca)
            id = f"good-{number}-{at}"
            mark = frames.length_delimited(2, id.encode()) + b"\x18\x64"
            entry = frames.length_delimited(1, id.encode()) + b"\x10\x64"
            # Without a deserializer, grpcio returns a message as bytes.
            self.calls.append((channel.unary_unary(frames.MARK), mark, b"\x0a"))
            reply = frames.length_delimited(1, entry)
            self.calls.append((channel.unary_unary(frames.GET), frames.get_request(id), reply))

    def channel(self, address: str, ca: Path | None) -> grpc.Channel:
        # With its own pool, each channel has its own connection. The client reconnects soon after a loss.
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", 0),
        ]
        if ca:
            credentials = grpc.ssl_channel_credentials(ca.read_bytes())
            channel = grpc.secure_channel(address, credentials, options)
        else:
            channel = grpc.insecure_channel(address, options)
        grpc.channel_ready_future(channel).result(timeout=10)
        channel.subscribe(self.on_state)
        return channel

    def on_state(self, state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.CONNECTING:
            self.reconnects += 1

    def run(self) -> None:
        start, number = time.monotonic(), 0
        while True:
            number += 1
            time.sleep(max(0.0, start + number / CALLS_PER_SECOND - time.monotonic()))
            method, request, reply_starts = self.calls[number % len(self.calls)]
            window, began = self.window, time.monotonic()
            window.begin()
            call = method.future(request, timeout=DEADLINE_SECONDS, metadata=self.metadata)
            call.add_done_callback(
                lambda call, window=window, began=began, reply_starts=reply_starts: window.end(
                    call, began, reply_starts
                )
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--ca", type=Path, help="speak TLS, and trust this CA")
    parser.add_argument("--token-file", type=Path)
    parser.add_argument("--number", type=int, default=0, help="to tell the ids of clients apart")
    options = parser.parse_args()

    token = options.token_file.read_text().strip() if options.token_file else None
    client = Client(options.address, options.ca, token, options.number)
    # Exempts all present objects from garbage collection, whose pauses would show as latency.
    gc.collect()
    gc.freeze()
    threading.Thread(target=client.run, daemon=True).start()
    for _ in sys.stdin:
        window, client.window = client.window, Window()
        print(json.dumps(window.report(client.reconnects)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
