#!/usr/bin/env python3
"""Writes the reference of all settings, settings.md, into a directory, from `dyndata serve --help`.

    docs/settings/generate.py BINARY DIRECTORY
"""

import re
import subprocess
import sys
from pathlib import Path

HEAD = """\
# Settings

<!-- Written by `make docs` from the flags of `dyndata serve`. Change those, not this page. -->

Every flag of `dyndata serve` also has an environment variable. `dyndata config check` takes the same settings and
prints what would be in force. The [README](../README.md#settings) has the settings that most people need first.

| flag | environment | default | |
|---|---|---|---|
"""


def main():
    binary, directory = sys.argv[1:]
    done = subprocess.run([binary, "serve", "--help"], stdout=subprocess.PIPE, text=True, check=True)
    rows = "".join(row(part) for part in flags(done.stdout))
    (Path(directory) / "settings.md").write_text(HEAD + rows)


def flags(help_text):
    """The parts of the help text that describe one flag each."""
    parts = re.split(r"^(?= +(?:-\w, )?--[a-z])", help_text, flags=re.MULTILINE)[1:]
    return [part for part in parts if "[env: " in part]


def row(part):
    """The row of the table for one flag."""
    flag, text = re.match(r" +(.*)\n([\s\S]*)", part).groups()
    text = " ".join(text.split())
    variable = re.search(r"\[env: (\w+)=?\]", text).group(1)
    default = re.search(r"\[default: ([^]]*)\]", text)
    text, _, values = re.sub(r" ?\[(?:env|default): [^]]*\]", "", text).partition(" Possible values: ")
    # Each value begins with a dash: "- off: Nobody".
    values = [f"`{name}`: {meaning.strip()}" for name, meaning in re.findall(r"- (\S+): ((?:(?! - \S+:).)*)", values)]
    cells = [code(flag), code(variable), code(default.group(1)) if default else "", escaped(text)]
    cells[3] += "".join(f"<br>{escaped(value)}" for value in values)
    return f"| {' | '.join(cells)} |\n"


def code(text):
    return f"`{text}`"


def escaped(text):
    return text.replace("|", "\\|").replace("<", "&lt;").strip()


if __name__ == "__main__":
    main()
