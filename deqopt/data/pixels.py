"""Conversions of pixels: image files to arrays, arrays to tensors, tensors to PNG files."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from deqopt.data.files import require_regular
from deqopt.errors import DataError, reason_of

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, the weights PIL uses for grey
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""The accepted formats. PIL knows more formats, but for some, such as PostScript, it starts a program that runs the
file."""
LARGEST_FILE = 2**30
JPEG_END = b"\xff\xd9"


class UnreadableImageError(DataError):
    """An image that cannot be decoded."""


def read_pixels(path: Path) -> NDArray[np.generic]:
    """Decode an image file, upright by its EXIF tag, without transparency and, if animated, its first frame.

    Returns:
        (H, W) for grey and (H, W, 3) for colour; uint8, or float32 in [0, 1] for images with 16 bits per pixel.

    Raises:
        UnreadableImageError: the file cannot be opened, is truncated, is not an image of `FORMATS`, has an unknown
            range of values, more than 1 GiB, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, 89 million by default.
    """
    with _opened(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode == "F" or image.mode.startswith("I"):
            return _deep_pixels(np.asarray(image, np.float32), path)
        if "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


def check_readable(path: Path) -> None:
    """Raise what `read_pixels` would raise, in less time where the file is a JPEG.

    A JPEG with a sound header and the marker of its end is taken for readable: its decoder bears damage in between,
    but for rare kinds, which `read_pixels` refuses. All other files are decoded.

    Raises:
        UnreadableImageError: as `read_pixels`.
    """
    with _opened(path) as file:
        if file.format == "JPEG" and file.fp is not None:
            file.fp.seek(-len(JPEG_END), os.SEEK_END)
            if file.fp.read() == JPEG_END:
                return
    read_pixels(path)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file whose header was read; whatever goes wrong with it is an `UnreadableImageError`."""
    try:
        if (length := require_regular(path).st_size) > LARGEST_FILE:
            raise UnreadableImageError(f"{path} has {length} bytes: an image should have {LARGEST_FILE} or fewer")
        with Image.open(path, formats=FORMATS) as file:
            _require_pixels(file, path)
            yield file
    except UnreadableImageError:
        raise
    except Exception as error:  # of a broken file PIL raises nearly anything, struct.error and RecursionError included
        if isinstance(error, OSError) and error.errno is not None:
            raise UnreadableImageError(f"{path} cannot be opened: {error.strerror}") from error
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({reason_of(error)})"
        message = f"{path} is truncated or not an image{reason}: delete or replace it"
        raise UnreadableImageError(message) from error


def _require_pixels(image: Image.Image, path: Path) -> None:
    """Raise an error above the limit of PIL. PIL itself only warns there, and raises an error above twice the limit."""
    width, height = image.size
    if not width * height:
        raise UnreadableImageError(f"{path} has no pixels, {width} x {height}: delete or replace it")
    if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
        right = f"it should have {Image.MAX_IMAGE_PIXELS} or fewer, for the sake of memory"
        raise UnreadableImageError(f"{path} has {width * height} pixels, {width} x {height}: {right}")


def _deep_pixels(values: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """PIL would clip 16 bits to 8 instead of scaling them."""
    if not (values.min() >= 0 and values.max() <= 65535 and np.array_equal(values, np.round(values))):
        raise UnreadableImageError(f"{path} has pixels outside 0..65535: save it with 8 or 16 bits per channel")
    return values / np.float32(65535)


def to_tensor(pixels: NDArray[np.generic], *, size: int, channels: int, crop: int | None = None) -> Tensor:
    """Cut the central square, convert the channels and resize (bilinear, with antialiasing if it gets smaller).

    Args:
        pixels: (H, W), (H, W, 1) or (H, W, 3); uint8 or floats in [0, 1].
        size: height and width of the result.
        channels: 1 (colours are converted to luma) or 3 (grey is repeated).
        crop: side of the central square, at most min(H, W), which is the default.

    Returns:
        (channels, size, size), float32 in [0, 1].
    """
    height, width = pixels.shape[:2]
    side = min(height, width, crop or height)
    top, left = (height - side) // 2, (width - side) // 2
    image = whole_tensor(pixels[top : top + side, left : left + side], channels=channels)
    if side != size:
        image = F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True)[0]
    return image.clamp(0, 1)


def whole_tensor(pixels: NDArray[np.generic], *, channels: int) -> Tensor:
    """Like :func:`to_tensor`, but without cutting and resizing: (channels, H, W), float32 in [0, 1]."""
    height, width = pixels.shape[:2]
    whole = torch.tensor(pixels).reshape(height, width, -1).permute(2, 0, 1)
    image = whole.float() / (255 if whole.dtype == torch.uint8 else 1)
    if channels == 1 and len(image) == 3:
        image = torch.einsum("c,chw->hw", torch.tensor(LUMA), image)[None]
    return image.clamp(0, 1).repeat(channels // len(image), 1, 1)


def signed(pixels: Tensor) -> Tensor:
    """Map pixels in [0, 1] to [-1, 1], the range that the networks here use.

    Example:
        >>> signed(torch.tensor([0.0, 0.25, 1.0]))
        tensor([-1.0000, -0.5000,  1.0000])
    """
    return 2 * pixels - 1


def unsigned(values: Tensor) -> Tensor:
    """Map values in [-1, 1] to pixels in [0, 1]: the inverse of :func:`signed`."""
    return (values + 1) / 2


def save_image(path: str | Path, image: Tensor) -> None:
    """Write an image as PNG, completely or not at all. Missing folders are created, and an older file is replaced.

    Args:
        path: file to write, ending in `.png`.
        image: (1 or 3, H, W), floating point in [0, 1]; values outside this range are clipped.

    Raises:
        DataError: a wrong suffix, shape or type, NaN or infinite pixels, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"cannot write {path}: images are written as PNG, so its name should end in .png")
    if image.ndim != 3 or len(image) not in (1, 3) or not image.is_floating_point():
        found = f"{tuple(image.shape)} of {image.dtype}"
        raise DataError(f"cannot write {path}: the image is {found}, should be (1 or 3, H, W) of floats in [0, 1]")
    if not image.isfinite().all():
        raise DataError(f"cannot write {path}: the image has NaN or infinite pixels, should be in [0, 1]")
    levels = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    array = levels.permute(1, 2, 0).cpu().numpy()
    temporary = path.with_name(f".{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            Image.fromarray(array[..., 0] if len(image) == 1 else array).save(temporary, format="PNG")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
