"""What measurement operators say of settings, images and masks that cannot be right, and that it is one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.inpainting import GivenMask, Inpainting, Mask, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.operator import External, MeasurementOperator, Shape, as_operator, measure
from deqopt_tasks.denoising.operators import (
    CompressedSensing,
    Deblurring,
    Denoising,
    GaussianKernel,
    MotionKernel,
    SuperResolution,
)
from PIL import Image
from torch import Tensor

from deqopt.errors import DataError, DeqoptError, ProblemError
from refusals import one_line_error

SETTINGS: dict[str, tuple[Callable[[], object], str]] = {
    "negative sigma": (lambda: Denoising(-0.1), r"^Denoising: sigma must be 0 or larger, got -0\.1$"),
    "sigma is NaN": (lambda: SuperResolution(sigma=math.nan), r"^SuperResolution: sigma .* got nan$"),
    "infinite sigma": (lambda: Inpainting(sigma=math.inf), r"^Inpainting: sigma .* got inf$"),
    "factor 1": (lambda: SuperResolution(1), r"SuperResolution: factor must be at least 2, got 1$"),
    "no ratio": (lambda: CompressedSensing(0.0), r"CompressedSensing: ratio must be in \(0, 1\], got 0\.0$"),
    "ratio above 1": (lambda: CompressedSensing(1.01), r"ratio .*, got 1\.01$"),
    "ratio is NaN": (lambda: CompressedSensing(math.nan), r"ratio .*, got nan$"),
    "flat gaussian": (lambda: GaussianKernel(deviation=0.0), r"deviation must be larger than 0, got 0\.0$"),
    "infinite gaussian": (lambda: GaussianKernel(deviation=math.inf), r"deviation .*, got inf$"),
    "gaussian of no pixels": (lambda: GaussianKernel(side=0), r"side must be at least 1, got 0$"),
    "motion of no pixels": (lambda: MotionKernel(length=0), r"length must be at least 1, got 0$"),
    "motion to nowhere": (lambda: MotionKernel(angle=math.nan), r"angle must be a finite number, got nan$"),
    "ragged rows": (lambda: Deblurring([[1.0, 2.0], [3.0]]), r"rows .* one length.* got 2 rows of lengths \[2, 1\]$"),
    "no rows": (lambda: Deblurring([]), r"got 0 rows of lengths \[\]$"),
    "empty rows": (lambda: Deblurring([[], []]), r"got 2 rows of lengths \[0, 0\]$"),
    "weights that are NaN": (lambda: Deblurring([[1.0, math.nan]]), r"weights .* must be finite, got NaN or inf"),
    "weights that sum to 0": (lambda: Deblurring([[0.1, 0.2, -0.3]]), r"must not sum to 0: a blur keeps the mean"),
    "no weights": (lambda: Deblurring(torch.zeros(2, 2)), r"must not sum to 0"),
    "infinite tensor": (lambda: Deblurring(torch.full((2, 2), math.inf)), r"must be finite"),
    "kernel with channels": (lambda: Deblurring(torch.ones(1, 3, 3)), r"\(height, width\), got a tensor \(1, 3, 3\)$"),
    "empty kernel": (lambda: Deblurring(torch.ones(0, 3)), r"got a tensor \(0, 3\)$"),
    "no box": (lambda: RandomBoxes(side=0), r"RandomBoxes: side must be at least 1, got 0$"),
    "no boxes": (lambda: RandomBoxes(count=0), r"RandomBoxes: count must be at least 1, got 0$"),
    "nothing unknown": (lambda: RandomPixels(0.0), r"share must be larger than 0 and smaller than 1, got 0\.0$"),
    "all unknown": (lambda: RandomPixels(1.0), r"share .*, got 1\.0$"),
    "percent": (lambda: RandomPixels(50.0), r"share .*, got 50\.0$"),
    "no path": (lambda: GivenMask(), r"path is missing: it should be an image file of a mask, or a folder of them$"),
    "mask of colours": (lambda: Inpainting(torch.eye(3).repeat(3, 1, 1)), r"\(H, W\) or \(1, H, W\), got \(3, 3, 3\)$"),
    "mask of a row": (lambda: Inpainting(torch.ones(4)), r"\(H, W\) or \(1, H, W\), got \(4,\)$"),
    "grey mask": (lambda: Inpainting(torch.eye(3) / 2), r"bools, or 0 where unknown and 1 where known, got other"),
    "mask in [-1, 1]": (lambda: Inpainting(2 * torch.eye(3) - 1), r"got other values$"),
    "mask is NaN": (lambda: Inpainting(torch.full((3, 3), math.nan)), r"got other values$"),
    "mask that hides nothing": (lambda: Inpainting(torch.ones(3, 3)), r"the mask hides nothing: some .* unknown"),
    "mask that hides all": (lambda: Inpainting(torch.zeros(3, 3)), r"the mask hides everything: some pixels .* known"),
    "nothing external": (lambda: External(), r"needs the methods A and A_adjoint: NoneType has no A and no A_adjoint$"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_cannot_be_right(case: str) -> None:
    one_line_error(*SETTINGS[case], ProblemError)


UNFIT: dict[str, tuple[MeasurementOperator, Shape, str]] = {
    "factor and height": (SuperResolution(4), (1, 10, 8), r"factor 4 must divide both sides of the image, got 10 x 8$"),
    "factor and width": (SuperResolution(4), (1, 8, 10), r"got 8 x 10$"),
    "large kernel": (Deblurring(), (3, 6, 20), r"kernel of 7 x 7 does not fit into an image of 6 x 20: use a smaller"),
    "wide kernel": (Deblurring([[1.0] * 5]), (3, 20, 4), r"kernel of 1 x 5 does not fit into an image of 20 x 4:"),
    "nothing sensed": (CompressedSensing(0.01), (3, 4, 8), r"0\.01 nothing of an image of 4 x 8 .* 0\.031 or larger$"),
    "large box": (Inpainting(), (3, 16, 32), r"20 x 20 .* image, which is 16 x 32: side should be 16 or smaller$"),
    "box of all": (Inpainting(RandomBoxes(8)), (1, 8, 8), r"8 x 8 covers or exceeds.* should be 7 or smaller$"),
    "few pixels": (Inpainting(RandomPixels(0.01)), (1, 4, 8), r"share of 0\.01 hides 0 of the 32 pixels .* 4 x 8:"),
    "most pixels": (Inpainting(RandomPixels(0.99)), (1, 4, 8), r"share of 0\.99 hides 32 of the 32 pixels"),
    "other mask": (Inpainting(torch.eye(3)), (1, 3, 4), r"the mask is 3 x 3, but the image is 3 x 4: .* the same$"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_images_that_an_operator_does_not_fit(case: str) -> None:
    operator, shape, pattern = UNFIT[case]
    one_line_error(lambda: operator.check(shape), pattern, ProblemError)
    if isinstance(operator, (SuperResolution, Inpainting)):  # what would be cut off, or hang, unseen
        image = torch.zeros(shape)
        one_line_error(lambda: measure(operator, image, torch.Generator().manual_seed(0)), pattern, ProblemError)


def test_sides_that_just_fit() -> None:
    for operator, shape in (
        (SuperResolution(4), (1, 4, 8)),
        (Deblurring(), (1, 7, 7)),
        (CompressedSensing(0.03125), (1, 4, 8)),
        (Inpainting(RandomBoxes(8)), (1, 8, 9)),
        (Inpainting(RandomBoxes(7)), (1, 8, 8)),
        (Inpainting(RandomPixels(0.02)), (1, 4, 8)),
    ):
        operator.check(shape)
        assert measure(operator, torch.ones(shape), torch.Generator().manual_seed(0)).y.any()


def test_boxes_that_cover_an_image_together() -> None:
    operator = Inpainting(RandomBoxes(side=3, count=500))
    pattern = r"the mask of 500 boxes of side 3 hides everything: some pixels should be known"
    one_line_error(lambda: operator.draw((1, 4, 4), torch.Generator().manual_seed(0)), pattern, ProblemError)


@pytest.mark.parametrize("method", ["A", "A_adjoint", "observed", "estimate"])
def test_inpainting_needs_the_masks_of_its_batch(method: str) -> None:
    one_line_error(
        lambda: getattr(Inpainting(), method)(torch.zeros(2, 1, 32, 32)),
        r"^Inpainting has a mask for every sample: use operator\.bind\(masks\) with masks \(B, 1, H, W\)$",
        ProblemError,
    )


# -- masks in files ---------------------------------------------------------------------------------------------------


def mask_file(path: Path, *size: int, value: int | None = None) -> Path:
    pixels = np.full(size, value or 0, np.uint8) if value is not None else np.eye(*size, dtype=np.uint8) * 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


FILES: dict[str, tuple[type[DeqoptError], Callable[[Path], object], str]] = {
    "missing": (DataError, lambda path: None, r"m\.png cannot be opened: No such file"),
    "no image": (DataError, lambda path: path.write_bytes(b"text"), r"m\.png is truncated or not an image: delete"),
    "other size": (ProblemError, lambda path: mask_file(path, 4, 5), r"the mask .*m\.png is 4 x 5, but .* is 6 x 8:"),
    "turned": (ProblemError, lambda path: mask_file(path, 8, 6), r"m\.png is 8 x 6, but the image is 6 x 8"),
    "white": (ProblemError, lambda path: mask_file(path, 6, 8, value=255), r"m\.png hides nothing: .* unknown"),
    "black": (ProblemError, lambda path: mask_file(path, 6, 8, value=0), r"m\.png hides everything: .* known"),
    "bright grey": (ProblemError, lambda path: mask_file(path, 6, 8, value=130), r"m\.png hides nothing"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_mask_that_cannot_be_used_is_named_wherever_it_is_read(case: str, tmp_path: Path) -> None:
    kind, make, pattern = FILES[case]
    make(tmp_path / "m.png")
    image, operator = torch.zeros(3, 6, 8), Inpainting(GivenMask(str(tmp_path / "m.png")))
    one_line_error(lambda: operator.check((3, 6, 8)), pattern, kind)
    one_line_error(lambda: operator.draw((3, 6, 8), torch.Generator()), pattern, kind)
    one_line_error(lambda: operator.read(image, "holiday"), pattern, kind)
    if case != "missing":
        folder = Inpainting(GivenMask(str(tmp_path)))
        one_line_error(lambda: folder.check((3, 6, 8)), pattern, kind)
        one_line_error(lambda: folder.read(image, "m"), pattern, kind)


def test_a_folder_without_masks_or_without_the_mask(tmp_path: Path) -> None:
    operator = Inpainting(GivenMask(str(tmp_path)))
    one_line_error(lambda: operator.check((1, 6, 8)), r"hold no images: .* end in one of \.bmp,")
    for name in "abcde":
        mask_file(tmp_path / "masks" / f"{name}.png", 6, 8)
    operator = Inpainting(GivenMask(str(tmp_path / "masks")))
    operator.check((1, 6, 8))
    one_line_error(
        lambda: operator.read(torch.zeros(1, 6, 8), "holiday"),
        r"masks has no mask for the image holiday: add holiday\.png; its masks are for a, b, c, \.\.\.$",
    )


@pytest.mark.parametrize("mask", [RandomBoxes(2), RandomPixels()], ids=str)
def test_the_unknown_pixels_of_a_damaged_image_must_be_given(mask: Mask) -> None:
    one_line_error(
        lambda: Inpainting(mask).read(torch.zeros(1, 6, 8), "holiday"),
        r"which pixels of holiday are unknown .* --task\.operator\.mask GivenMask --task\.operator\.mask\.path FILE",
    )


def test_no_image_is_a_measurement_of_compressed_sensing() -> None:
    action = lambda: CompressedSensing().read(torch.zeros(1, 6, 8), "holiday")  # noqa: E731
    one_line_error(action, r"^holiday is an image, but a measurement of CompressedSensing is not an image")


# -- operators of others ----------------------------------------------------------------------------------------------


class Forward:
    def A(self, x: Tensor) -> Tensor:
        return x / 0


class Attribute(Forward):
    A_adjoint = 3


@pytest.mark.parametrize(
    "operator", [Forward(), Attribute(), torch.nn.Identity(), 3], ids=lambda one: type(one).__name__
)
def test_what_is_no_operator_says_what_it_lacks(operator: Any) -> None:
    lacks = "no A_adjoint" if isinstance(operator, Forward) else "no A and no A_adjoint"
    pattern = rf"needs the methods A and A_adjoint: {type(operator).__name__} has {lacks}$"
    one_line_error(lambda: as_operator(operator), pattern, ProblemError)


class Broken(Forward):
    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


def test_a_measurement_that_is_not_finite_is_refused() -> None:
    operator, image = as_operator(Broken()), torch.ones(1, 4, 4)
    pattern = r"^External: the measurement of an image is not finite$"
    one_line_error(lambda: measure(operator, image, torch.Generator()), pattern, DataError)
