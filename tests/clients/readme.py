"""Executes the console examples of README.md, and compares what they print.

`make run` itself serves them, first on the embedded store, then with REDIS_URL set; only ports are
replaced by free ones. In what is printed, times may differ, and nothing else.
"""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

from processes import clean_environment, free_port, redis_server, stop, wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD_SECONDS = 1800
COMMAND_SECONDS = 20
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def examples(section):
    """(command, expected output) for each `$ ` line of the section's console blocks."""
    for block in re.findall(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = example.partition("\n")
            yield command, expected


@contextlib.contextmanager
def make_run(ports, environment):
    """`make run` in a process group of its own, as a person has it in another shell."""
    # Built first, without a deadline that is meant for serving.
    subprocess.run(
        ["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True, timeout=BUILD_SECONDS
    )
    server = subprocess.Popen(
        ["make", "run"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=clean_environment()
        | environment
        | {
            "DYNDATA_LISTEN": f"127.0.0.1:{ports['50051']}",
            "DYNDATA_ADMIN_LISTEN": f"127.0.0.1:{ports['9464']}",
        },
    )
    try:
        wait_until(lambda: ready(server, ports["9464"]), "make run does not serve")
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        stop(server)


def ready(server, admin_port):
    if server.poll() is not None:
        raise AssertionError(f"make run ended with {server.returncode}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=1):
            return True
    except urllib.error.URLError:
        return False


def check(command, expected, ports, environment):
    """Runs one example; says how it went."""
    done = subprocess.run(
        ["bash", "-c", replace_ports(command, ports)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_SECONDS,
        env=environment,
        check=False,
    )
    printed = done.stdout.decode()
    wanted = replace_ports(expected, ports)
    good = TIME.sub("TIME", printed) == TIME.sub("TIME", wanted)
    print(f"{'ok    ' if good else 'FAILED'} README: {command}")
    if not good:
        print(f"it printed:\n{printed}README.md has:\n{wanted}")
    return good


def replace_ports(text, ports):
    return re.sub(r"\b(50051|9464|6379)\b", lambda match: str(ports[match.group()]), text)


def main():
    embedded, _, on_redis = (ROOT / "README.md").read_text().partition("## On Redis")
    results = []
    with redis_server() as redis_port:
        ports = {"50051": free_port(), "9464": free_port(), "6379": redis_port}
        redis_url = {"REDIS_URL": f"redis://127.0.0.1:{redis_port}"}
        path = f"{ROOT}/target/release:{ROOT}/.tools/bin:{os.environ['PATH']}"
        environment = clean_environment() | {
            "PATH": path,
            # Where the page's commands rely on the defaults.
            "DYNDATA_ADDR": f"http://127.0.0.1:{ports['50051']}",
        }
        # redis-cli takes its port from no variable, so the page's default is given by a function.
        environment["BASH_FUNC_redis-cli%%"] = f'() {{ command redis-cli -p {redis_port} "$@"; }}'
        for section, variables in ((embedded, {}), (on_redis, redis_url)):
            with make_run(ports, variables):
                for command, expected in examples(section):
                    results.append(check(command, expected, ports, environment))
    assert len(results) > 10, "README.md has lost its examples"
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
