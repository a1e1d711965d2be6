"""Measurement operators, and the shapes of images that they are tested on: the tests are products over these."""

from __future__ import annotations

import pytest
import torch
from deqopt_tasks.denoising.inpainting import Inpainting, RandomBoxes, RandomPixels
from deqopt_tasks.denoising.operator import MeasurementOperator, Shape, as_operator
from deqopt_tasks.denoising.operators import (
    CompressedSensing,
    Deblurring,
    Denoising,
    MotionKernel,
    SuperResolution,
)
from torch import Tensor


class Mirrored:
    """A of a class that knows nothing of deqopt: mirrors, and weighs the columns. Not symmetric."""

    def A(self, x: Tensor) -> Tensor:
        return self._weights(x) * x.flip(-1)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (self._weights(y) * y).flip(-1)

    def _weights(self, x: Tensor) -> Tensor:
        return torch.arange(1, x.shape[-1] + 1, device=x.device).to(x.dtype)


ASYMMETRIC = [[1.0, 2.0, 0.0, 0.5], [0.0, 3.0, -1.0, 0.0]]
PLAIN: dict[str, MeasurementOperator] = {
    "denoising": Denoising(),
    "super-resolution": SuperResolution(3),
    "gaussian blur": Deblurring(),
    "motion blur": Deblurring(MotionKernel(length=4, angle=20.0)),
    "blur by rows": Deblurring(ASYMMETRIC, sigma=0.1),
    "compressed sensing": CompressedSensing(),
    "more sensing": CompressedSensing(ratio=0.6, seed=3),
    "boxes": Inpainting(RandomBoxes(side=4, count=2)),
    "pixels": Inpainting(RandomPixels(share=0.7), sigma=0.2),
}
OPERATORS: dict[str, MeasurementOperator] = {
    **PLAIN,
    "blur by tensor": Deblurring(torch.tensor(ASYMMETRIC).T),
    "mask by tensor": Inpainting(torch.arange(9 * 15).reshape(9, 15) % 4 == 1),
    "external": as_operator(Mirrored()),
}
SHAPES: tuple[Shape, ...] = ((1, 9, 15), (3, 12, 18), (2, 9, 9))  # odd and even numbers of pixels
TIGHT = {"denoising": 1.0, "super-resolution": 1 / 9, "compressed sensing": 1.0, "more sensing": 1.0, "boxes": 1.0}
TIGHT |= {"pixels": 1.0, "mask by tensor": 1.0}
CASES = [
    pytest.param(name, shape, id=f"{name} {'x'.join(map(str, shape))}")
    for name in OPERATORS
    for shape in SHAPES
    if name != "mask by tensor" or shape[1:] == (9, 15)
]
TIGHT_CASES = [case for case in CASES if case.values[0] in TIGHT]
every = pytest.mark.parametrize(("name", "shape"), CASES)
tight = pytest.mark.parametrize(("name", "shape"), TIGHT_CASES)


def images(shape: Shape, count: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator, dtype=torch.float64).mul(2).sub(1).to(dtype)


def noise_like(like: Tensor, seed: int = 1) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like.dtype)


def bound(operator: MeasurementOperator, shape: Shape, count: int = 3, seed: int = 2) -> MeasurementOperator:
    """The operator for a batch, whose samples have drawn different parameters."""
    operator.check(shape)
    generator = torch.Generator().manual_seed(seed)
    return operator.bind(torch.stack([operator.draw(shape, generator) for _ in range(count)]))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) inner products of samples."""
    return (a * b).flatten(1).sum(1)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)
