"""Attacks with Watch, whose streams have no end of their own, and with Count and List."""

import hashlib
import time

from security import frames
from security.attacker import Attacker, call, status
from security.bodies import keep_open
from security.connection import Closed, Connection
from security.floods import stream_ids
from security.health import SEND_TIMEOUT_SECONDS
from security.holders import BATCH
from security.writes import INVALID_ARGUMENT, OK, OVERLOADED, UNAUTHENTICATED

# The server's --max-watches, on connections of this many streams.
WATCHES = 1_000
STREAMS = 250
# The server's --max-watch-ids.
WATCH_IDS = 10_000
# The embedded store and the table keep these ids during the attack, which also counts as growth.
PRESENT_IDS = 30_000
LARGEST_REQUEST_BYTES = 4 << 20
ID_BYTES = 256
# The namespace that the server of these attacks has an index of.
INDEXED = "online"
SHARDS = 64
# A message may wait this long for room in the budget, before it waits for its client.
ROOM_SECONDS = 10
OVER_WITHIN_SECONDS = ROOM_SECONDS + SEND_TIMEOUT_SECONDS + 1.5
FLOOD_STREAMS = 100
LISTS = 10
VALUE_BYTES = 100


def wide_open(connection: Connection) -> Connection:
    """Greets with the largest windows, so that the server can send everything."""
    connection.greet(initial_window_size=frames.LARGEST_WINDOW).settle()
    connection.send(frames.window_update(0, frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW))
    return connection


def ids_of(number: int, count: int) -> list[str]:
    """Ids that no other number has."""
    return [f"{number}/{at}" for at in range(count)]


def mark_all(attacker: Attacker, ids: list[str], *, namespace: str = "") -> None:
    """Marks ids for a minute."""
    with attacker.connection() as connection:
        wide_open(connection)
        batches = [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]
        for stream, batch in zip(stream_ids(len(batches)), batches, strict=True):
            mark_batch(attacker, connection, stream, batch, bytes(1), namespace)


def mark_batch(attacker, connection, stream, ids, value, namespace="") -> None:
    request = frames.namespace(namespace) + frames.batch_mark_request(ids, value)
    call(connection, stream, frames.BATCH_MARK, frames.message(request))
    answer = status(connection, stream)
    attacker.expect(answer == OK, f"a batch cannot be marked: {answer}")


def too_many_watches(attacker: Attacker) -> None:
    """10,000 Watches on 40 connections. Those that are refused are opened again and again."""
    body = frames.message(frames.watch_request(["42", "43"]))
    keep_open(attacker, 40, frames.request(frames.WATCH), body, calls=STREAMS, end=True)
    ends = set(attacker.notes)
    attacker.expect(ends == {f"ended with {OVERLOADED}"}, f"watches {', '.join(sorted(ends))}")


def anonymous_watches(attacker: Attacker) -> None:
    """Watches by callers without credentials: complete ones, and of 4 MiB without their end."""
    block = frames.request(frames.WATCH)
    body = frames.message(bytes(LARGEST_REQUEST_BYTES - 1), length=LARGEST_REQUEST_BYTES)
    started = attacker.ends
    attacker.ends = started - attacker.seconds / 2
    keep_open(attacker, 40, block, frames.message(frames.watch_request(["42"])), end=True)
    attacker.ends = started
    keep_open(attacker, 10, block, memoryview(body), calls=8)
    # The connections are full of streams, so one that begins too early is refused.
    ends, refused = set(attacker.notes), f"ended with {UNAUTHENTICATED}"
    expected = refused in ends and ends <= {refused, "ended with REFUSED_STREAM"}
    attacker.expect(expected, f"watches {', '.join(sorted(ends))}")


def unread_watches(attacker: Attacker) -> None:
    """1,000 Watches of 100 ids by clients that take nothing, or the snapshot and nothing more, while
    all of these ids change all the time. Each must be over within --send-timeout."""
    ids = ids_of(attacker.random.randrange(10**6), 100)
    mark_all(attacker, ids)
    value = bytes(VALUE_BYTES)
    with attacker.connection() as writer:
        wide_open(writer)
        streams = iter(stream_ids(1_000_000))
        mark_batch(attacker, writer, next(streams), ids, value)
        # Prefix, kind and entries, each with its key and length, id and value.
        snapshot = 5 + 2 + sum(2 + 2 + len(id) + 2 + VALUE_BYTES for id in ids)
        while attacker.running():
            held = [
                watchers(attacker, frames.watch_request(ids), window)
                for window in (0, snapshot, 0, snapshot)
            ]
            until = time.monotonic() + OVER_WITHIN_SECONDS
            left = WATCHES
            while left and time.monotonic() < until:
                value = attacker.random.randbytes(VALUE_BYTES)
                mark_batch(attacker, writer, next(streams), ids, value)
                for connection in held:
                    connection.read_for(0.002)
                left = sum(STREAMS - len(connection.over) for connection in held)
            attacker.expect(not left, f"watches are left after {OVER_WITHIN_SECONDS} s")
            attacker.notes[f"{left} of {WATCHES} watches left"] += 1
            attacker.expect(held[1].data_bytes > 0, "no snapshot came")
            leave(attacker, held)


def watchers(attacker: Attacker, request: bytes, window: int) -> Connection:
    """A connection full of Watches, each with this window."""
    connection = attacker.open().greet(initial_window_size=window).settle()
    if window:
        connection.send(frames.window_update(0, frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW))
    block, body = frames.request(frames.WATCH), frames.message(request)
    for stream in stream_ids(STREAMS):
        connection.send(frames.headers(stream, block))
        connection.send_body(stream, body)
    return connection


def leave(attacker: Attacker, held: list[Connection]) -> None:
    for connection in held:
        for code, count in connection.resets.items():
            attacker.notes[f"reset with {code}"] += count
        for answer in connection.answers.values():
            if "grpc-status" in answer:
                attacker.notes[f"ended with {answer['grpc-status']}"] += 1
        attacker.let_go(connection)


def unread_watches_of_all(attacker: Attacker) -> None:
    """1,000 Watches of all 30,000 ids of a namespace, by clients that take nothing. New ones replace
    those that the server has ended."""
    mark_all(attacker, ids_of(0, PRESENT_IDS), namespace=INDEXED)
    # Marking takes long, and is no attack.
    attacker.ends = time.monotonic() + attacker.seconds
    request = frames.namespace(INDEXED) + frames.WATCH_ALL
    held = [watchers(attacker, request, 0) for _ in range(WATCHES // STREAMS)]
    while attacker.running():
        for at, connection in enumerate(held):
            connection.read_for(0.05)
            if len(connection.over) == STREAMS:
                leave(attacker, [connection])
                held[at] = watchers(attacker, request, 0)
    leave(attacker, held)


def reopened_watches_of_all(attacker: Attacker) -> None:
    """Watches of all ids of the same namespace, opened and reset at once or soon after."""
    mark_all(attacker, ids_of(0, PRESENT_IDS), namespace=INDEXED)
    attacker.ends = time.monotonic() + attacker.seconds
    request = frames.message(frames.namespace(INDEXED) + frames.WATCH_ALL)
    reopen(attacker, lambda: request)


def reopened_watches(attacker: Attacker) -> None:
    """Watches of 200 ids that nobody else has, opened and reset soon after, so that the table of watched
    ids always grows and shrinks."""
    numbers = iter(range(attacker.random.randrange(10**6), 10**9))
    reopen(attacker, lambda: frames.message(frames.watch_request(ids_of(next(numbers), 200))))


def reopen(attacker: Attacker, body) -> None:
    block = frames.request(frames.WATCH)

    def attack(connection: Connection) -> None:
        wide_open(connection)
        for first in range(1, 2**31 - 2 * FLOOD_STREAMS, 2 * FLOOD_STREAMS):
            streams = stream_ids(FLOOD_STREAMS, first)
            for stream in streams:
                connection.send(frames.headers(stream, block))
                connection.send_body(stream, body())
            connection.read_for(0.002)
            connection.send(b"".join(map(frames.rst_stream, streams)), FLOOD_STREAMS)
            connection.answers.clear()
            if not attacker.running():
                break

    attacker.again(attack)


def huge_lists(attacker: Attacker) -> None:
    """Watches of 10,000 ids each until the process watches as many ids as it may, and then requests
    that go beyond each limit, up to 4 MiB."""
    largest = [f"{at:05}".ljust(ID_BYTES, "x") for at in range(WATCH_IDS)]
    most = LARGEST_REQUEST_BYTES - 1_000
    refused = {
        "other ids": (frames.watch_request(ids_of(-1, 1_000)), OVERLOADED),
        "the longest ids": (frames.watch_request(largest), OVERLOADED),
        "an id too many": (frames.watch_request(ids_of(0, WATCH_IDS + 1)), INVALID_ARGUMENT),
        "empty ids": (frames.watch_request([""]) * (most // 2), INVALID_ARGUMENT),
        "short ids": (frames.watch_request(["a"]) * (most // 3), INVALID_ARGUMENT),
        "a bad last id": (frames.watch_request([*largest[1:], "\0"]), INVALID_ARGUMENT),
        "no ids": (b"", INVALID_ARGUMENT),
        "no UTF-8": (frames.length_delimited(2, b"\xff"), INVALID_ARGUMENT),
        "a bad namespace": (frames.namespace("A") + frames.watch_request(["a"]), INVALID_ARGUMENT),
    }
    full = [frames.message(frames.watch_request(ids_of(at, WATCH_IDS))) for at in range(10)]
    # Making the requests takes long, and is no attack.
    attacker.ends = time.monotonic() + attacker.seconds

    def attack(connection: Connection) -> None:
        wide_open(connection)
        streams = iter(stream_ids(1_000_000))
        for body in full:
            call(connection, next(streams), frames.WATCH, body)
        while attacker.running():
            for name, (request, wanted) in refused.items():
                stream = next(streams)
                call(connection, stream, frames.WATCH, frames.message(request))
                answer = status(connection, stream)
                attacker.notes[f"{name}: status {answer}"] += 1
                attacker.expect(answer == wanted, f"{name}: {answer}, not {wanted}")

    attacker.again(attack)
    attacker.expect(len(attacker.notes) >= len(refused), "not every request was sent")


def lists_and_counts(attacker: Attacker) -> None:
    """Counts and Lists, ten at a time. Some tokens of the Lists are broken, and the others are made up
    and valid."""
    mark_all(attacker, ids_of(0, 20_000), namespace=INDEXED)
    attacker.ends = time.monotonic() + attacker.seconds
    space = frames.namespace(INDEXED)
    list_block, count_block = frames.request(frames.LIST), frames.request(frames.COUNT)

    def next_call() -> tuple[bytes, bytes]:
        if attacker.random.random() < 0.2:
            return count_block, frames.message(space)
        token = made_up_token(attacker)
        if attacker.random.random() < 0.2:
            token = token[attacker.random.randrange(len(token)) :]
        return list_block, frames.message(space + frames.length_delimited(3, token.encode()))

    def attack(connection: Connection) -> None:
        wide_open(connection)
        for first in range(1, 2**31 - 2 * LISTS, 2 * LISTS):
            streams = stream_ids(LISTS, first)
            for stream in streams:
                block, body = next_call()
                whole = frames.headers(stream, block) + frames.data(stream, body, end=True)
                connection.send(whole, 2)
            for stream in streams:
                answer = status(connection, stream)
                fine = (OK, INVALID_ARGUMENT, OVERLOADED)
                attacker.expect(answer in fine, f"answered with {answer}")
                attacker.notes[f"status {answer}"] += 1
            connection.answers.clear()
            if not attacker.running():
                break

    attacker.again(attack)


def made_up_token(attacker: Attacker) -> str:
    """A token as the server makes it: version, shard, cursor, run id, and a check."""
    shard, cursor = attacker.random.randrange(SHARDS), attacker.random.randbytes(8)
    token = bytes([1, shard]) + cursor + attacker.random.randbytes(20)
    return (token + hashlib.sha256(token + INDEXED.encode()).digest()[:8]).hex()
