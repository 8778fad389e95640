"""The JSON of `dyndata --output json` is grpcurl's, byte for byte.

Whoever has a script around grpcurl can put dyndata's own client in its place, and the other way
round.
"""

import difflib

from cases import BATCH_GET, GET, HEALTH, equal
from processes import output

# id -> the arguments of `dyndata mark` that give it its value; None leaves it absent.
ENTRIES = {
    "int": ["-9223372036854775808"],
    "zero": ["0"],
    "string": ["--type", "string", "här, för 30 minuter"],
    "empty": ["--type", "string", ""],
    # grpcurl's JSON is Go's, which escapes more than JSON must.
    "html": ["--type", "string", "<a href='x'>\"&\"</a>"],
    "separators": ["--type", "string", "\u2028 \u2029"],
    "controls": ["--type", "string", "\\ / \t \n \x01 \x7f \x85 \U0001f600"],
    # Bytes that are not UTF-8, as Python carries them in an argument.
    "bytes": ["--type", "bytes", "\udcff\udc80\udcfe plain"],
    "absent": None,
    "id <&>": ["1"],
}

# On Redis an expire time is the clock plus PTTL, so that two calls may differ by a millisecond.
TIMED_TRIES = 20


class CommandLine:
    """`dyndata` as a client, beside a grpcurl to compare it with."""

    def __init__(self, binary, grpcurl, address):
        self.binary = binary
        self.grpcurl = grpcurl
        self.url = f"http://{address}"

    def cases(self):
        """(name, case) for each comparison; the first one marks what the others read."""
        yield "mark stores every type", self.mark_entries
        for id in ENTRIES:
            request = {"id": id}
            yield self.comparison(["get", id], GET, request)
            yield self.comparison(["get", "--expire-time", id], GET, timed(request))
        ids = [*ENTRIES, "absent", "int"]
        request = {"ids": ids}
        yield self.comparison(["batch-get", *ids], BATCH_GET, request)
        yield self.comparison(["batch-get", "--expire-time", *ids], BATCH_GET, timed(request))
        yield self.comparison(["health"], HEALTH, {})

    def mark_entries(self):
        for id, arguments in ENTRIES.items():
            if arguments is not None:
                mark = ["mark", "--addr", self.url, "--ttl", "1h", id, *arguments]
                output([self.binary, *mark])

    def comparison(self, command, method, request):
        name = f"{' '.join(command)} prints grpcurl's JSON"
        return name, lambda: self.compare(command, method, request)

    def compare(self, command, method, request):
        tries = TIMED_TRIES if "include_expire_time" in request else 1
        for _ in range(tries):
            ours = output([self.binary, *command, "--addr", self.url, "--output", "json"])
            theirs = self.grpcurl.run(method, request)
            equal(theirs.returncode, 0)
            if ours == theirs.stdout:
                return
        lines = difflib.unified_diff(
            theirs.stdout.decode().split("\n"),
            ours.decode().split("\n"),
            "grpcurl",
            "dyndata",
            lineterm="",
        )
        raise AssertionError("\n".join(lines))


def timed(request):
    return {**request, "include_expire_time": True}
