"""The base classes of all sources of images."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from deqopt.data.pixels import to_tensor
from deqopt.data.splits import Splits, split_groups
from deqopt.errors import DataError

UNKNOWN = -1
"""The label of an image whose class is not known."""


class ImageSample(NamedTuple):
    """One image.

    Attributes:
        image: (channels, size, size), float32 in [0, 1], from black to white.
        label: the class, 0 or larger; -1 if it is unknown.
        index: index of the image in the source.

    Example:
        >>> from deqopt.data import EmbeddedDigits
        >>> image, label, index = EmbeddedDigits(size=8, channels=1)[3]
        >>> label, index
        (3, 3)
    """

    image: Tensor
    label: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nothing here needs


class ImageBatch(NamedTuple):
    """Several images.

    Attributes:
        image: (B, channels, size, size), float32 in [0, 1], from black to white.
        label: (B,) int64, the classes, 0 or larger; -1 where they are unknown, as for images to predict on.
        index: (B,) int64, indices of the images in the source.

    Example:
        >>> from functools import partial
        >>> from deqopt.data import ImageDataModule, open_images
        >>> data = ImageDataModule(partial(open_images, None, size=8, channels=1), batch_size=4)
        >>> image, label, index = next(iter(data.predict_dataloader()))
        >>> label.tolist(), index.tolist()
        ([-1, -1, -1, -1], [0, 1, 2, 3])
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]


SampleT = TypeVar("SampleT", covariant=True)


class Source(Dataset[SampleT], ABC):
    """Samples with names and fixed splits, which a data module serves.

    Attributes:
        where: source of the images, for messages.
        size: height and width of the images.
        channels: 1 or 3.

    Args:
        where, size, channels: see the attributes.

    Raises:
        DataError: a size below 1 or another number of channels.

    Example:
        >>> from deqopt.data import EmbeddedDigits
        >>> EmbeddedDigits(size=8, channels=1).name(0)
        'digit_0000'
    """

    def __init__(self, where: str, *, size: int, channels: int) -> None:
        if size < 1:
            raise DataError(f"cannot resize the images of {where} to size {size}: it should be 1 or more")
        if channels not in (1, 3):
            raise DataError(f"cannot give the images of {where} {channels} channels: it should be 1 or 3")
        self.where, self.size, self.channels = where, size, channels

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """The name for output files, without suffix and different for all samples of the source."""

    @abstractmethod
    def splits(self, seed: int) -> Splits:
        """Train, val, test: determined by `seed` alone, unless the source has official splits."""


class ImageSource(Source[ImageSample]):
    """Square images with names and fixed splits.

    A new source defines the number of images (`__len__`), their names (`name`) and their pixels (`pixels`), and calls
    `super().__init__`; this class adds cropping, resizing, channels and splits. A source that knows the classes of its
    images also defines `label`.

    Attributes:
        crop: as given.

    Args:
        where, size, channels: see `Source`.
        crop: side of the central square that is kept, in pixels; by default the largest possible.

    Raises:
        DataError: see `Source`.

    Example:
        >>> import numpy as np
        >>> from deqopt.data import ImageSource
        >>> class Greys(ImageSource):
        ...     def __len__(self):
        ...         return 10
        ...     def name(self, index):
        ...         return f"grey_{index}"
        ...     def pixels(self, index):
        ...         return np.full((8, 8), index / 10)
        >>> Greys("greys", size=4, channels=1)[5].image.mean()
        tensor(0.5000)
    """

    def __init__(self, where: str, *, size: int, channels: int, crop: int | None = None) -> None:
        super().__init__(where, size=size, channels=channels)
        self.crop = crop

    @abstractmethod
    def pixels(self, index: int) -> NDArray[Any]:
        """The original image: (H, W), (H, W, 1) or (H, W, 3); uint8 or floats in [0, 1]."""

    def file(self, index: int) -> str:
        """The name of an image in messages and tables; by default `name`."""
        return self.name(index)

    def label(self, index: int) -> int:
        """The class of an image; -1 (default) if it is unknown."""
        return UNKNOWN

    @cached_property
    def unreadable(self) -> Mapping[int, str]:
        """The errors of the images that cannot be read, by index; by default none. Such images are in no split."""
        return {}

    @cached_property
    def readable(self) -> list[int]:
        """The indices of the images that can be read, ascending."""
        return [index for index in range(len(self)) if index not in self.unreadable]

    def tensor(self, index: int) -> Tensor:
        """The image, (channels, size, size), float32 in [0, 1]."""
        return to_tensor(self.pixels(index), size=self.size, channels=self.channels, crop=self.crop)

    def __getitem__(self, index: int) -> ImageSample:
        index = range(len(self))[index]
        return ImageSample(self.tensor(index), self.label(index), index)

    def splits(self, seed: int) -> Splits:
        """Train, val, test: 80, 10 and 10 percent, determined by `seed` alone, unless the source has official splits.

        An image that cannot be read is missing from its split; the place of all other images stays the same.

        Raises:
            DataError: there are too few images for three splits.
        """
        return split_groups(np.arange(len(self)), seed, self.where).without(self.unreadable, self.where)
