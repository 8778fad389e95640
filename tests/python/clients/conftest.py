"""The server that the foreign clients call."""

import pytest

from support.processes import Dyndata


@pytest.fixture(scope="module", params=("redis", "embedded"))
def server(request, binary, redis_port):
    """A dyndata on each store."""
    settings = [f"--redis-url=redis://127.0.0.1:{redis_port}"] if request.param == "redis" else []
    with Dyndata([binary, "serve"], *settings) as server:
        yield server
