"""Images that come with a dependency: nothing to download."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.archive import ImageArray
from deqopt.data.source import ImageSource
from deqopt.data.splits import Splits, split_groups
from deqopt.errors import DataError


class EmbeddedDigits(ImageArray):
    """The 1797 handwritten digits of scikit-learn, 8x8 grey with 17 levels, in memory.

    Attributes:
        labels: (1797,) int64, the digit in each image.

    Args:
        size: height and width they are resized to, 16 by default.
        channels: 1 (default), or 3 equal channels.

    Example:
        >>> from deqopt.data import EmbeddedDigits
        >>> digits = EmbeddedDigits(size=16, channels=1)
        >>> len(digits), digits[0].image.shape, digits[0].label
        (1797, torch.Size([1, 16, 16]), 0)
    """

    def __init__(self, size: int = 16, channels: int = 1) -> None:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)
        super().__init__("scikit-learn's digits", images, "digit_", size=size, channels=channels)
        self.labels: NDArray[Any] = digits.target.astype(np.int64)

    def label(self, index: int) -> int:
        return int(self.labels[index])


class EmbeddedPhotographs(ImageSource):
    """The two sample photographs of scikit-learn, china and flower, cut into patches that do not overlap.

    Each photograph is 427 pixels high and 640 pixels wide, in colour. Its patches are read row by row, left to right;
    the rest at the right and at the bottom is not used. With the default size there are 520 patches.

    Args:
        size: height and width of the patches, which are not resized; 32 by default.
        channels: 1 (the luma) or 3 (default).

    Raises:
        DataError: the size gives fewer than three columns of patches, which the splits need.

    Example:
        >>> from deqopt.data import EmbeddedPhotographs
        >>> EmbeddedPhotographs(size=32, channels=3)[0].image.shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, size: int = 32, channels: int = 3) -> None:
        from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

        super().__init__("scikit-learn's photographs", size=size, channels=channels)
        photographs = load_sample_images()
        height, width, _ = photographs.images[0].shape
        self._rows, self._columns = height // size, width // size
        if self._columns < 3:
            raise DataError(
                f"{self.where} cannot be cut into patches of size {size}: it should be {width // 3} or less, so that "
                "there is a column of patches each to train, validate and test"
            )
        self._photographs: list[NDArray[Any]] = photographs.images
        self._stems = [Path(file).stem for file in photographs.filenames]

    def __len__(self) -> int:
        return len(self._photographs) * self._rows * self._columns

    def name(self, index: int) -> str:
        photograph, patch = divmod(index, self._rows * self._columns)
        return f"{self._stems[photograph]}_{patch:04d}"

    def pixels(self, index: int) -> NDArray[Any]:
        photograph, patch = divmod(index, self._rows * self._columns)
        top, left = (self.size * position for position in divmod(patch, self._columns))
        return self._photographs[photograph][top : top + self.size, left : left + self.size]

    def splits(self, seed: int) -> Splits:
        """Splits by whole columns of patches of each photograph: val and test get a tenth of them each (at least one).

        So no patch has a patch of another split above or below it, and every split has patches of both photographs.
        """
        columns = np.arange(self._rows * self._columns) % self._columns
        one = split_groups(columns, seed, self.where)
        shifts = range(0, len(self), len(columns))
        train, val, test = ([shift + i for shift in shifts for i in part] for part in (one.train, one.val, one.test))
        return Splits(train, val, test)
