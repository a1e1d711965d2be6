"""From what a user points at to images by class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deqopt.data.opening import open_first

from .characters import FOLDER, OmniglotCharacters, holds_omniglot
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
    fetch = "Omniglot", partial(OmniglotCharacters, size=size, channels=channels, download=True)
    return open_first(
        root,
        [
            (holds_omniglot, partial(OmniglotCharacters, size=size, channels=channels)),
            (Path.exists, partial(ClassFolders, size=size, channels=channels)),
        ],
        embedded=partial(Glyphs, size, channels),
        accepted=f"a folder that holds {FOLDER}/, or one of {LAYOUT}",
        download=fetch if download else None,
    )
