"""Images from any folder."""

import os
from pathlib import Path
from typing import Any, NoReturn

from numpy.typing import NDArray

from deqopt.data.pixels import read_pixels
from deqopt.data.source import ImageSource
from deqopt.errors import DataError

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


class ImageFolder(ImageSource):
    """Every image in a folder and its subfolders, hidden ones left out, sorted by path.

    Each is cut to its central square and resized. Files are decoded when they are asked for: a truncated one
    is reported then, by name.

    Attributes:
        root: the folder.
        paths: the files, in the order of the indices.

    Args:
        root: the folder.
        size: height and width of the images.
        channels: 1 or 3 (default).

    Raises:
        DataError: a folder that is missing, unreadable or without images; on access, an image that cannot
            be read.
    """

    def __init__(self, root: str | Path, size: int, channels: int = 3) -> None:
        super().__init__(str(root), size=size, channels=channels)
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root} is {'a file' if root.exists() else 'missing'}: it should be a folder of images")
        self.root, self.paths = root, sorted(_image_files(root), key=lambda path: path.relative_to(root).as_posix())
        if not self.paths:
            accepted = ", ".join(SUFFIXES)
            raise DataError(f"{root} and its subfolders hold no images: their names should end in one of {accepted}")
        stems = [path.stem for path in self.paths]
        unique = len({stem.casefold() for stem in stems}) == len(stems)
        self._names = stems if unique else [f"{i:06d}_{stem}" for i, stem in enumerate(stems)]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The stem of the file; with its position before it if two files of the folder share a stem."""
        return self._names[index]

    def pixels(self, index: int) -> NDArray[Any]:
        return read_pixels(self.paths[index])


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out, sorted.

    Raises:
        DataError: a folder that cannot be listed.
    """
    _, names, _ = next(os.walk(folder, onerror=_cannot_list))
    return sorted(name for name in names if not name.startswith("."))


def _image_files(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root, onerror=_cannot_list, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        visible = (Path(folder, name) for name in files if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in SUFFIXES]
    return found


def _cannot_list(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error
