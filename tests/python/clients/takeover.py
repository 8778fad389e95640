"""dyndata in the place of the original application, while both run on one Redis."""

import sys
import time
from pathlib import Path

from cases import GET, MARK, equal, own_id, seconds
from processes import output

ORIGINAL = Path(__file__).with_name("original.py")
ORIGINAL_TTL_SECONDS = 60

# Every way in which Python's repr of bytes writes a key: with either quote, with escapes for what
# is not ASCII and for the backslash.
IDS = ("42", "user-7", "Åsa 🙂 東京", "it's", "both ' and \"", 'only "', "back\\slash")


class Original:
    """original.py, started anew for each call."""

    def __init__(self, redis_port, *options):
        url = f"redis://127.0.0.1:{redis_port}"
        self.program = [sys.executable, ORIGINAL, "--redis-url", url, *options]

    def mark(self, id, data):
        output([*self.program, "mark", id, data])

    def get(self, id):
        return int(output([*self.program, "get", id]))


def takeover_cases(original, client):
    """(name, case) for each id and direction; a client of the server on the original's Redis."""
    for id in IDS:
        yield f"dyndata reads what the original marked: {id}", lambda id=id: reads(
            original, client, id
        )
        yield f"the original reads what dyndata marked: {id}", lambda id=id: is_read(
            original, client, id
        )
    yield "an absent id is 0 to the original", lambda: equal(
        original.get(own_id(client, "absent")), 0
    )


def reads(original, client, id):
    before = time.time()
    original.mark(id, 1001)
    after = time.time()
    entry = client.call(GET, {"id": id, "include_expire_time": True})["entry"]
    expires = seconds(entry.pop("expireTime"))
    equal(entry, {"id": id, "intValue": "1001"})
    # The original counts from the second that has begun.
    earliest, latest = before + ORIGINAL_TTL_SECONDS - 1.1, after + ORIGINAL_TTL_SECONDS
    assert earliest <= expires <= latest, f"expires {expires - after:.3f} s after the mark"


def is_read(original, client, id):
    client.call(MARK, {"id": id, "int_value": "-2002"})
    equal(original.get(id), -2002)


def expire_times_are_never_late(client, redis_port):
    """Redis knows the true expiry; what Mark and Get say is at most that, and close to it."""
    id = "expire times"
    redis_cli = ["redis-cli", "-p", redis_port]
    for _ in range(20):
        marked = client.call(MARK, {"id": id, "int_value": "1"})
        found = client.call(GET, {"id": id, "include_expire_time": True})["entry"]
        true_expiry = int(output([*redis_cli, "PEXPIRETIME", f"dyn_data/{id}"]))
        for expire_time in (marked["expireTime"], found["expireTime"]):
            early = true_expiry - round(seconds(expire_time) * 1000)
            assert 0 <= early <= 100, f"{early} ms before the true expiry"


def redis_cli_shows_the_layout(client, redis_port):
    """What an operator sees who looks into Redis right after a Mark."""
    client.call(MARK, {"id": "42", "int_value": "100"})
    redis_cli = ["redis-cli", "-p", redis_port]
    time_to_live = int(output([*redis_cli, "PTTL", "dyn_data/42"]))
    assert 59_000 <= time_to_live <= 60_000, f"PTTL is {time_to_live}"
    equal(output([*redis_cli, "GET", "dyn_data/42"]), b"100\n")
