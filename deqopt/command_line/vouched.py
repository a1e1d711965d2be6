"""What the user vouches for on the command line and in the environment: ``--trust``, and the classes typed there."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from deqopt.command_line.configuration import CONFIG_VARIABLE, ENVIRONMENT, TRUST_VARIABLE
from deqopt.command_line.names import CHOICES
from deqopt.errors import DeqoptError
from deqopt.trust import LIGHTNING

FILES = ("-c", "--config", "--ckpt_path")
"""Options whose value is the name of a file, whatever it looks like."""
PATH = r"[^\W\d]\w*(?:\.[^\W\d]\w*)+"
"""Of a class, such as ``my_package.module.Class``."""
LIBRARIES = LIGHTNING | {"torch", "torchvision", "torchmetrics"}
"""Typing one of their classes vouches for that class alone."""


def without_trust(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The other arguments, and the names that ``--trust`` gives: one, or several with commas between them.

    Raises:
        DeqoptError: ``--trust`` without a name.
    """
    others: list[str] = []
    names: list[str] = []
    left = deque(words)
    while left:
        word = left.popleft()
        head, equals, value = word.partition("=")
        if head != "--trust":
            others.append(word)
            continue
        if not equals and (not left or left[0].startswith("-")):
            raise DeqoptError("--trust needs a name, of a package, a module or a class, such as --trust my_package")
        names += (value if equals else left.popleft()).split(",")
    return others, [name.strip() for name in names]


def vouched(words: Sequence[str], variables: Mapping[str, str]) -> set[str]:
    """All that the user vouches for: names given to ``--trust`` and in ``DEQOPT_TRUST``, and classes typed as values.

    Of a class that is typed, its whole package; of Python's own and of the large libraries, the class alone.
    """
    others, names = without_trust(words)
    names += [name.strip() for name in variables.get(TRUST_VARIABLE, "").split(",") if name.strip()]
    for path in (*_typed(others), *_set(variables)):
        top = path.partition(".")[0]
        names.append(path if top in LIBRARIES or top in sys.stdlib_module_names - {"__main__"} else top)
    return set(names)


def _typed(words: Sequence[str]) -> Iterator[str]:
    option = ""
    for word in words:
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            if not equals:
                continue
        else:
            value = word
        if option not in FILES:
            yield from _paths(value, whatever=option.removeprefix("--").removesuffix(".help") in CHOICES)


def _set(variables: Mapping[str, str]) -> Iterator[str]:
    for name, value in variables.items():
        if name.startswith(ENVIRONMENT) and name not in (CONFIG_VARIABLE, TRUST_VARIABLE):
            yield from _paths(value, whatever=name.removeprefix(ENVIRONMENT).lower() in CHOICES)


def _paths(value: str, whatever: bool) -> Iterator[str]:
    """The class paths in a value; a value that could be the name of a file is one only where it is written as one."""
    if re.fullmatch(PATH, value):
        if whatever or (value.rpartition(".")[2].lstrip("_")[:1].isupper() and not Path(value).exists()):
            yield value
    elif value.lstrip().startswith(("{", "[")):
        yield from re.findall(rf"(?<!\w){PATH}", value)
