"""Plain descriptions of configured objects, from which a checkpoint makes them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from os import PathLike, fspath
from typing import Any

PLAIN = (str, int, float)


class NotPlainError(TypeError):
    """A value that cannot be written into a checkpoint as plain data."""


def spec(value: Any) -> Any:
    """``value`` as numbers, strings, lists and dicts; objects become ``{"class_path": ..., "init_args": ...}``.

    Frozen configurations (dataclasses) are described by their fields, tasks by the arguments they were made with.

    Raises:
        NotPlainError: something in it is neither plain nor made of plain values.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.name
    for kind in PLAIN:
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {str(key): spec(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [spec(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _described(value, {field.name: getattr(value, field.name) for field in fields(value) if field.init})
    if isinstance(getattr(value, "init_args", None), dict):
        return _described(value, value.init_args)
    raise NotPlainError(f"{type(value).__name__} is not a plain value")


def _described(value: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    kind = type(value)
    if "<locals>" in kind.__qualname__:
        raise NotPlainError(f"{kind.__qualname__} is defined inside a function and cannot be imported again")
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": spec(dict(arguments))}
