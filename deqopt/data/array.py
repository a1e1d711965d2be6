"""Images in memory."""

from typing import Any

from numpy.typing import NDArray

from deqopt.data.source import ImageSource


class ImageArray(ImageSource):
    """The images of an array; cut to the central square and resized on access.

    Args:
        where: source of the images, for messages.
        images: (N, H, W), (N, H, W, 1) or (N, H, W, 3), uint8 or floats in [0, 1], checked by `checked_images`.
        prefix: text before the four digits of the name of an image.
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
