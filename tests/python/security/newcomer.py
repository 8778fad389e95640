"""The well-behaved newcomers: twenty new connections a second, each with one Get, and ten probes of
the admin listener a second.

It is its own process, at the normal priority, with its own address, so that it shares no limit for
each peer with an attacker. It begins at a line on standard input. At the next line it stops and
writes the results as a line of JSON.
"""

import argparse
import asyncio
import gc
import json
import ssl
import sys
import time
from collections import Counter
from pathlib import Path

from hpack import Decoder

from security import frames
from security.attacker import host_and_port

SOURCE = "127.0.0.77"
CONNECTIONS_PER_SECOND = 20
CONNECTION_DEADLINE_SECONDS = 5
PROBES_PER_SECOND = 10
# The default timeout of a probe in Kubernetes.
PROBE_DEADLINE_SECONDS = 1
PROBE_PATHS = ("/livez", "/readyz", "/metrics")


class Failed(Exception):
    """The answer is not the right one."""


class Measurement:
    """Attempts that begin at a fixed rate, whatever happens to earlier ones."""

    def __init__(self, attempt, per_second: float, deadline: float):
        self.milliseconds: list[float] = []
        self.failures: Counter[str] = Counter()
        self._attempt = attempt
        self._deadline = deadline
        self._running: set[asyncio.Task] = set()
        self._clock = asyncio.create_task(self._begin_on_time(per_second))

    async def report(self) -> dict:
        self._clock.cancel()
        await asyncio.gather(*self._running)
        return {"milliseconds": self.milliseconds, "failures": self.failures}

    async def _begin_on_time(self, per_second: float) -> None:
        start, number = time.monotonic(), 0
        while True:
            number += 1
            await asyncio.sleep(max(0.0, start + number / per_second - time.monotonic()))
            task = asyncio.create_task(self._measure(number))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _measure(self, number: int) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline):
                await self._attempt(number)
        except TimeoutError:
            self.failures[f"no answer within {self._deadline} s"] += 1
        except (OSError, EOFError, Failed) as error:
            self.failures[f"{error!r}"] += 1
        self.milliseconds.append(round((time.monotonic() - began) * 1000, 3))


class Newcomers:
    """The addresses of the server, and the bytes of a call."""

    def __init__(self, options: argparse.Namespace):
        self.address = host_and_port(options.address)
        self.admin = host_and_port(options.admin)
        self.tls = None
        if options.ca:
            self.tls = ssl.create_default_context(cafile=str(options.ca))
            self.tls.set_alpn_protocols(["h2"])
        extra = []
        if options.token_file:
            extra = [("authorization", f"Bearer {options.token_file.read_text().strip()}")]
        self.hello = (
            frames.PREFACE
            + frames.settings()
            + frames.headers(1, frames.request(frames.GET, *extra))
            + frames.data(1, frames.message(frames.get_request("newcomer")), end=True)
        )

    async def connect(self, _number: int) -> None:
        """Opens a new connection and makes one Get on it."""
        name = "localhost" if self.tls else None
        reader, writer = await asyncio.open_connection(
            *self.address, ssl=self.tls, server_hostname=name, local_addr=(SOURCE, 0)
        )
        try:
            writer.write(self.hello)
            status = await grpc_status(reader)
            if status != "0":
                raise Failed(f"status {status}")
        finally:
            writer.transport.abort()

    async def probe(self, number: int) -> None:
        """Makes a probe or a scrape, as an orchestrator or Prometheus does."""
        path = PROBE_PATHS[number % len(PROBE_PATHS)]
        reader, writer = await asyncio.open_connection(*self.admin, local_addr=(SOURCE, 0))
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readline()
            if b" 200 " not in head:
                raise Failed(f"{path}: {head.decode(errors='replace').strip() or 'closed'}")
            await reader.read()
        finally:
            writer.transport.abort()


async def grpc_status(reader: asyncio.StreamReader) -> str:
    decoder = Decoder()
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == frames.HEADERS:
            fields = dict(decoder.decode(payload))
            if "grpc-status" in fields:
                return fields["grpc-status"]
        elif head[3] in (frames.RST_STREAM, frames.GOAWAY):
            raise Failed("reset" if head[3] == frames.RST_STREAM else "GOAWAY")


async def run(options: argparse.Namespace) -> None:
    newcomers = Newcomers(options)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while await lines.readline():
        connections = Measurement(
            newcomers.connect, CONNECTIONS_PER_SECOND, CONNECTION_DEADLINE_SECONDS
        )
        probes = Measurement(newcomers.probe, PROBES_PER_SECOND, PROBE_DEADLINE_SECONDS)
        await lines.readline()
        report = {"connections": await connections.report(), "probes": await probes.report()}
        print(json.dumps(report), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--ca", type=Path, help="speak TLS, and trust this CA")
    parser.add_argument("--token-file", type=Path)
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
