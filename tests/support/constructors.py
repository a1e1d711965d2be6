"""All classes that settings of a run can name, and the types of their parameters."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from inspect import Parameter, isabstract
from pathlib import Path
from types import UnionType
from typing import Any

from jsonargparse._parameter_resolvers import get_signature_parameters

import deqopt.adjoints
import deqopt.regularizers  # noqa: F401  (so that its classes are known)
from deqopt import JointModule
from deqopt.callbacks import RunCheckpoint
from deqopt.registry import Group, plugins
from deqopt.trust import packages

PLAIN = (str, int, float, bool, type(None), Path)


@dataclass(frozen=True)
class Argument:
    """A parameter of a class that settings can name; ``types`` are what its annotation is made of."""

    of: type
    name: str
    annotation: Any
    types: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.of.__name__}.{self.name}"


def arguments() -> list[Argument]:
    """Those of the module, of what is kept of a run, of every plugin, and of all that these can be made of."""
    for group in Group:
        for plugin in plugins(group).values():
            plugin.load()
    found: dict[type, list[Argument]] = {}
    for root in (JointModule, RunCheckpoint):
        _collect(root, found)
    return [one for several in found.values() for one in several]


def _collect(root: type, found: dict[type, list[Argument]]) -> None:
    for kind in _below(root):
        if kind in found:
            continue
        found[kind] = []
        if isabstract(kind):
            continue
        for one in get_signature_parameters(kind, None, logger=False):
            types = tuple(_leaves(one.annotation))
            found[kind].append(Argument(kind, one.name, one.annotation, types))
            for leaf in types:
                if isinstance(leaf, type) and leaf.__module__.partition(".")[0] in packages():
                    _collect(leaf, found)


def _below(kind: type) -> Iterator[type]:
    if kind.__module__.partition(".")[0] in packages():
        yield kind
        for one in kind.__subclasses__():
            yield from _below(one)


def _leaves(annotation: Any) -> Iterator[Any]:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return
    if origin in (typing.Union, UnionType):
        for one in inner:
            yield from _leaves(one)
    elif isinstance(origin, type) and issubclass(origin, (list, tuple, dict, typing.Sequence)):  # type: ignore[arg-type]
        for one in inner:
            if one is not Ellipsis:
                yield from _leaves(one)
    else:
        yield annotation


def is_plain(kind: Any) -> bool:
    return kind in PLAIN or (isinstance(kind, type) and issubclass(kind, Enum))


def is_untyped(kind: Any) -> bool:
    return kind in (Any, object, Parameter.empty, type, dict, list, tuple)
