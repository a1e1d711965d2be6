"""What the parser complains of, in one short line: which setting, where it was given, what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from pkgutil import resolve_name

from deqopt.trust import current

ON_COMMAND_LINE = "on the command line"

UNKNOWN_WORDS = re.compile(r"unrecognized arguments: (?P<word>\S+)")
UNKNOWN_KEY = re.compile(r"^(?:Group '(?P<group>[^']+)' does not accept o|O)ption '(?P<name>[^']+)'")
LINKED = re.compile(r"^argument (?P<source>\S+) --> (?P<target>\S+):")
DENIED = re.compile(r"Importing '(?P<path>[^']+)' is not allowed")
OF_KEY = re.compile(r'^Parser key "(?P<key>[^"]+)": (?P<problem>.*)$')
OF_CLASS = re.compile(r"Problem with given class_path '(?P<path>[^']+)': (?P<problem>.*)$")
NO_CLASS = re.compile(r"Expected a dot import path string: (?P<name>\S+)")
EXPECTED = re.compile(r"Expected an? (?P<type>.+?)(?=\.? - |\. ?$| Given value|$)")
VALUE = re.compile(r"(?:Got|Given) value: (?P<value>.*?)(?= - | Given value|$)")
NESTED = re.compile(r"NestedArg\(key='(?P<name>[^']+)'")


@dataclass(frozen=True)
class Complaints:
    """Explains messages of jsonargparse.

    Args:
        options: all options of the command, without dashes, for the nearest to an unknown one.
        place: where a setting such as ``task.size`` was given; empty where that is not known.
    """

    options: Collection[str]
    place: Callable[[str], str]

    def explain(self, message: str) -> str:
        """The essence of a message, which may have any number of lines, in one of bounded length."""
        return shortened(self._explained(shortened(" ".join(message.split()), 4000)))

    def _explained(self, message: str) -> str:
        if found := UNKNOWN_WORDS.match(message):
            word = found["word"].partition("=")[0]
            return self._unknown(word.lstrip("-")) if word.startswith("-") else f"unexpected argument {word!r}"
        if found := UNKNOWN_KEY.match(message):
            return self._unknown(".".join(filter(None, (found["group"], found["name"]))))
        if found := LINKED.match(message):
            return f"--{found['target']} cannot be set: give --{found['source']}"
        found = OF_KEY.match(message)
        if denied := DENIED.search(message):
            return current().refusal(denied["path"], self.named(found["key"]) if found else "a setting")
        return self._about(found["key"], found["problem"]) if found else message

    def _about(self, key: str, problem: str) -> str:
        if found := OF_CLASS.search(problem):
            if unknown := UNKNOWN_KEY.match(found["problem"]):
                return self._unknown_argument(key, unknown["name"], found["path"])
            if nested := OF_KEY.match(found["problem"]):
                return self._about(f"{key}.{nested['key']}", nested["problem"])
        if found := NO_CLASS.search(problem):
            return f"{self.named(key)}: there is no {found['name']!r} to choose: give the name of a class, or its path"
        value = VALUE.search(problem)
        if found := value and NESTED.match(value["value"]):
            below = self.named(f"{key}.{found['name']}")
            if "class" in _readable(problem):
                return f"{below} is an option of a class that is not chosen yet: give --{key} NAME before it"
            return f"unknown option {below}: {key} is one value"
        errors = problem[: value.start() if value else None].rpartition("Errors: - ")[2]
        if value is None or not errors.startswith("Expected a "):
            return f"{self.named(key)}: {errors.partition(' - ')[0]}"
        types = list(dict.fromkeys(_readable(one["type"]) for one in EXPECTED.finditer(errors)))
        expected = " or ".join(filter(None, (", ".join(types[:-1]), types[-1])))
        hint = f"; --{key}+ VALUE adds one" if f"{key}+" in self.options else ""
        return f"{self.named(key)}: expected {expected}, got {value['value']!r}{hint}"

    def _unknown(self, key: str) -> str:
        nearest = get_close_matches(key, self.options, n=1, cutoff=0.75)
        hint = f"did you mean {self._spelled(key, nearest[0])}?" if nearest else "--help lists all"
        return f"unknown option {self.named(key)}: {hint}"

    def _unknown_argument(self, group: str, name: str, class_path: str) -> str:
        key = f"{group}.{name}"
        known = [one for one in signature(resolve_name(class_path)).parameters if one != "self"]
        nearest = get_close_matches(name, known, n=1)
        has = f"{class_path.rpartition('.')[2]} has {', '.join(known) or 'none'}"
        hint = f"did you mean {self._spelled(key, f'{group}.{nearest[0]}')}?" if nearest else has
        return f"unknown option {self.named(key)}: {hint}"

    def named(self, key: str) -> str:
        """A setting as the user gave it, and where."""
        place = self.place(key)
        return f"{self._spelled(key, key)}{'' if place in ('', ON_COMMAND_LINE) else f' {place}'}"

    def _spelled(self, key: str, shown: str) -> str:
        return f"--{shown}" if self.place(key) == ON_COMMAND_LINE else shown


def shortened(text: str, longest: int = 500) -> str:
    """A text without its middle, where it is longer."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} ... {text[-half:]}"


def _readable(kind: str) -> str:
    """A type of Python as the user would call it."""
    if listed := re.search(r"Literal\[(.*)\]$|member of <enum '\w+'>: \{(.*)\}", kind):
        return (listed[1] or listed[2]).replace(",", ", ").replace(",  ", ", ")
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("NoneType", "null").replace("Sequence", "list")
