"""dyndata replaces the original application while both run on one Redis."""

import sys
import time

import pytest

from clients.clients import GET, MARK, PythonClient, own_id, seconds
from support.processes import ROOT, Dyndata, output

ORIGINAL = ROOT / "tests/python/original.py"
ORIGINAL_TTL_SECONDS = 60

# Python's repr of bytes writes these keys with either quote, and with escapes for the backslash and
# for what is not ASCII.
IDS = ("42", "user-7", "Åsa 🙂 東京", "it's", "both ' and \"", 'only "', "back\\slash")


@pytest.fixture(scope="module", params=("plain", "python-bytes"))
def key_format(request):
    return request.param


@pytest.fixture(scope="module")
def original(redis_port, key_format):
    options = ["--plain-keys"] if key_format == "plain" else []
    return Original(redis_port, *options)


@pytest.fixture(scope="module")
def client(binary, redis_port, key_format):
    """A client of a dyndata on the Redis of the original."""
    settings = ["--redis-url", f"redis://127.0.0.1:{redis_port}", "--key-format", key_format]
    with Dyndata([binary, "serve"], *settings) as server, PythonClient(server.address) as client:
        yield client


class Original:
    """The program original.py, started again for each call."""

    def __init__(self, redis_port, *options):
        url = f"redis://127.0.0.1:{redis_port}"
        self.program = [sys.executable, ORIGINAL, "--redis-url", url, *options]

    def mark(self, id, data):
        output([*self.program, "mark", id, data])

    def get(self, id):
        return int(output([*self.program, "get", id]))


@pytest.mark.parametrize("id", IDS)
def test_dyndata_reads_what_the_original_marked(original, client, id):
    before = time.time()
    original.mark(id, 1001)
    after = time.time()
    entry = client.call(GET, {"id": id, "include_expire_time": True})["entry"]
    expires = seconds(entry.pop("expireTime"))
    assert entry == {"id": id, "intValue": "1001"}
    # The original counts from the second that has begun.
    earliest, latest = before + ORIGINAL_TTL_SECONDS - 1.1, after + ORIGINAL_TTL_SECONDS
    assert earliest <= expires <= latest, f"expires {expires - after:.3f} s after the mark"


@pytest.mark.parametrize("id", IDS)
def test_the_original_reads_what_dyndata_marked(original, client, id):
    client.call(MARK, {"id": id, "int_value": "-2002"})
    assert original.get(id) == -2002


def test_an_absent_id_is_0_to_the_original(original, client):
    assert original.get(own_id(client, "absent")) == 0


@pytest.mark.parametrize("key_format", ["plain"], indirect=True)
def test_expire_times_are_never_later_than_those_of_redis(client, redis_port):
    """Redis knows the true expiry; Mark and Get report at most that, and not much less."""
    id = "expire times"
    redis_cli = ["redis-cli", "-p", redis_port]
    for _ in range(20):
        marked = client.call(MARK, {"id": id, "int_value": "1"})
        found = client.call(GET, {"id": id, "include_expire_time": True})["entry"]
        true_expiry = int(output([*redis_cli, "PEXPIRETIME", f"dyn_data/{id}"]))
        for expire_time in (marked["expireTime"], found["expireTime"]):
            early = true_expiry - round(seconds(expire_time) * 1000)
            # Far less than the time to live, and far more than a busy machine takes for a call.
            assert 0 <= early <= 2_000, f"{early} ms before the true expiry"


@pytest.mark.parametrize("key_format", ["plain"], indirect=True)
def test_redis_cli_shows_the_layout(client, redis_port):
    """What an operator sees who looks into Redis right after a Mark."""
    client.call(MARK, {"id": "42", "int_value": "100"})
    redis_cli = ["redis-cli", "-p", redis_port]
    time_to_live = int(output([*redis_cli, "PTTL", "dyn_data/42"]))
    assert 59_000 <= time_to_live <= 60_000, f"PTTL is {time_to_live}"
    assert output([*redis_cli, "GET", "dyn_data/42"]) == b"100\n"
