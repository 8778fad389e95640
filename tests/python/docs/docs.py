"""What the pages say is what the program does and what the repository has.

Commands are run, and what they print is compared; flags, variables and defaults are compared with
--help; links, anchors, paths and make's targets with what is there; the API reference with the
contract. Metrics and alerts are compared in deploy/tests/check.py.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from console import Session, make_run
from manual import Manual
from pages import GENERATED, ROOT, join, pages
from processes import redis_server
from report import Report

# What `make run` builds and runs.
BINARY = ROOT / "target/release/dyndata"

# What the pages tell people to type is run, or is here with the reason why not.
NOT_RUN = {
    r"make (run|test)": "the one is what serves README's commands, the other takes minutes",
    r"REDIS_URL=\S+ make run": "is what serves README's commands, with another Redis",
    r"make (bench|bench-quick|attacks|test-security)": "minutes of all cores",
    r"target/benches/release/bench .*": "needs what `make bench` builds",
    r"\S+/security-venv/bin/python .*": "one attack of those that `make test-security` runs",
    r"export DYNDATA_REDIS_MODE=.*|export REDIS_URL=.*": "several Redis; tests/faults has both modes",
    r"DYNDATA_\w+=/run/\S+": "lines of a settings file",
    r"dpkg -i .*|editor .*": "changes the machine; `make test-deb` installs the package",
    r"systemctl .*": "needs systemd; `make test-systemd` boots one",
    r"cargo build --release && examples/serve.sh": "`make test-examples` runs what is in examples/",
    r"\. \.tools/examples/env": "is written by examples/serve.sh",
}
# Flags in backticks, without the other program that they belong to.
FLAGS_OF_OTHERS = {"--format", "--over-tls"}
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
# Of scripts, with the prefix of ours.
OTHER_VARIABLES = {"DYNDATA_TOKEN"}
# With a slash and in backticks, and no file of the repository.
NOT_PATHS = r"Health/List|dyn_data[:/].*|dyndata\.v1\.\S+|docker\.io/.*|.*[<>].*|\w*:.*|/.*|\w+://"
# Of code blocks: what is run, what is not, and what is no command.
LANGUAGES = {"console", "sh", "ini", "toml", "yaml", "json", "nginx", "haproxy"}
# Of health and reflection, which the API reference is not about.
OTHER_REASONS = {"SERVICE_UNKNOWN", "SHUTTING_DOWN"}
# What people deploy and copy, besides the pages.
FILES = ("deploy/**/*", "examples/**/*")


def main():
    every, manual = pages(), Manual(BINARY)
    report = Report()
    for name, faults in (
        ("flags exist", unknown_flags(every, manual)),
        ("environment variables exist", unknown_variables(every, manual)),
        ("defaults are those of --help", wrong_defaults(every, manual)),
        ("every setting is on a page", unmentioned_settings(every, manual)),
        ("make's targets exist", unknown_targets(every)),
        ("links and anchors lead somewhere", broken_links(every)),
        ("paths exist", missing_paths(every)),
        ("docs/api.md is what make api-docs writes", stale_reference()),
        ("docs/api.md has every reason of an error", unknown_reasons()),
        ("every command is run, or listed with a reason", unexplained_commands(every)),
    ):
        report.case(name, none, faults)
    for page in every:
        run_examples(page, report)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


def none(faults):
    faults = list(faults)
    assert not faults, "\n".join(faults)


def files():
    """(name, text) of what people deploy and copy."""
    for pattern in FILES:
        for path in sorted(ROOT.glob(pattern)):
            name = str(path.relative_to(ROOT))
            if path.is_file() and not re.search("node_modules|/target/|pycache|dyndatapb", name):
                yield name, path.read_text(errors="replace")


def unknown_flags(every, manual):
    subcommands = "|".join(sorted(filter(None, manual.flags), key=len, reverse=True))
    # `dyndata`, also as "$dyndata" or as one of a list of words, and what follows on its line.
    command = re.compile(rf'\bdyndata["\',]* ["\']?({subcommands})\b([^\n|;&`#)]*)')
    texts = [(page.name, page.text) for page in every] + list(files())
    for name, text in texts:
        for subcommand, rest in command.findall(join(text)):
            for flag in FLAG.findall(rest):
                if flag not in manual.flags[subcommand]:
                    yield f"{name}: dyndata {subcommand} has no {flag}"
    for page in every:
        for span in page.spans():
            if re.match("dyndata [a-z]", span) and not manual.knows(span.split()[1:]):
                yield f"{page.name}: there is no {span}"
        # Those without a command: in backticks, in running text, and in files that are shown.
        bare = [span for span in page.spans() if span.startswith("--")]
        bare += [page.running_text(), *page.blocks("toml", "ini", "yaml")]
        for flag in sorted(set(FLAG.findall("\n".join(bare)))):
            if flag not in manual.every_flag | FLAGS_OF_OTHERS:
                yield f"{page.name}: dyndata has no {flag}"


def unknown_variables(every, manual):
    makefile = (ROOT / "Makefile").read_text()
    known = manual.variables | OTHER_VARIABLES | set(re.findall(r"^(DYNDATA_\w+) \?=", makefile, re.MULTILINE))
    known |= set(re.findall(r"\b(DYNDATA_\w+)=n\b", makefile))
    for name, text in [(page.name, page.text) for page in every] + list(files()):
        for variable in sorted(set(re.findall(r"\bDYNDATA_[A-Z_]+\b", text)) - known):
            yield f"{name}: there is no {variable}"


def wrong_defaults(every, manual):
    tables = 0
    for page in every:
        for heading, *rows in page.tables():
            if "default" in heading and "flag" in heading:
                tables += 1
                for row in rows:
                    cells = dict(zip(heading, row))
                    yield from wrong_row(page, cells["flag"], cells["default"], manual)
                    yield from wrong_names(page, cells, manual)
        # As in: `--drain-timeout` (20 s)
        for flag, said in re.findall(r"`(--[a-z-]+)`\s\((\d+ ?m?s)\)", page.prose):
            if said.replace(" ", "") != manual.settings.get(flag):
                yield f"{page.name}: {flag} is {manual.settings.get(flag)}, not {said}"
    if not tables:
        yield "there is no table of settings any more"


def wrong_row(page, flags, cell, manual):
    said = cell.replace("`", "")
    for flag in re.findall(r"--[a-z-]+", flags):
        default = manual.settings.get(flag)
        if said != default and not (default is None and (not said or said.startswith("unset"))):
            yield f"{page.name}: the default of {flag} is {default or 'unset'}, not {said or 'unset'}"


def wrong_names(page, cells, manual):
    flags = re.findall(r"--[a-z-]+", cells["flag"])
    variables = re.findall(r"[A-Z_]+", cells.get("environment", ""))
    for flag, variable in zip(flags, variables):
        if manual.environment.get(flag) != variable:
            yield f"{page.name}: the variable of {flag} is {manual.environment.get(flag)}"


def unmentioned_settings(every, manual):
    mentioned = {flag for page in every for flag in re.findall(r"--[a-z-]+", page.text)}
    for flag in sorted(manual.settings.keys() - mentioned):
        yield f"{flag} is on no page"


def unknown_targets(every):
    rules = re.findall(r"^([a-z][a-z0-9 -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()}
    for page in every:
        for text in [*page.spans(), *page.commands()]:
            for target in re.findall(r"(?:^|\s)make ([a-z][a-z0-9-]*)", text):
                if target not in targets:
                    yield f"{page.name}: make has no target {target}"


def broken_links(every):
    anchors = {page.path: page.anchors() for page in every}
    for page in every:
        for link in page.links():
            if re.match(r"https?:", link):
                continue
            target, _, anchor = link.partition("#")
            path = (page.path.parent / target).resolve() if target else page.path
            if not path.exists():
                yield f"{page.name}: {link} is not there"
            elif anchor and anchor not in anchors.get(path, ()):
                yield f"{page.name}: {link} has no such heading"


def missing_paths(every):
    for page in every:
        for span in page.spans():
            if "/" not in span or " " in span or re.fullmatch(NOT_PATHS, span):
                continue
            if span.split("/")[0] in GENERATED:
                continue
            # In full, or from the page's own folder, or a module of the crate.
            if not any(any(base.glob(span)) for base in (ROOT, page.path.parent, ROOT / "src")):
                yield f"{page.name}: there is no {span}"


def stale_reference():
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([ROOT / "docs/api/generate.sh", directory], check=True, timeout=600)
        if (Path(directory) / "api.md").read_text() != (ROOT / "docs/api.md").read_text():
            yield "docs/api.md is not what proto/ says; make api-docs writes it"


def unknown_reasons():
    sources = [(ROOT / name).read_text() for name in ("src/error.rs", "src/store.rs")]
    sources = "".join(source.partition("#[cfg(test)]\nmod tests")[0] for source in sources)
    reasons = set(re.findall(r'"([A-Z]+(?:_[A-Z]+)*)"', sources))
    documented = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", (ROOT / "docs/api.md").read_text()))
    for reason in sorted((reasons - OTHER_REASONS) ^ documented):
        yield f"{reason} is only in {'src/' if reason in reasons else 'docs/api.md'}"


def unexplained_commands(every):
    listed = set()
    for page in every:
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


def run_examples(page, report):
    commands = [example for example in page.examples() if not reason_not_to_run(example[0])]
    if not commands:
        return
    with (
        report.guard(f"{page.name}: its examples run"),
        redis_server() as redis_port,
        Session(redis_port) as session,
    ):
        if page.name == "README.md":
            run_readme(page, session, report)
        else:
            run_each(page, commands, session, report)


def run_readme(page, session, report):
    """With `make run`, as the page says: on the embedded store, then on Redis."""
    embedded, heading, on_redis = page.text.partition("## On Redis")
    assert heading, "README.md has lost the section that this test knows"
    redis_url = {"REDIS_URL": f"redis://127.0.0.1:{session.ports['6379']}"}
    for text, variables in ((embedded, {}), (on_redis, redis_url)):
        with make_run(session, variables):
            run_each(page, list(page.part(text).examples()), session, report)


def run_each(page, commands, session, report):
    for (command, expected), following in zip(commands, [*commands[1:], None]):
        if following and session.replaces_a_server(command, expected):
            title = f"{page.name}: shows that the server before still runs: {command}"
            report.case(title, session.check_with_old_server, command, *following)
        report.case(f"{page.name}: {command}", session.check, command, expected)


if __name__ == "__main__":
    sys.exit(main())
