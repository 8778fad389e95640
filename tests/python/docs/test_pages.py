"""The commands on the pages run and print what the pages have; links lead somewhere; the settings of
the README exist with these defaults; generated pages are up to date.

deploy/test_files.py compares the metrics and alerts on the pages.
"""

import re
import subprocess

import pytest

from docs.console import Session, make_run
from support.pages import pages
from support.processes import ROOT, output, redis_server

PAGES = pages()
README = PAGES[0]

# The commands that are not run, and why.
NOT_RUN = {
    r"make (run|test)": "the first serves README's commands, the second takes minutes",
    r"REDIS_URL=\S+ make run": "serves README's commands, on another Redis",
    r"make (bench|attacks|test SUITE=security)( \w+=.*)?": "minutes of all cores",
    r"target/benches/release/bench .*": "needs what `make bench` builds",
    r"export DYNDATA_REDIS_MODE=.*|export REDIS_URL=.*": "several Redis; tests/faults has both modes",
    r"DYNDATA_\w+=/run/\S+": "lines of a settings file",
    r"dpkg -i .*|editor .*": "changes the machine; `make -C deploy test-install` installs the package",
    r"systemctl .*": "needs systemd; `make -C deploy test-systemd` boots one",
    r"cargo build --release && examples/serve.sh": "`make test SUITE=examples` runs what is in examples/",
    r"\. \.tools/examples/env": "examples/serve.sh writes it",
}
# Languages of code blocks.
LANGUAGES = {"console", "sh", "ini", "toml", "yaml", "json", "nginx", "haproxy"}


def named(page):
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_and_anchors_lead_somewhere(page):
    assert list(broken_links(page)) == []


def broken_links(page):
    anchors = {page.path: page.anchors() for page in PAGES}
    for link in page.links():
        if re.match(r"https?:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.path.parent / target).resolve() if target else page.path
        if not path.exists():
            yield f"{link} is not there"
        elif anchor and anchor not in anchors.get(path, ()):
            yield f"{link} has no such heading"


def test_settings_of_the_readme_exist_with_these_defaults(release_binary):
    settings = settings_of(output([release_binary, "serve", "--help"]).decode())
    (heading, *rows), *_ = [table for table in README.tables() if "default" in table[0]]
    assert list(wrong_settings([dict(zip(heading, row)) for row in rows], settings)) == []


def settings_of(help_text):
    """For each flag of the help text, its environment variable and its default, or None."""
    settings = {}
    for part in re.split(r"^(?= +(?:-\w, )?--[a-z])", help_text, flags=re.MULTILINE)[1:]:
        flag = re.search(r"--[a-z-]+", part).group()
        variable = re.search(r"\[env: (\w+)", part)
        default = re.search(r"\[default: ([^]]*)\]", " ".join(part.split()))
        settings[flag] = (variable and variable.group(1), default and default.group(1))
    return settings


def wrong_settings(rows, settings):
    for row in rows:
        flags = re.findall(r"--[a-z-]+", row["flag"])
        said = row["default"].replace("`", "")
        for flag, named in zip(flags, re.findall(r"[A-Z_]+", row["environment"])):
            variable, default = settings.get(flag, (None, None))
            if variable != named:
                yield f"the variable of {flag} is {variable}, not {named}"
            if said != default and not (default is None and (not said or said.startswith("unset"))):
                yield f"the default of {flag} is {default or 'unset'}, not {said or 'unset'}"


def test_the_api_reference_is_up_to_date(tmp_path):
    # tests/settings_page.rs does the same for docs/settings.md.
    subprocess.run([ROOT / "docs/api/generate.sh", tmp_path], check=True, timeout=600)
    written, page = ((directory / "api.md").read_text() for directory in (tmp_path, ROOT / "docs"))
    assert written == page, "docs/api.md is not what `make docs` writes"


def test_the_table_of_repetitions_has_every_call():
    contract = (ROOT / "proto/dyndata/v1/dyndata.proto").read_text()
    calls = set(re.findall(r"^  rpc (\w+)\(", contract, re.MULTILINE))
    [page] = [page for page in PAGES if page.name == "docs/resilience.md"]
    [(_, *rows)] = [table for table in page.tables() if table[0][0] == "call"]
    assert set(re.findall(r"[A-Z]\w+", " ".join(row[0] for row in rows))) == calls


def test_every_command_is_run_or_listed_with_a_reason():
    assert list(unexplained_commands()) == []


def unexplained_commands():
    listed = set()
    for page in PAGES:
        listed |= {reason_not_to_run(command) for command in page.commands()}
        for language in sorted(page.languages() - LANGUAGES):
            yield f"{page.name}: a block of {language or 'no language'}; commands are console or sh"
        for command in page.recipes():
            if not reason_not_to_run(command):
                yield f"{page.name}: shows no output, so it is not run: {command}"
    for command in NOT_RUN.keys() - listed:
        yield f"no page has a command like {command}"


def reason_not_to_run(command):
    """The entry of NOT_RUN that a command matches."""
    return next((known for known in NOT_RUN if re.fullmatch(known, command)), None)


@pytest.mark.parametrize("page", [page for page in PAGES if list(page.examples())], ids=named)
def test_commands_print_what_the_page_has(page, release_binary):
    with redis_server() as redis_port, Session(release_binary, redis_port) as session:
        if page is README:
            failures = run_readme(session)
        else:
            failures = run_each(page, session)
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


def run_readme(session):
    """With `make run`, as the page says: on the embedded store, then on Redis."""
    embedded, heading, on_redis = README.text.partition("## On Redis")
    assert heading, "README.md has lost the section that this test knows"
    redis_url = {"REDIS_URL": f"redis://127.0.0.1:{session.ports['6379']}"}
    failures = []
    for text, variables in ((embedded, {}), (on_redis, redis_url)):
        with make_run(session, variables):
            failures += run_each(README.part(text), session)
    return failures


def run_each(page, session):
    """Runs the commands of a page one after the other; what is wrong with their output."""
    commands = [example for example in page.examples() if not reason_not_to_run(example[0])]
    failures = []
    for (command, expected), following in zip(commands, [*commands[1:], None]):
        try:
            if following and session.replaces_a_server(command, expected):
                session.check_with_old_server(command, *following)
            session.check(command, expected)
        except (AssertionError, TimeoutError, subprocess.TimeoutExpired) as failure:
            failures.append(f"$ {command}\n{failure}")
    return failures
