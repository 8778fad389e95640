"""Attacks with the calls that write for many ids, or that decide by what is marked."""

from security import frames
from security.attacker import Attacker, call, status
from security.bodies import keep_open
from security.connection import Connection
from security.floods import stream_ids
from security.holders import BATCH, VALUE_BYTES, slow_readers

# The largest request is 4 MiB; this is the size of a message just below it.
LARGEST_REQUEST_BYTES = (4 << 20) - 1_000
UNFINISHED_CALLS = 8
FLOOD_STREAMS = 200
OK, INVALID_ARGUMENT, OVERLOADED, UNAUTHENTICATED = "0", "3", "8", "16"


def unfinished_batch_marks(attacker: Attacker) -> None:
    """BatchMarks of almost 4 MiB without their last bytes, 8 on each of 10 connections."""
    body = frames.message(bytes(LARGEST_REQUEST_BYTES - 1), length=LARGEST_REQUEST_BYTES)
    # A view, since a body that is sent in pieces would be copied for each piece.
    block, body = frames.request(frames.BATCH_MARK), memoryview(body)
    keep_open(attacker, 10, block, body, calls=UNFINISHED_CALLS)


def anonymous_batch_marks(attacker: Attacker) -> None:
    """The same by callers without credentials, which are refused by their headers."""
    unfinished_batch_marks(attacker)
    ends = set(attacker.notes)
    attacker.expect(ends <= {f"ended with {UNAUTHENTICATED}"}, f"calls {', '.join(sorted(ends))}")


def largest_batch_marks(attacker: Attacker) -> None:
    """BatchMarks with as many items as are allowed and almost 4 MiB, and some with an item too many."""
    ids = [f"batch-{number}" for number in range(BATCH)]
    value = bytes(LARGEST_REQUEST_BYTES // BATCH - 60)
    largest = frames.message(frames.batch_mark_request(ids, value))
    too_many = frames.message(frames.batch_mark_request([*ids, "more"], b""))

    def attack(connection: Connection) -> None:
        connection.greet().settle()
        for at, stream in enumerate(stream_ids(1_000_000)):
            if not attacker.running():
                break
            payload, wanted = (largest, OK) if at % 4 else (too_many, INVALID_ARGUMENT)
            call(connection, stream, frames.BATCH_MARK, payload)
            answer = status(connection, stream)
            attacker.expect(answer in (wanted, OVERLOADED), f"answered with {answer}, not {wanted}")
            attacker.notes[f"status {answer}"] += 1

    attacker.again(attack)


def increment_flood(attacker: Attacker) -> None:
    """Increments of one id, 200 at a time on each connection, as fast as they are answered."""
    block = frames.request(frames.INCREMENT)
    payload = frames.message(frames.get_request("flooded"))

    def attack(connection: Connection) -> None:
        connection.greet().send(frames.window_update(0, frames.LARGEST_WINDOW - frames.DEFAULT_WINDOW))
        for first in range(1, 2**31 - 2 * FLOOD_STREAMS, 2 * FLOOD_STREAMS):
            streams = stream_ids(FLOOD_STREAMS, first)
            calls = (
                frames.headers(stream, block) + frames.data(stream, payload, end=True)
                for stream in streams
            )
            connection.send(b"".join(calls), 2 * FLOOD_STREAMS)
            for stream in streams:
                answer = status(connection, stream)
                attacker.expect(answer in (OK, OVERLOADED), f"answered with {answer}")
                attacker.notes[f"status {answer}"] += 1
            connection.answers.clear()
            if not attacker.running():
                break

    attacker.again(attack)


def mark_ifs_of_large_values(attacker: Attacker) -> None:
    """MarkIfs whose `if_equal` has the largest size, and differs from the stored value in its last byte.
    Each reply has the stored value, and no reply is read."""
    stored = bytes(VALUE_BYTES)
    with attacker.connection() as connection:
        connection.greet().settle()
        call(connection, 1, frames.MARK, frames.message(frames.mark_request("M", stored)))
        answer = status(connection, 1)
        attacker.expect(answer == OK, f"the value cannot be marked: {answer}")
    if_equal = frames.length_delimited(3, stored[:-1] + b"\x01")
    request = frames.mark_request("M", b"") + frames.length_delimited(9, if_equal)
    slow_readers(attacker, frames.MARK_IF, request, 4)
