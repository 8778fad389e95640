"""What `dyndata --help` and that of its subcommands say."""

import re

from processes import output


class Manual:
    """The flags of each subcommand, their defaults, and the environment variables."""

    def __init__(self, binary):
        # "token new" -> {"--name": None, ...}, each flag with its default if there is one.
        self.flags = {}
        # Of the settings: "--listen" -> "DYNDATA_LISTEN"
        self.environment = {}
        self.variables = set()
        self.read(binary, [])

    def read(self, binary, words):
        text = output([binary, *words, "--help"]).decode()
        flags = {}
        for part in re.split(r"^(?= +(?:-\w, )?--[a-z])", text, flags=re.MULTILINE)[1:]:
            flag = re.search(r"--[a-z-]+", part).group()
            default = re.search(r"\[default: ([^]]*)\]", part)
            flags[flag] = default and " ".join(default.group(1).split())
            if variable := re.search(r"\[env: (\w+)", part):
                self.variables.add(variable.group(1))
                if words == ["serve"]:
                    self.environment[flag] = variable.group(1)
        self.flags[" ".join(words)] = flags
        commands = re.search(r"^Commands:\n((?:  .*\n)+)", text, re.MULTILINE)
        for name in re.findall(r"^  (\S+)", commands.group(1), re.MULTILINE) if commands else ():
            if name != "help":
                self.read(binary, [*words, name])

    @property
    def settings(self):
        """The flags of `dyndata serve`, each with its default if there is one."""
        return {name: default for name, default in self.flags["serve"].items() if name != "--help"}

    @property
    def every_flag(self):
        return set().union(*self.flags.values())

    def knows(self, words):
        """Whether there is a subcommand that a command line begins with."""
        found = [name for name in self.flags if name and words[: len(name.split())] == name.split()]
        # One that has subcommands itself does nothing without them.
        deepest = max(found, key=len, default="")
        return bool(found) and not any(name.startswith(f"{deepest} ") for name in self.flags)
