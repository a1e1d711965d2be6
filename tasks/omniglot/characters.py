"""Omniglot (Lake et al. 2015): 1623 characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchvision.datasets import Omniglot  # type: ignore[import-untyped]

from deqopt.data import Splits
from deqopt.data.files import Listing, list_files, said_of
from deqopt.data.pixels import UnreadableImageError, read_pixels
from deqopt.data.splits import hold_out
from deqopt.errors import DataError, printable, reason_of

from .sources import ClassSource

FOLDER, BACKGROUND, EVALUATION = "omniglot-py", "images_background", "images_evaluation"
DRAWERS, SIDE = 20, 105
LAYOUT = f"{FOLDER}/{BACKGROUND}/ALPHABET/CHARACTER/NAME.png, and the same below {FOLDER}/{EVALUATION}"


class OmniglotCharacters(ClassSource):
    """The characters of Omniglot, in memory as 8 bits a pixel: 25 MB at 28 x 28, read in seconds.

    The layout is that of torchvision. The classes are those of the background set (964 characters of 30 alphabets),
    then those of the evaluation set (659 characters of 20 alphabets), both sorted by name. Images are resized from
    105 x 105 with antialiasing, because a stroke is only about two pixels wide. A warning names each file that cannot
    be read; its character then has one image less.

    Args:
        root: the folder that holds `omniglot-py`.
        size: height and width of the images, 28 by default.
        channels: 1 (default), or 3 equal channels.
        download: whether torchvision downloads, checks and unpacks missing files; existing files stay.

    Raises:
        DataError: files are missing, not unpacked, incomplete or of another kind, or the download failed.
    """

    def __init__(self, root: str | Path, size: int = 28, channels: int = 1, *, download: bool = False) -> None:
        super().__init__(f"Omniglot in {root}", size=size, channels=channels)
        folders = [_unpacked(Path(root), name, download=download) for name in (EVALUATION, BACKGROUND)]
        listings = list_files(folders, {".png"})
        repeated = {path: first for listing in listings for path, first in listing.repeated.items()}
        if repeated:
            rank_zero_warn(printable(said_of(repeated, self.where)))
        evaluation, background = map(_characters, listings)
        self._background = len(background)
        characters = [*background.items(), *evaluation.items()]
        self._names = [name for name, _ in characters]
        drawings = [_drawings(files, size) for _, files in characters]
        self._counts = list(map(len, drawings))
        self._pixels = nn.utils.rnn.pad_sequence(drawings, batch_first=True)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The alphabet and the number of the character, as in Latin_character01."""
        return self._names[index].replace("/", "_")

    def group(self, c: int) -> str:
        """Its alphabet."""
        return self._names[c].split("/")[0]

    def count(self, c: int) -> int:
        return self._counts[c]

    def images(self, classes: Tensor, numbers: Tensor) -> Tensor:
        return (self._pixels[classes, numbers].float() / 255)[:, None].repeat(1, self.channels, 1, 1)

    def splits(self, seed: int) -> Splits:
        """Test is the evaluation set; val is a random tenth of the background alphabets, by `seed` alone; train is the
        rest."""
        classes = range(self._background)
        alphabets = sorted({self.group(c) for c in classes})
        if len(alphabets) < 2:
            raise DataError(f"{self.where} has one background alphabet, {alphabets[0]}: 2 or more are needed to split")
        _, held = hold_out(list(range(len(alphabets))), seed, self.where)
        val = {alphabets[i] for i in held}
        return Splits(
            [c for c in classes if self.group(c) not in val],
            [c for c in classes if self.group(c) in val],
            list(range(self._background, len(self))),
        )


class _Fetched(Omniglot):  # type: ignore[misc]
    """Unpacks existing zip files, which torchvision would treat as the unpacked images."""

    def _check_integrity(self) -> bool:
        return (Path(self.root) / self._get_target_folder()).is_dir()


def _unpacked(root: Path, part: str, *, download: bool) -> Path:
    """The folder of the background or of the evaluation set; existing files are not downloaded again."""
    folder = root / FOLDER / part
    if folder.is_dir():
        return folder
    if not download:
        packed = folder.with_suffix(".zip").is_file()
        lacks = f"{folder}.zip is not unpacked" if packed else f"{folder} is missing"
        by_hand = "unpack it there" if packed else f"it should hold {LAYOUT}"
        raise DataError(f"no Omniglot in {root}: {lacks}: {by_hand}, or set download to have torchvision do it")
    try:
        _Fetched(str(root), background=part == BACKGROUND, download=True)
    except Exception as error:  # torchvision's own errors, those of the network and of zip files
        reason = reason_of(error)
        raise DataError(f"Omniglot in {root} cannot be read or fetched ({reason}): it should hold {LAYOUT}") from error
    return folder


def _characters(listing: Listing) -> dict[str, list[Path]]:
    """The files of every character by its name ALPHABET/CHARACTER; names and files are sorted."""
    found: dict[str, list[Path]] = {name: [] for name in listing.folders if name.count("/") == 1}
    for file in listing.files:
        name = file.parent.relative_to(listing.root).as_posix()
        if name in found:
            found[name].append(file)
    if not found:
        raise DataError(f"{listing.root} holds no characters: it should hold ALPHABET/CHARACTER/NAME.png")
    for name, files in found.items():
        if len(files) != DRAWERS:
            count = f"{listing.root / name} has {len(files)} images, it should have {DRAWERS}"
            raise DataError(f"{count}: unpack {listing.root.name}.zip anew")
    return found


def _drawings(files: list[Path], size: int) -> Tensor:
    """The images of the files that can be read, (N, size, size) uint8."""
    pixels = []
    for file in files:
        try:
            found = read_pixels(file)
        except UnreadableImageError as error:
            rank_zero_warn(printable(error))
            continue
        if found.shape != (SIDE, SIDE) or found.dtype != np.uint8:
            shape = " x ".join(map(str, found.shape))
            raise DataError(
                f"{file} is {shape} of {found.dtype}: an image of Omniglot should be {SIDE} x {SIDE}, black and white"
            )
        pixels.append(found)
    if not pixels:
        return torch.empty(0, size, size, dtype=torch.uint8)
    images = torch.from_numpy(np.stack(pixels))[:, None].float()
    if size != SIDE:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return images[:, 0].round().clamp(0, 255).to(torch.uint8)


def holds_omniglot(root: Path) -> bool:
    """Whether `root` holds Omniglot in torchvision's layout, or a part of it.

    Raises:
        DataError: `root` is the folder inside that layout, not the one that holds it.
    """
    if (root / FOLDER).is_dir():
        return True
    if (root / BACKGROUND).is_dir() or (root / EVALUATION).is_dir():
        raise DataError(f"{root} is the inside of Omniglot: root should be the folder that holds it, as {FOLDER}")
    return False
