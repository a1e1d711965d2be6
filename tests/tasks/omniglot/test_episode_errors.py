"""What the data of few-shot learning says about data and settings that cannot be right, and that it is one line."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from deqopt_tasks.omniglot.characters import BACKGROUND, EVALUATION, FOLDER
from deqopt_tasks.omniglot.data import EpisodeData, Sampler
from deqopt_tasks.omniglot.glyphs import Glyphs
from deqopt_tasks.omniglot.opening import open_classes
from deqopt_tasks.omniglot.optional import INSTALL, learn2learn
from PIL import Image

from class_sources import Numbered, write_class, write_classes, write_omniglot
from deqopt.data.splits import Part
from deqopt.errors import DataError, ProblemError

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


@contextmanager
def one_line_error(*parts: str, error: type[Exception] = DataError) -> Iterator[None]:
    """An error whose message has these parts, in this order."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert re.search(".*".join(map(re.escape, parts)), message) and "\n" not in message, message


def opened(source: Callable[[], Any] = Numbered, stage: str = "fit", **settings: Any) -> EpisodeData:
    data = EpisodeData(source, **{"ways": 5, "shots": 1, "queries": 2, "batch_size": 2, **settings})
    data.setup(stage)
    return data


def folders(root: Path, **settings: Any) -> EpisodeData:
    return opened(partial(open_classes, root, size=8, channels=1), **settings)


LEAST = {
    **dict.fromkeys(("ways", "train_ways"), 2),
    **dict.fromkeys(("shots", "queries", "train_queries", "batch_size"), 1),
    **dict.fromkeys(("train_episodes", "val_episodes", "test_episodes"), 1),
    **dict.fromkeys(("episode_seed", "workers"), 0),
}


@pytest.mark.parametrize("name", LEAST)
def test_settings_out_of_range_are_refused_before_anything_is_opened(name: str) -> None:
    least = LEAST[name]
    settings = {"ways": 5, "shots": 1, "queries": 2, "batch_size": 2, name: least - 1}
    right = f"at least {least}" if least else "0 or larger"
    with one_line_error(f"{name} must be {right}, got {least - 1}", error=ProblemError):
        EpisodeData(lambda: pytest.fail("opened"), **settings)


def test_glyphs_cannot_be_downloaded() -> None:
    with one_line_error("cannot be downloaded to nowhere"):
        open_classes(None, size=28, channels=1, download=True)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_of_glyphs_out_of_range_is_refused(seed: int) -> None:
    with one_line_error(f"the seed of the glyphs is {seed}: it should be 0 to {2**64 - 1}"):
        Glyphs(seed=seed)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_fewer_classes_than_ways_are_refused_at_every_stage(stage: str) -> None:
    found = (
        "the numbered images has 40, 10 and 12 classes to train, validate and test with, and ways is 11, for which val"
    )
    right = "set ways to 10 or less, or give 110 classes or more, or train/, val/ and test/ with 11, 11 and 11 or more"
    with one_line_error(found, right):
        opened(ways=11, stage=stage)


def test_a_split_of_one_class_cannot_be_helped_by_fewer_ways(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {f"c{i:02d}": 3 for i in range(12)})
    with one_line_error(
        f"{root} has 10, 1 and 1 classes", "ways is 2, for which val has too few: give 20 classes or more"
    ):
        folders(root, ways=2)


def test_fewer_classes_to_train_on_than_train_ways_are_refused() -> None:
    right = (
        "set train_ways to 40 or less, or give 82 classes or more, or train/, val/ and test/ with 41, 5 and 5 or more"
    )
    with one_line_error("has 40, 10 and 12 classes", "train_ways is 41, for which train has too few", right):
        opened(train_ways=41)
    opened(train_ways=40)
    opened(train_ways=41, rotations=True)


def test_what_the_message_says_is_right_is_right(tmp_path: Path) -> None:
    """Ten times as many classes as ways do, and so do turned classes to train on."""
    folders(write_classes(tmp_path / "plain", {f"c{i:02d}": 3 for i in range(50)}))
    for part, count in (("train", 2), ("val", 5), ("test", 5)):
        write_classes(tmp_path / "parts" / part, {f"{part}{i}": 3 for i in range(count)})
    folders(tmp_path / "parts", rotations=True)
    with one_line_error("has 2, 5 and 5 classes", "set ways to 2 or less"):
        folders(tmp_path / "parts")


@pytest.mark.parametrize("count", [1, 2])
def test_classes_that_cannot_be_split_are_refused(count: int, tmp_path: Path) -> None:
    root = write_classes(tmp_path, {f"c{i}": 3 for i in range(count)})
    with one_line_error(f"{root} has {count} class folder(s), c0", "at least 3 are needed"):
        folders(root)


@pytest.mark.parametrize("part", Part)
def test_a_class_with_too_few_images_is_named_in_whatever_split_it_is(part: Part, tmp_path: Path) -> None:
    for each in Part:
        write_classes(tmp_path / each.value, {f"{each.value}{i}": 3 for i in range(5)})
    write_class(tmp_path / part.value / "lonely", 1)
    said = f"class lonely of {tmp_path} has 1 image(s): shots is 1 and queries is 2, so a class of {part.value} should"
    with one_line_error(said, "have 3 or more"):
        folders(tmp_path)


def test_several_classes_with_too_few_images_are_counted(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {f"c{i:02d}": 2 if i in (8, 20, 41) else 3 for i in range(50)})
    with one_line_error(f"class c08 of {root} has 2 image(s), and 2 other class(es) have too few: shots is 1"):
        folders(root)
    folders(root, queries=1)


def test_the_number_of_images_that_is_asked_for_is_enough() -> None:
    assert len(opened(shots=4, queries=2).episodes[Part.TRAIN][0].query) == 10
    with one_line_error("has 6 image(s)", "shots is 4 and queries is 3, so a class of train should have 7 or more"):
        opened(shots=4, queries=3)
    with one_line_error("has 6 image(s)", "train_queries is 4, so a class of train should have 8 or more"):
        opened(shots=4, queries=2, train_queries=4)


def laid_out(root: Path, content: dict[str, int | None]) -> None:
    """Class folders with as many images, and files where there is None."""
    for name, count in content.items():
        if count is not None:
            write_class(root / name, count)
        elif name.endswith(".png"):
            Image.new("L", (8, 8)).save(root / name)
        else:
            (root / name).write_text("classes")


NEEDED = "root should be a folder that holds omniglot-py/, or one of CLASS/NAME.png"
SHORT = "has train/ and test/, but lacks val/: it should be CLASS/NAME.png, or train/CLASS/NAME.png"
IN_TWO: dict[str, int | None] = {"train/a": 2, "train/b": 2, "val/c": 2, "test/b": 2, "test/d": 2}
FOLDERS: dict[str, tuple[dict[str, int | None], str, str]] = {
    "missing": ({}, "nothing", f"nothing is missing: {NEEDED}"),
    "a file": ({"a.txt": None}, "a.txt", "a.txt is a file: it should be a folder of CLASS/NAME.png"),
    "empty": ({}, "", "hold no images: their names should end in one of .bmp"),
    "hollow": ({"a": 2, "b": 2, "hollow": 0}, "", "has class folders without images: hollow; fill or delete them"),
    "image in no class": ({"a": 2, "b": 2, "stray.png": None}, "", "stray.png is in no class folder"),
    "no val": ({"train/a": 2, "test/b": 2, "extra/c": 2}, "", SHORT),
    "only val": ({"val/a": 2}, "", "has val/, but lacks train/ and test/"),
    "class in two parts": (IN_TWO, "", "has class b in train/ and test/: a class should be in one of them only"),
    "hollow val": (
        {"train/a": 2, "val/b": 2, "test/c": 2, "val/hollow": 0},
        "",
        "val has class folders without images: hollow",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_hold_no_classes_are_refused(case: str, tmp_path: Path) -> None:
    content, below, message = FOLDERS[case]
    laid_out(tmp_path, content)
    with one_line_error(str(tmp_path), message):
        folders(tmp_path / below)


def test_an_image_that_cannot_be_read_is_named_and_its_class_goes_on_without_it(tmp_path: Path) -> None:
    root = write_classes(tmp_path, {f"c{i:02d}": 4 for i in range(50)})
    (root / "c07" / "1.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=rf"^{root}/c07/1\.png is truncated or not an image: delete or replace it$"):
        data = folders(root)
    assert [data.source.count(c) for c in range(50)] == [3 if c == 7 else 4 for c in range(50)]
    assert sum(len(batch.support) for batch in data.train_dataloader()) == 800
    (root / "c07" / "2.png").write_bytes(b"no image")
    with pytest.warns(UserWarning), one_line_error("class c07 of", "has 2 image(s)", "should have 3 or more"):
        folders(root)


def whole(root: Path) -> Path:
    """Omniglot with two alphabets and another one; the folder that holds its parts."""
    return write_omniglot(root, {"Latin": 1, "Greek": 1}, {"Tengwar": 1}) / FOLDER


def packed(omniglot: Path) -> None:
    shutil.rmtree(omniglot / EVALUATION)
    (omniglot / f"{EVALUATION}.zip").write_bytes(b"PK")


LATIN, GREEK = (f"{BACKGROUND}/{alphabet}/character01" for alphabet in ("Latin", "Greek"))
INCOMPLETE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no evaluation set": (
        lambda omniglot: shutil.rmtree(omniglot / EVALUATION),
        ["no Omniglot in", "images_evaluation is missing: it should hold"],
    ),
    "not unpacked": (packed, ["images_evaluation.zip is not unpacked: unpack it there, or set download"]),
    "a drawing is lost": (
        lambda omniglot: (omniglot / LATIN / "0001_07.png").unlink(),
        ["Latin/character01 has 19 images, it should have 20: unpack images_background"],
    ),
    "all characters are lost": (
        lambda omniglot: shutil.rmtree(omniglot / EVALUATION / "Tengwar"),
        ["images_evaluation holds no characters: it should hold ALPHABET/"],
    ),
    "one alphabet": (
        lambda omniglot: shutil.rmtree(omniglot / BACKGROUND / "Greek"),
        ["has one background alphabet, Latin: 2 or more are needed"],
    ),
    "another size": (
        lambda omniglot: Image.new("1", (28, 28)).save(omniglot / GREEK / "0001_11.png"),
        ["0001_11.png is 28 x 28", "should be 105 x 105"],
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_omniglot_that_is_not_whole_is_refused(case: str, tmp_path: Path) -> None:
    damage, parts = INCOMPLETE[case]
    damage(whole(tmp_path))
    with one_line_error(*parts):
        folders(tmp_path, ways=2)


def test_the_inside_of_omniglot_is_refused(tmp_path: Path) -> None:
    with one_line_error("is the inside of Omniglot: root should be the folder that holds it, as omniglot-py"):
        folders(whole(tmp_path), ways=2)


def test_a_drawing_that_cannot_be_read_is_named_and_its_character_goes_on_without_it(tmp_path: Path) -> None:
    path = whole(tmp_path) / EVALUATION / "Tengwar" / "character01" / "0001_20.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"0001_20\.png is truncated or not an image"):
        source = open_classes(tmp_path, size=8, channels=1)
    assert [source.count(c) for c in range(3)] == [20, 20, 19] and source[2].shape == (19, 1, 8, 8)
    assert torch.equal(source[2], source.images(torch.full((19,), 2), torch.arange(19)))


def test_a_download_that_fails_says_what_to_do(tmp_path: Path) -> None:
    failing = patch("torchvision.datasets.omniglot.download_and_extract_archive", side_effect=OSError("no\nroute"))
    with failing, one_line_error(f"Omniglot in {tmp_path} cannot be read or fetched (no route): it should hold"):
        open_classes(tmp_path, size=28, channels=1, download=True)


def test_a_download_fetches_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    write_omniglot(tmp_path, {"Latin": 1, "Greek": 1}, {})

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        assert filename == "images_evaluation.zip" and url.endswith(filename) and Path(root) == tmp_path / "omniglot-py"
        assert md5 == "6b91aef0f799c5bb55b94e3f2daec811"
        write_omniglot(tmp_path, {}, {"Tengwar": 1})

    with patch("torchvision.datasets.omniglot.download_and_extract_archive", side_effect=fetch) as fetched:
        assert len(open_classes(tmp_path, size=28, channels=1, download=True)) == 3
        assert len(open_classes(tmp_path, size=28, channels=1, download=True)) == 3
    assert fetched.call_count == 1


def test_a_missing_learn2learn_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    parts = ["the sampler LEARN2LEARN needs learn2learn", INSTALL, "the sampler OWN does without"]
    with one_line_error(*parts, error=ProblemError):
        opened(sampler=Sampler.LEARN2LEARN)


def test_a_learn2learn_that_lacks_something_says_what(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "learn2learn.py").write_text("import a_module_that_is_missing")
    monkeypatch.delitem(sys.modules, "learn2learn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    said = "cannot be imported (No module named 'a_module_that_is_missing')"
    with one_line_error("MAML needs learn2learn, which", said, "PROTOTYPES does without", error=ProblemError):
        learn2learn("MAML", "PROTOTYPES")
