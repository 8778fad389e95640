"""Runs a service's command as systemd would, but without the sandbox. Used by deb.sh.

    python3 -m deploy.as_unit ENVIRONMENT_FILE COMMAND...

The user is one of the range of DynamicUser=, with no name, no rights and no files. Only the
addresses differ from the settings, so that they do not meet what else runs on this machine.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from support.processes import free_port, redis_server, run, stop, wait_until

USER = "61184"
SECONDS = 20


def main():
    environment_file, *command = sys.argv[1:]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        directory.chmod(0o755)
        redis_port = stack.enter_context(redis_server())
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.settimeout(SECONDS)
        notify.bind(str(directory / "notify"))
        (directory / "notify").chmod(0o777)
        address = f"127.0.0.1:{free_port()}"
        server = subprocess.Popen(
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            + ["--bounding-set=-all", "--no-new-privs", *command],
            cwd="/",
            env=read(environment_file)
            | {
                "NOTIFY_SOCKET": str(directory / "notify"),
                "WATCHDOG_USEC": "1000000",
                "REDIS_URL": f"redis://127.0.0.1:{redis_port}",
                "DYNDATA_LISTEN": address,
                "DYNDATA_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
            },
        )
        stack.callback(stop, server)
        check(server, notify, command[0], address)


def check(server, notify, binary, address):
    health = [binary, "health", "--addr", f"http://{address}"]
    await_message(notify, "READY=1")
    wait_until(lambda: run(health).returncode == 0, "not healthy")
    await_message(notify, "WATCHDOG=1")
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: run(health).returncode == 0, "not healthy")
    server.send_signal(signal.SIGTERM)
    await_message(notify, "STOPPING=1")
    status = server.wait(SECONDS)
    assert status == 0, f"the server ended with {status}"


def await_message(notify, wanted):
    """Reads what the service says to systemd, up to the line `wanted`."""
    wait_until(lambda: wanted in notify.recv(4096).decode().splitlines(), f"no {wanted}")


def read(environment_file):
    """The variables of a systemd EnvironmentFile=, as far as ours uses its syntax."""
    lines = Path(environment_file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


if __name__ == "__main__":
    main()
