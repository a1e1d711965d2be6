"""Images that come with a dependency: nothing to download."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deqopt.data.source import ImageSource


class EmbeddedDigits(ImageSource):
    """The 1797 handwritten digits of scikit-learn, 8x8 grey with 17 levels, in memory.

    Args:
        size: height and width they are resized to, 16 by default.
        channels: 1 (default) or 3 equal ones.
    """

    def __init__(self, size: int = 16, channels: int = 1) -> None:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        super().__init__("scikit-learn's digits", size=size, channels=channels)
        self._images: NDArray[Any] = (load_digits().images / 16).astype(np.float32)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"digit_{index:04d}"

    def pixels(self, index: int) -> NDArray[Any]:
        pixels: NDArray[Any] = self._images[index]
        return pixels
