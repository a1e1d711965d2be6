"""Images from any folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from deqopt.data.files import Listing, list_files, said_of
from deqopt.data.pixels import read_pixels
from deqopt.data.source import ImageSource
from deqopt.errors import DataError, printable

SUFFIXES = (
    ".bmp",
    ".gif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
LONGEST_NAME = 200
"""Bytes of a name for output files: file systems take 255, and more is put around it."""


class ImageFolder(ImageSource):
    """Every image in a folder and its subfolders, hidden ones left out, sorted by path.

    Each is cut to its central square and resized. Files are decoded when they are asked for: a truncated one
    is reported then, by name. A file that has several names, through links, is one image; a warning says so.

    Attributes:
        root: the folder.
        paths: the files, in the order of the indices.
        folders: the subfolders, as paths below the root with slashes, sorted.

    Args:
        root: the folder.
        size: height and width of the images.
        channels: 1 or 3 (default).
        every_name: whether each name of a file is an image, as where the names of masks matter; off by default.
        listing: what is in the folder, where `list_images` has listed it together with others; by default it is listed
            alone.

    Raises:
        DataError: a folder that is missing, unreadable or without images; on access, an image that cannot
            be read.
    """

    def __init__(
        self,
        root: str | Path,
        size: int,
        channels: int = 3,
        *,
        every_name: bool = False,
        listing: Listing | None = None,
    ) -> None:
        super().__init__(str(root), size=size, channels=channels)
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root} is {'a file' if root.exists() else 'missing'}: it should be a folder of images")
        if listing is None:
            (listing,) = list_files([root], SUFFIXES) if every_name else list_images([root])
        self.root, self.folders, self.paths = root, listing.folders, list(listing.files)
        if every_name:
            self.paths += [path for path in listing.repeated if not path.is_dir()]
            self.paths.sort(key=lambda path: path.relative_to(root).as_posix())
        if not self.paths:
            accepted = ", ".join(SUFFIXES)
            alone = " that are not elsewhere too" if listing.repeated else ""
            raise DataError(
                f"{root} and its subfolders hold no images{alone}: their names should end in one of {accepted}"
            )
        self._names = output_names(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The stem of the file; with its position before it if two files of the folder share a stem."""
        return self._names[index]

    def pixels(self, index: int) -> NDArray[Any]:
        return read_pixels(self.paths[index])


def list_images(roots: Sequence[Path]) -> list[Listing]:
    """The image files of folders, as of `list_files`; warns where some have several names.

    Raises:
        DataError: a folder that cannot be listed.
    """
    listings = list_files(roots, SUFFIXES)
    repeated = {path: first for listing in listings for path, first in listing.repeated.items()}
    if repeated:
        where = " and ".join(map(str, roots))
        rank_zero_warn(printable(said_of(repeated, where)))
    return listings


def output_names(paths: Sequence[Path]) -> list[str]:
    """The stems of files, each with its position before it if two share a stem; `printable`, and not too long."""
    stems = [printable(path.stem).encode()[:LONGEST_NAME].decode(errors="ignore") for path in paths]
    unique = len({stem.casefold() for stem in stems}) == len(stems)
    return stems if unique else [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]
