"""What labelled sources say about data and settings that cannot be right, and that it is one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deqopt.data import Download, LabelledSource, open_images, open_labelled
from labelled_sources import cifar, classes, mnist, pixels, split_folders, unchecked, write_classes
from refusals import one_line_error
from stored_images import write_bytes


def opened(root: Path | None, **settings: Any) -> LabelledSource:
    return open_labelled(root, **{"size": 8, "channels": 3, "classes": 3, **settings})


# -- archives ---------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"images": pixels(4), "labels": np.array([0, 1, 2, 0])}
BAD_ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, r"\.npz has no array 'labels': it holds images$"),
    "no images": ({"images": None}, r"\.npz has no array 'images': it holds labels$"),
    "too few": ({"labels": np.arange(3)}, r"'labels' of .*\.npz has shape \(3,\) of int64: .* \(4,\) of integers"),
    "one-hot": ({"labels": np.eye(4, dtype=int)}, r"'labels' of .* has shape \(4, 4\) of int64: .* \(4,\) of integers"),
    "floats": ({"labels": np.arange(4.0)}, r"'labels' of .* of float64: it should be \(4,\) of integers"),
    "strings": ({"labels": np.array(["a"] * 4)}, r"'labels' of .* of <U1: it should be \(4,\) of integers"),
    "objects": ({"labels": np.array([None] * 4)}, r"'labels' of .* holds Python objects, which are never loaded"),
    "NaN": ({"images": np.full((4, 8, 8), np.nan)}, r"'images' of .* has NaN or infinite values"),
}


@pytest.mark.parametrize("form", ["a.npz", "train.npz", "test.npz"])
@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_bad_archives(case: str, form: str, tmp_path: Path) -> None:
    changes, pattern = BAD_ARCHIVES[case]
    for name in ("a.npz",) if form == "a.npz" else ("train.npz", "test.npz"):
        arrays = {**GOOD, **(changes if name == form else {})}
        np.savez(tmp_path / name, **{key: array for key, array in arrays.items() if array is not None})
    message = pattern.replace(r"\.npz", re.escape(form[1:]), 1)
    one_line_error(lambda: opened(tmp_path / form if form == "a.npz" else tmp_path), message)


BAD_LABELS: dict[str, tuple[dict[str, Any], int, str]] = {
    "beyond": ({"labels": np.array([0, 1, 11, 0])}, 10, r"label 11 .*_0002\): .* 0 to 9, or set classes to 12$"),
    "from one": ({"labels": np.array([1, 2, 3, 1])}, 3, r"label 3 .*_0002\): .* 0 to 2, or set classes to 4$"),
    "negative": ({"labels": np.array([0, 1, 2, -1])}, 3, r"label -1 .*_0003\): labels should be 0 to 2$"),
    "bytes": ({"labels": np.array([0, 255, 1, 2], np.uint8)}, 3, r"label 255 .*_0001\): .* classes to 256$"),
    "more names": ({"classes": np.array(list("abcd"))}, 3, r"has 4 classes, from a to d, but .* 3: set classes to 4$"),
    "no classes": ({}, 0, r"^classes is 0: it should be 2 or more"),
    "one class": ({}, 1, r"^classes is 1: it should be 2 or more"),
}


@pytest.mark.parametrize("form", ["single", "parts"])
@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_outside_the_classes(case: str, form: str, tmp_path: Path) -> None:
    """In parts, the image is named with its part."""
    changes, count, pattern = BAD_LABELS[case]
    good = {**GOOD, "labels": np.array([0, 1, 1, 0])}
    if form == "single":
        np.savez(tmp_path / "a.npz", **{**GOOD, **changes})
    else:
        np.savez(tmp_path / "train.npz", **good)
        np.savez(tmp_path / "test.npz", **{**GOOD, **changes})
        pattern = pattern.replace(".*_00", r"\(of image test_00")
    one_line_error(lambda: opened(tmp_path / "a.npz" if form == "single" else tmp_path, classes=count), pattern)


# -- everything else --------------------------------------------------------------------------------------------------


def flat(folder: Path) -> Path:
    """Images without folders of classes."""
    write_classes(folder, pixels(3), np.zeros(3, int))
    for path in (folder / "bee").iterdir():
        path.rename(folder / path.name)
    (folder / "bee").rmdir()
    return folder


def flat_parts(folder: Path) -> Path:
    return flat(flat(folder / "train").parent / "test").parent


def one_class(folder: Path) -> Path:
    write_classes(folder, pixels(3), np.zeros(3, int))
    return folder


def empty_class(folder: Path) -> Path:
    write_classes(folder, pixels(3), classes(3))
    return write_bytes(folder / "dog" / "a.txt").parents[1]


def folders(folder: Path, **counts: int) -> Path:
    split_folders(folder, counts)
    return folder


def without(folder: Path, *gone: str) -> Path:
    """Parts of which one lacks classes."""
    split_folders(folder, {"train": 6, "val": 6, "test": 6})
    for name in gone:
        shutil.rmtree(folder / name)
    return folder


def archives(folder: Path, **names: str) -> Path:
    """An archive a part, with a letter as the name of a class."""
    for part, letters in names.items():
        np.savez(folder / f"{part}.npz", classes=np.array(list(letters)), **GOOD)
    return folder


def tiny_archives(folder: Path) -> Path:
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", images=pixels(1), labels=[0])
    return folder


def mnist_in(folder: Path) -> Path:
    mnist(folder)
    return folder


def packed(folder: Path) -> Path:
    for path in (mnist_in(folder) / "MNIST" / "raw").iterdir():
        path.rename(f"{path}.gz")
    return folder


def damaged(folder: Path, name: str, content: bytes) -> Path:
    return write_bytes(mnist_in(folder) / "MNIST" / "raw" / name, content).parents[2]


def incomplete(folder: Path) -> Path:
    (mnist_in(folder) / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    return folder


LAYOUT = r"CLASS/NAME\.png, or train/CLASS/NAME\.png and test/CLASS/NAME\.png$"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: opened(p / "no"), r"no is missing: root should be a folder with a subfolder for every class"),
    "other file": (
        lambda p: opened(write_bytes(p / "a.csv")),
        r"a\.csv is a file of another kind: .* 'images' and 'labels'$",
    ),
    "no archive": (lambda p: opened(write_bytes(p / "a.npz", b"1")), r"a\.npz is not an \.npz file"),
    "empty class folders": (
        lambda p: opened(write_bytes(p / "cat" / "a.txt").parents[1]),
        r"and its subfolders hold no images: their names should end in one of .*\.png",
    ),
    "an empty class folder": (
        lambda p: opened(empty_class(p)),
        r"has class folders without images: dog; fill or delete them$",
    ),
    "flat": (lambda p: opened(flat(p)), rf"00\.png is in no class folder: the layout .* should be {LAYOUT}"),
    "flat parts": (lambda p: opened(flat_parts(p)), rf"train/00\.png is in no class folder: .*{LAYOUT}"),
    "a single class": (
        lambda p: opened(one_class(p / "data")),
        rf"data has a single class folder, bee: it should have two or more, as {LAYOUT}",
    ),
    "no test folder": (lambda p: opened(folders(p, train=6)), rf"has train/, but lacks test/: it should be {LAYOUT}"),
    "no train folder": (lambda p: opened(folders(p, val=6, test=6)), r"has val/ and test/, but lacks train/: it"),
    "train lacks a class": (lambda p: opened(without(p, "train/cat")), r"^\S*/train lacks cat: every part should have"),
    "val lacks a class": (lambda p: opened(without(p, "val/ant")), r"^\S*/val lacks ant: every part should have"),
    "test lacks classes": (
        lambda p: opened(without(p, "test/ant", "test/bee")),
        r"^\S*/test lacks ant, bee: every part should have a folder for every class$",
    ),
    "no test archive": (
        lambda p: opened(archives(p, train="abc")),
        r"lacks test\.npz: it should hold train\.npz and test\.npz$",
    ),
    "no train archive to predict on": (
        lambda p: open_images(archives(p, test="abc"), size=8, channels=3),
        r"lacks train\.npz: it should hold",
    ),
    "other names": (
        lambda p: opened(archives(p, train="abc", test="acb")),
        r"'classes' of \S* are a, b, c in train\.npz and a, c, b in test\.npz: they should be the same",
    ),
    "one image to train on": (
        lambda p: opened(tiny_archives(p)).splits(0),
        r"^cannot split \S*: it has 1 image\(s\) to train on, at least 2 are needed$",
    ),
    "seed": (lambda p: opened(archives(p, train="abc", test="")).splits(-1), r"seed -1: it should be 0 to 4294967295$"),
    "digits of five classes": (
        lambda p: opened(None, classes=5),
        r"^scikit-learn's digits has 10 classes, from 0 to 9, but classes is 5: set classes to 10$",
    ),
    "packed MNIST": (
        lambda p: opened(packed(p)),
        r"raw holds t10k-images-idx3-ubyte\.gz, .*, not unpacked: set download to MNIST, which checks and unpacks",
    ),
    "packed MNIST to predict on": (
        lambda p: open_images(packed(p), size=8, channels=1),
        r"not unpacked: set download to MNIST",
    ),
    "incomplete MNIST": (
        lambda p: opened(incomplete(p)),
        r"^MNIST in \S* cannot be read \(Dataset not found.*\): .* set download to MNIST, which fetches what",
    ),
    "damaged MNIST": (
        lambda p: opened(damaged(p, "train-images-idx3-ubyte", b"\0\0\10\3\0\0\0\5")),
        r"^MNIST in \S* cannot be read \(.+\): delete damaged files in \S*MNIST/raw and set download to MNIST",
    ),
    "damaged MNIST that is there": (
        lambda p: opened(damaged(p, "train-images-idx3-ubyte", b""), download=Download.MNIST),
        r"^MNIST in \S* cannot be fetched and read \(.+\): delete damaged files in \S*MNIST/raw and fetch missing",
    ),
    "MNIST with other labels": (
        lambda p: opened(damaged(p, "t10k-labels-idx1-ubyte", b"\0\0\10\1\0\0\0\3\1\2\0"), classes=10),
        r"^the array of labels of MNIST in \S* has shape \(43,\) of int64: it should be \(50,\) of integers",
    ),
    "inside MNIST": (
        lambda p: opened(mnist_in(p / "data") / "MNIST"),
        r"MNIST is the inside of MNIST: root should be the folder that holds it, \S*/data$",
    ),
    "deep inside MNIST": (
        lambda p: open_images(mnist_in(p / "data") / "MNIST" / "raw", size=8, channels=1),
        r"raw is the inside of MNIST: root should be the folder that holds it, \S*/data$",
    ),
    "two data sets": (
        lambda p: opened(mnist_in(cifar(p, Download.CIFAR10).root or p)),
        r" holds CIFAR10 and MNIST: set download to the one to use; existing files are kept$",
    ),
    "download nowhere": (
        lambda p: opened(None, download=Download.MNIST),
        r"^MNIST cannot be downloaded to nowhere: root should be a folder for it$",
    ),
    "labels for fewer images": (
        lambda p: LabelledSource(open_images(None, size=8, channels=1), np.zeros(5, int), classes=10),
        r"^the array of labels of scikit-learn's digits has shape \(5,\) of int64: it should be \(1797,\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_roots_and_settings(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchecked(monkeypatch)
    action, pattern = BAD[case]
    one_line_error(lambda: action(tmp_path), pattern)


@pytest.mark.parametrize("which", Download)
def test_a_failed_download_says_why_and_what_else_to_do(
    which: Download, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*settings: object, **more: object) -> None:
        raise RuntimeError("No route\nto host")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    expected = rf"^{which.name} in \S*/new cannot be fetched and read \(.*No route to host.*\): .* ones by hand$"
    one_line_error(lambda: opened(tmp_path / "new", download=which), expected)
