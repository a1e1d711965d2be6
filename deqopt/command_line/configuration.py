"""Settings from files and from the environment, and how later ones are laid over earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import isabstract
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from deqopt.command_line.bounded import MAX_CHARACTERS, ExcessError, NotYamlError, load_yaml, refuse_excess
from deqopt.command_line.names import CHOICES, RUNS, SECTIONS
from deqopt.errors import DeqoptError, PluginError, TrustError
from deqopt.registry import Group, find
from deqopt.trust import LIGHTNING, current, require_trusted

PLUGINS = {"task": Group.TASKS, "solver": Group.SOLVERS}
ENVIRONMENT = "DEQOPT_"
CONFIG_VARIABLE = f"{ENVIRONMENT}CONFIG"
TRUST_VARIABLE = f"{ENVIRONMENT}TRUST"
CHOICE_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class Source:
    """Settings, and where they stand: ``place`` is for messages, such as ``in demo.yaml``."""

    place: str
    settings: dict[str, Any]

    def has(self, key: str) -> bool:
        """Whether ``key``, such as ``task.size`` or ``task.init_args.size``, is set here."""
        node: Any = self.settings
        for part in key.split("."):
            if isinstance(node, dict) and part not in node:
                node = node.get("init_args")
            if not isinstance(node, dict) or part not in node:
                return False
            node = node[part]
        return True


def defaults(task: str | None) -> Source:
    """What holds where nothing else says otherwise: the solver and the adjoint of the task with this class path.

    Raises:
        ProblemError: these are none.
    """
    from deqopt.adjoints import Adjoint
    from deqopt.errors import require
    from deqopt.solvers import JointSolver
    from deqopt.spec import spec
    from deqopt.task import Task

    named = None if task is None else resolve_name(task)
    kind = named if isinstance(named, type) and issubclass(named, Task) else Task
    solver, adjoint = kind.default_solver(), kind.default_adjoint()
    require(solver, JointSolver, f"what {kind.__name__}.default_solver() returns")
    require(adjoint, Adjoint, f"what {kind.__name__}.default_adjoint() returns")
    return Source("by default", {"solver": spec(solver), "adjoint": spec(adjoint)})


def read_config(name: str, command: str, option: str = "--config") -> Source:
    """A YAML file; what stands below ``command``, such as ``fit:``, goes over what stands outside.

    ``option`` is what named the file, for messages.

    Raises:
        DeqoptError: no such file, not YAML, or not keys and values where these should be.
    """
    path = Path(name).expanduser()
    if not name or not path.is_file():
        raise DeqoptError(f"{option}: there is no file {name!r}; give a YAML file such as configs/demo/celeba.yaml")
    try:
        with path.open(encoding="utf-8") as file:
            config = load_yaml(file.read(MAX_CHARACTERS + 1))
    except (NotYamlError, UnicodeDecodeError) as error:
        raise DeqoptError(f"{option}: {path}: {error}") from error
    except OSError as error:
        raise DeqoptError(f"{option}: {path} cannot be read: {error.strerror}") from error
    config = {} if config is None else config
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise DeqoptError(f"{option}: {path} should hold keys and values, not {_shown(config)}")
    common = {key: value for key, value in config.items() if key not in RUNS}
    place = f"in {path}"
    _require_trusted(config, place)
    below = config[command] if config.get(command) is not None else {}
    if not isinstance(below, dict):
        raise DeqoptError(f"{command} {place} should hold keys and values, not {_shown(below)}")
    return checked(Source(place, merge(common, below)))


def _require_trusted(config: dict[str, Any], place: str) -> None:
    """See :func:`deqopt.trust.require_trusted`; what is said for ``trainer`` may come from Lightning too."""
    parts = [config, *(config[name] for name in RUNS if isinstance(config.get(name), dict))]
    for part in parts:
        require_trusted(
            {key: value for key, value in part.items() if key not in ("trainer", *RUNS)}, f"what stands {place}"
        )
        require_trusted(part.get("trainer"), f"trainer {place}", LIGHTNING)


def environment(variables: Mapping[str, str], command: str) -> list[Source]:
    """``DEQOPT_TRAINER__MAX_EPOCHS=3`` as ``{"trainer": {"max_epochs": 3}}``, one source a variable.

    Below ``task``, ``solver`` and ``adjoint`` lie the arguments of the chosen class. ``DEQOPT_CONFIG`` names a file,
    which the other variables go over.

    Raises:
        DeqoptError: a value that is not YAML.
    """
    sources = []
    if CONFIG_VARIABLE in variables:
        sources.append(read_config(variables[CONFIG_VARIABLE], command, CONFIG_VARIABLE))
    for name in sorted(variables, key=lambda name: (name.count("__"), name)):
        if not name.startswith(ENVIRONMENT) or name in (ENVIRONMENT, CONFIG_VARIABLE, TRUST_VARIABLE):
            continue
        place = f"in the environment variable {name}"
        keys = name.removeprefix(ENVIRONMENT).lower().split("__")
        if keys[0] in CHOICES:
            keys[1:1] = ["init_args" if keys[1:] else "class_path"]
        try:
            value = load_yaml(variables[name])
        except NotYamlError as error:
            raise DeqoptError(f"the value {place}: {error}") from error
        for key in reversed(keys):
            value = {key: value}
        sources.append(checked(Source(place, value)))
    return sources


def checked(source: Source) -> Source:
    """The same with class paths for the names below ``task``, ``solver`` and ``adjoint``, and empty sections left out.

    Raises:
        DeqoptError: something else where keys and values, or a class, should be; PluginError: see ``class_path``.
    """
    try:
        refuse_excess(source.settings)
    except ExcessError as error:
        raise DeqoptError(f"what stands {source.place}: {error}") from error
    settings = {k: v for k, v in source.settings.items() if v is not None or k not in (*CHOICES, *SECTIONS)}
    for section in SECTIONS:
        if not isinstance(settings.get(section, {}), (dict, str)):
            found = _shown(settings[section])
            raise DeqoptError(f"{section} {source.place} should hold keys and values, not {found}")
    for choice in CHOICES:
        if choice in settings:
            settings[choice] = _chosen(choice, settings[choice], source.place)
    return Source(source.place, settings)


def merge(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """``later`` over ``earlier``, key by key; a class that differs replaces the earlier one with all its arguments."""
    merged = dict(earlier)
    for key, value in later.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and _same_class(before, value):
            merged[key] = merge(before, value)
        else:
            merged[key] = value
    return merged


def class_of(value: Any) -> str | None:
    """The ``class_path`` of a choice."""
    return value.get("class_path") if isinstance(value, dict) else None


def class_path(choice: str, name: str) -> str:
    """The path of the class that ``name`` (a plugin's name, or a class path) stands for, after importing it.

    Raises:
        PluginError: an unknown name, with the nearest known one; or a class that cannot be imported, with the reason.
        TrustError: a path that the user did not vouch for.
    """
    if "." in name:
        kind = _imported(choice, name)
    elif choice in PLUGINS:
        kind = find(PLUGINS[choice], name).load()
    else:
        kind = _adjoint(name)
    return f"{kind.__module__}.{kind.__qualname__}"


def _same_class(before: dict[str, Any], later: dict[str, Any]) -> bool:
    return class_of(before) is None or class_of(later) in (None, class_of(before))


def _chosen(choice: str, value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"class_path": class_path(choice, value)}
    if not isinstance(value, dict):
        raise DeqoptError(f"{choice} {place} should be a name, or class_path and init_args, not {_shown(value)}")
    for key in value:
        if key not in CHOICE_KEYS:
            nearest = get_close_matches(str(key), CHOICE_KEYS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "its options belong below init_args"
            raise DeqoptError(f"unknown key {choice}.{key} {place}: {hint}")
    name = value.get("class_path")
    if name is None:
        return value
    if not isinstance(name, str):
        raise DeqoptError(f"{choice}.class_path {place} should be a name or a path, not {_shown(name)}")
    return {**value, "class_path": class_path(choice, name)}


def _imported(choice: str, name: str) -> type:
    if not current().allows(name):
        raise TrustError(current().refusal(name, choice))
    try:
        kind = resolve_name(name)
    except Exception as error:  # whatever the module raises while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{choice} {name!r} cannot be imported: {reason}") from error
    if not isinstance(kind, type):
        raise PluginError(f"{choice} {name!r} is no class but an object of type {type(kind).__name__}")
    return kind


def _adjoint(name: str) -> type:
    adjoints = import_module("deqopt.adjoints")
    exported = {one: getattr(adjoints, one) for one in adjoints.__all__}
    known: dict[str, type] = {
        one: kind
        for one, kind in exported.items()
        if isinstance(kind, type) and issubclass(kind, adjoints.Adjoint) and not isabstract(kind)
    }
    if name not in known:
        raise PluginError(f"unknown adjoint {name!r}. Known adjoints: {', '.join(known)}")
    return known[name]


def _shown(value: Any) -> str:
    kinds: dict[type, str] = {list: "a list", dict: "a mapping whose keys are not all text"}
    return kinds.get(type(value), repr(value))
