"""Names of files and classes that are no text, or that a terminal would obey: shown as escapes, everywhere."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from deqopt_tasks.denoising.data import DamagedImages
from deqopt_tasks.denoising.operators import Denoising
from deqopt_tasks.omniglot.drawing import episode_figure
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.prediction import FolderEpisode
from torch._utils import ExceptionWrapper

from deqopt.data import ImageFolder, UnreadableImageError, open_labelled
from deqopt.errors import DataError, printable
from deqopt.figures import image_rows
from folder_readers import READERS, SIDE, classes, image, levels

NAMES = {
    "colours": b"\x1b[31mred.png",
    "reversed": "photo\u202egnp.exe.png".encode(),
    "two lines": b"a\ndeqopt: error: all is well.png",
    "carriage return": b"evil\rgood.png",
    "no text": b"\xff\xfe.png",
    "bell": b"a\x07.png",
    "C1": "a\x9b2J.png".encode(),
    "invisible": "a\u200b\u2066.png".encode(),
    "worker": b"\ndeqopt.errors.DataError: harmless.png",
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", NAMES)
def test_a_message_shows_every_name_and_obeys_none(case: str, reader: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    path = os.fsencode(root / "ant") + b"/" + NAMES[case]
    Path(os.fsdecode(path)).write_bytes(b"nothing")
    with pytest.warns(UserWarning) as warned:
        assert levels(READERS[reader](root)) == Counter(range(6))
    said = f"{root}/ant/{printable(os.fsdecode(NAMES[case]))} is truncated or not an image: delete or replace it"
    assert {str(one.message) for one in warned} == {said} and said.isprintable()


@pytest.mark.parametrize("case", NAMES)
def test_files_are_written_under_names_that_can_be_shown(case: str, tmp_path: Path) -> None:
    for name in (NAMES[case], os.fsencode(printable(os.fsdecode(NAMES[case]))), b"plain.png"):
        image(tmp_path / os.fsdecode(name), 7)
    folder = ImageFolder(tmp_path, SIDE)
    names = [folder.name(i) for i in range(3)]
    assert all(name.isprintable() for name in names) and len(set(names)) == 3
    damaged = DamagedImages(tmp_path, Denoising(), 1)
    assert [damaged.name(i) for i in range(3)] == names


def test_names_that_can_be_shown_stay_as_they_are(tmp_path: Path) -> None:
    names = ["Bild äöü", "写真", "a b (1)", "x.y", "É", "%s {}"]
    for i, name in enumerate(names):
        image(tmp_path / f"{name}.png", i)
    folder = ImageFolder(tmp_path, SIDE)
    assert sorted(folder.name(i) for i in range(6)) == sorted(names)


def test_long_names_leave_room_for_what_is_put_around_them(tmp_path: Path) -> None:
    for i, name in enumerate(("x" * 240 + "a", "x" * 240 + "b", "\x1b" * 200, "ü" * 110)):
        image(tmp_path / f"{name}.png", i)
    folder = ImageFolder(tmp_path, SIDE)
    names = [folder.name(i) for i in range(4)]
    assert len(set(names)) == 4 and all(len(name.encode()) <= 210 and name.isprintable() for name in names)


@pytest.mark.parametrize("kind", [DataError, UnreadableImageError])
def test_what_a_worker_says_is_the_message_alone(kind: type[DataError]) -> None:
    for name in NAMES.values():
        said = f"{os.fsdecode(name)} is of no use"
        try:
            try:
                raise OSError("this is behind it")
            except OSError as error:
                raise kind(said) from error
        except DataError:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
        with pytest.raises(kind) as caught:
            wrapped.reraise()
        assert str(caught.value) == printable(said)


CLASSES = [b"\xff", b"\x1b[31mred", rb"$\frac{$", b"$x$", "\u202eabc".encode()]


def test_classes_of_any_name_can_be_shown_and_drawn(tmp_path: Path) -> None:
    for i, name in enumerate(CLASSES):
        image(tmp_path / "data" / os.fsdecode(name) / "0.png", i)
    source = open_labelled(tmp_path / "data", size=SIDE, channels=1, classes=len(CLASSES))
    assert sorted(source.class_names) == sorted(printable(os.fsdecode(name)) for name in CLASSES)
    image(tmp_path / "queries" / "0.png", 0)
    episode = FolderEpisode(tmp_path / "data", tmp_path / "queries", SIDE, 1)
    chunk = EpisodeBatch(*(torch.as_tensor(part)[None] for part in episode[0]))
    even = torch.full((1, 1, len(CLASSES)), 1 / len(CLASSES))
    for figure in (
        image_rows({"images": torch.zeros(len(CLASSES), 1, SIDE, SIDE)}, "classes", source.class_names),
        episode_figure(chunk, even, episode.class_names),
    ):
        figure.savefig(tmp_path / "a.png")


def test_printable_is_what_it_says_and_says_all() -> None:
    every = "".join(map(chr, range(0x3000)))
    shown = printable(every)
    assert shown.isprintable() and printable(shown) == shown
    assert all(char in shown for char in every if char.isprintable())
    escaped = [char for char in every if not char.isprintable()]
    assert len({printable(char) for char in escaped}) == len(escaped) and all(len(printable(c)) > 1 for c in escaped)
    assert {"\n", "\r", "\x1b", "\x9b", "\u202e", "\u2066", "\u2028"} <= set(escaped)
