"""From what a user points at to a source of images."""

from pathlib import Path

from deqopt.data.archive import ImageArchive
from deqopt.data.celeba import CelebAFaces, is_inside_celeba, looks_like_celeba
from deqopt.data.embedded import EmbeddedDigits
from deqopt.data.folder import ImageFolder
from deqopt.data.source import ImageSource
from deqopt.errors import DataError

ACCEPTED = "a folder of images, a folder that holds celeba/, or an .npz file with 'images'"


def open_images(
    root: str | Path | None, *, size: int, channels: int, download: bool = False, groups: str | None = None
) -> ImageSource:
    """Open the images at `root`, whatever they are stored as.

    Args:
        root: None for the embedded digits, an `.npz` file, a folder with CelebA in torchvision's layout, or
            any other folder of images.
        size: height and width of the images.
        channels: 1 or 3.
        download: fetch CelebA into the folder `root` if it is not there.
        groups: for an `.npz` file, the array of integers whose groups are not to be split.

    Raises:
        DataError: none of these, data that cannot be read, or settings that do not fit the data.
    """
    source = _open(None if root is None else Path(root).expanduser(), size, channels, download, groups)
    if groups is not None and not isinstance(source, ImageArchive):
        raise DataError(f"groups '{groups}' do not fit {source.where}: only an .npz file can have them")
    return source


def _open(root: Path | None, size: int, channels: int, download: bool, groups: str | None) -> ImageSource:
    if download and (root is None or root.is_file()):
        raise DataError(f"CelebA cannot be downloaded to {root or 'nowhere'}: root should be a folder for it")
    if root is None:
        return EmbeddedDigits(size, channels)
    if download or looks_like_celeba(root):
        return CelebAFaces(root, size, channels, download=download)
    if is_inside_celeba(root):
        raise DataError(f"{root} is the inside of CelebA: root should be the folder that holds it, as 'celeba'")
    if root.is_dir():
        return ImageFolder(root, size, channels)
    if not root.exists():
        raise DataError(f"{root} is missing: root should be {ACCEPTED}")
    if root.suffix.lower() != ".npz":
        raise DataError(f"{root} is a file of another kind: root should be {ACCEPTED}")
    return ImageArchive(root, size, channels, groups=groups)
