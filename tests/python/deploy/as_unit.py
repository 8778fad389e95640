"""Runs a service's command as systemd would, less the sandbox; deb.sh and nothing else uses it.

    as_unit.py ENVIRONMENT_FILE COMMAND...

The user is one of DynamicUser's range, which has no name, no rights and no files. Only addresses
differ from the settings, so that nothing that runs on this machine is in the way.
"""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

USER = "61184"
SECONDS = 20


def main():
    environment_file, *command = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        redis_port, port, admin_port = free_ports(3)
        redis = subprocess.Popen(
            ["redis-server", "--port", str(redis_port), "--bind", "127.0.0.1", "--save", ""],
            cwd=directory,
            stdout=subprocess.DEVNULL,
        )
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.settimeout(SECONDS)
        notify.bind(f"{directory}/notify")
        os.chmod(f"{directory}/notify", 0o777)
        settings = {
            "REDIS_URL": f"redis://127.0.0.1:{redis_port}",
            "DYNDATA_LISTEN": f"127.0.0.1:{port}",
            "DYNDATA_ADMIN_LISTEN": f"127.0.0.1:{admin_port}",
        }
        server = subprocess.Popen(
            ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
            + ["--bounding-set=-all", "--no-new-privs", *command],
            cwd="/",
            env=read(environment_file)
            | {"NOTIFY_SOCKET": f"{directory}/notify", "WATCHDOG_USEC": "1000000"}
            | settings,
        )
        try:
            check(server, notify, command[0], port)
        finally:
            server.kill()
            redis.terminate()
            server.wait(SECONDS)
            redis.wait(SECONDS)


def check(server, notify, binary, port):
    await_message(notify, "READY=1")
    health(binary, port)
    await_message(notify, "WATCHDOG=1")
    server.send_signal(signal.SIGHUP)
    health(binary, port)
    server.send_signal(signal.SIGTERM)
    await_message(notify, "STOPPING=1")
    status = server.wait(SECONDS)
    assert status == 0, f"the server ended with {status}"


def health(binary, port):
    """SERVING, as soon as Redis is connected."""
    deadline = time.monotonic() + SECONDS
    arguments = [binary, "health", "--addr", f"http://127.0.0.1:{port}"]
    while True:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, f"health: {done.stdout}{done.stderr}"
        time.sleep(0.05)


def await_message(notify, wanted):
    """Reads what the service says to systemd, up to the line `wanted`."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if wanted in notify.recv(4096).decode().splitlines():
                return
        except TimeoutError:
            break
    raise AssertionError(f"no {wanted} in {SECONDS} s")


def read(environment_file):
    """An EnvironmentFile= of systemd, as far as ours uses its syntax."""
    lines = pathlib.Path(environment_file).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    main()
