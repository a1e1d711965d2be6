"""What each measurement operator measures, against closed forms and independent implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deqopt_tasks.denoising.operator import Shape
from deqopt_tasks.denoising.operators import (
    CompressedSensing,
    Deblurring,
    Denoising,
    GaussianKernel,
    Kernel,
    MotionKernel,
    SuperResolution,
)
from scipy.signal import convolve2d
from torch import Tensor

from operator_catalogue import OPERATORS, close, images


def test_denoising_sees_the_image_itself() -> None:
    x = images((3, 4, 6))
    assert torch.equal(Denoising(0.3).A(x), x) and Denoising(0.3).sigma == 0.3 and Denoising().sigma == 0.2


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_super_resolution_measures_means_of_blocks(factor: int) -> None:
    x, operator = images((2, 12, 18)), SuperResolution(factor)
    y = operator.A(x)
    assert y.shape == (3, 2, 12 // factor, 18 // factor)
    assert close(y[:, :, 1, 2], x[:, :, factor : 2 * factor, 2 * factor : 3 * factor].mean((2, 3)))
    assert close(
        operator.estimate(y)[:, :, factor : 2 * factor, :factor], y[:, :, 1:2, :1].expand(3, 2, factor, factor)
    )


@pytest.mark.parametrize("name", [name for name in OPERATORS if "blur" in name])
def test_blur_is_the_valid_convolution(name: str) -> None:
    operator = OPERATORS[name]
    assert isinstance(operator, Deblurring)
    x, k = images((2, 9, 15)), operator.weights.numpy()
    y = operator.A(x)
    for i in range(3):
        for channel in range(2):
            reference = convolve2d(x[i, channel].numpy(), k, mode="valid")
            assert close(y[i, channel], torch.from_numpy(reference))


@pytest.mark.parametrize("name", [name for name in OPERATORS if "blur" in name])
def test_the_estimate_of_a_blurred_image_repeats_its_border(name: str) -> None:
    operator, shape = OPERATORS[name], (2, 9, 15)
    constant = torch.full((3, *shape), 0.3, dtype=torch.float64)
    assert close(operator.estimate(operator.A(constant)), constant)
    y = operator.A(images(shape))
    found, (h, w) = operator.estimate(y), (9 - y.shape[2], 15 - y.shape[3])
    assert torch.equal(found[:, :, h // 2 : h // 2 + y.shape[2], w // 2 : w // 2 + y.shape[3]], y)
    assert torch.equal(found[:, :, 0, 0], y[:, :, 0, 0]) and torch.equal(found[:, :, -1, -1], y[:, :, -1, -1])


KERNELS: list[Kernel] = [
    *(GaussianKernel(deviation, side) for deviation in (0.3, 1.5, 40.0) for side in (1, 4, 7)),
    *(MotionKernel(length, angle) for length in (1, 2, 5, 8) for angle in (0.0, 30.0, 45.0, 90.0, 200.0, -15.0)),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_kernels_keep_the_mean_and_the_place(kernel: Kernel) -> None:
    k = kernel.weights()
    assert k.dtype == torch.float64 and (k >= 0).all() and float(k.sum()) == pytest.approx(1)
    assert close(k, k.flip(0, 1), 1e-12)
    assert close(Deblurring(kernel).weights, k, 1e-12)


def test_a_gaussian_kernel_falls_off_as_it_says() -> None:
    k = GaussianKernel(deviation=2.0, side=5).weights()
    assert close(
        k / k[2, 2], torch.tensor([[np.exp(-(r * r + c * c) / 8) for c in range(-2, 3)] for r in range(-2, 3)])
    )
    assert Deblurring().weights.shape == (7, 7)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
@pytest.mark.parametrize("angle", [0.0, 30.0, 45.0, 90.0, 110.0])
def test_a_motion_kernel_lies_along_its_line(length: int, angle: float) -> None:
    """The covariance of its weights is that of the points, ``(length^2 - 1) / 12`` along the line, and of rounding."""
    k = MotionKernel(length, angle).weights()
    r = torch.arange(len(k), dtype=torch.float64) - len(k) // 2
    along = torch.tensor([-np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    covariance = torch.stack([(k.sum(1) * r * r).sum(), r @ k @ r, (k.sum(0) * r * r).sum()])
    expected = torch.stack([along[0] ** 2, along[0] * along[1], along[1] ** 2]) * (length**2 - 1) / 12
    assert float(covariance[1]) == pytest.approx(float(expected[1]), abs=1e-9)  # bilinear shares do not correlate
    assert (covariance - expected >= -1e-9).all() and (covariance - expected <= 0.25 + 1e-9).all()


def test_a_motion_along_a_row_or_a_column_is_a_mean() -> None:
    row = MotionKernel(length=5, angle=0.0).weights()
    assert close(row[2], torch.full((5,), 0.2, dtype=torch.float64)) and float(row[[0, 1, 3, 4]].abs().max()) < 1e-12
    assert close(MotionKernel(length=5, angle=90.0).weights(), row.T)
    rising = MotionKernel(length=7, angle=45.0).weights()
    assert rising[1, 5] > 0.05 and float(rising[1, 1]) == 0


@pytest.mark.parametrize("shape", [(1, 9, 15), (1, 6, 8)])
def test_a_random_convolution_of_all_rows_is_orthonormal_and_cyclic(shape: Shape) -> None:
    pixels = shape[1] * shape[2]
    everything = CompressedSensing(ratio=1.0)
    x = torch.eye(pixels, dtype=torch.float64).reshape(pixels, *shape)
    u = everything.A(x).flatten(1).T
    assert close(u @ u.T, torch.eye(pixels, dtype=torch.float64))
    assert close(everything.A_adjoint(x).flatten(1).T, u.T)
    assert close(u, u.roll((1, 1), (0, 1)))
    assert float(u.abs().max()) < 0.6  # what is measured is spread over the image
    few = CompressedSensing(ratio=0.25)
    kept = few.observed(torch.ones(1, *shape)).flatten().bool()
    assert int(kept.sum()) == round(0.25 * pixels)
    assert close(few.A(x).flatten(1).T[kept], u[kept]) and not few.A(x).flatten(1).T[~kept].any()


def test_the_seed_chooses_what_is_sensed_and_the_samples_share_it() -> None:
    x = images((2, 12, 12))
    first, again, other = CompressedSensing(seed=1), CompressedSensing(seed=1, sigma=0.5), CompressedSensing(seed=2)
    assert torch.equal(first.A(x), again.A(x))
    masks = [one.observed(torch.ones_like(x)) for one in (first, other)]
    assert not torch.equal(*masks) and not close(CompressedSensing(1.0, 1).A(x), CompressedSensing(1.0, 2).A(x), 1e-2)
    assert torch.equal(masks[0], masks[0][:1, :1].expand_as(masks[0]))


class Points(Kernel):
    """A kernel of somebody else that is not normalised."""

    def weights(self) -> Tensor:
        return torch.tensor([[2.0, 2.0]], dtype=torch.float64)


def test_kernels_of_others_are_normalised() -> None:
    assert Deblurring(Points()).weights.tolist() == [[0.5, 0.5]]
