"""Which code data may name: the classes of deqopt and of installed plugins, and what the user vouches for.

Checkpoints and configuration files name classes by their path, and people pass both on. Importing a module runs it, so
a path is checked before anything is imported. Only the standard library is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from deqopt.errors import TrustError
from deqopt.installed import registrations
from deqopt.registry import Group

OWN = frozenset({"deqopt", "deqopt_tasks"})
LIGHTNING = frozenset({"lightning", "pytorch_lightning", "lightning_fabric"})
"""What the section ``trainer`` of a configuration may name besides: callbacks, loggers, strategies."""

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Trust:
    """What data may name.

    Args:
        names: packages, modules or classes that the user vouches for, with all that is below them.
        command_line: whether he does so by ``--trust``, for messages.
    """

    names: frozenset[str] = frozenset()
    command_line: bool = False

    def allows(self, path: str, besides: Iterable[str] = ()) -> bool:
        """Whether data may name the class with this path; nothing is imported.

        It may where nothing new would be imported: the program has the class already, or there is no such module.
        """
        if self.vouches(path):
            return True
        parts = path.split(".")
        if "__main__" in parts[1:]:
            return False
        return parts[0] in {*OWN, *besides} or parts[0] in packages() or _is_imported(path) or _is_missing(parts[0])

    def vouches(self, path: str) -> bool:
        """Whether the user vouches for this path, or for something above it."""
        parts = path.split(".")
        return any(".".join(parts[:count]) in self.names for count in range(1, len(parts) + 1))

    def refusal(self, path: str, where: str) -> str:
        """Why a path is refused, and what to do about it."""
        top = path.partition(".")[0]
        said = f"{where} names {path}, which is no class of deqopt, of its tasks or of an installed plugin, "
        if top in sys.stdlib_module_names:
            return said + "but Python's own: no setting of deqopt needs it"
        how = f"add --trust {top}" if self.command_line else f"say trust=[{top!r}]"
        return said + f"and importing it could run anything: where you trust it, {how}"


class NoSuchKindError(TypeError):
    """A path that does not name a class of the kind that is needed.

    Attributes:
        found: the name of what it names.
    """

    def __init__(self, path: str, kind: type, found: object) -> None:
        self.found = found.__name__ if isinstance(found, type) else f"an object of type {type(found).__name__}"
        super().__init__(f"{path} is no {kind.__name__} but {self.found}")


_current: ContextVar[Trust] = ContextVar("trust", default=Trust())  # noqa: B039  (it is frozen)


def current() -> Trust:
    """What holds where this is asked."""
    return _current.get()


@contextmanager
def trusting(*names: str | type, command_line: bool = False) -> Iterator[Trust]:
    """Within it, data may name these packages, modules or classes too, besides what was trusted before.

    Args:
        names: such as ``"my_package"``, ``"my_package.module.Class"``, or a class itself.
        command_line: see :class:`Trust`.

    Raises:
        TrustError: a name that is none.
    """
    paths = {one if isinstance(one, str) else f"{one.__module__}.{one.__qualname__}" for one in names}
    for path in paths:
        if not all(part.isidentifier() for part in path.split(".")):
            raise TrustError(f"trust: {path!r} is no name of a package, a module or a class, such as my_package")
    before = current()
    token = _current.set(Trust(before.names | paths, before.command_line or command_line))
    try:
        yield current()
    finally:
        _current.reset(token)


def packages() -> frozenset[str]:
    """The top-level packages of deqopt and of all distributions that register tasks or solvers."""
    found = [one for group in Group for one in registrations(group.value)[0]]
    targets = {one.value.partition(":")[0].partition(".")[0].strip() for one in found}
    return OWN.union(targets, *(one.modules for one in found)) - sys.stdlib_module_names


def require_trusted(settings: Any, where: str, besides: Iterable[str] = ()) -> None:
    """Raise TrustError where settings name, at any depth, a class that data may not name.

    Args:
        settings: mappings, lists and plain values.
        where: these come from, such as ``in a.yaml``.
        besides: packages that may be named too.
    """
    trust, allowed = current(), {}
    for path in class_paths(settings):
        if path not in allowed:
            allowed[path] = "." not in path or trust.allows(path, besides)
        if not allowed[path]:
            raise TrustError(trust.refusal(path, where))


def class_paths(settings: Any) -> Iterator[str]:
    """All values of keys ``class_path`` in settings, and of Lightning's ``_class_path``."""
    left = [settings]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            for key, item in value.items():
                if key in ("class_path", "_class_path") and isinstance(item, str):
                    yield item
                left.append(item)
        elif isinstance(value, (list, tuple)):
            left.extend(value)


def trusted_class(path: str, kind: type[Kind]) -> type[Kind]:
    """The class that data names by its path, imported where that may be.

    Raises:
        TrustError: it may not be named. NoSuchKindError: it is no class of that kind. ImportError, AttributeError,
            or whatever the module raises: it cannot be imported.
    """
    trust = current()
    if not trust.allows(path):
        raise TrustError(trust.refusal(path, "a setting"))
    found = _resolved(path)
    if not isinstance(found, type) or not issubclass(found, kind):
        raise NoSuchKindError(path, kind, found)
    home = f"{found.__module__}.{found.__qualname__}"
    if not trust.allows(home):
        raise TrustError(trust.refusal(home, f"a setting, by {path},"))
    return found


def _is_missing(top: str) -> bool:
    """Whether there is no such module: saying so imports nothing."""
    return top.isidentifier() and top not in sys.modules and importlib.util.find_spec(top) is None


def _resolved(path: str) -> Any:
    """What a path names. Attributes of modules other than the one that is imported are not followed."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if count == 1 or error.name is None or not name.startswith(error.name):
                raise
            continue
        return _attribute(module, parts[count:])
    raise ImportError(f"{path!r} is no path of a class")


def _attribute(module: ModuleType, names: list[str]) -> Any:
    found: Any = module
    for name in names:
        if found is not module and isinstance(found, ModuleType):
            raise AttributeError(f"{module.__name__}.{'.'.join(names)} leaves the module {module.__name__}")
        found = getattr(found, name)
    return found


def _is_imported(path: str) -> bool:
    """Whether resolving a path imports nothing, for its module is there already, and leads to no module of Python."""
    parts = path.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:count]))
        if module is not None:
            own = parts[0] not in sys.stdlib_module_names - {"__main__"}
            there = vars(module).get(parts[count])
            return own and (isinstance(there, type) or (there is None and not hasattr(module, "__path__")))
    return False
