"""Finds and opens the right source of images for a path."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

from deqopt.data.archive import ImageArchive
from deqopt.data.celeba import CelebAFaces, holds_celeba
from deqopt.data.class_folders import open_class_folders
from deqopt.data.embedded import EmbeddedDigits
from deqopt.data.folder import ImageFolder
from deqopt.data.labelled_archives import archive_images, holds_archives, open_archive, open_archives
from deqopt.data.labelled_source import LabelledSource
from deqopt.data.published import Download, open_published, published_images, published_in
from deqopt.data.source import ImageSource
from deqopt.errors import DataError

OpenedT = TypeVar("OpenedT")
Opens = Callable[[Path], OpenedT]
Layout = tuple[Callable[[Path], object], Opens[OpenedT]]
"""``(recognises, opens)``: a function that tells whether a path has a certain layout, and a function that opens it.
Both may raise DataError."""

TORCHVISION = "with torchvision's MNIST/, cifar-10-batches-py/ or cifar-100-python/"
IMAGES = (
    "a folder of images, a folder that holds celeba/, or train.npz and test.npz, an .npz file with 'images', or a "
    f"folder {TORCHVISION}"
)
LABELLED = (
    "a folder with a subfolder for every class, or with train/ and test/ that have these, or with train.npz and "
    f"test.npz, or {TORCHVISION}; or an .npz file with 'images' and 'labels'"
)


def open_first(
    root: str | Path | None,
    layouts: Iterable[Layout[OpenedT]],
    *,
    embedded: Callable[[], OpenedT],
    accepted: str,
    download: tuple[str, Opens[OpenedT]] | None = None,
) -> OpenedT:
    """Open `root` by the first layout that recognises it.

    Args:
        root: a file or folder; None for the data that come with the program.
        layouts: layouts to try; the first that fits is used.
        embedded: function that opens the data that come with the program.
        accepted: description of the layouts, for messages.
        download: the name of a data set, and a function that downloads it into the folder `root` and opens it; if
            given, the layouts are not tried.

    Raises:
        DataError: no layout recognises `root`, or there is no folder to download to.
    """
    path = None if root is None else Path(root).expanduser()
    if download is not None:
        name, fetch = download
        if path is None or path.is_file():
            raise DataError(f"{name} cannot be downloaded to {root or 'nowhere'}: root should be a folder for it")
        return fetch(path)
    if path is None:
        return embedded()
    for recognises, opens in layouts:
        if recognises(path):
            return opens(path)
    found = "a file of another kind" if path.exists() else "missing"
    raise DataError(f"{path} is {found}: root should be {accepted}")


def open_images(
    root: str | Path | None,
    *,
    size: int,
    channels: int,
    download: bool = False,
    groups: str | None = None,
    embedded: Callable[[int, int], ImageSource] = EmbeddedDigits,
) -> ImageSource:
    """Open the images at `root`, in any supported layout, without labels.

    Folders are read with all their subfolders, whether these are classes or not. Labels in an `.npz` file are ignored.

    Args:
        root: None for embedded images; a folder with CelebA, MNIST, CIFAR-10 or CIFAR-100 in torchvision's layout, or
            with `train.npz` and `test.npz`; any other folder of images; or an `.npz` file.
        size: height and width of the images.
        channels: 1 or 3.
        download: whether to download CelebA into the folder `root` if it is missing.
        groups: for an `.npz` file, the name of the array of integers whose groups must stay in one split.
        embedded: function from size and number of channels to the images that are used without a root; scikit-learn's
            digits by default.

    Raises:
        DataError: `root` has none of these layouts, data cannot be read, or settings do not fit the data.
    """
    fetch = ("CelebA", partial(CelebAFaces, size=size, channels=channels, download=True)) if download else None
    layouts: list[Layout[ImageSource]] = [
        (published_in, partial(published_images, size=size, channels=channels)),
        (holds_archives, partial(archive_images, size=size, channels=channels)),
        (holds_celeba, partial(CelebAFaces, size=size, channels=channels)),
        (Path.is_dir, partial(ImageFolder, size=size, channels=channels)),
        (_is_npz, partial(ImageArchive, size=size, channels=channels, groups=groups)),
    ]
    source = open_first(root, layouts, embedded=partial(embedded, size, channels), accepted=IMAGES, download=fetch)
    if groups is not None and not isinstance(source, ImageArchive):
        raise DataError(f"groups '{groups}' do not fit {source.where}: only an .npz file can have them")
    return source


def open_labelled(
    root: str | Path | None, *, size: int, channels: int, classes: int, download: Download | None = None
) -> LabelledSource:
    """Open the labelled images at `root`, in any supported layout.

    Without official parts, the splits are 80, 10 and 10 percent, drawn by their seed. An official test split is kept.
    Without an official val, it is a tenth of the official train, drawn by the seed.

    Args:
        root: None for scikit-learn's digits (ten classes), or one of

            - a folder with `MNIST/raw`, `cifar-10-batches-py` or `cifar-100-python` as torchvision keeps them;
            - a folder with `train.npz` and `test.npz`, or a single `.npz` file: each with `images`, (N, H, W) or
              (N, H, W, 1 or 3), uint8 or floats in [0, 1], and `labels`, (N,) integers; `classes`, an array of
              strings, names them;
            - a folder with one subfolder per class, or with `train/`, `test/` and optionally `val/`, each with one
              subfolder per class; the classes are numbered in the sorted order of their names.
        size: height and width of the images.
        channels: 1 or 3.
        classes: number of classes that the network distinguishes; labels must be 0 to classes - 1.
        download: the data set to use from `root`; torchvision downloads and unpacks missing files.

    Raises:
        DataError: `root` has none of these layouts, data cannot be read, labels do not fit, or the download failed.
    """
    layouts: list[Layout[LabelledSource]] = [
        (published_in, partial(open_published, size=size, channels=channels, classes=classes)),
        (holds_archives, partial(open_archives, size=size, channels=channels, classes=classes)),
        (Path.is_dir, partial(open_class_folders, size=size, channels=channels, classes=classes)),
        (_is_npz, partial(open_archive, size=size, channels=channels, classes=classes)),
    ]
    fetch = download and (
        download.name,
        partial(open_published, size=size, channels=channels, classes=classes, download=download),
    )
    embedded = partial(_labelled_digits, size=size, channels=channels, classes=classes)
    return open_first(root, layouts, embedded=embedded, accepted=LABELLED, download=fetch)


def _is_npz(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".npz"


def _labelled_digits(size: int, channels: int, classes: int) -> LabelledSource:
    digits = EmbeddedDigits(size, channels)
    return LabelledSource(digits, digits.labels, [str(digit) for digit in range(10)], classes=classes)
