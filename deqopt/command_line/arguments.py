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
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from deqopt.command_line.bounded import ExcessError, NotYamlError, load_yaml, refuse_excess_in
from deqopt.command_line.checkpoints import NEWEST, Chosen, newest_checkpoint, settings_of
from deqopt.command_line.complaints import ON_COMMAND_LINE
from deqopt.command_line.configuration import (
    Source,
    checked,
    class_of,
    class_path,
    defaults,
    environment,
    merge,
    read_config,
)
from deqopt.command_line.names import CHOICES
from deqopt.command_line.vouched import without_trust
from deqopt.errors import CheckpointError, DeqoptError
from deqopt.registry import Group, plugins
from deqopt.trust import class_paths, require_trusted

RUNS_ROOT = "runs"
"""``trainer.default_root_dir`` where nobody says otherwise."""


@dataclass(frozen=True)
class Invocation:
    """What one call of ``deqopt`` asks for.

    ``sources`` are all settings but the ``options``, lowest precedence first; ``options`` go over them. ``remark`` says
    which checkpoint ``last`` or ``best`` stands for.
    """

    command: str
    sources: tuple[Source, ...]
    options: tuple[str, ...]
    remark: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """All sources as one configuration."""
        return reduce(merge, (source.settings for source in self.sources), {})

    @property
    def task(self) -> str | None:
        """The class path of the chosen task."""
        return class_of(self.settings.get("task"))

    @property
    def classes(self) -> list[str]:
        """The paths of all classes that are chosen, or that help is asked for."""
        helped = [word.partition(".help=")[2] for word in self.options if ".help=" in word]
        return [path for path in (*class_paths(self.settings), *helped) if "." in path]

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
        """Where a setting such as ``task.size``, or else what it is part of, was given; empty where nobody gave it."""
        given = {option.partition("=")[0].removeprefix("--").rstrip("+") for option in self.options}
        while key:
            if key in given:
                return ON_COMMAND_LINE
            if found := next((source.place for source in reversed(self.sources) if source.has(key)), ""):
                return found
            key = key.rpartition(".")[0]
        return ""


def read(command: str, words: Sequence[str]) -> Invocation:
    """Take the arguments after the command apart, and gather all settings that the options are to be laid over.

    In order of precedence: the options, the classes chosen on the command line, configurations (later over earlier),
    the checkpoint (its task, solver, adjoint and model), the environment, defaults.

    Raises:
        DeqoptError: no task; a name, configuration or checkpoint that is not right.
    """
    sources, options = _taken_apart(command, without_trust(words)[0])
    variables = environment(os.environ, command)
    given = Invocation(command, (*variables, *sources), options)
    chosen = _checkpoint(given)
    if chosen is not None:
        path = chosen.path
        trained = Source(f"in {path}", settings_of(path))
        _check_task(given, trained)
        require_trusted(trained.settings, str(path))
        sources, options = (checked(trained), *sources), (*options, f"--ckpt_path={path}")
    said = (*variables, *sources)
    remark = "" if chosen is None else chosen.remark
    invocation = Invocation(command, (defaults(Invocation(command, said, options).task), *said), options, remark)
    if any(_asks_for_help(word) for word in options):
        return replace(invocation, options=tuple(_with_class(word, invocation) for word in options))
    if invocation.task is None:
        known = ", ".join(plugins(Group.TASKS)) or "none"
        raise DeqoptError(f"no task is chosen: give --task NAME, one of those installed ({known}) or a class path")
    return invocation


def _taken_apart(command: str, words: Sequence[str]) -> tuple[tuple[Source, ...], tuple[str, ...]]:
    """Configurations and choices of classes, lowest precedence first; and the other options."""
    configs: list[Source] = []
    chosen: dict[str, Any] = {}
    options: list[str] = []
    left = deque(words)
    while left:
        word = left.popleft()
        head, equals, value = word.partition("=")
        name = head.removeprefix("--")
        if head in ("-c", "--config"):
            configs.append(read_config(value if equals else _next(head, left), command))
        elif head.startswith("--") and name in CHOICES:
            value = value if equals else _next(head, left)
            chosen[name] = _yaml(head, value) if value.startswith("{") else value
        elif _asks_for_help(head) and name.removesuffix(".help") in CHOICES:
            value = value if equals or not left or left[0].startswith("-") else left.popleft()
            options.append(f"{head}={class_path(name.removesuffix('.help'), value)}" if value else head)
        else:
            _refuse_excess(word, options)
            options.append(word)
    return (*configs, checked(Source(ON_COMMAND_LINE, chosen))), tuple(options)


def _yaml(option: str, value: str) -> Any:
    try:
        return load_yaml(value)
    except NotYamlError as error:
        raise DeqoptError(f"{option}: {error}") from error


def _refuse_excess(word: str, before: Sequence[str]) -> None:
    """Raise DeqoptError where an option with its value, or a value after others, is more than settings can be."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    try:
        refuse_excess_in(value if equals else word)
    except ExcessError as error:
        named = option or next((one for one in reversed(before) if one.startswith("-")), "a value")
        raise DeqoptError(f"{named[:100]}: {error}") from error


def _next(option: str, left: deque[str]) -> str:
    if not left or left[0].startswith("-"):
        raise DeqoptError(f"{option} needs a value" + (", a YAML file" if option in ("-c", "--config") else ", a name"))
    return left.popleft()


def _asks_for_help(word: str) -> bool:
    return word in ("-h", "--help") or word.partition("=")[0].endswith(".help")


def _with_class(word: str, invocation: Invocation) -> str:
    """``--task.help`` as help for the task that is chosen."""
    choice = word.removeprefix("--").removesuffix(".help")
    if not word.endswith(".help") or choice not in CHOICES:
        return word
    chosen = class_of(invocation.settings.get(choice))
    if chosen is None:
        raise DeqoptError(f"{word} needs a name, as in {word} NAME")
    return f"{word}={chosen}"


def _checkpoint(given: Invocation) -> Chosen | None:
    name = given.value("ckpt_path")
    if name in (None, "null"):
        return None
    if name == "":
        raise CheckpointError("ckpt_path is empty; give the path of one, or 'last' or 'best' for the newest run")
    if name not in NEWEST:
        return Chosen(Path(str(name)).expanduser())
    return newest_checkpoint(given.value("trainer.default_root_dir") or RUNS_ROOT, given.task, name)


def _check_task(given: Invocation, trained: Source) -> None:
    expected = trained.settings["task"].get("class_path")
    if given.task not in (None, expected):
        checkpoint = trained.place.removeprefix("in ")
        raise CheckpointError(
            f"{checkpoint} was trained on the task {expected}, but {given.task} was asked for: "
            "leave --task out, or give a checkpoint of that task"
        )
