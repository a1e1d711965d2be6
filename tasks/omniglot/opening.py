"""From what a user points at to images by class."""

from __future__ import annotations

from pathlib import Path

from deqopt.errors import DataError

from .characters import FOLDER, OmniglotCharacters, is_inside_omniglot, looks_like_omniglot
from .glyphs import Glyphs
from .sources import LAYOUT, ClassFolders, ClassSource


def open_classes(root: str | Path | None, *, size: int, channels: int, download: bool = False) -> ClassSource:
    """Open the images at `root` by class, whatever they are stored as.

    Args:
        root: None for the glyphs; a folder with Omniglot in torchvision's layout; or any other folder with one
            subfolder a class, or with `train/`, `val/` and `test/` that have these.
        size: height and width of the images.
        channels: 1 or 3.
        download: fetch Omniglot into the folder `root` if it is not there.

    Raises:
        DataError: none of these, data that cannot be read, or a failed download.
    """
    folder = None if root is None else Path(root).expanduser()
    if download and (folder is None or folder.is_file()):
        raise DataError(f"Omniglot cannot be downloaded to {root or 'nowhere'}: root should be a folder for it")
    if folder is None:
        return Glyphs(size, channels)
    if download or looks_like_omniglot(folder):
        return OmniglotCharacters(folder, size, channels, download=download)
    if is_inside_omniglot(folder):
        raise DataError(f"{folder} is the inside of Omniglot: root should be the folder that holds it, as {FOLDER}")
    if not folder.exists():
        raise DataError(f"{folder} is missing: root should be a folder that holds {FOLDER}/, or one of {LAYOUT}")
    return ClassFolders(folder, size, channels)
