"""From what a user types to what the parser reads: every name a class path, all configurations one.

A choice of class (task, solver, adjoint) that comes later replaces an earlier one whole: jsonargparse would keep those
settings of the earlier class that the later one happens to have too, a step size for instance. And it is made before
the options of the class are read, wherever it stands.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from deqopt.checkpoints import NEWEST, newest_checkpoint, settings_of
from deqopt.configuration import CHOICES, DEFAULTS, Source, checked, class_of, class_path, environment, merge
from deqopt.configuration import read_config as read_config
from deqopt.errors import CheckpointError, DeqoptError
from deqopt.registry import Group, plugins

COMMAND_LINE = "on the command line"


@dataclass(frozen=True)
class Invocation:
    """What one call of ``deqopt`` asks for.

    ``sources`` are all settings but the ``options``, lowest precedence first; ``options`` go over them.
    """

    command: str
    sources: tuple[Source, ...]
    options: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """All sources as one configuration."""
        return reduce(merge, (source.settings for source in self.sources), {})

    @property
    def task(self) -> str | None:
        """The class path of the chosen task."""
        return class_of(self.settings.get("task"))

    @property
    def words(self) -> list[str]:
        """The arguments that the parser reads."""
        return ["--config", json.dumps(self.settings, default=str), *self.options]

    def value(self, option: str) -> Any:
        """What an option will be, such as ``trainer.default_root_dir``; None where nothing is said."""
        found: Any = self.settings
        for key in option.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        for position, word in enumerate(self.options):
            head, equals, value = word.partition("=")
            if head == f"--{option}":
                found = value if equals else next(iter(self.options[position + 1 :]), None)
        return found

    def place(self, key: str) -> str:
        """Where a setting such as ``task.size`` was given, in words; empty where nobody gave it."""
        if any(option.partition("=")[0].rstrip("+") == f"--{key}" for option in self.options):
            return COMMAND_LINE
        return next((source.place for source in reversed(self.sources) if source.has(key)), "")


def read(command: str, words: Sequence[str]) -> Invocation:
    """Take the arguments after the command apart, and gather all settings that they are to be laid over.

    In order of precedence: the options, the classes chosen on the command line, configurations (later over earlier),
    the checkpoint (task, solver, adjoint and model are those that it was trained with), the environment, defaults.

    Raises:
        DeqoptError: no task, a name, configuration or checkpoint that does not fit; the text says which.
    """
    given = _taken_apart(command, words)
    named = Invocation(command, (*environment(os.environ), *given.sources), given.options)
    path = _checkpoint(named)
    trained = () if path is None else (_of_checkpoint(path, named.task),)
    options = given.options if path is None else (*given.options, f"--ckpt_path={path}")
    invocation = Invocation(command, (DEFAULTS, *environment(os.environ), *trained, *given.sources), options)
    only_shown = any(word in ("-h", "--help") or ".help" in word for word in options)
    if invocation.task is None and not only_shown:
        known = ", ".join(plugins(Group.TASKS)) or "none"
        raise DeqoptError(f"no task is chosen: give --task NAME, one of those installed ({known}) or a class path")
    return invocation


def _taken_apart(command: str, words: Sequence[str]) -> Invocation:
    sources: list[Source] = []
    chosen: dict[str, Any] = {}
    options: list[str] = []
    left = deque(words)
    while left:
        word = left.popleft()
        head, equals, value = word.partition("=")
        if head in ("-c", "--config"):
            sources.append(read_config(value if equals else _next(head, left), command))
        elif head.removeprefix("--") in CHOICES:
            chosen[head.removeprefix("--")] = value if equals else _next(head, left)
        elif head.removeprefix("--").removesuffix(".help") in CHOICES:
            name = value if equals else left.popleft() if left and not left[0].startswith("-") else None
            options.append(_help(head, name, chosen))
        else:
            options.append(word)
    choices = {choice: json.loads(value) if value.startswith("{") else value for choice, value in chosen.items()}
    return Invocation(command, (*sources, checked(Source(COMMAND_LINE, choices))), tuple(options))
