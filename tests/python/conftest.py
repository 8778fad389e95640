"""What all suites share: which program they test, a Redis, and lines for the end of the report."""

import shutil
from pathlib import Path

import pytest

from support.processes import ROOT, redis_server

pytest.register_assert_rewrite("clients.clients")
FIGURES = pytest.StashKey[list[str]]()


def pytest_addoption(parser):
    parser.addoption("--dyndata", type=Path, help="test this program, not that of target/")
    parser.addoption(
        "--picture", action="store_true", help="write docs/online.png, docs/status-*.png (suite examples)"
    )
    group = parser.getgroup("attacks")
    group.addoption("--seconds", type=float, default=2.5, help="of each attack; default 2.5")
    group.addoption("--seed", type=int, help="of what is random in the attacks")
    group.addoption("--over-tls", action="store_true", help="all attacks go through TLS")


def pytest_configure(config):
    config.stash[FIGURES] = []


def pytest_terminal_summary(terminalreporter, config):
    if figures := config.stash[FIGURES]:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def figures(pytestconfig):
    """Lines that the report shows at its end, whatever the outcome."""
    return pytestconfig.stash[FIGURES]


@pytest.fixture(scope="session")
def binary(pytestconfig):
    return built(pytestconfig, "debug")


@pytest.fixture(scope="session")
def release_binary(pytestconfig):
    return built(pytestconfig, "release")


def built(config, profile):
    path = (config.getoption("--dyndata") or ROOT / "target" / profile / "dyndata").resolve()
    if shutil.which(path) is None:
        raise pytest.UsageError(f"there is no program {path}; cargo build makes it")
    return path


@pytest.fixture(scope="module")
def redis_port():
    """The port of a Redis for the tests of one file."""
    with redis_server() as port:
        yield port
