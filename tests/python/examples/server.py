"""A dyndata with TLS and a token, as examples/serve.sh starts it for people."""

import contextlib
import os
import re
import subprocess
import threading
import urllib.request
from pathlib import Path

from children import STOP_SECONDS, clean_environment, stop, wait_until
from processes import run

ROOT = Path(__file__).resolve().parents[2]
TOOLS = (ROOT / ".tools/bin", ROOT / ".tools/npm/node_modules/.bin")


class Server:
    """Where a server is, and what it says about itself."""

    def __init__(self, address, admin, credentials):
        self.admin = admin
        self.credentials = credentials
        self.environment = self.at(address.rpartition(":")[2])

    def at(self, port):
        """The environment of an example that calls a port of localhost."""
        path = ":".join(map(str, TOOLS))
        return clean_environment() | {
            "PATH": f"{path}:{os.environ['PATH']}",
            "DYNDATA_ADDR": f"https://localhost:{port}",
            "DYNDATA_CLIENT_TLS_CA": str(self.credentials / "ca.pem"),
            "DYNDATA_TOKEN_FILE": str(self.credentials / "token"),
        }

    def marks_in_flight(self):
        return self._marks("started", "") - self._marks("handled", "")

    def marks_refused(self):
        """How many came at a time of too much work; none of ours is too large."""
        return self._marks("handled", 'grpc_code="ResourceExhausted"')

    def _marks(self, what, label):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.admin}/metrics", timeout=5) as reply:
            text = reply.read().decode()
        pattern = rf'^grpc_server_{what}_total{{.*grpc_method="Mark".*{label}.*}} (\d+)'
        return sum(map(int, re.findall(pattern, text, re.MULTILINE)))


@contextlib.contextmanager
def serve(binary, credentials, *settings):
    """Yields a server that is SERVING; its credentials are made in a directory if need be."""
    command = ["examples/serve.sh", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, *settings],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment()
        | {"DYNDATA": str(binary), "EXAMPLES_DIRECTORY": str(credentials)},
    )
    # A thread reads on to the end, so that a full pipe never stops the server.
    log = []
    reader = threading.Thread(target=lambda: log.extend(iter(process.stderr.readline, "")))
    reader.start()

    def said(pattern):
        if process.poll() is not None:
            raise AssertionError(f"serve.sh exited with {process.returncode}:\n{''.join(log)}")
        return re.search(pattern, "".join(log))

    def wait_for(pattern):
        return wait_until(lambda: said(pattern), f"the log has no {pattern}").group(1)

    try:
        address = wait_for(r"serving gRPC on (\S+:\d+)")
        server = Server(address, wait_for(r"on (http://\S+:\d+)"), credentials)
        health = [binary, "health", "--addr", server.environment["DYNDATA_ADDR"]]
        health += ["--tls-ca", credentials / "ca.pem"]
        wait_until(lambda: run(health).returncode == 0, "dyndata is not SERVING")
        yield server
    finally:
        stop(process)
        reader.join(STOP_SECONDS)
