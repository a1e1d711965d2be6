"""What jsonargparse may import and build while it reads settings that come from files."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace, _common, _loaders_dumpers

from deqopt.command_line.bounded import bounded
from deqopt.errors import TrustError
from deqopt.trust import current, packages


@contextmanager
def guarded(*besides: str) -> Iterator[None]:
    """Within it, jsonargparse imports what :func:`deqopt.trust.current` allows and the paths ``besides``; nothing else.

    A value for a parameter of any type stays what it is, and YAML is read within the bounds of
    :mod:`deqopt.command_line.bounded`.
    """
    settings, before = _common.parsing_settings, dict(_common.parsing_settings)
    loader = _loaders_dumpers.yaml_default_loader
    allowed = {*packages(), *current().names, *besides} - {"jsonargparse"}
    verdicts = {"*": False, **dict.fromkeys((f"{name}.__main__" for name in allowed), False)}
    _loaders_dumpers.yaml_default_loader = bounded(_loaders_dumpers.get_yaml_default_loader())
    settings.update(
        import_path_verdicts={**verdicts, **dict.fromkeys(allowed, True)},
        import_paths_enforced=True,
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    finally:
        settings.update(before)
        _loaders_dumpers.yaml_default_loader = loader


def refuse_code(settings: Any, where: str = "") -> None:
    """Raise TrustError where parsed settings hold a function or a type, or a class path that is none of a class.

    What the user vouches for by name may be anything.

    Args:
        settings: what jsonargparse has parsed but not built.
        where: its key, such as ``trainer.callbacks``, for messages.
    """
    if isinstance(settings, Namespace):
        settings = vars(settings)
    if isinstance(settings, Mapping):
        path = settings.get("class_path")
        if isinstance(path, str) and "." in path and not isinstance(resolve_name(path), type):
            raise TrustError(f"{where}: {path} is no class")
        for key, value in settings.items():
            refuse_code(value, f"{where}.{key}".strip("."))
    elif isinstance(settings, (list, tuple, set, frozenset)):
        for value in settings:
            refuse_code(value, where)
    else:
        for function in _code(settings):
            path = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
            if not current().vouches(path):
                raise TrustError(
                    f"{where}: {path} is code, and settings may name only classes, of objects that are made"
                )


def _code(value: Any) -> Iterable[Any]:
    if isinstance(value, partial):
        return (value.func,)
    return (value,) if isinstance(value, type) or inspect.isroutine(value) or inspect.ismodule(value) else ()
