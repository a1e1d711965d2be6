"""Images in files, and which of them cannot be read."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from deqopt.data.pixels import UnreadableImageError, check_readable, read_pixels
from deqopt.data.source import ImageSource
from deqopt.errors import DataError, printable

LONGEST_NAME = 200
"""Largest length in bytes of a name for output files: file systems allow 255, and more text is added to the name."""

READERS = 4
"""Number of threads that search for unreadable files: more threads would hold more images in memory at once."""


class ImageFiles(ImageSource):
    """Images in files, decoded on access.

    Attributes:
        root: the folder of the files.
        paths: the files, in the order of the indices.

    Args:
        root: the folder that contains all files.
        paths: the files.
        where, size, channels, crop: see `ImageSource`.

    Raises:
        UnreadableImageError: on access, an image cannot be read.
    """

    def __init__(
        self, root: Path, paths: Sequence[Path], *, where: str, size: int, channels: int, crop: int | None = None
    ) -> None:
        super().__init__(where, size=size, channels=channels, crop=crop)
        self.root, self.paths = root, list(paths)
        self._names = output_names(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The stem of the file; preceded by its position if two files have the same stem."""
        return self._names[index]

    def file(self, index: int) -> str:
        """The path below the folder."""
        return self.paths[index].relative_to(self.root).as_posix()

    def pixels(self, index: int) -> NDArray[Any]:
        return read_pixels(self.paths[index])

    @cached_property
    def unreadable(self) -> Mapping[int, str]:
        """By index, what is wrong with the files that cannot be read: all are seen through, once, a warning each.

        Of a JPEG the header and the end are looked at, which takes a tenth of the time; all others are decoded.

        Raises:
            DataError: no file can be read.
        """
        with ThreadPoolExecutor(READERS) as pool:
            found = {index: reason for index, reason in enumerate(pool.map(_reason, self.paths)) if reason}
        if len(found) == len(self):
            raise DataError(f"none of the {len(self)} images of {self.where} can be read: {found[0]}")
        for reason in found.values():
            rank_zero_warn(printable(reason))
        return found


def output_names(paths: Sequence[Path]) -> list[str]:
    """The stems of files, each preceded by its position if two files have the same stem; `printable`, and not too
    long."""
    stems = [printable(path.stem).encode()[:LONGEST_NAME].decode(errors="ignore") for path in paths]
    unique = len({stem.casefold() for stem in stems}) == len(stems)
    return stems if unique else [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]


def _reason(path: Path) -> str:
    """The reason why a file cannot be read; empty if it can be read."""
    try:
        check_readable(path)
    except UnreadableImageError as error:
        return str(error)
    return ""
