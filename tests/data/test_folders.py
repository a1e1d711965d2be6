"""Folders as people have them: links that lead around, several names of a file, pipes and devices."""

from __future__ import annotations

import os
import re
import signal
import socket
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from deqopt_tasks.denoising.inpainting import GivenMask
from deqopt_tasks.omniglot.opening import open_classes
from numpy.typing import NDArray

from class_sources import write_omniglot
from deqopt.data import CelebAFaces, ImageArchive, ImageFolder, open_labelled
from deqopt.data.files import list_files
from deqopt.errors import DataError
from folder_readers import READERS, SIDE, classes, image, levels
from stored_images import write_celeba

ALL = Counter(range(6))


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Ends a test that waits for a pipe, or goes around in circles, by an error."""

    def give_up(number: int, frame: object) -> None:
        pytest.fail("the reader hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# -- links ------------------------------------------------------------------------------------------------------------

LINKS: dict[str, dict[str, str]] = {
    "to the folder": {"ant/again": "."},
    "to the folder, as a class": {"again": "."},
    "two to the folder": {"ant/again": ".", "ant/more": "."},
    "up and across": {"ant/across": "bee", "bee/across": "ant"},
    "to an image": {"ant/0 again.png": "ant/0.png"},
    "to an image of another class": {"ant/a.png": "bee/0.png"},
    "to a link to an image": {"ant/b.png": "ant/a.png", "ant/a.png": "ant/0.png"},
    "a second name": {"cat/second name.png": "cat/0.png"},
    "a second name in another class": {"cat/second name.png": "ant/0.png"},
}
"""Links below a folder, and where they lead; those called a second name are hard links."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("link", LINKS)
def test_an_image_counts_once_and_a_warning_says_so(link: str, reader: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    for place, target in LINKS[link].items():
        (os.link if "second name" in place else os.symlink)(root / target, root / place)
    with pytest.warns(UserWarning) as warned:
        assert levels(READERS[reader](root)) == ALL
    (said,) = {str(one.message) for one in warned}
    assert (
        re.match(rf"{root} holds .* twice, through links: each counts once; {root}/\S.* is the same as {root}", said)
        and "\n" not in said
    )


@pytest.mark.parametrize("reader", READERS)
def test_links_to_other_places_are_followed_and_nothing_is_said(reader: str, tmp_path: Path) -> None:
    store = classes(tmp_path / "store")
    (root := tmp_path / "data").mkdir()
    for name in ("ant", "bee"):
        (root / name).symlink_to(store / name)
    (root / "cat").mkdir()
    for name in ("0.png", "1.png"):
        (root / "cat" / name).symlink_to(store / "cat" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(READERS[reader](root)) == ALL


def test_the_name_with_the_fewest_links_counts(tmp_path: Path) -> None:
    image(tmp_path / "z" / "deep" / "one.png", 1)
    (tmp_path / "a").symlink_to("z/deep")
    (tmp_path / "b.png").symlink_to("a/one.png")
    (listing,) = list_files([tmp_path], {".png"})
    assert listing.files == [tmp_path / "z" / "deep" / "one.png"] and listing.folders == ["z", "z/deep"]
    assert listing.repeated == {
        tmp_path / "a": tmp_path / "z" / "deep",
        tmp_path / "b.png": tmp_path / "z" / "deep" / "one.png",
    }


def test_the_order_is_that_of_the_paths_whatever_is_a_link(tmp_path: Path) -> None:
    store = classes(tmp_path / "store")
    root = classes(tmp_path / "data", first=6)
    (root / "bar").symlink_to(store)
    (root / "ant" / "2.png").symlink_to(store / "ant" / "1.png")
    with pytest.warns(UserWarning):
        paths = [path.relative_to(root).as_posix() for path in ImageFolder(root, SIDE).paths]
    assert paths == sorted(paths) and len(paths) == 12
    assert "ant/2.png" in paths and "bar/ant/1.png" not in paths, "there is one link on the way to both"


PARTS: dict[str, Callable[[Path, Path], object]] = {
    "a second name": os.link,
    "a link in train": lambda test, train: train.symlink_to(test),
    "a link in test": lambda test, train: (test.rename(train), test.symlink_to(train)),
}


@pytest.mark.parametrize("case", PARTS)
def test_no_image_is_in_train_and_in_test(case: str, tmp_path: Path) -> None:
    train, test = classes(tmp_path / "train"), classes(tmp_path / "test", first=6)
    PARTS[case](test / "bee" / "0.png", train / "bee" / "more.png")
    with pytest.warns(UserWarning, match=r"holds a file or folder twice"):
        source = open_labelled(tmp_path, size=SIDE, channels=1, classes=3)
    splits = source.splits(0)
    found = [levels([source[i].image for i in part]) for part in (splits.train, splits.val, splits.test)]
    assert sum(found, Counter()) == Counter(range(12))
    assert found[2 if case != "a link in test" else 0][8] or found[1][8]
    assert sorted(source.labels.tolist()) == sorted([0, 0, 1, 1, 2, 2] * 2)


@pytest.mark.parametrize("link", ["train", "test"])
def test_train_and_test_are_not_one_folder(link: str, tmp_path: Path) -> None:
    real = "test" if link == "train" else "train"
    classes(tmp_path / real)
    (tmp_path / link).symlink_to(real)
    with pytest.warns(UserWarning), pytest.raises(DataError, match=rf"{link} and its subfolders hold no images that"):
        open_labelled(tmp_path, size=SIDE, channels=1, classes=3)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_train_and_test_are_not_one_archive(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(b"anything")
    link(tmp_path / "train.npz", tmp_path / "test.npz")
    with pytest.raises(DataError, match=r"^train\.npz and test\.npz in \S+ are the same file: "):
        open_labelled(tmp_path, size=SIDE, channels=1, classes=3)


def greys(count: int) -> NDArray[np.uint8]:
    """Images that are known by their levels, 0 and on."""
    return np.tile(np.arange(count, dtype=np.uint8)[:, None, None], (1, SIDE, SIDE))


def test_a_face_is_in_one_part(tmp_path: Path) -> None:
    folder = write_celeba(tmp_path, "000112200", greys(9)) / "celeba" / "img_align_celeba"
    for name, other in ((8, 7), (9, 2), (5, 6)):
        (folder / f"{name:06d}.jpg").unlink()
        os.link(folder / f"{other:06d}.jpg", folder / f"{name:06d}.jpg")
    with pytest.warns(UserWarning, match="holds 3 files or folders twice"):
        faces = CelebAFaces(tmp_path, SIDE)
    named = [[int(faces.name(i)) for i in part] for part in vars(faces.splits(0)).values()]
    assert named == [[1, 2, 3], [4], [6, 7]], "test keeps what it shares"
    assert [round(float(sample.image.mean()) * 255) for sample in faces] == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize("above", ["an alphabet", "a character"])
def test_a_character_of_omniglot_is_one_class(above: str, tmp_path: Path) -> None:
    root = write_omniglot(tmp_path, {"Latin": 1, "Greek": 1}, {"Tengwar": 1})
    sets = root / "omniglot-py"
    if above == "an alphabet":
        (sets / "images_background" / "Runes").symlink_to(sets / "images_evaluation" / "Tengwar")
    else:
        (sets / "images_background" / "Latin" / "again").symlink_to("character01")
    with pytest.warns(UserWarning, match="holds a file or folder twice"):
        source = open_classes(root, size=8, channels=1)
    assert [source.name(c) for c in range(len(source))] == [
        "Greek_character01",
        "Latin_character01",
        "Tengwar_character01",
    ]


def test_each_name_of_a_mask_is_a_mask(tmp_path: Path) -> None:
    """One mask for many images by links is no mistake; a folder within itself is, and adds nothing."""
    image(tmp_path / "masks" / "a.png", 0)
    (tmp_path / "masks" / "b.png").symlink_to("a.png")
    os.link(tmp_path / "masks" / "a.png", tmp_path / "masks" / "c.png")
    (tmp_path / "masks" / "again").symlink_to(tmp_path / "masks")
    assert sorted(GivenMask(str(tmp_path / "masks"))._paths) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(30))
def test_any_tangle_of_links_holds_each_file_once_and_all_of_them(seed: int, tmp_path: Path) -> None:
    """Beside a walk that remembers where it was by the paths behind links."""
    random = np.random.default_rng(seed)
    folders, files = [tmp_path / "root", tmp_path / "outside"], []
    for i in range(30):
        path = folders[random.integers(len(folders))] / f"{random.choice(list('amz'))}{i}"
        match random.integers(5):
            case 0 | 1:
                folders.append(path)
                path.mkdir(parents=True)
            case 2:
                files.append(image(path.with_suffix(".png"), i))
            case 3 if files:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(files[random.integers(len(files))], path.with_suffix(".png"))
            case _:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(folders[random.integers(len(folders))])
    (tmp_path / "root").mkdir(exist_ok=True)
    expected, been, to_see = set(), set(), [tmp_path / "root"]
    while to_see:
        folder = to_see.pop().resolve()
        if folder.is_dir() and folder not in been:
            been.add(folder)
            to_see += folder.iterdir()
        elif folder.suffix == ".png":
            expected.add(folder.stat().st_ino)
    (listing,) = list_files([tmp_path / "root"], {".png"})
    found = [path.stat().st_ino for path in listing.files]
    assert len(found) == len(set(found)) and set(found) == expected
    assert len(listing.folders) == len(been) - 1
    assert not {*listing.files, *(listing.root / name for name in listing.folders)} & {*listing.repeated}


# -- no files ---------------------------------------------------------------------------------------------------------


def socket_at(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(before)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "it is not a regular file"),
    "link to a pipe": (
        lambda path: (os.mkfifo(path.with_suffix(".fifo")), path.symlink_to(path.with_suffix(".fifo"))),
        "it is not a regular file",
    ),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    "socket": (socket_at, "it is not a regular file"),
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_named_and_left_out(kind: str, reader: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    make, reason = STRANGE[kind]
    make(root / "bee" / "odd.png")
    with pytest.warns(UserWarning) as warned:
        assert levels(READERS[reader](root)) == ALL
    assert {str(one.message) for one in warned} == {f"{root}/bee/odd.png cannot be opened: {reason}"}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_called_an_image_is_not_touched(reader: str, tmp_path: Path) -> None:
    root = classes(tmp_path / "data")
    os.mkfifo(root / "ant" / "pipe")
    os.mkfifo(root / "ant" / ".hidden.png")
    (root / "ant" / "nothing").symlink_to("nowhere")
    (root / "ant" / "around").symlink_to("around")
    (root / "bee" / "notes.txt").symlink_to("/dev/zero")
    (root / "bee" / ".again").symlink_to(root)
    assert levels(READERS[reader](root)) == ALL


@pytest.mark.parametrize("reader", READERS)
def test_a_folder_that_cannot_be_listed_is_named(reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "data")
    scandir = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=rf"^{root}/bee/deep cannot be listed: Permission denied$"):
        READERS[reader](root)


def test_pipes_in_place_of_archives_masks_and_partitions(tmp_path: Path) -> None:
    for name in ("a.npz", "mask.png"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=r"a\.npz cannot be read \(it is not a regular file\): "):
        ImageArchive(tmp_path / "a.npz", SIDE)
    with pytest.raises(DataError, match=r"mask\.png cannot be opened: it is not a regular file$"):
        GivenMask(str(tmp_path / "mask.png")).check((SIDE, SIDE))
    write_celeba(tmp_path, "012")
    (tmp_path / "celeba" / "list_eval_partition.txt").unlink()
    os.mkfifo(tmp_path / "celeba" / "list_eval_partition.txt")
    with pytest.raises(DataError, match=r"lacks list_eval_partition\.txt"):
        CelebAFaces(tmp_path, SIDE)
