"""Labelled images from folders: one subfolder per class."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deqopt.data.files import subfolders
from deqopt.data.folder import ImageFolder, list_images
from deqopt.data.labelled_source import LabelledSource
from deqopt.data.official import OfficialParts
from deqopt.data.source import ImageSource
from deqopt.data.splits import Part
from deqopt.errors import DataError

LAYOUT = "CLASS/NAME.png, or train/CLASS/NAME.png and test/CLASS/NAME.png"


def open_class_folders(root: Path, *, size: int, channels: int, classes: int) -> LabelledSource:
    """Open a folder with one subfolder per class, or with `train/`, `test/` and optionally `val/`, each with one
    subfolder per class.

    The classes are the sorted names of the subfolders; images in deeper folders belong to their class too. If there are
    `train/`, `val/` and `test/`, nothing else in `root` is read. A file that several of them hold, through links,
    counts once.

    Raises:
        DataError: no images, or images outside the class folders; a class folder without images; fewer than two
            classes; `train/` without `test/` or the reverse; class folders that differ between the parts.
    """
    in_parts = is_in_parts(root, (Part.TRAIN, Part.TEST), LAYOUT)
    images, labels, names = (_parts if in_parts else _whole)(root, size, channels)
    if len(names) < 2:
        raise DataError(f"{root} has a single class folder, {names[0]}: it should have two or more, as {LAYOUT}")
    return LabelledSource(images, labels, names, classes=classes)


def is_in_parts(root: Path, needed: Collection[Part], layout: str) -> bool:
    """Whether the subfolders of `root` are parts; otherwise they are classes, one of which may be called train.

    Args:
        root: the folder.
        needed: the parts that must be there if any part is there.
        layout: description of the expected folder, for the message.

    Raises:
        DataError: some parts are there, but not all that are needed; or a folder cannot be listed.
    """
    folders = set(subfolders(root))
    present = [part for part in Part if part.value in folders]
    lacking = [part for part in needed if part not in present]
    if lacking and present and (len(present) == len(folders) or {Part.TRAIN, Part.TEST} <= set(present)):
        has, lacks = (" and ".join(f"{part.value}/" for part in parts) for parts in (present, lacking))
        raise DataError(f"{root} has {has}, but lacks {lacks}: it should be {layout}")
    return not lacking


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
    """The images of the existing folders among `train/`, `val/` and `test/`.

    A file that is in two of them, through links, counts in only one: in test rather than in val, and in val rather than
    in train.

    Raises:
        DataError: a folder cannot be listed, or has no images.
    """
    present = [part for part in Part if (root / part.value).is_dir()]
    listings = reversed(list_images([root / part.value for part in reversed(present)]))
    return {
        part: ImageFolder(listing.root, size, channels, listing=listing)
        for part, listing in zip(present, listings, strict=True)
    }


def class_labels(images: ImageFolder) -> tuple[NDArray[np.int64], list[str]]:
    """The class of every image, (N,), and the names of the classes, which are the sorted names of the subfolders.

    Raises:
        DataError: an image is in no subfolder, or a subfolder has no images.
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
