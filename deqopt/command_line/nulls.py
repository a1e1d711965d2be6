"""Null where a value is needed: the parser lets it pass for any argument of a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pkgutil import resolve_name
from typing import Any

from deqopt.errors import DeqoptError


def refuse_nulls(key: str, chosen: Any, named: Callable[[str], str]) -> None:
    """Raise DeqoptError where an argument of a chosen class, or of one within it, is null and may not be.

    Args:
        key: of the choice, such as ``task``.
        chosen: its ``class_path`` and ``init_args``; anything else is passed over.
        named: a key as the user gave it.
    """
    if isinstance(chosen, (list, tuple)):
        for one in chosen:
            refuse_nulls(key, one, named)
    if not isinstance(chosen, Mapping) or not isinstance(chosen.get("class_path"), str):
        return
    parameters = signature(resolve_name(chosen["class_path"])).parameters
    for name, value in (chosen.get("init_args") or {}).items():
        annotation = str(getattr(parameters.get(name), "annotation", None))
        if value is None and "None" not in annotation and "Optional" not in annotation:
            raise DeqoptError(f"{named(f'{key}.{name}')}: null is no value of it; leave it out for its default")
        refuse_nulls(f"{key}.{name}", value, named)
