"""Inpainting: the operator that hides pixels, and the sources of its masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deqopt.data import ImageFolder
from deqopt.data.pixels import read_pixels
from deqopt.errors import DataError, ProblemError
from deqopt.ranges import at_least

from .harmonic import harmonic
from .operator import Measurement, MeasurementOperator, Shape

Size = tuple[int, int]
"""(height, width) of an image."""


@dataclass(frozen=True)
class Mask(ABC):
    """A source of masks, which tell the known pixels of an image. A mask has bools (H, W), True where known."""

    @abstractmethod
    def check(self, size: Size) -> None:
        """Raise ProblemError if the masks do not fit images of this size."""

    @abstractmethod
    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        """The mask of one image. It depends only on the generator, and neither hides nor shows all pixels."""

    def given(self, size: Size, name: str) -> Tensor | None:
        """The mask of a user's damaged image; by default None, because a random mask has nothing to do with it."""
        return None


if not TYPE_CHECKING:  # noqa: SIM108
    MaskOrTensor = Mask  # the command line cannot make tensors, and should not mention them
else:
    MaskOrTensor = Mask | Tensor


@dataclass(frozen=True)
class RandomBoxes(Mask):
    """Boxes at random places inside the image are unknown; they may overlap.

    Args:
        side: height and width of a box in pixels.
        count: number of boxes.

    Raises:
        ProblemError: a side or a count below 1; in :meth:`check`, a box that is larger than the image or covers it.
    """

    side: int = 20
    count: int = 1

    def __post_init__(self) -> None:
        at_least(1, "RandomBoxes", side=self.side, count=self.count)

    def check(self, size: Size) -> None:
        height, width = size
        largest = min(height, width) - (height == width)
        if self.side > largest:
            raise ProblemError(
                f"RandomBoxes: a box of {self.side} x {self.side} covers or exceeds the image, which is "
                f"{height} x {width}: side should be {largest} or smaller"
            )

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        self.check(size)
        known = torch.ones(size, dtype=torch.bool)
        for _ in range(self.count):
            top, left = (int(torch.randint(length - self.side + 1, (), generator=generator)) for length in size)
            known[top : top + self.side, left : left + self.side] = False
        return _checked(known, size, f"RandomBoxes: the mask of {self.count} boxes of side {self.side}")


@dataclass(frozen=True)
class RandomPixels(Mask):
    """Pixels at random places are unknown; the number of unknown pixels is the same in every image.

    Args:
        share: share of unknown pixels, in (0, 1); rounded to whole pixels.

    Raises:
        ProblemError: a share outside (0, 1); in :meth:`check`, a share that hides no pixel, or all pixels.
    """

    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ProblemError(f"RandomPixels: share must be larger than 0 and smaller than 1, got {self.share}")

    def check(self, size: Size) -> None:
        height, width = size
        pixels = height * width
        if not 0 < round(self.share * pixels) < pixels:
            raise ProblemError(
                f"RandomPixels: a share of {self.share:g} hides {round(self.share * pixels)} of the {pixels} pixels of "
                f"an image of {height} x {width}: it should hide at least one and leave at least one"
            )

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        self.check(size)
        pixels = size[0] * size[1]
        known = torch.ones(pixels, dtype=torch.bool)
        known[torch.randperm(pixels, generator=generator)[: round(self.share * pixels)]] = False
        return known.reshape(size)


@dataclass(frozen=True)
class GivenMask(Mask):
    """Masks from image files with the same height and width as the images: white pixels are known, black pixels are
    unknown. Pixels of half brightness or more count as white.

    A user's damaged image gets the mask of the file, or the mask in the folder that has the name of the image. Clean
    images get the mask of the file, or a random mask of the folder. Files are read when they are needed.

    Args:
        path: an image file, or a folder of image files; required.

    Raises:
        ProblemError: no path; when a mask is read, a mask of another size than the image, or a mask that hides
            everything or nothing.
        DataError: when a mask is read, a file that is missing or cannot be read.
    """

    path: str = ""

    def __post_init__(self) -> None:
        if not self.path:
            raise ProblemError("GivenMask: path is missing: it should be an image file of a mask, or a folder of them")

    def check(self, size: Size) -> None:
        """Checks the file or, in a folder, only the first mask."""
        self._read(next(iter(self._paths.values())), size)

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        paths = list(self._paths.values())
        return self._read(paths[int(torch.randint(len(paths), (), generator=generator))], size)

    def given(self, size: Size, name: str) -> Tensor:
        root = Path(self.path).expanduser()
        if not root.is_dir():
            return self._read(root, size)
        if name not in self._paths:
            names = list(self._paths)
            known = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise DataError(f"{root} has no mask for the image {name}: add {name}.png; its masks are for {known}")
        return self._read(self._paths[name], size)

    @cached_property
    def _paths(self) -> dict[str, Path]:
        """The files by the names that `ImageFolder` gives to their images."""
        root = Path(self.path).expanduser()
        if not root.is_dir():
            return {root.stem: root}
        folder = ImageFolder(root, size=1, every_name=True)  # lists the files; they are not read at that size
        return {folder.name(index): path for index, path in enumerate(folder.paths)}

    @staticmethod
    def _read(path: Path, size: Size) -> Tensor:
        modified = path.stat().st_mtime_ns if path.exists() else 0
        return _checked(_known(path, modified), size, f"the mask {path}")


@dataclass(frozen=True)
class _Handed(Mask):
    """A mask that was given in code, with checks."""

    known: Tensor

    def check(self, size: Size) -> None:
        _checked(self.known, size, "Inpainting: the mask")

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        return _checked(self.known, size, "Inpainting: the mask")

    def given(self, size: Size, name: str) -> Tensor:
        return _checked(self.known, size, "Inpainting: the mask")


@dataclass(frozen=True)
class Inpainting(MeasurementOperator):
    """``A x = mask * x``: hidden pixels are unknown in all channels; y has the shape of the image, with 0 in the holes.

    The parameters of a sample are its mask, (1, H, W) of 0 and 1, where 1 means known. A needs the masks of its batch:
    ``operator.bind(masks).A(x)``.

    Args:
        mask: source of the masks: a :class:`Mask`, or in code a tensor of bools or of 0 and 1, (H, W) or (1, H, W),
            that all images share.

    Raises:
        ProblemError: a tensor that is not a mask, or that hides everything or nothing; A is used without :meth:`bind`.
    """

    mask: MaskOrTensor = field(default_factory=RandomBoxes)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.mask, Tensor):
            known = _bools(self.mask)
            _checked(known, (known.shape[0], known.shape[1]), "Inpainting: the mask")

    @property
    def tight(self) -> float:
        return 1.0

    def check(self, shape: Shape) -> None:
        self._masks.check(shape[1:])

    def draw(self, shape: Shape, generator: torch.Generator) -> Tensor:
        return self._masks.draw(shape[1:], generator).float()[None]

    def bind(self, parameters: Tensor) -> MeasurementOperator:
        return _Bound(parameters, sigma=self.sigma)

    def A(self, x: Tensor) -> Tensor:
        raise _unbound()

    def A_adjoint(self, y: Tensor) -> Tensor:
        raise _unbound()

    def observed(self, y: Tensor) -> Tensor:
        raise _unbound()

    def read(self, image: Tensor, name: str) -> Measurement:
        known = self._masks.given((image.shape[1], image.shape[2]), name)
        if known is None:
            raise DataError(
                f"which pixels of {name} are unknown cannot be seen: give them by --task.operator.mask GivenMask "
                "--task.operator.mask.path FILE_OR_FOLDER, white where they are known"
            )
        return Measurement(known * image, known.float()[None])

    @cached_property
    def _masks(self) -> Mask:
        return _Handed(_bools(self.mask)) if isinstance(self.mask, Tensor) else self.mask


@dataclass(frozen=True)
class _Bound(MeasurementOperator):
    """Inpainting with the masks of a batch, (B, 1, H, W)."""

    known: Tensor

    @property
    def tight(self) -> float:
        return 1.0

    def A(self, x: Tensor) -> Tensor:
        return self.known.to(x) * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.known.to(y) * y

    def observed(self, y: Tensor) -> Tensor:
        return self.known.to(y) * y

    def initial(self, y: Tensor) -> Tensor:
        """The image with the smoothest possible filling of its holes."""
        return harmonic(y, self.known)


def _unbound() -> ProblemError:
    return ProblemError("Inpainting has a mask for every sample: use operator.bind(masks) with masks (B, 1, H, W)")


def _bools(mask: Tensor) -> Tensor:
    """The mask as bools (H, W)."""
    if mask.dim() not in (2, 3) or (mask.dim() == 3 and len(mask) != 1):
        raise ProblemError(f"Inpainting: a mask must be (H, W) or (1, H, W), got {tuple(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ProblemError("Inpainting: a mask must hold bools, or 0 where unknown and 1 where known, got other values")
    return mask.detach().cpu().reshape(mask.shape[-2:]) == 1


def _checked(known: Tensor, size: Size, name: str) -> Tensor:
    if known.shape != size:
        found, right = (" x ".join(map(str, shape)) for shape in (known.shape, size))
        raise ProblemError(f"{name} is {found}, but the image is {right}: they must be the same")
    if known.all() or not known.any():
        raise ProblemError(
            f"{name} hides {'nothing' if known.any() else 'everything'}: some pixels should be known (1, white) and "
            "some unknown (0, black)"
        )
    return known


@lru_cache(maxsize=256)
def _known(path: Path, modified: int) -> Tensor:
    """The mask in a file, bools (H, W); ``modified`` distinguishes versions of a file that has changed."""
    pixels = read_pixels(path)
    brightness = pixels.reshape(*pixels.shape[:2], -1).astype(np.float32).mean(-1)
    return torch.from_numpy(brightness >= (127.5 if pixels.dtype == np.uint8 else 0.5))
