"""Plugins are found, listed and named on the command line without importing them; errors are one line."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import invalidate_caches
from importlib.metadata import distributions
from pathlib import Path

import pytest

from deqopt.errors import PluginError
from deqopt.registry import Group, Plugin, find, listing, plugins
from paths import ROOT
from processes import python


@dataclass(frozen=True)
class Site:
    """A folder on sys.path that distributions and their modules are put into."""

    folder: Path

    def install(
        self,
        distribution: str,
        entries: Mapping[str, str],
        *,
        group: Group = Group.TASKS,
        version: str = "1.0",
        form: str = "{name}-{version}.dist-info",
    ) -> None:
        metadata = self.folder / form.format(name=distribution.replace("-", "_"), version=version)
        lines = [f"[{group.value}]", *(f"{name} = {target}" for name, target in entries.items())]
        header = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        self.write(f"{metadata.name}/entry_points.txt", "\n".join(lines))
        self.write(f"{metadata.name}/{'METADATA' if form.endswith('dist-info') else 'PKG-INFO'}", header)

    def write(self, path: str, text: str | bytes) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        importlib.invalidate_caches()


def registers_plugins(folder: str) -> bool:
    points = (point for found in distributions(path=[folder]) for point in found.entry_points)
    return any(point.group in {group.value for group in Group} for point in points)


@pytest.fixture(params=list(Group), ids=lambda member: member.plural)
def group(request: pytest.FixtureRequest) -> Group:
    chosen: Group = request.param
    return chosen


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """The only place with plugins: folders where deqopt itself is installed leave sys.path for the test."""
    modules_before = set(sys.modules)
    (tmp_path / "site").mkdir()
    others = [folder for folder in sys.path if not registers_plugins(folder)]
    # Not by syspath_prepend, which would leave the other folders out for the tests to come.
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *others])
    invalidate_caches()
    yield Site(tmp_path / "site")
    for name in set(sys.modules) - modules_before:
        if name.startswith("fake"):
            del sys.modules[name]


def message_of(action: Callable[[], object]) -> str:
    with pytest.raises(PluginError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is found ------------------------------------------------------------------------------------------


def test_plugins_are_sorted_and_belong_to_their_group_only(site: Site, group: Group) -> None:
    other = next(member for member in Group if member is not group)
    site.install("zebra", {"middle": "fake_z:Middle", "aleph": "fake_z.deep : Aleph [extra]"}, group=group)
    site.install("ant", {"beta": "fake_a:Outer.Beta"}, group=group, version="2.1")
    site.install("elsewhere", {"foreign": "fake_e:Foreign"}, group=other)
    assert list(plugins(group).items()) == [
        ("aleph", Plugin("aleph", "fake_z.deep:Aleph", "zebra 1.0", group)),
        ("beta", Plugin("beta", "fake_a:Outer.Beta", "ant 2.1", group)),
        ("middle", Plugin("middle", "fake_z:Middle", "zebra 1.0", group)),
    ]
    assert find(group, "aleph").class_path == "fake_z.deep.Aleph"
    assert list(plugins(other)) == ["foreign"]


FORMS = "{name}-{version}.dist-info", "{name}-{version}.egg-info", "{name}.egg-info", "~{name}-{version}.dist-info"


@pytest.mark.parametrize("stale_target", ["fake:Task", "fake_old:Task"])
@pytest.mark.parametrize("stale_form", FORMS)
@pytest.mark.parametrize("stale_name", ["my-tasks", "My.Tasks"])
def test_one_distribution_found_twice_counts_once_the_first_on_the_path(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale_name: str, stale_form: str, stale_target: str
) -> None:
    """Though the first one registers less."""
    (tmp_path / "stale").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "stale")])
    stale = {"mine": stale_target, "gone": "fake:Gone"}
    Site(tmp_path / "stale").install(stale_name, stale, version="0.9", form=stale_form)
    assert find(Group.TASKS, "mine").distribution == f"{stale_name} 0.9"
    site.install("my-tasks", {"mine": "fake:Task"}, form="{name}.egg-info")
    assert plugins(Group.TASKS) == {"mine": Plugin("mine", "fake:Task", "my-tasks 1.0", Group.TASKS)}
    assert len(listing(Group.TASKS).splitlines()) == 1


def test_two_distributions_that_register_the_same_class_agree(site: Site) -> None:
    site.install("one", {"mine": "fake:Task"})
    site.install("two", {"mine": "fake : Task"})
    assert find(Group.TASKS, "mine").target == "fake:Task"
    assert len(listing(Group.TASKS).splitlines()) == 1


def test_a_distribution_without_metadata_still_offers_its_plugins(site: Site) -> None:
    site.write("nameless-1.0.dist-info/entry_points.txt", "[deqopt.tasks]\nmine = fake:Task")
    assert find(Group.TASKS, "mine").distribution == "unnamed distribution of unknown version"


def test_an_ambiguous_name_cannot_be_used_but_by_its_class_path(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: Group
) -> None:
    site.install("one", {"mine": "fake_one:Task", "other": "fake_one:Other"}, group=group)
    Site(tmp_path / "earlier").install("two", {"mine": "fake_two:Task"}, group=group, version="2.0")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "earlier"), *sys.path])
    invalidate_caches()
    site.write("fake_one.py", "class Task: ...\nclass Other: ...")
    for use in (lambda: find(group, "mine"), lambda: plugins(group)["mine"].load()):
        message = message_of(use)
        assert message.startswith(f"{group.singular} 'mine' is ambiguous")
        assert "one 1.0 (fake_one.Task) and two 2.0 (fake_two.Task): give the class path" in message
    assert find(group, "other").load().__name__ == "Other"


# --- listing ------------------------------------------------------------------------------------------------


def test_listing_is_an_aligned_table_with_broken_and_ambiguous_plugins(site: Site) -> None:
    site.install("one", {"mine": "fake_one:Task", "a-long-name": "fake_broken:Task", "gone": "fake_gone:Task"})
    site.install("two", {"mine": "fake_two:Task"}, version="2.0rc1")
    site.write("fake_one.py", 'class Task:\n    """Short."""')
    site.write("fake_two.py", 'class Task:\n    """Rather longer."""')
    site.write("fake_broken.py", "class Task(:")
    rows = [line.split("  ") for line in listing(Group.TASKS).splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    names, summaries, distributions = zip(*cells, strict=True)
    assert names == ("a-long-name", "gone", "mine", "mine")
    assert distributions == (*["one 1.0"] * 3, "two 2.0rc1")
    assert summaries[0].startswith("(cannot be read: invalid syntax (fake_broken.py, line 1)")
    assert summaries[1:] == ("(cannot be read: no module named fake_gone)", "Short.", "Rather longer.")
    lines = listing(Group.TASKS).splitlines()
    for column in (1, 2):
        assert len({line.index(cell[column]) for line, cell in zip(lines, cells, strict=True)}) == 1


def test_names_of_one_class_share_a_row_and_each_finds_it(site: Site, group: Group) -> None:
    site.install("one", {"zebra": "fake:Thing", "ant": "fake:Thing", "other": "fake:Other"}, group=group)
    site.install("two", {"ant": "fake_two:Thing"}, group=group)
    site.write("fake.py", "class Thing: ...\nclass Other: ...")
    assert [line.partition("  ")[0] for line in listing(group).splitlines()] == ["ant, zebra", "ant", "other"]
    assert find(group, "zebra").load().__name__ == "Thing"
    assert "did you mean 'zebra'?" in message_of(lambda: find(group, "zebr"))


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_listing_fits_the_terminal(site: Site, width: int) -> None:
    summary = "Finds what nobody has looked for, in a place that nobody has thought of."
    site.install("one", {"mine": "fake:Task", "other": "fake:Other"})
    site.write("fake.py", f'class Task:\n    """{summary}"""\nclass Other:\n    """Short."""')
    lines = listing(Group.TASKS, width).splitlines()
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["mine", "other"]
    assert all(line.endswith("one 1.0") for line in lines if not line.startswith(" "))
    assert " ".join(" ".join(lines[:-1]).replace("one 1.0", "").split()) == f"mine {summary}"
    assert (len(lines) == 2) == (width == 200)


def test_listing_without_plugins_says_how_they_are_registered(site: Site, group: Group) -> None:
    assert listing(group).startswith(f"no {group.plural} are installed;")
    assert group.value in listing(group) and "module:Class" in listing(group)


def test_nothing_is_imported_before_a_plugin_is_chosen_and_then_only_that_one(site: Site) -> None:
    site.install("heavy", {"deep": "fake_heavy.sub.deep:Task", "flat": "fake_flat:Task"})
    site.write("fake_heavy/__init__.py", "raise RuntimeError('the parent was imported')")
    site.write("fake_heavy/sub/__init__.py", "")
    site.write("fake_heavy/sub/deep.py", 'raise RuntimeError\nclass Task:\n    """Found."""')
    site.write("fake_flat.py", "class Task: ...")
    assert "Found." in listing(Group.TASKS)
    find(Group.TASKS, "deep")
    assert not [name for name in sys.modules if name.startswith("fake")]
    loaded = find(Group.TASKS, "flat").load()
    assert loaded is sys.modules["fake_flat"].Task
    assert [name for name in sys.modules if name.startswith("fake")] == ["fake_flat"]


SOURCES: dict[str, tuple[str | bytes, str]] = {
    "first line only": ('class Task:\n    """\n    First.\n\n    Second.\n    """', "First."),
    "class before module": ('"""Module."""\nclass Task:\n    "Class."', "Class."),
    "defined elsewhere": ('"""Module.\n\nB."""\nfrom a import Task\nclass Other:\n    "Wrong."', "Module."),
    "in a condition": ('if True:\n    class Task:\n        "Conditional."', "Conditional."),
    "not a nested one": ('class A:\n  class Task:\n    "Inner."\nclass Task:\n  "Outer."', "Outer."),
    "no docstring": ('"""Module."""\nclass Task: ...', "(no description)"),
    "empty docstring": ('class Task:\n    "  "', "(no description)"),
    "encoding": ('# coding: latin-1\nclass Task:\n "Zoë."'.encode("latin-1"), "Zoë."),
    "sloppy escape": ('class Task:\n    "A \\d."', "A \\d."),
    "literals": ('class Task:\n    "Descent on ``J(z(x), x)`` and `mu`."', "Descent on J(z(x), x) and mu."),
    "roles": (
        'class Task:\n    "A :class:`Tracking`, :func:`~a.b.solve` and :py:class:`the base <a.b.Base>`."',
        "A Tracking, solve and the base.",
    ),
    "syntax": ("x = 1\nclass Task(:", "(cannot be read: invalid syntax (fake.py, line 2))"),
    "not text": (b"\xff\xfe\x00", "(cannot be read: "),
    "null byte": (b"x = '\x00'", "(cannot be read: "),
    "nested beyond reason": ("-" * 100_000 + "1", "(cannot be read: "),
}


@pytest.mark.parametrize(("source", "expected"), SOURCES.values(), ids=SOURCES)
def test_summary_is_the_first_line_of_the_docstring(site: Site, source: str | bytes, expected: str) -> None:
    site.install("dist", {"mine": "fake:Task"})
    site.write("fake.py", source)
    summary = plugins(Group.TASKS)["mine"].summary
    assert summary.startswith(expected) if expected.endswith(" ") else summary == expected
    assert len(listing(Group.TASKS).splitlines()) == 1


LOCATIONS = {
    "module": ("fake.py", "fake:Task", "Found."),
    "package": ("fake/__init__.py", "fake:Task", "Found."),
    "subpackage": ("fake/sub/__init__.py", "fake.sub:Task", "Found."),
    "namespace package": ("fake/sub/leaf.py", "fake.sub.leaf:Task", "Found."),
    "inner class": ("fake.py", "fake:Task.Task", "Inside."),
    "missing": ("fake.py", "fake_gone.sub:Task", "(cannot be read: no module named fake_gone)"),
    "missing below": ("fake/__init__.py", "fake.gone:Task", "(cannot be read: no source of fake.gone)"),
    "below a module": ("fake.py", "fake.sub:Task", "(cannot be read: no source of fake.sub)"),
    "without source": ("fake/sub.so", "fake.sub:Task", "(cannot be read: no source of fake.sub)"),
    "built in": ("fake.py", "builtins:dict", "(cannot be read: no source of builtins)"),
    "no module named": ("fake.py", ":Task", "(cannot be read: its target has to be written 'module:Class')"),
    "no class named": ("fake.py", "fake", "(cannot be read: its target has to be written 'module:Class')"),
}


@pytest.mark.parametrize(("path", "target", "expected"), LOCATIONS.values(), ids=LOCATIONS)
def test_summary_finds_the_source_wherever_the_module_lives(site: Site, path: str, target: str, expected: str) -> None:
    site.install("dist", {"mine": target})
    site.write(path, 'class Task:\n    "Found."\n    class Task:\n        "Inside."')
    assert plugins(Group.TASKS)["mine"].summary == expected
    assert "fake" not in sys.modules


# --- loading ------------------------------------------------------------------------------------------------

BROKEN = {
    "missing dependency": ("import fake_gone", "fake:Task", ImportError, "No module named 'fake_gone'"),
    "missing module": ("", "fake_gone.deep:Task", ImportError, "No module named 'fake_gone'"),
    "missing class": ("class Other: ...", "fake:Task", AttributeError, "has no attribute 'Task'"),
    "missing inner class": ("class Task: ...", "fake:Task.Inner", AttributeError, "has no attribute 'Inner'"),
    "syntax": ("x = 1\nclass Task(:", "fake:Task", SyntaxError, "invalid syntax (fake.py, line 2)"),
    "raises": ("raise RuntimeError('no\\n  device')", "fake:Task", RuntimeError, "RuntimeError: no device"),
    "raises in silence": ("raise ValueError", "fake:Task", ValueError, "cannot be imported: ValueError"),
    "exits": ("import sys; sys.exit(0)", "fake:Task", SystemExit, "SystemExit: 0"),
    "no class": ("Task = 3", "fake:Task", None, "no class but an object of type int"),
    "function": ("def Task(): ...", "fake:Task", None, "no class but an object of type function"),
    "target without class": ("", "fake", None, "'module:Class'"),
    "target without module": ("", ":Task", None, "'module:Class'"),
}


@pytest.mark.parametrize(("source", "target", "cause", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_says_which_whose_and_why_and_harms_no_other(
    site: Site, group: Group, source: str, target: str, cause: type[BaseException] | None, reason: str
) -> None:
    site.install("bad-dist", {"bad": target}, group=group)
    site.install("good-dist", {"good": "fake_good:Good"}, group=group)
    site.write("fake.py", source)
    site.write("fake_good.py", "class Good: ...")
    broken = find(group, "bad")
    with pytest.raises(PluginError) as caught:
        broken.load()
    message = str(caught.value)
    assert message.startswith(f"{group.singular} 'bad' ({target}, from bad-dist 1.0) ")
    assert reason in message and "\n" not in message
    assert isinstance(caught.value.__cause__, cause or type(None))
    assert [line.split()[0] for line in listing(group).splitlines()] == ["bad", "good"]
    assert find(group, "good").load().__name__ == "Good"


def test_an_interrupt_while_importing_stays_one(site: Site) -> None:
    site.install("dist", {"slow": "fake:Task"})
    site.write("fake.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        find(Group.TASKS, "slow").load()


def test_loading_gives_the_class_also_where_it_is_nested_or_imported_from_elsewhere(site: Site) -> None:
    site.install("dist", {"nested": "fake:Outer.Inner", "passed-on": "fake:Task"})
    site.write("fake.py", "from fake_home import Task\nclass Outer:\n    class Inner: ...")
    site.write("fake_home.py", "class Task: ...")
    assert find(Group.TASKS, "nested").load().__qualname__ == "Outer.Inner"
    assert find(Group.TASKS, "passed-on").load().__module__ == "fake_home"


# --- finding by name ----------------------------------------------------------------------------------------

NEAREST = {"celebra": "celeba", "CelebA": "celeba", "tracking": "Tracking", "TRACKNIG": "Tracking", "zzz": "", "": ""}


@pytest.mark.parametrize("name", NEAREST)
def test_an_unknown_name_is_told_the_nearest_and_all_known(site: Site, group: Group, name: str) -> None:
    site.install("dist", {"cifar": "fake:Cifar", "Tracking": "fake:Tracking", "celeba": "fake:CelebA"}, group=group)
    meant = f": did you mean '{NEAREST[name]}'?" if NEAREST[name] else "."
    expected = f"unknown {group.singular} '{name}'{meant} Known {group.singular}s: Tracking, celeba, cifar"
    assert message_of(lambda: find(group, name)) == expected


def test_a_name_where_nothing_is_installed_is_told_how_plugins_are_registered(site: Site, group: Group) -> None:
    message = message_of(lambda: find(group, "celeba"))
    assert message.startswith(f"unknown {group.singular} 'celeba': no {group.plural} are installed")
    assert group.value in message and "did you mean" not in message


# --- speed --------------------------------------------------------------------------------------------------


def test_listing_loads_neither_torch_nor_lightning(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.install("needs-torch", {"heavy": "fake_heavy.task:Task"})
    site.write("fake_heavy/__init__.py", "import torch, lightning")
    site.write("fake_heavy/task.py", 'import torch\nclass Task:\n    """Heavy."""')
    program = """
import sys
from deqopt.registry import Group, find, listing
find(Group.TASKS, 'heavy')
print(listing(Group.TASKS), listing(Group.SOLVERS))
print({name.partition('.')[0] for name in sys.modules} & set(sys.argv))
"""
    unwanted = ["torch", "lightning", "numpy", "jsonargparse", "fake_heavy"]
    said = python("-W", "error", "-c", program, *unwanted, PYTHONPATH=f"{tmp_path}:{ROOT}").stdout
    assert "Heavy." in said and said.splitlines()[-1] == "set()"
