"""From what a user points at to labelled images."""

from pathlib import Path

from deqopt.data.embedded import EmbeddedDigits
from deqopt.data.labelled.archives import archive_images, holds_archives, open_archive, open_archives
from deqopt.data.labelled.folders import open_class_folders
from deqopt.data.labelled.published import Download, open_published, published_images, published_in
from deqopt.data.labelled.source import LabelledSource
from deqopt.data.opening import open_images
from deqopt.data.source import ImageSource
from deqopt.errors import DataError

ACCEPTED = (
    "a folder with a subfolder for every class, or with train/ and test/ that have these, or with train.npz and "
    "test.npz, or with torchvision's MNIST/, cifar-10-batches-py/ or cifar-100-python/; or an .npz file with 'images' "
    "and 'labels'"
)


def open_labelled(
    root: str | Path | None, *, size: int, channels: int, classes: int, download: Download | None = None
) -> LabelledSource:
    """Open the labelled images at `root`, whatever they are stored as.

    Without official parts, the splits are 80, 10 and 10 percent drawn by their seed. An official test split is kept;
    where there is no official val, it is a tenth of the official train, drawn by the seed.

    Args:
        root: None for scikit-learn's digits (ten classes), or one of

            - a folder with `MNIST/raw`, `cifar-10-batches-py` or `cifar-100-python` as torchvision keeps them;
            - a folder with `train.npz` and `test.npz`, or a single `.npz` file: each with `images`, (N, H, W) or
              (N, H, W, 1 or 3), uint8 or floats in [0, 1], and `labels`, (N,) integers; `classes`, an array of
              strings, names them;
            - a folder with one subfolder a class, or with `train/`, `test/` and perhaps `val/` that have these; the
              classes are numbered in the sorted order of the names.
        size: height and width of the images.
        channels: 1 or 3.
        classes: how many the network tells apart; labels must be 0 to classes - 1.
        download: the data set to use from `root`; torchvision fetches and unpacks what is missing there.

    Raises:
        DataError: none of these, data that cannot be read, labels that do not fit, or a failed download.
    """
    folder = _folder(root, download)
    if folder is None:
        digits = EmbeddedDigits(size, channels)
        return LabelledSource(digits, digits.labels, [str(digit) for digit in range(10)], classes=classes)
    if which := download or published_in(folder):
        fetch = download is not None
        return open_published(which, folder, size=size, channels=channels, classes=classes, download=fetch)
    if not folder.exists():
        raise DataError(f"{folder} is missing: root should be {ACCEPTED}")
    if folder.is_file() and folder.suffix.lower() != ".npz":
        raise DataError(f"{folder} is a file of another kind: root should be {ACCEPTED}")
    if folder.is_file():
        return open_archive(folder, size=size, channels=channels, classes=classes)
    if holds_archives(folder):
        return open_archives(folder, size=size, channels=channels, classes=classes)
    return open_class_folders(folder, size=size, channels=channels, classes=classes)


def open_unlabelled(
    root: str | Path | None, *, size: int, channels: int, download: Download | None = None
) -> ImageSource:
    """Open the images at `root` to predict on: all that `open_images` and `open_labelled` accept, without labels.

    Folders, of classes or not, are read with all their subfolders; labels in an `.npz` file are not looked at.

    Raises:
        DataError: none of these, data that cannot be read, or a failed download.
    """
    folder = _folder(root, download)
    if folder is not None and (which := download or published_in(folder)):
        return published_images(which, folder, size=size, channels=channels, download=download is not None)
    if folder is not None and holds_archives(folder):
        return archive_images(folder, size=size, channels=channels)
    return open_images(folder, size=size, channels=channels)


def _folder(root: str | Path | None, download: Download | None) -> Path | None:
    path = None if root is None else Path(root).expanduser()
    if download and (path is None or path.is_file()):
        raise DataError(f"{download.name} cannot be downloaded to {root or 'nowhere'}: root should be a folder for it")
    return path
