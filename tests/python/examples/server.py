"""A dyndata with TLS and a token, as examples/serve.sh starts it for people."""

import os

from support.processes import BUF, ROOT, TOOLS, Dyndata, clean_environment


class ExampleServer(Dyndata):
    """examples/serve.sh on a Redis. It makes its credentials in a directory unless they are there."""

    def __init__(self, binary, credentials, redis_port, *settings, **environment):
        super().__init__(
            [ROOT / "examples/serve.sh"],
            f"--redis-url=redis://127.0.0.1:{redis_port}",
            *settings,
            DYNDATA=str(binary),
            EXAMPLES_DIRECTORY=str(credentials),
            **environment,
        )
        self.credentials = credentials

    @property
    def client_environment(self):
        return self.client_environment_for(self.address.rpartition(":")[2])

    def client_environment_for(self, port):
        """The environment of an example that calls a port of localhost."""
        return clean_environment(
            PATH=f"{TOOLS}:{BUF.parent}:{os.environ['PATH']}",
            DYNDATA_ADDR=f"https://localhost:{port}",
            DYNDATA_CLIENT_TLS_CA=str(self.credentials / "ca.pem"),
            DYNDATA_TOKEN_FILE=str(self.credentials / "token"),
        )

    def marks_in_flight(self):
        return self._in_flight("Mark")

    def watches_open(self):
        return self._in_flight("Watch")

    def unmarks(self):
        return self.metric("grpc_server_handled_total", grpc_method="Unmark", grpc_code="OK")

    def _in_flight(self, method):
        started = self.metric("grpc_server_started_total", grpc_method=method)
        return started - self.metric("grpc_server_handled_total", grpc_method=method)

    def marks_refused(self):
        """The number of Marks refused for overload. None of ours is too large."""
        refused = {"grpc_method": "Mark", "grpc_code": "ResourceExhausted"}
        return self.metric("grpc_server_handled_total", **refused)
