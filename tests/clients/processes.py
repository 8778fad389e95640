"""The processes of the suite: each has a deadline, a port of its own, and an end."""

import contextlib
import re
import subprocess
import tempfile
import threading

import redis

from children import STOP_SECONDS, clean_environment, free_port, stop, wait_until

CALL_SECONDS = 20


def run(arguments, stdin=b""):
    """Runs a program to its end; the caller judges its exit code."""
    return subprocess.run(
        [str(argument) for argument in arguments],
        input=stdin,
        capture_output=True,
        timeout=CALL_SECONDS,
        env=clean_environment(),
        check=False,
    )


def output(arguments, stdin=b""):
    """What a program that must succeed writes to standard output, in bytes."""
    done = run(arguments, stdin)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise AssertionError(f"{arguments[0]} exited with {done.returncode}: {said}")
    return done.stdout


@contextlib.contextmanager
def redis_server():
    """A real Redis that keeps nothing on disk; yields its port."""
    with tempfile.TemporaryDirectory(prefix="dyndata-clients-") as directory:
        port = free_port()
        server = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
            + ["--save", "", "--appendonly", "no"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=clean_environment(),
        )
        try:
            wait_until(lambda: redis_answers(server, port), "redis-server does not answer")
            yield port
        finally:
            stop(server)


@contextlib.contextmanager
def dyndata_server(binary, *settings):
    """A dyndata that serves; yields the address that it bound. Its log is shown if it does not."""
    server = subprocess.Popen(
        [binary, "serve", "--listen", "127.0.0.1:0", "--admin-listen", "off", *settings],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    # A thread reads on to the end, so that a full pipe never stops the server.
    log = []
    reader = threading.Thread(target=lambda: log.extend(iter(server.stderr.readline, "")))
    reader.start()
    try:
        yield serving_address(binary, server, log)
    finally:
        stop(server)
        reader.join(STOP_SECONDS)


def serving_address(binary, server, log):
    def bound():
        if server.poll() is not None:
            raise AssertionError(f"dyndata exited with {server.returncode}:\n{''.join(log)}")
        return re.search(r"serving gRPC on (\S+:\d+)", "".join(log))

    try:
        address = wait_until(bound, "dyndata does not say its address").group(1)
        health = [binary, "health", "--addr", f"http://{address}"]
        wait_until(lambda: run(health).returncode == 0, "dyndata is not SERVING")
    except TimeoutError as late:
        raise AssertionError(f"{late}:\n{''.join(log)}") from late
    return address


def redis_answers(server, port):
    if server.poll() is not None:
        raise AssertionError(f"redis-server exited with {server.returncode}")
    try:
        with redis.Redis(port=port, socket_timeout=1) as client:
            return client.ping()
    except redis.ConnectionError:
        return False
