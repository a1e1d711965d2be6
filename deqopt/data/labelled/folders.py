"""Labelled images from folders: one subfolder a class."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deqopt.data.files import subfolders
from deqopt.data.folder import ImageFolder, list_images
from deqopt.data.labelled.source import LabelledSource
from deqopt.data.official import OfficialParts
from deqopt.data.source import ImageSource
from deqopt.data.splits import Part
from deqopt.errors import DataError

LAYOUT = "CLASS/NAME.png, or train/CLASS/NAME.png and test/CLASS/NAME.png"


def open_class_folders(root: Path, *, size: int, channels: int, classes: int) -> LabelledSource:
    """A folder with one subfolder a class, or with `train/`, `test/` and perhaps `val/` that have these.

    The classes are the names of the subfolders, sorted; images in folders below them belong to them. Beside `train/`,
    `val/` and `test/` nothing in `root` is read. A file that several of them hold, through links, counts once.

    Raises:
        DataError: no images, or images in no class folder; a class folder without images; fewer than two; `train/`
            without `test/` or the reverse; class folders that differ between them.
    """
    images, labels, names = (_parts if _is_in_parts(root) else _whole)(root, size, channels)
    if len(names) < 2:
        raise DataError(f"{root} has a single class folder, {names[0]}: it should have two or more, as {LAYOUT}")
    return LabelledSource(images, labels, names, classes=classes)


def _is_in_parts(root: Path) -> bool:
    """Whether the subfolders are parts; else they are classes, one of which may be called train."""
    folders = set(subfolders(root))
    if {Part.TRAIN.value, Part.TEST.value} <= folders:
        return True
    if folders and folders <= {part.value for part in Part}:
        lacking = Part.TEST if Part.TRAIN.value in folders else Part.TRAIN
        has = " and ".join(f"{folder}/" for folder in sorted(folders))
        raise DataError(f"{root} has {has}, but lacks {lacking.value}/: it should be {LAYOUT}")
    return False


def _whole(root: Path, size: int, channels: int) -> tuple[ImageSource, NDArray[np.int64], list[str]]:
    images = ImageFolder(root, size, channels)
    return images, *class_labels(images)


def _parts(root: Path, size: int, channels: int) -> tuple[ImageSource, NDArray[np.int64], list[str]]:
    parts: dict[Part, ImageSource] = {}
    labels, names = [], dict[Part, list[str]]()
    for part, images in part_folders(root, size, channels).items():
        parts[part] = images
        found, names[part] = class_labels(images)
        labels.append(found)
    everything = set().union(*names.values())
    for part, present in names.items():
        if lacking := everything.difference(present):
            classes = ", ".join(sorted(lacking))
            raise DataError(f"{root / part.value} lacks {classes}: every part should have a folder for every class")
    return OfficialParts(str(root), parts), np.concatenate(labels), names[Part.TRAIN]


def part_folders(root: Path, size: int, channels: int) -> dict[Part, ImageFolder]:
    """The images of those of `train/`, `val/` and `test/` that are there.

    A file that is in two of them through links counts in one, rather in test than in val, and in val than in train.

    Raises:
        DataError: one that cannot be listed, or without images.
    """
    present = [part for part in Part if (root / part.value).is_dir()]
    listings = reversed(list_images([root / part.value for part in reversed(present)]))
    return {
        part: ImageFolder(listing.root, size, channels, listing=listing)
        for part, listing in zip(present, listings, strict=True)
    }


def class_labels(images: ImageFolder) -> tuple[NDArray[np.int64], list[str]]:
    """The class of every image, (N,), and the names of the classes: those of the subfolders, sorted.

    Raises:
        DataError: an image in no subfolder; a subfolder without images.
    """
    root, names = images.root, [folder for folder in images.folders if "/" not in folder]
    homes = []
    for path in images.paths:
        first, *rest = path.relative_to(root).parts
        if not rest:
            raise DataError(f"{path} is in no class folder: the layout of labelled images should be {LAYOUT}")
        homes.append(names.index(first))
    empty = [name for i, name in enumerate(names) if i not in set(homes)]
    if empty:
        raise DataError(f"{root} has class folders without images: {', '.join(empty)}; fill or delete them")
    return np.array(homes), names
