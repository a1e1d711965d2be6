"""What every source of images offers."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deqopt.data.pixels import to_tensor
from deqopt.data.splits import Splits, split_groups
from deqopt.errors import DataError


class ImageSample(NamedTuple):
    """One image, (channels, size, size), float32 in [-1, 1], and its index in the source."""

    image: Tensor
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs


class ImageBatch(NamedTuple):
    """Images, (B, channels, size, size), float32 in [-1, 1], and their indices in the source, (B,) int64."""

    image: Tensor
    index: Tensor  # type: ignore[assignment]


SampleT = TypeVar("SampleT", covariant=True)


class Source(Dataset[SampleT], ABC):
    """Samples with names and fixed splits: what a data module serves."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """A name for output files, without suffix and unlike that of any other image of the source."""

    @abstractmethod
    def splits(self, seed: int) -> Splits:
        """Train, val, test: fixed by `seed` alone, unless the source has official ones."""


class ImageSource(Source[ImageSample]):
    """Square images in [-1, 1] with names and fixed splits.

    A new source says how many images it has (`__len__`), what they are called (`name`) and what their pixels
    are (`pixels`), and calls `super().__init__`; cropping, resizing, channels and splits come from here.

    Args:
        where: what the images are read from, for messages.
        size: height and width of the images.
        channels: 1 or 3.
        crop: side of the central square that is kept, in pixels; by default the largest.

    Raises:
        DataError: a size below 1 or another number of channels.
    """

    def __init__(self, where: str, *, size: int, channels: int, crop: int | None = None) -> None:
        if size < 1:
            raise DataError(f"cannot resize the images of {where} to size {size}: it should be 1 or more")
        if channels not in (1, 3):
            raise DataError(f"cannot give the images of {where} {channels} channels: it should be 1 or 3")
        self.where, self.size, self.channels, self.crop = where, size, channels, crop

    @abstractmethod
    def pixels(self, index: int) -> NDArray[Any]:
        """The original image: (H, W), (H, W, 1) or (H, W, 3); uint8 or floats in [0, 1]."""

    def tensor(self, index: int, black: float = -1.0) -> Tensor:
        """The image, (channels, size, size), float32 in [black, 1]; `black` is -1 or 0."""
        return to_tensor(self.pixels(index), size=self.size, channels=self.channels, crop=self.crop, black=black)

    def __getitem__(self, index: int) -> ImageSample:
        index = range(len(self))[index]
        return ImageSample(self.tensor(index), index)

    def splits(self, seed: int) -> Splits:
        """Train, val, test: 80, 10 and 10 percent drawn by `seed` alone, unless the source has official ones.

        Raises:
            DataError: too few images to give every split one.
        """
        return split_groups(np.arange(len(self)), seed, self.where)
