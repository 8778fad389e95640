"""What a suite prints: a line for each case, why it failed, and the counts."""

import contextlib
import subprocess
import traceback

from clients import CallError


class Report:
    """Runs cases, says how each went, and counts."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def case(self, name, function, *arguments):
        with self.guard(name):
            function(*arguments)
            self.passed += 1
            print("ok     ", printable(name), flush=True)

    @contextlib.contextmanager
    def guard(self, name):
        """A failure inside becomes a failed case, and the suite goes on."""
        try:
            yield
        except (AssertionError, CallError, subprocess.TimeoutExpired) as failure:
            self.fail(name, str(failure))
        except Exception:
            # Not foreseen by a case, so where it came from matters.
            self.fail(name, traceback.format_exc())

    def fail(self, name, why):
        self.failed += 1
        print("FAILED ", printable(name), flush=True)
        for line in why.strip().split("\n"):
            print("         ", printable(line), flush=True)


def printable(text):
    """The text as one line that any terminal and any log can take."""
    return text.encode("ascii", "backslashreplace").decode()
