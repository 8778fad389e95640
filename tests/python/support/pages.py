"""The parts of the documentation's pages: code blocks, tables, links, anchors."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from support.processes import ROOT

PATTERNS = ("*.md", "docs/*.md", "*/README.md", "tests/python/*/README.md")
# Folders of what is installed or built here.
GENERATED = (".tools", "target")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def pages():
    """Every page that people read, the front page first."""
    found = [path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))]
    found = [path for path in found if path.relative_to(ROOT).parts[0] not in GENERATED]
    return sorted((Page(path) for path in found), key=lambda page: page.name != "README.md")


@dataclass
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self):
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self):
        """The page, or a part of it."""
        return self.path.read_text()

    def part(self, text):
        """The page with only this text."""
        part = Page(self.path)
        part.text = text
        return part

    @cached_property
    def prose(self):
        """The text without its code blocks and comments."""
        return COMMENT.sub("", FENCE.sub("", self.text))

    def blocks(self, *languages):
        """The code blocks in one of these languages."""
        return [block for language, block in FENCE.findall(self.text) if language in languages]

    def languages(self):
        """The languages of the code blocks."""
        return {language for language, _ in FENCE.findall(self.text)}

    def tables(self):
        """Each table as a list of rows, the heading first; a row is a list of cells."""
        for table in re.findall(r"(?:^\|.*\|\n)+", self.prose, re.MULTILINE):
            rows = [line.strip("|").split("|") for line in table.splitlines()]
            yield [[cell.strip() for cell in row] for row in rows if set("".join(row)) - set("-: ")]

    def examples(self):
        """(command, expected output) for each `$ ` line of the console blocks."""
        for block in self.blocks("console"):
            yield from examples(block)

    def recipes(self):
        """The command lines of blocks that show no output."""
        for block in self.blocks("sh"):
            for line in join(block).splitlines():
                if command := without_comment(line):
                    yield command

    def commands(self):
        """Each command for a reader to type, as one line."""
        yield from (command for command, _ in self.examples())
        yield from self.recipes()

    def links(self):
        """The targets of links and images."""
        yield from re.findall(r"\]\(([^)\s]+)\)", self.prose)
        yield from re.findall(r'\b(?:src|srcset|href)="([^"]+)"', self.prose)

    def anchors(self):
        """The fragments that GitHub makes of the headings."""
        found = []
        for title in re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE):
            title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
            found.append(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-"))
        # A repeated heading gets a number.
        return {
            f"{anchor}-{before}" if (before := found[:place].count(anchor)) else anchor
            for place, anchor in enumerate(found)
        }


def examples(block):
    """The commands of a console block, each with what it prints."""
    for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, expected = re.match(r"((?:.*\\\n)*.*)\n?([\s\S]*)", example).groups()
        yield without_comment(join(command)), expected


def join(text):
    """The text with its continuation lines joined."""
    return re.sub(r"\\\n\s*", "", text)


def without_comment(line):
    """The line without a comment that stands apart from it."""
    return re.sub(r"(^|\s\s+)#.*", "", line).strip()
