"""What installed distributions register as entry points: one that is malformed harms no other.

Only the standard library is used, and nothing is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions


@dataclass(frozen=True)
class Registration:
    """One entry point: ``name = value`` of the distribution ``project``, ``version``."""

    name: str
    value: str
    project: str
    version: str
    modules: frozenset[str]
    """Top-level modules and packages of the distribution, as far as its metadata names them."""


@dataclass(frozen=True)
class Malformed:
    """A distribution whose entry points cannot be read, and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: its entry points cannot be read: {self.reason}"


def registrations(group: str) -> tuple[list[Registration], list[Malformed]]:
    """The entry points of a group, in the order of ``sys.path``, and the distributions that cannot be read.

    Of a distribution that is found twice the first counts.
    """
    found: list[Registration] = []
    malformed: list[Malformed] = []
    seen: set[str] = set()
    for one in _each(distributions(), malformed):
        try:
            if not any(point.group == group for point in one.entry_points):
                continue
            project = field(one, "Name")
            first = one if project is None else _first(project, one)
            if project is not None and normalised(project) in seen:
                continue
            seen.update(() if project is None else (normalised(project),))
            points = [point for point in first.entry_points if point.group == group]
        except Exception as error:  # whatever a file that is not what it should be triggers
            malformed.append(Malformed(_where(one), _reason(error)))
            continue
        name, version = field(first, "Name"), field(first, "Version")
        modules = frozenset(_modules(first))
        found += [
            Registration(
                point.name, point.value, name or "unnamed distribution", version or "of unknown version", modules
            )
            for point in points
        ]
    return found, malformed


def normalised(project: str) -> str:
    """The name of a distribution as indexes compare it."""
    return re.sub(r"[-_.]+", "-", project).lower()


def field(one: Distribution, name: str) -> str | None:
    """A field of the metadata of a distribution; None where it is missing or cannot be read."""
    try:
        metadata = one.metadata
        return str(metadata[name]) if name in metadata else None
    except Exception:  # no such file, or none that is text: then nothing is known
        return None


def _each(found: Iterable[Distribution], malformed: list[Malformed]) -> Iterator[Distribution]:
    """All that can be found: a finder that fails ends the search, and is noted."""
    try:
        yield from found
    except Exception as error:  # finders may be anyone's
        malformed.append(Malformed("the search for distributions", _reason(error)))


def _first(project: str, otherwise: Distribution) -> Distribution:
    try:
        return distribution(project)
    except (PackageNotFoundError, ValueError):
        return otherwise


def _modules(one: Distribution) -> Iterator[str]:
    try:
        named = (one.read_text("top_level.txt") or "").split()
        files = [] if named else [path.parts for path in one.files or () if path.suffix in (".py", ".so", ".pyd")]
    except Exception:  # a list that cannot be read names nothing
        return
    for name in (*named, *(parts[0].partition(".")[0] for parts in files)):
        if name.isidentifier():
            yield name


def _where(one: Distribution) -> str:
    try:
        return field(one, "Name") or f"a distribution in {one.locate_file('')}"
    except Exception:  # no place either
        return "a distribution"


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
