"""The last move of the input and the change of the gradient: an estimate of the distance to the minimum and of the
curvature, which tells a minimum from a saddle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# A curvature counts if it changes the gradient by this many times the error of the gradient due to z and mu.
CLEAR = 3.0


@dataclass(frozen=True)
class LastMove:
    """The last two inputs that differ, and the projected gradients there: a secant of the gradient.

    Attributes:
        x, g: (B, width of x) the newest input and its projected gradient.
        s, y: (B, width of x) the last move of x, and the change of g over this move; zero before the first move.
        blur: (B,) largest error of g, because z and mu lag behind.
        noise: (B,) largest error of y.
        curvature: (B,) ``s^T y / s^T s`` of the last move with a clear curvature; NaN before the first such move.
    """

    x: Tensor
    g: Tensor
    s: Tensor
    y: Tensor
    blur: Tensor
    noise: Tensor
    curvature: Tensor

    @classmethod
    def none(cls, x: Tensor, g: Tensor, blur: Tensor) -> LastMove:
        zero = torch.zeros_like(x)
        return cls(x, g, zero, zero, blur, torch.zeros_like(blur), torch.full_like(blur, torch.nan))

    def then(self, x: Tensor, g: Tensor, blur: Tensor) -> LastMove:
        """The secant after one more input. Where x has not moved, only its gradient is updated."""
        step = x - self.x
        moved = (step != 0).any(1)
        s = torch.where(moved[:, None], step, self.s)
        y = torch.where(moved[:, None], 0.0, self.y) + (g - self.g)
        noise = torch.where(moved, self.blur, self.noise - self.blur) + blur
        along = (s * y).sum(1)
        square = s.square().sum(1)
        clear = along.abs() > CLEAR * noise * square.sqrt()
        curvature = torch.where(clear, along / square, self.curvature)
        return replace(self, x=x, g=g, s=s, y=y, blur=blur, noise=noise, curvature=curvature)

    def length(self) -> Tensor:
        """(B,) the length of the last move; zero where the gradient is zero, because no secant is needed there."""
        return torch.where(self.g.any(1), self.s.norm(dim=1), 0.0)

    def distance(self) -> Tensor:
        """(B,) distance to the zero of the gradient, estimated by the secant; infinite where it is not clear."""
        size = self.g.norm(dim=1)
        change = (self.y * self.g).sum(1).abs() / torch.where(size > 0, size, 1.0)
        clear = change > CLEAR * self.noise
        return torch.where(size > 0, torch.where(clear, size * self.s.norm(dim=1) / change, torch.inf), 0.0)
