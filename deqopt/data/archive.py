"""Images from a NumPy archive."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.source import ImageSource
from deqopt.data.splits import Splits, split_groups
from deqopt.errors import DataError

SHAPES = "(N, H, W), (N, H, W, 1) or (N, H, W, 3)"


class ImageArchive(ImageSource):
    """The images of an `.npz` file, in memory as they are stored; cut to the central square and resized on access.

    Args:
        path: the file. It is read without pickle.
        size: height and width of the images.
        channels: 1 or 3 (default).
        key: the array of images: (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8 or floats in [0, 1].
        groups: an array (N,) of integers, such as the person in each image: a split then holds all images
            of a group or none, and its share of a tenth or eight counts groups.

    Raises:
        DataError: anything else in the file, or no such file.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        channels: int = 3,
        *,
        key: str = "images",
        groups: str | None = None,
    ) -> None:
        super().__init__(str(path), size=size, channels=channels)
        self._stem = Path(path).stem
        arrays = _read(Path(path), [key] if groups is None else [key, groups])
        self._images = arrays[key]
        _check_images(self._images, f"'{key}' of {path}")
        self._groups = None if groups is None else arrays[groups]
        if self._groups is not None:
            _check_groups(self._groups, len(self), f"'{groups}' of {path}")

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._stem}_{index:04d}"

    def pixels(self, index: int) -> NDArray[Any]:
        return self._images[index]

    def splits(self, seed: int) -> Splits:
        """80, 10 and 10 percent of the images or, with `groups`, of the groups, drawn by `seed` alone."""
        return super().splits(seed) if self._groups is None else split_groups(self._groups, seed, self.where)


def _read(path: Path, keys: list[str]) -> dict[str, NDArray[Any]]:
    arrays = {}
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    f"{path} is a single .npy array: it should be an .npz with '{keys[0]}' (np.savez)"
                )
            for key in keys:
                if key not in archive.files:
                    found = ", ".join(archive.files) or "nothing"
                    raise DataError(f"{path} has no array '{key}': it holds {found}")
                arrays[key] = np.asarray(archive[key])
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: it should be an .npz file with '{keys[0]}'") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            problem = "holds Python objects, which are not loaded: save plain numbers instead"
        else:
            problem = f"is damaged or not an .npz file ({error}): write it anew with np.savez"
        raise DataError(f"{path} {problem}") from error
    return arrays


def _check_images(images: NDArray[Any], where: str) -> None:
    if (
        images.ndim not in (3, 4)
        or (images.ndim == 4 and images.shape[3] not in (1, 3))
        or 0 in images.shape[1:]
    ):
        raise DataError(f"{where} has shape {images.shape}: it should be {SHAPES}")
    if len(images) == 0:
        raise DataError(f"{where} has no images: its shape is {images.shape}, N should be 1 or more")
    if images.dtype == np.uint8:
        return
    if images.dtype.kind != "f":
        raise DataError(f"{where} is of {images.dtype}: it should be uint8, or floats in [0, 1]")
    lowest, highest = images.min(), images.max()
    if not np.isfinite([lowest, highest]).all():
        raise DataError(f"{where} has NaN or infinite values: it should be uint8, or floats in [0, 1]")
    if lowest < 0 or highest > 1:
        found = f"{lowest:g} to {highest:g}"
        raise DataError(f"{where} has floats from {found}: they should be in [0, 1], or uint8 in 0..255")


def _check_groups(groups: NDArray[Any], images: int, where: str) -> None:
    if groups.shape != (images,) or groups.dtype.kind not in "iu":
        found = f"has shape {groups.shape} of {groups.dtype}"
        raise DataError(f"{where} {found}: it should be ({images},) of integers, one for every image")
