"""Labelled images in the layouts of torchvision: CIFAR-10, CIFAR-100 and MNIST."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.archive import ImageArray, checked_images
from deqopt.data.files import repeated_files
from deqopt.data.labelled_source import LabelledSource
from deqopt.data.official import OfficialParts
from deqopt.data.source import ImageSource
from deqopt.data.splits import Part
from deqopt.errors import DataError, reason_of


@dataclass(frozen=True)
class _Stored:
    """A part as torchvision reads it: images (N, H, W[, 3]), labels (N,) and the names of the classes."""

    images: NDArray[Any]
    labels: NDArray[np.int64]
    classes: list[str]


class Download(Enum):
    """A data set that torchvision can download; the value is its folder below the root."""

    CIFAR10 = "cifar-10-batches-py"
    CIFAR100 = "cifar-100-python"
    MNIST = "MNIST/raw"


def open_published(
    root: Path, *, size: int, channels: int, classes: int, download: Download | None = None
) -> LabelledSource:
    """Open a data set in torchvision's layout in `root`; its official test split is the test split.

    Args:
        download: the data set. Missing files are downloaded into `root` and packed files are unpacked; existing files
            stay. By default the data set that is there.

    Raises:
        DataError: files are missing, packed or damaged, or the download failed.
    """
    where, parts = _read(root, download)
    labels = np.concatenate([part.labels for part in parts.values()])
    names = [name.split(" - ")[0] for name in parts[Part.TRAIN].classes]
    return LabelledSource(_images(where, parts, size, channels), labels, names, classes=classes)


def published_images(root: Path, *, size: int, channels: int, download: Download | None = None) -> ImageSource:
    """The images of a data set in torchvision's layout in `root`; for `download`, see `open_published`.

    Raises:
        DataError: files are missing, packed or damaged, or the download failed.
    """
    return _images(*_read(root, download), size, channels)


def published_in(root: Path) -> Download | None:
    """The data set that `root` holds, if any.

    Raises:
        DataError: `root` holds more than one, or is itself the folder inside the layout.
    """
    found = [which for which in Download if (root / which.value).is_dir()]
    if len(found) > 1:
        names = " and ".join(which.name for which in found)
        raise DataError(f"{root} holds {names}: set download to the one to use; existing files are kept")
    here = root.resolve()
    for which in Download:
        for holder in here.parents[:2]:
            inside = holder / which.value
            if here in (inside, inside.parent) and inside.is_dir():
                right = f"root should be the folder that holds it, {holder}"
                raise DataError(f"{root} is the inside of {which.name}: {right}")
    return found[0] if found else None


def _read(root: Path, download: Download | None) -> tuple[str, dict[Part, _Stored]]:
    """The name of the data set, and its parts.

    CIFAR's files are pickles: torchvision opens only files with the checksums of the authors.
    """
    which = download or published_in(root)
    assert which is not None
    folder = root / which.value
    packed = [path.name for path in folder.glob("*.gz") if not path.with_suffix("").exists()]
    if packed and not download:
        advice = f"set download to {which.name}, which checks and unpacks them there, or unpack them by hand"
        raise DataError(f"{folder} holds {', '.join(sorted(packed))}, not unpacked: {advice}")
    try:
        stored = {part: _part(which, root, part, download is not None) for part in (Part.TRAIN, Part.TEST)}
    except Exception as error:  # torchvision's own errors, assertions, those of pickle and of the network
        asked = f"set download to {which.name}, which fetches what is missing"
        advice = f"delete damaged files in {folder} and {'fetch missing ones by hand' if download else asked}"
        done = "fetched and read" if download else "read"
        raise DataError(f"{which.name} in {root} cannot be {done} ({reason_of(error)}): {advice}") from error
    if repeated := repeated_files(sorted(folder.glob("*-images-idx3-ubyte"))):
        path, first = next(iter(repeated.items()))
        raise DataError(f"{first} and {path} are the same file: train and test should have no image in common")
    return f"{which.name} in {root}", stored


def _part(which: Download, root: Path, part: Part, download: bool) -> _Stored:
    from torchvision import datasets  # type: ignore[import-untyped]

    found = getattr(datasets, which.name)(str(root), train=part is Part.TRAIN, download=download)
    return _Stored(np.asarray(found.data), np.asarray(found.targets, np.int64), list(found.classes))


def _images(where: str, stored: dict[Part, _Stored], size: int, channels: int) -> ImageSource:
    parts: dict[Part, ImageSource] = {
        part: ImageArray(where, checked_images(one.images, where), "", size=size, channels=channels)
        for part, one in stored.items()
    }
    return OfficialParts(where, parts)
