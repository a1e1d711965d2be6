"""Finds and opens the right source of images by class for a path."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from deqopt.data.opening import open_first

from .characters import FOLDER, OmniglotCharacters, holds_omniglot
from .glyphs import Glyphs
from .sources import LAYOUT, ClassFolders, ClassSource


def open_classes(root: str | Path | None, *, size: int, channels: int, download: bool = False) -> ClassSource:
    """Open the images at `root` by class, in any supported layout.

    Args:
        root: None for the glyphs; a folder with Omniglot in torchvision's layout; or any other folder with one
            subfolder per class, or with `train/`, `val/` and `test/`, each with one subfolder per class.
        size: height and width of the images.
        channels: 1 or 3.
        download: whether to download Omniglot into the folder `root` if it is missing.

    Raises:
        DataError: `root` has none of these layouts, data cannot be read, or the download failed.
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
