"""The scale by which residuals are measured, so that they do not depend on the units of J or x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqopt.feasible import Everywhere, FeasibleSet
from deqopt.loop_settings import Norm
from deqopt.problem import JointProblem, fork, pull_back
from deqopt.state import State, leaf, state_of, tensors_of

# To measure the width of a feasible set, two points at this distance from x (in lengths of x plus one) are projected.
FAR = 1e4


def _column(number: int) -> Any:
    return property(lambda scale: scale.rows[:, number])


@dataclass(frozen=True)
class Scale:
    """The natural lengths of the blocks of a sample, (B,) each, in the norm of the residuals.

    The gradient of the Lagrangian in x, ``g_x = d_x J + (d_x f)^T mu``, is a sum that vanishes at the solution. If its
    terms did not cancel, its length would be about ``direct + gain |mu|``.

    Attributes:
        rows: (B, 5) the columns ``state`` to ``reach``.
        state: ``|f|``.
        multiplier: the larger of ``|d_z J(z)|`` and ``|d_z J(2 z) - d_z J(z)|``. The first is the length of a
            multiplier before anything is fitted. The second remains in a perfect fit: a relative error of z causes the
            same error of mu, relative to this length.
        direct: ``|d_x J|``.
        gain: ``|(d_x f)^T u| / |u|``, where u is half ``d_z J`` and half random, because x may have no effect along
            ``d_z J``.
        reach: the width of the feasible set; for a set of infinite width, thousands of lengths of x.
    """

    rows: Tensor

    state, multiplier, direct, gain, reach = (_column(k) for k in range(5))

    @classmethod
    def at(cls, problem: JointProblem, z: State, x: Tensor, norm: Norm, recorded: bool = False) -> Scale:
        """The scale at ``(z, x)``: one forward of f and two of J, one vector-Jacobian product of f and two of J.

        Args:
            recorded: whether the scale is differentiable in z, x and theta, as a differentiable solve needs it: its
                normalised steps depend on the scale.
        """
        with torch.enable_grad():
            z, (x,) = (_finite(z), tensors_of(_finite(x))) if recorded else (leaf(z), tensors_of(leaf(x)))
            f = tensors_of(problem.f(z, x))
            *d_z, d_x = pull_back([problem.J(z, x).sum()], (*tensors_of(z), x), create_graph=recorded)
            double = state_of((2 * part for part in tensors_of(z)), z)
            twice = fork(double) if recorded else leaf(double)
            d_twice = pull_back([problem.J(twice, x).sum()], tensors_of(twice), create_graph=recorded)
            u = _half_random(d_z)
            (pulled,) = pull_back(f, (x,), u, create_graph=recorded)
        with torch.set_grad_enabled(recorded):
            gain = _length(norm, [pulled]) / _length(norm, u)
            here, change = _length(norm, d_z), _length(norm, [b - a for a, b in zip(d_z, d_twice, strict=True)])
            multiplier = torch.where(change.isfinite(), torch.maximum(here, change), here)
            width = _width(problem.feasible, x.detach(), norm)
            return cls(torch.stack([_length(norm, f), multiplier, _length(norm, [d_x]), gain, width], 1))

    def gradient(self, multiplier: Tensor) -> Tensor:
        """(B,) the length that g_x would have if its terms did not cancel, for multipliers of the given length."""
        return self.direct + self.gain * multiplier


def _finite(state: State) -> State:
    """The state to differentiate in, with zeros for NaN and infinity: 0 times NaN is NaN in the gradient to theta."""
    return fork(state_of((part.nan_to_num(0.0, 0.0, 0.0) for part in tensors_of(state)), state))


def _length(norm: Norm, parts: Sequence[Tensor]) -> Tensor:
    return norm.of(torch.cat([part.flatten(1) for part in parts], dim=1))


def _half_random(parts: Sequence[Tensor]) -> list[Tensor]:
    """The unit vector along ``parts`` plus a random unit vector, turned to the same side; (B, ...) each.

    The random vector is the same for all samples and in all calls, so that no sample depends on its place in a batch.
    """
    device = parts[0].device
    generator = torch.Generator(device).manual_seed(0)
    random = [torch.randn(part.shape[1:], generator=generator, device=device, dtype=torch.float64) for part in parts]
    length = torch.stack([part.square().sum() for part in random]).sum().sqrt()
    size = _length(Norm.L2, parts)
    inverse = torch.where(size > 0, 1 / torch.where(size > 0, size, 1.0), 0.0)
    unit = [part * _spread(inverse, part) for part in parts]
    other = [(part / length).to(given).expand_as(given) for part, given in zip(random, parts, strict=True)]
    along = torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(unit, other, strict=True)]).sum(0)
    side = torch.where(along < 0, -1.0, 1.0).to(along)
    return [a + _spread(side, b) * b for a, b in zip(unit, other, strict=True)]


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...)"""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _width(feasible: FeasibleSet, x: Tensor, norm: Norm) -> Tensor:
    if isinstance(feasible, Everywhere):
        return torch.full_like(x.flatten(1).sum(1), torch.inf)
    generator = torch.Generator(x.device).manual_seed(0)
    direction = torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=torch.float64)
    direction = (direction / direction.norm()).to(x)
    far = direction * _spread(FAR * (1 + Norm.L2.of(x.flatten(1))), x)
    return norm.of((feasible.project(x + far) - feasible.project(x - far)).flatten(1))
