"""From what a user types to what the parser reads: plugin names, configuration files, checkpoints.

A choice of class (task, solver, adjoint) that comes later replaces an earlier one whole: jsonargparse would keep those
settings of the earlier class that the later one happens to have too, a step size for instance.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import yaml

import deqopt.adjoints
from deqopt.errors import CheckpointError, DeqoptError, PluginError
from deqopt.registry import Group, find

CHOICES = ("task", "solver", "adjoint")
PLUGINS = {"task": Group.TASKS, "solver": Group.SOLVERS}
EVALUATIONS = ("validate", "test", "predict")
ENVIRONMENT = "DEQOPT_"
DEFAULTS: dict[str, Any] = {"solver": {"class_path": "deqopt.solvers.tracking.Tracking"}}
"""What holds where neither a configuration nor the command line says otherwise."""


@dataclass(frozen=True)
class CommandLine:
    """Arguments after the subcommand, taken apart: configurations in their order, and the rest."""

    configs: tuple[dict[str, Any], ...]
    rest: tuple[str, ...]

    def value(self, option: str) -> str | None:
        """The last value given to ``--option`` (or ``--option=value``) in the rest."""
        found = None
        for position, word in enumerate(self.rest):
            head, equals, value = word.partition("=")
            if head == f"--{option}":
                found = value if equals else self.rest[position + 1] if position + 1 < len(self.rest) else None
        return found


def prepare(words: Sequence[str]) -> list[str]:
    """The arguments as the parser reads them: every name a class path, all configurations one.

    Raises:
        DeqoptError: a configuration that is missing or not YAML; CheckpointError, PluginError: see below.
    """
    if not words or words[0].startswith("-"):
        return list(words)
    subcommand = words[0]
    line = _split(words[1:], subcommand)
    configs = [DEFAULTS, _expand_config(_environment(os.environ)), *_from_checkpoint(subcommand, line), *line.configs]
    merged: dict[str, Any] = {}
    for config in configs:
        merged = _merge(merged, config)
    for choice in CHOICES:
        chosen = line.value(choice)
        if chosen is not None and chosen != _class_of(merged.get(choice)):
            merged.pop(choice, None)
    return [subcommand, "--config", json.dumps(merged), *line.rest]


def checkpoint_settings(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, as a configuration: task, solver, adjoint and model.

    Raises:
        CheckpointError: not a checkpoint of deqopt.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}") from error
    except Exception as error:  # torch.load raises whatever the bytes happen to trigger
        raise CheckpointError(f"{path} cannot be read as a checkpoint; it is damaged or of another program") from error
    settings = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or "task" not in settings:
        raise CheckpointError(f"{path} was not written by deqopt: it does not say which task it belongs to")
    config = {choice: settings[choice] for choice in CHOICES if choice in settings}
    config["model"] = {key: settings[key] for key in ("regularizers", "optimization", "compile") if key in settings}
    return config


def _split(words: Sequence[str], subcommand: str) -> CommandLine:
    configs: list[dict[str, Any]] = []
    rest: list[str] = []
    iterator = iter(words)
    for word in iterator:
        head, equals, value = word.partition("=")
        if head in ("-c", "--config"):
            configs.append(_read_config(value if equals else next(iterator, ""), subcommand))
        else:
            rest.append(word)
    return CommandLine(tuple(configs), tuple(_expand(rest)))


def _expand(words: Sequence[str]) -> list[str]:
    """``--task X``, ``--task=X``, ``--task.help X`` and the like with X replaced by its class path."""
    options = {f"--{choice}{tail}": choice for choice in CHOICES for tail in ("", ".help")}
    expanded: list[str] = []
    awaited: str | None = None
    for word in words:
        head, equals, value = word.partition("=")
        if awaited is not None and not word.startswith(("-", "{")):
            word = _canonical(awaited, word)
        elif equals and head in options and not value.startswith("{"):
            word = f"{head}={_canonical(options[head], value)}"
        awaited = options.get(word)
        expanded.append(word)
    return expanded


def _read_config(name: str, subcommand: str) -> dict[str, Any]:
    path = Path(name)
    if not name or not path.is_file():
        raise DeqoptError(f"--config: there is no file {name!r}; give a YAML file such as configs/demo/celeba.yaml")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DeqoptError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise DeqoptError(f"--config: {path} should hold keys and values, not {type(config).__name__}")
    if isinstance(config.get(subcommand), dict):
        config = config[subcommand]
    return _expand_config(config)


def _environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """``DEQOPT_TRAINER__MAX_EPOCHS=3`` as ``{"trainer": {"max_epochs": 3}}``; below ``task``, ``solver`` and ``adjoint``
    lie the arguments of the chosen class."""
    config: dict[str, Any] = {}
    for name, text in variables.items():
        if name.startswith(ENVIRONMENT) and name != ENVIRONMENT:
            *groups, key = name.removeprefix(ENVIRONMENT).lower().split("__")
            if groups and groups[0] in CHOICES:
                groups = [groups[0], "init_args", *groups[1:]]
            elif not groups and key in CHOICES:
                groups, key = [key], "class_path"
            section = config
            for group in groups:
                section = section.setdefault(group, {})
            section[key] = yaml.safe_load(text)
    return config


def _expand_config(config: dict[str, Any]) -> dict[str, Any]:
    """Names of classes below ``task``, ``solver`` and ``adjoint`` as class paths."""
    config = dict(config)
    for choice in set(CHOICES) & set(config):
        value = {"class_path": config[choice]} if isinstance(config[choice], str) else config[choice]
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            config[choice] = {**value, "class_path": _canonical(choice, value["class_path"])}
    return config


def _from_checkpoint(subcommand: str, line: CommandLine) -> list[dict[str, Any]]:
    """For evaluations: what the checkpoint was trained with, so that only differences need be given."""
    name = line.value("ckpt_path") or next((c["ckpt_path"] for c in line.configs if c.get("ckpt_path")), None)
    if subcommand not in EVALUATIONS or name is None or name in ("last", "best"):
        return []
    settings = checkpoint_settings(Path(name))
    named = line.value("task") or next((_class_of(c["task"]) for c in reversed(line.configs) if "task" in c), None)
    trained = _class_of(settings["task"])
    if named is not None and named != trained:
        raise CheckpointError(f"{name} was trained on the task {trained}, but {named} was asked for")
    return [settings]


def _merge(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    merged = dict(earlier)
    for key, value in later.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and _class_of(before) in (None, _class_of(value)):
            merged[key] = _merge(before, value)
        else:
            merged[key] = value
    return merged


def _class_of(value: Any) -> str | None:
    return value.get("class_path") if isinstance(value, dict) else value


def _canonical(choice: str, name: str) -> str:
    """The path of the class that ``name`` (a plugin's name, or a class path) stands for, after importing it.

    Raises:
        PluginError: an unknown name, with the nearest known one; or a class that cannot be imported, with the reason.
    """
    group = PLUGINS.get(choice)
    if "." not in name and group is not None:
        kind = find(group, name).load()
    elif "." not in name:
        kind = _adjoint(name)
    else:
        try:
            kind = resolve_name(name)
        except Exception as error:  # whatever the module raises while it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PluginError(f"--{choice}: {name!r} cannot be imported: {reason}") from error
    return f"{kind.__module__}.{kind.__qualname__}"


def _adjoint(name: str) -> type:
    if name not in deqopt.adjoints.__all__:
        known = ", ".join(one for one in deqopt.adjoints.__all__ if one != "Adjoint")
        raise PluginError(f"unknown adjoint {name!r}. Known adjoints: {known}")
    kind: type = getattr(deqopt.adjoints, name)
    return kind
