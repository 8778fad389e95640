"""The server under attack and the good clients; the table of rows at the end of the report."""

import contextlib
import random

import pytest

from security.attacks import Attack
from security.measure import GoodClient, Quiet
from security.row import Options, Row
from security.server import Server
from support.credentials import tls_settings, write_access_file, write_certificates

ROWS = pytest.StashKey[list[Row]]()


def pytest_terminal_summary(terminalreporter, config):
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("attacks")
        for line in (Row.HEADER, Row.RULE, *(row.line() for row in rows)):
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def rows(pytestconfig):
    """The rows of the table, in the order of the attacks."""
    return pytestconfig.stash.setdefault(ROWS, [])


@pytest.fixture(scope="session")
def options(pytestconfig, figures):
    seed = pytestconfig.getoption("--seed")
    seed = random.randrange(2**32) if seed is None else seed
    seconds = pytestconfig.getoption("--seconds")
    figures.append(f"attacks of {seconds:g} s each, seed {seed}")
    return Options(seconds, seed, pytestconfig.getoption("--over-tls"))


@pytest.fixture(scope="session")
def credentials(release_binary, tmp_path_factory):
    """A directory with certificates, an access file and a token."""
    directory = tmp_path_factory.mktemp("credentials")
    write_certificates(directory)
    write_access_file(release_binary, directory)
    return directory


@pytest.fixture(scope="session")
def ground(release_binary, credentials, options):
    with contextlib.closing(Ground(release_binary, credentials, options)) as ground:
        yield ground


class Ground:
    """The server under attack, with its good clients. Attacks that need the same server share it, one
    after the other."""

    def __init__(self, binary, credentials, options):
        self.binary = binary
        self.credentials = credentials
        self.options = options
        # By whether the good clients speak TLS, which costs time as well.
        self._quiet = {False: Quiet(), True: Quiet()}
        self._settings = None
        self._stack = contextlib.ExitStack()

    def prepare(self, attack: Attack) -> None:
        """Starts a server for the attack, unless the one that is there will do."""
        over_tls = attack.tls or self.options.over_tls
        settings = list(attack.settings)
        settings += tls_settings(self.credentials) if over_tls else []
        access_file = self.credentials / "access.toml"
        settings += [f"--access-file={access_file}"] if attack.anonymous else []
        if settings == self._settings:
            return
        self.close()
        self.server = self._stack.enter_context(Server(self.binary, *settings))
        ca = self.credentials / "ca.pem" if over_tls else None
        token = self.credentials / "token" if attack.anonymous else None
        good = GoodClient(self.server, ca, token, self._quiet[over_tls])
        self.good = self._stack.enter_context(good)
        self._settings = settings

    def close(self) -> None:
        """Stops the server, so that the next attack gets a new one."""
        self._settings = None
        self._stack.close()
