"""Installs the Debian package on this machine, runs its service as systemd would, and removes it.

The tests need root. They refuse a machine where dyndata is installed or configured, since they purge
both at the end.
"""

import re
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.processes import STOP_SECONDS, free_port, output, run, stop, wait_until

# A user of the range of DynamicUser=, with no name, no rights and no files.
USER = 61184
UNIT = Path("/usr/lib/systemd/system/dyndata.service")
SOCKET = UNIT.with_suffix(".socket")
SETTINGS = Path("/etc/dyndata/dyndata.env")
# Where packages put files.
PLACES = (
    "/etc/dyndata /etc/systemd/system /usr/bin /usr/share /usr/lib/systemd /var/lib/systemd "
    "/var/lib/dpkg/info"
).split()
DPKG_SECONDS = 120


@pytest.fixture(scope="module", autouse=True)
def installed(root, package):
    if files():
        pytest.fail("dyndata is installed or configured here; purge it first")
    try:
        output(["dpkg", "-i", package], seconds=DPKG_SECONDS)
        yield
    finally:
        run(["dpkg", "-P", "dyndata"], seconds=DPKG_SECONDS)


def test_only_root_can_read_the_settings():
    assert (SETTINGS.stat().st_mode & 0o777, SETTINGS.owner()) == (0o640, "root")


def test_the_settings_are_a_conffile():
    conffiles = output(["dpkg-query", "-W", "-f", "${Conffiles}", "dyndata"]).decode()
    assert str(SETTINGS) in conffiles


def test_systemd_accepts_the_units():
    done = run(["systemd-analyze", "verify", UNIT, SOCKET])
    said = (done.stdout + done.stderr).decode().splitlines()
    # In a chroot or a container, man itself may be missing.
    assert [line for line in said if "Command 'man " not in line] == []


def test_the_sandbox_is_rated_1_5_or_better(figures):
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager"]
    figures.append(output([*command, UNIT]).decode().splitlines()[-1])


@pytest.mark.parametrize("page", ("dyndata", "dyndata-serve", "dyndata-mark", "dyndata-token-new"))
def test_there_is_a_man_page(page):
    assert Path(f"/usr/share/man/man1/{page}.1.gz").stat().st_size > 0


def test_bash_accepts_the_completions():
    output(["bash", "-n", "/usr/share/bash-completion/completions/dyndata"])


@pytest.fixture
def notify():
    with tempfile.TemporaryDirectory(prefix="dyndata-notify-") as directory:
        yield Notify(Path(directory))


def test_the_service_starts_reloads_and_stops(redis_port, notify):
    """Runs the unit's command with its settings, but without the sandbox: as a user with no name, no
    rights and no files, and with a socket for its messages to systemd. Only the addresses differ from
    the settings, so that they do not meet what else runs on this machine."""
    command = re.search(r"^ExecStart=(.*)", UNIT.read_text(), re.MULTILINE).group(1).split()
    address = f"127.0.0.1:{free_port()}"
    health = [command[0], "health", "--addr", f"http://{address}"]
    environment = {
        **settings(),
        "NOTIFY_SOCKET": notify.name,
        "WATCHDOG_USEC": "1000000",
        "REDIS_URL": f"redis://127.0.0.1:{redis_port}",
        "DYNDATA_LISTEN": address,
        "DYNDATA_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
    }
    user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    server = subprocess.Popen(
        ["setpriv", *user, "--bounding-set=-all", "--no-new-privs", *command],
        cwd="/",
        env=environment,
    )
    try:
        notify.wait_for("READY=1")
        wait_until(lambda: run(health).returncode == 0, "not healthy")
        notify.wait_for("WATCHDOG=1")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: run(health).returncode == 0, "not healthy")
        server.send_signal(signal.SIGTERM)
        notify.wait_for("STOPPING=1")
        assert server.wait(2 * STOP_SECONDS) == 0
    finally:
        stop(server)


def test_removal_leaves_the_settings_and_a_purge_leaves_nothing():
    output(["dpkg", "-r", "dyndata"], seconds=DPKG_SECONDS)
    # Debian masks the units of a removed package until it is purged.
    masked = r"/var/lib/.*|/etc/systemd/system/dyndata\.(service|socket)"
    left = [path for path in files() if not re.fullmatch(masked, path)]
    assert left == [str(SETTINGS.parent), str(SETTINGS)]
    output(["dpkg", "-P", "dyndata"], seconds=DPKG_SECONDS)
    assert files() == []


class Notify:
    """The socket on which systemd listens to a service, in a folder that every user can read."""

    def __init__(self, directory):
        directory.chmod(0o755)
        path = directory / "notify"
        self.name = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(2 * STOP_SECONDS)
        self._socket.bind(self.name)
        path.chmod(0o777)

    def wait_for(self, wanted):
        wait_until(lambda: wanted in self._socket.recv(4096).decode().splitlines(), f"no {wanted}")


def settings():
    """The variables of a systemd EnvironmentFile=, as far as ours uses its syntax."""
    lines = SETTINGS.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def files():
    """The files of dyndata in the places where packages put files."""
    names = ["(", "-name", "*dyndata*", "-o", "-path", "/etc/dyndata/*", ")"]
    return sorted(run(["find", *PLACES, *names]).stdout.decode().split())
