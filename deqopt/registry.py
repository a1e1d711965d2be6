"""Discovery of tasks and solvers through entry points, without importing any of them before it is chosen.

Only the standard library is used: listing what is installed must not wait for torch, and a plugin that
cannot be imported must not harm the others.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import importlib.util
import textwrap
import warnings
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from deqopt.command_line.markup import plain
from deqopt.errors import PluginError
from deqopt.installed import normalised, registrations

_MALFORMED = "its target has to be written 'module:Class'"


class Group(Enum):
    """The entry-point groups; each value is the group's name in a distribution's metadata."""

    TASKS = "deqopt.tasks"
    SOLVERS = "deqopt.solvers"

    @property
    def plural(self) -> str:
        """The group in messages: ``tasks`` or ``solvers``."""
        return self.name.lower()

    @property
    def singular(self) -> str:
        """One member of the group in messages: ``task`` or ``solver``."""
        return self.plural.removesuffix("s")


@dataclass(frozen=True)
class Plugin:
    """One registered class, not yet imported.

    ``target`` is ``module:Class`` as registered and ``distribution`` the installed package that registers it,
    such as ``deqopt 0.1.0``. ``rivals`` are the plugins that other distributions register under the same name
    for another class; a plugin with rivals is ambiguous, and ``find`` and ``load`` refuse it.
    """

    name: str
    target: str
    distribution: str
    group: Group
    rivals: tuple[Plugin, ...] = ()

    @property
    def class_path(self) -> str:
        """The target as jsonargparse writes it: ``module.Class``."""
        return self.target.replace(":", ".")

    @property
    def summary(self) -> str:
        """First line of the class's docstring (the module's, where the class is imported from elsewhere), plain text.

        Read from the source file: neither the plugin nor its parent packages are imported. Where nothing can be
        read the text says why, such as ``(cannot be read: no module named foo)``.
        """
        module, _, qualified_name = self.target.partition(":")
        if not module or not qualified_name:
            return f"(cannot be read: {_MALFORMED})"
        try:
            tree = _parse(_source_file(module))
        except (ImportError, OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return f"(cannot be read: {_one_line(str(error) or type(error).__name__)})"
        docstring = ast.get_docstring(_class_definition(tree, qualified_name) or tree) or ""
        return plain(next(iter(docstring.strip().splitlines()), "(no description)"))

    def load(self) -> type:
        """Imports the class.

        Raises PluginError where the name is ambiguous, the import fails for whatever reason, or the target is
        no class.
        """
        self.require_unambiguous()
        module_name, _, qualified_name = self.target.partition(":")
        if not module_name or not qualified_name:
            raise PluginError(f"{self} cannot be imported: {_MALFORMED}")
        try:
            module = importlib.import_module(module_name)
            loaded = functools.reduce(getattr, qualified_name.split("."), module)
        # SystemExit too: a plugin that exits while it is imported would end the command without a word.
        except (Exception, SystemExit) as error:
            reason = _one_line(f"{type(error).__name__}: {error}").removesuffix(":")
            raise PluginError(f"{self} cannot be imported: {reason}") from error
        if not isinstance(loaded, type):
            raise PluginError(f"{self} is no class but an object of type {type(loaded).__name__}")
        return loaded

    def require_unambiguous(self) -> None:
        """Raises PluginError, naming every distribution that registers this name, where there are several."""
        if self.rivals:
            claims = " and ".join(f"{p.distribution} ({p.class_path})" for p in (self, *self.rivals))
            raise PluginError(
                f"{self.group.singular} {self.name!r} is ambiguous, it is registered by {claims}: "
                "give the class path instead of the name"
            )

    def __str__(self) -> str:
        return f"{self.group.singular} {self.name!r} ({self.target}, from {self.distribution})"


def plugins(group: Group) -> dict[str, Plugin]:
    """All registered plugins of a group by name, sorted; nothing is imported. A class may have several names.

    A distribution that is found twice (an editable install beside PYTHONPATH) counts as on ``sys.path``: the
    first wins. Where different distributions register one name, one of them carries the others as ``rivals``.
    A distribution whose metadata cannot be read is passed over; :func:`find` and :func:`listing` say so.
    """
    found: dict[str, dict[str, Plugin]] = {}
    for point in registrations(group.value)[0]:
        target = "".join(point.value.partition("[")[0].split())
        plugin = Plugin(point.name, target, f"{point.project} {point.version}", group)
        by_project = found.setdefault(point.name, {})
        if all(plugin.target != other.target for other in by_project.values()):
            by_project.setdefault(normalised(point.project), plugin)
    claims = {
        name: sorted(by_project.values(), key=lambda plugin: plugin.distribution)
        for name, by_project in sorted(found.items())
    }
    return {name: replace(first, rivals=tuple(others)) for name, (first, *others) in claims.items()}


def find(group: Group, name: str) -> Plugin:
    """The plugin of that name (case matters), not imported.

    Raises PluginError where the name is unknown, with the nearest known one, or ambiguous.
    """
    known = plugins(group)
    if name in known:
        known[name].require_unambiguous()
        return known[name]
    unknown = "; ".join([*map(str, registrations(group.value)[1]), f"unknown {group.singular} {name!r}"])
    if not known:
        raise PluginError(f"{unknown}: {_none_installed(group)}")
    names = f"Known {group.plural}: {', '.join(known)}"
    lowered = {candidate.lower(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1)
    if nearest:
        raise PluginError(f"{unknown}: did you mean {lowered[nearest[0]]!r}? {names}")
    raise PluginError(f"{unknown}. {names}")


def listing(group: Group, width: int | None = None) -> str:
    """A plain table: names, summary, distribution. All names of a class share a row; an ambiguous name has several.

    A class is one line; with ``width`` its summary is wrapped so that no line is longer, where there is room for it.
    A line in brackets follows for every distribution whose entry points cannot be read.
    """
    by_class: dict[tuple[str, str], list[Plugin]] = {}
    for first in plugins(group).values():
        for one in (first, *first.rivals):
            by_class.setdefault((one.target, one.distribution), []).append(one)
    malformed = [f"({one})" for one in registrations(group.value)[1]]
    if not by_class:
        return "\n".join([_none_installed(group), *malformed])
    rows = [(", ".join(one.name for one in same), same[0].summary, same[0].distribution) for same in by_class.values()]
    names, summaries, distributions = (max(len(row[column]) for row in rows) for column in range(3))
    if width is not None:
        summaries = min(summaries, max(width - names - distributions - 4, 20))
    lines = []
    for name, summary, distribution in rows:
        first, *more = [summary] if width is None else textwrap.wrap(summary, summaries) or [""]
        lines += [
            f"{name:<{names}}  {first:<{summaries}}  {distribution}",
            *(" " * (names + 2) + line for line in more),
        ]
    return "\n".join([*lines, *malformed])


def _none_installed(group: Group) -> str:
    return (
        f"no {group.plural} are installed; a distribution registers them as entry points "
        f"'name = module:Class' in the group {group.value!r}, and deqopt's own appear once it is installed"
    )


def _source_file(module: str) -> Path:
    """Where the module's source is. Only the top-level package is looked up: that imports nothing, while the
    specification of a submodule would import its parents."""
    top, *below = module.split(".")
    specification = importlib.util.find_spec(top)
    if specification is None:
        raise ModuleNotFoundError(f"no module named {top}")
    if below:
        bases = [Path(folder, *below) for folder in specification.submodule_search_locations or ()]
        candidates = [file for base in bases for file in (base / "__init__.py", base.parent / f"{base.name}.py")]
    else:
        candidates = [Path(specification.origin)] if specification.origin else []
    for file in candidates:
        if file.suffix == ".py" and file.is_file():
            return file
    raise ModuleNotFoundError(f"no source of {module}")


def _parse(file: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a plugin's string escapes: not the reader's business here
        return ast.parse(file.read_bytes(), filename=file.name)


def _class_definition(scope: ast.AST, qualified_name: str) -> ast.ClassDef | None:
    outer, _, inner = qualified_name.partition(".")
    for node in ast.walk(scope):
        if isinstance(node, ast.ClassDef) and node is not scope and node.name == outer:
            return _class_definition(node, inner) if inner else node
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
