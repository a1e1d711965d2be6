"""Images that come with a dependency: nothing to download."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.array import ImageArray


class EmbeddedDigits(ImageArray):
    """The 1797 handwritten digits of scikit-learn, 8x8 grey with 17 levels, in memory.

    Attributes:
        labels: (1797,) int64, the digit in each image.

    Args:
        size: height and width they are resized to, 16 by default.
        channels: 1 (default) or 3 equal ones.
    """

    def __init__(self, size: int = 16, channels: int = 1) -> None:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        digits = load_digits()
        images = (digits.images / 16).astype(np.float32)
        super().__init__("scikit-learn's digits", images, "digit_", size=size, channels=channels)
        self.labels: NDArray[Any] = digits.target.astype(np.int64)
