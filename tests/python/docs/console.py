"""Runs the console examples of a page as a reader would, and compares their output with the page.

The commands of a page run one after the other, in a folder that looks like the root of the
repository. Variables that a command exports and files that it writes are there for the next one. A
command that serves runs in the background until the next of its kind, or the end of the page. Ports
are replaced by free ones.

The output must be that of the page. Times, tokens and digests may differ, and a line `...` on the
page stands for any number of lines.
"""

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from support.processes import (
    ROOT,
    clean_environment,
    fetch,
    free_port,
    stop,
    stop_group,
    wait_until,
)

BUILD_SECONDS = 1800
COMMAND_SECONDS = 20
# gRPC, admin, Redis, and a second Redis for pages that start one of their own.
PORTS = ("50051", "9464", "6379", "6380")
SERVERS = ("dyndata serve", "redis-server")
# What may stand before a command.
VARIABLES = r"^(?:\w+=\S* )*"
VARIES = (
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z",  # a time
    r"dyn_[\w-]{43}",  # a token
    r"\b[0-9a-f]{64}\b",  # a digest
    r"\b1\d{9}\b",  # seconds since 1970
)


class Session:
    """The state that the commands of one page share."""

    def __init__(self, binary, redis_port):
        self.ports = {port: str(free_port()) for port in PORTS} | {"6379": str(redis_port)}
        self.environment = clean_environment() | {
            # The Python of the tests comes first: it has the packages that a page's application needs.
            "PATH": f"{binary.parent}:{ROOT}/.tools/bin:{ROOT}/.tools/python/bin"
            f":{os.environ['PATH']}",
            # Where the pages' commands rely on the defaults.
            "DYNDATA_ADDR": f"http://127.0.0.1:{self.ports['50051']}",
            "DYNDATA_LISTEN": f"127.0.0.1:{self.ports['50051']}",
            "DYNDATA_ADMIN_LISTEN": f"127.0.0.1:{self.ports['9464']}",
            # redis-cli takes its port from no variable, so the default is given by a function.
            # Where a command names a port, the last one counts.
            "BASH_FUNC_redis-cli%%": f'() {{ command redis-cli -p {redis_port} "$@"; }}',
        }
        self.servers = {}

    def __enter__(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="dyndata-docs-")
        self.directory = Path(self.scratch.name) / "root"
        self.directory.mkdir()
        for entry in ROOT.iterdir():
            if not entry.name.startswith("."):
                (self.directory / entry.name).symlink_to(entry)
        self.exported = Path(self.scratch.name) / "exported"
        self.exported.touch()
        return self

    def __exit__(self, *_):
        for kind in list(self.servers):
            self.end(kind)
        self.scratch.cleanup()

    def check(self, command, expected):
        """Runs one example, and compares what it prints."""
        wanted = self.replace_ports(expected)
        kind = next((kind for kind in SERVERS if re.match(VARIABLES + kind, command)), None)
        printed = self.serve(kind, command, wanted) if kind else self.output(command)
        assert re.fullmatch(pattern(wanted), printed), (
            f"it printed:\n{printed}the page has:\n{wanted}"
        )

    def output(self, command):
        """Runs a command to its end, in a shell that begins with what those before it exported."""
        keep = f". {self.exported}; trap 'export -p >{self.exported}' EXIT"
        done = subprocess.run(
            ["bash", "-c", f"{keep}\n{self.replace_ports(command)}"],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_SECONDS,
            env=self.environment,
            check=False,
        )
        return done.stdout.decode()

    def serve(self, kind, command, wanted):
        """Starts a server in the place of the one before; returns what it has said when that is
        as it should be."""
        self.end(kind)
        # The shell does this too, but maybe only after the next command has looked into the file.
        for log in re.findall(r" 2>(\w+)$", command):
            (self.directory / log).write_text("")
        # In the place of the shell, so that the end of one is the end of the other.
        command = re.sub(VARIABLES, r"\g<0>exec ", command, count=1)
        output = Path(self.scratch.name) / f"{kind.split()[0]}.output"
        with open(output, "wb") as file:
            server = self.servers[kind] = subprocess.Popen(
                ["bash", "-c", f". {self.exported}\n{self.replace_ports(command)}"],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )

        def said():
            # What comes after that is not in the page.
            return re.match(pattern(wanted), output.read_text())

        with contextlib.suppress(TimeoutError):
            wait_until(lambda: said() or server.poll() is not None, command)
        return said().group() if said() else output.read_text()

    def replaces_a_server(self, command, expected):
        """Whether a command starts a server that says nothing, while one of its kind is running."""
        server = self.servers.get("dyndata serve")
        running = server is not None and server.poll() is None
        return running and not expected and re.match(VARIABLES + "dyndata serve", command)

    def check_with_old_server(self, command, next_command, expected):
        """Starts a server while the previous one still runs, as a reader does who forgot to stop it.
        The next command must not print what the page has."""
        self.output(command)
        printed = self.output(next_command)
        assert not re.fullmatch(pattern(self.replace_ports(expected)), printed), (
            f"with the server of the step before, {next_command} prints what the page has:\n{printed}"
        )

    def end(self, kind):
        if server := self.servers.pop(kind, None):
            stop(server)

    def replace_ports(self, text):
        return re.sub(
            rf"\b({'|'.join(PORTS)})\b", lambda match: self.ports[match.group()], text
        )


def pattern(expected):
    """A regular expression for the output that a page has."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "..." else line_pattern(line) + r"\n"
        for line in expected.splitlines()
    ]
    return "".join(lines)


def line_pattern(line):
    """A regular expression that lets times and the like vary where the page has one."""
    parts = re.split(f"({'|'.join(VARIES)})", line)
    return "".join(
        next(varying for varying in VARIES if re.fullmatch(varying, part)) if odd % 2 else re.escape(part)
        for odd, part in enumerate(parts)
    )


@contextlib.contextmanager
def make_run(session, variables):
    """`make run` in a process group of its own, as a person has it in another shell."""
    # Built first, since the deadline of `wait_until` is too short for a build.
    cargo = os.environ.get("CARGO", "cargo")
    subprocess.run(
        [cargo, "build", "--release", "--locked"], cwd=ROOT, check=True, timeout=BUILD_SECONDS
    )
    server = subprocess.Popen(
        ["make", "run"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=session.environment | variables,
    )
    admin_port = session.ports["9464"]
    try:
        wait_until(lambda: ready(server, admin_port), "make run does not serve")
        yield
    finally:
        stop_group(server)


def ready(server, admin_port):
    if server.poll() is not None:
        raise AssertionError(f"make run ended with {server.returncode}")
    return fetch(f"http://127.0.0.1:{admin_port}/readyz", timeout=1) is not None
