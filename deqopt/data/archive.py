"""Images in arrays, and in a NumPy archive."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.npz import read_arrays
from deqopt.data.source import ImageSource
from deqopt.data.splits import Splits, split_groups
from deqopt.errors import DataError, printable

SHAPES = "(N, H, W), (N, H, W, 1) or (N, H, W, 3)"


class ImageArray(ImageSource):
    """The images of an array; cut to the central square and resized on access.

    Args:
        where: what the images were read from, for messages.
        images: (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8 or floats in [0, 1]; `checked_images` makes sure.
        prefix: what stands before the four digits of an image's name.
        size: height and width of the images.
        channels: 1 or 3.
    """

    def __init__(self, where: str, images: NDArray[Any], prefix: str, *, size: int, channels: int) -> None:
        super().__init__(where, size=size, channels=channels)
        self._images, self._prefix = images, prefix

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._prefix}{index:04d}"

    def pixels(self, index: int) -> NDArray[Any]:
        pixels: NDArray[Any] = self._images[index]
        return pixels


class ImageArchive(ImageArray):
    """The images of an `.npz` file, in memory; cut to the central square and resized on access.

    Args:
        path: the file. It is read without pickle.
        size: height and width of the images.
        channels: 1 or 3 (default).
        key: the array of images: (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8 or floats in [0, 1].
        groups: name of an array (N,) of integers, such as the person in each image: a split then holds all images of a
            group or none, and the shares of the splits count groups.

    Raises:
        DataError: the file does not exist or has other contents.

    Example:
        >>> import numpy as np, os, tempfile
        >>> from deqopt.data import ImageArchive
        >>> path = os.path.join(tempfile.mkdtemp(), "faces.npz")
        >>> np.savez(path, images=np.zeros((20, 10, 12, 3), np.uint8))
        >>> ImageArchive(path, size=8, channels=3)[0].image.shape
        torch.Size([3, 8, 8])
    """

    def __init__(
        self, path: str | Path, size: int, channels: int = 3, *, key: str = "images", groups: str | None = None
    ) -> None:
        arrays = read_arrays(Path(path), [key] if groups is None else [key, groups])
        images = checked_images(arrays[key], f"'{key}' of {path}")
        super().__init__(str(path), images, f"{printable(Path(path).stem)}_", size=size, channels=channels)
        self._groups = None if groups is None else arrays[groups]
        if self._groups is not None:
            check_integers(self._groups, len(self), f"'{groups}' of {path}")

    def splits(self, seed: int) -> Splits:
        """80, 10 and 10 percent of the images or, with `groups`, of the groups, drawn by `seed` alone."""
        return super().splits(seed) if self._groups is None else split_groups(self._groups, seed, self.where)


def checked_images(images: NDArray[Any], where: str) -> NDArray[Any]:
    """Images (N, H, W[, 1 or 3]), N at least 1: unchanged if uint8, converted to float32 if floats in [0, 1].

    Raises:
        DataError: anything else.
    """
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)) or 0 in images.shape[1:]:
        raise DataError(f"{where} has shape {images.shape}: it should be {SHAPES}")
    if len(images) == 0:
        raise DataError(f"{where} has no images: its shape is {images.shape}, N should be 1 or more")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(f"{where} is of {images.dtype}: it should be uint8, or floats in [0, 1]")
    lowest, highest = images.min(), images.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise DataError(f"{where} has NaN or infinite values: it should be uint8, or floats in [0, 1]")
    if lowest < 0 or highest > 1:
        found = f"{lowest:g} to {highest:g}"
        raise DataError(f"{where} has floats from {found}: they should be in [0, 1], or uint8 in 0..255")
    return images.astype(np.float32)


def check_integers(numbers: NDArray[Any], images: int, where: str) -> None:
    """Raise DataError unless ``numbers`` are integers of shape (images,)."""
    if numbers.shape != (images,) or numbers.dtype.kind not in "iu":
        found = f"has shape {numbers.shape} of {numbers.dtype}"
        raise DataError(f"{where} {found}: it should be ({images},) of integers, one for every image")
