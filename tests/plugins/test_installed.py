"""Malformed metadata of any installed distribution harms nobody else."""

import importlib
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from typing import Any

import pytest

from deqopt.errors import PluginError
from deqopt.installed import registrations
from deqopt.registry import Group, find, listing, plugins
from paths import ROOT
from processes import python

GOOD = {"METADATA": "Metadata-Version: 2.1\nName: good\nVersion: 1.0\n", "entry_points.txt": "[deqopt.tasks]\ng = m:T"}
HEADER = "Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n"
OURS = "[deqopt.tasks]\nb = m:T\n"

MALFORMED: dict[str, tuple[dict[str, str | bytes], bool]] = {
    "line without =": ({"METADATA": HEADER, "entry_points.txt": "[deqopt.tasks]\njust some words\n"}, True),
    "line without = elsewhere": ({"METADATA": HEADER, "entry_points.txt": f"[console_scripts]\nwords\n{OURS}"}, True),
    "entry points are no text": ({"METADATA": HEADER, "entry_points.txt": b"[deqopt.tasks]\n\xff\xfe = m:T"}, True),
    "null bytes": ({"METADATA": HEADER, "entry_points.txt": b"\x00" * 100}, False),
    "entries before a section": ({"METADATA": HEADER, "entry_points.txt": f"a = b:C\n{OURS}"}, False),
    "metadata is no text": ({"METADATA": b"Name: \xff\xfe\nVersion: \xff", "entry_points.txt": OURS}, False),
    "no name": ({"METADATA": "Metadata-Version: 2.1\nVersion: 1.0\n", "entry_points.txt": OURS}, False),
    "empty name": ({"METADATA": "Name: \nVersion: \n", "entry_points.txt": OURS}, False),
    "no metadata": ({"entry_points.txt": OURS}, False),
    "nothing": ({}, False),
    "modules are no text": ({"METADATA": HEADER, "entry_points.txt": OURS, "top_level.txt": b"\xff"}, False),
    "files are no text": ({"METADATA": HEADER, "entry_points.txt": OURS, "RECORD": b'"\xff'}, False),
    "metadata is a folder": ({"METADATA/a": "", "entry_points.txt": OURS}, False),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder before all others on sys.path, with the distribution good."""
    folder = tmp_path / "site"
    put(folder / "good-1.0.dist-info", GOOD)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    yield folder
    importlib.invalidate_caches()


def put(folder: Path, files: Any) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    folder.mkdir(parents=True, exist_ok=True)
    importlib.invalidate_caches()


@pytest.mark.parametrize("form", ["bad-1.0.dist-info", "bad.egg-info", "-1.0.dist-info", ".dist-info"])
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_distribution_harms_no_other(site: Path, case: str, form: str) -> None:
    files, unreadable = MALFORMED[case]
    put(site / form, {"PKG-INFO" if name == "METADATA" and "egg" in form else name: f for name, f in files.items()})
    assert {"g", "celeba", "denoising"} <= set(plugins(Group.TASKS))
    assert set(plugins(Group.SOLVERS)) >= {"Tracking", "SecantTracking"}
    table = listing(Group.TASKS)
    assert "good 1.0" in table
    assert ("entry points cannot be read" in table) == unreadable
    with pytest.raises(PluginError) as caught:
        find(Group.TASKS, "celebra")
    assert "did you mean 'celeba'?" in str(caught.value) and "\n" not in str(caught.value)
    assert ("entry points cannot be read" in str(caught.value)) == unreadable


class Hostile(Distribution):
    """Raises at whatever it is asked."""

    def read_text(self, filename: str) -> str | None:
        raise RuntimeError("no\ntext")

    def locate_file(self, path: Any) -> Any:
        raise OSError("nowhere")


class Finder(DistributionFinder):
    def __init__(self, found: Callable[[], Iterator[Distribution]]) -> None:
        self._found = found

    def find_spec(self, *_: Any) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Iterator[Distribution]:
        return self._found()


def failing() -> Iterator[Distribution]:
    yield Hostile()
    raise MemoryError


@pytest.mark.parametrize("found", [lambda: iter([Hostile()]), failing], ids=["distribution", "finder"])
def test_a_hostile_finder_harms_no_other(
    site: Path, monkeypatch: pytest.MonkeyPatch, found: Callable[[], Iterator[Distribution]]
) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder(found)])
    table = listing(Group.TASKS)
    assert "good 1.0" in table and "celeba" in table
    assert "(a distribution: its entry points cannot be read: RuntimeError: no text)" in table.splitlines()


def test_the_modules_of_a_distribution_come_from_its_metadata(site: Path) -> None:
    for number, files in enumerate(
        ({"top_level.txt": "one\n_two\n"}, {"RECORD": "one/a.py,,\n_two.py,,\nx/y.txt,,\n"})
    ):
        header = {"METADATA": f"Name: n{number}\nVersion: 1\n", "entry_points.txt": f"[deqopt.tasks]\nn{number} = m:T"}
        put(site / f"n{number}-1.dist-info", {**header, **files})
    found = {one.name: one.modules for one in registrations("deqopt.tasks")[0]}
    assert found["n0"] == found["n1"] == {"one", "_two"}
    assert found["celeba"] >= {"deqopt", "deqopt_tasks"}


def test_the_listing_of_a_site_with_a_malformed_distribution_needs_no_torch(site: Path) -> None:
    put(site / "bad-1.0.dist-info", MALFORMED["line without ="][0])
    code = "import sys; from deqopt.cli import main; main(['tasks']); sys.exit('torch' in sys.modules)"
    answer = python("-c", code, PYTHONPATH=f"{site}:{ROOT}")
    assert "celeba" in answer.stdout and not answer.stderr, answer
