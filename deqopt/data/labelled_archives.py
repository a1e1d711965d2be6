"""Labelled images from NumPy archives."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.archive import ImageArchive, ImageArray, check_integers, checked_images
from deqopt.data.files import repeated_files
from deqopt.data.labelled_source import LabelledSource
from deqopt.data.npz import read_arrays
from deqopt.data.official import OfficialParts
from deqopt.data.source import ImageSource
from deqopt.data.splits import Part
from deqopt.errors import DataError

MOST_NAMES = 2**20


def open_archive(path: Path, *, size: int, channels: int, classes: int) -> LabelledSource:
    """Open an `.npz` file with `images`, as for an `ImageArchive`, and `labels`, (N,) integers.

    If the file has an array `classes` with one string per class, these strings are the names of the classes.

    Raises:
        DataError: the file has other contents.
    """
    images = ImageArchive(path, size, channels)
    labels, names = _labels(path, len(images))
    return LabelledSource(images, labels, names, classes=classes)


def open_archives(root: Path, *, size: int, channels: int, classes: int) -> LabelledSource:
    """Open a folder with `train.npz` and `test.npz`, each as for `open_archive`; test is the official test split.

    Raises:
        DataError: a file is missing or has other contents, or the `classes` of the files differ.
    """
    parts = _parts(root, size, channels)
    labels, names = zip(*(_labels(_path(root, part), len(images)) for part, images in parts.items()), strict=True)
    train, test = names
    if train and test and train != test:
        found = f"'classes' of {root} are {', '.join(train)} in train.npz and {', '.join(test)} in test.npz"
        raise DataError(f"{found}: they should be the same, in the same order")
    images = OfficialParts(str(root), parts)
    return LabelledSource(images, np.concatenate(labels), train or test, classes=classes)


def archive_images(root: Path, *, size: int, channels: int) -> ImageSource:
    """The images of `train.npz` and `test.npz` in a folder; labels are not read.

    Raises:
        DataError: a file is missing, or has no valid `images`.
    """
    return OfficialParts(str(root), _parts(root, size, channels))


def holds_archives(root: Path) -> bool:
    """Whether `root` holds `train.npz` or `test.npz`."""
    return any(_path(root, part).is_file() for part in (Part.TRAIN, Part.TEST))


def _path(root: Path, part: Part) -> Path:
    return root / f"{part.value}.npz"


def _parts(root: Path, size: int, channels: int) -> dict[Part, ImageSource]:
    parts: dict[Part, ImageSource] = {}
    if repeated_files(_path(root, part) for part in (Part.TRAIN, Part.TEST)):
        raise DataError(f"train.npz and test.npz in {root} are the same file: they should have no image in common")
    for part in (Part.TRAIN, Part.TEST):
        path = _path(root, part)
        if not path.is_file():
            raise DataError(f"{root} lacks {path.name}: it should hold train.npz and test.npz")
        images = checked_images(read_arrays(path, ["images"])["images"], f"'images' of {path}")
        parts[part] = ImageArray(str(path), images, "", size=size, channels=channels)
    return parts


def _labels(path: Path, images: int) -> tuple[NDArray[Any], list[str]]:
    arrays = read_arrays(path, ["labels"], optional=("classes",))
    check_integers(arrays["labels"], images, f"'labels' of {path}")
    names = arrays.get("classes", np.empty(0))
    if len(names.shape) != 1 or names.dtype.kind != "U":
        return arrays["labels"].astype(np.int64), []
    if len(names) > MOST_NAMES:
        raise DataError(f"'classes' of {path} has {len(names)} names: it should have {MOST_NAMES} or fewer")
    return arrays["labels"].astype(np.int64), names.tolist()
