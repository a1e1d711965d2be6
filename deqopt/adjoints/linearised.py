"""A system of equations at its solution, ready for products with its transposed Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.errors import NonFiniteError, ProblemError
from deqopt.problem import Evaluation, JointProblem, pull_back
from deqopt.state import Layout, State, leaf, state_of, tensors_of, work_dtype
from deqopt.stationary import StationarySystem, rows_dtype
from deqopt.usable import finite_rows

# The smallest length, in units of x, of the change of x that measures the effect of x.
MIN_PROBE = 1e-3


@dataclass(frozen=True)
class Linearised:
    """``F(w; theta)`` at ``F(w) = 0``, where its Jacobian in w is near -1.

    Attributes:
        residual: F, (B, width); differentiable in ``unknowns`` and theta.
        unknowns: w, as leaves.
        layout: the positions of w in the rows of F.
        scale: (B, width) natural lengths of the unknowns.
        nfe: number of products spent on measuring ``a`` and ``scale``.
    """

    residual: Tensor
    unknowns: tuple[Tensor, ...]
    layout: Layout
    scale: Tensor
    nfe: int

    @classmethod
    def of_problem(
        cls, problem: JointProblem, z: State, mu: State, x: Tensor, step_size: float | None = None
    ) -> Linearised:
        """The stationary system at ``w = (z, mu, x)``, in at least float32 also under autocast:

            F = [ f(z, x) - z | g_z - mu | Proj_X(x - a g_x) - x ]

        Its Jacobian is near -1 if f contracts and ``a`` fits the curvature of the Lagrangian in x. The derivative of
        the projection contains active constraints and their curvature. The implicit gradient does not depend on ``a``,
        nor on ``scale``, which is the same for all entries of z, for all of mu and for all of x.

        Args:
            step_size: the step a; measured if None, see :func:`_measured`.

        Raises:
            ProblemError: the projection cannot be differentiated.
        """
        dtype = rows_dtype(z, x)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            z, mu, x = leaf(_as(z, dtype)), leaf(_as(mu, dtype)), x.detach().to(dtype).requires_grad_()
            system = StationarySystem(problem, Layout.of(z), Layout.of(x), dtype)
            evaluation = problem.evaluate_with_graph(z, x, mu)
            here = system.pack(z, mu, x)
            if step_size is None:
                a, lengths = _measured(evaluation, z, mu, x)
                widths = torch.tensor(system.widths, device=x.device)
                scale = lengths.repeat_interleave(widths, dim=1)
            else:
                a, scale = x.new_full((len(x),), step_size), torch.ones_like(here)
            moved = problem.feasible.project(x - a.reshape(-1, *[1] * (x.dim() - 1)) * evaluation.g_x)
            if not moved.requires_grad:
                raise ProblemError(
                    f"{type(problem.feasible).__name__}.project cannot be differentiated: write it with torch "
                    "operations, without no_grad, detach or numpy"
                )
            residual = system.pack(evaluation.f, evaluation.g_z, moved) - here
        unknowns = (*tensors_of(z), *tensors_of(mu), x)
        return cls(residual, unknowns, Layout.of(unknowns), scale.detach(), 0 if step_size is not None else 3)

    @classmethod
    def of_map(cls, f: Callable[[State], State], z: State, lost: Tensor) -> Linearised:
        """``F = f(z) - z``, for a z that is finite also in the ``lost`` samples, (B,).

        Raises:
            NonFiniteError: f is NaN or infinite for a lost sample, which would make all gradients NaN.
        """
        with torch.enable_grad():
            z = leaf(z)
            image = f(z)
        layout, dtype = Layout.of(z), work_dtype(z)
        spoiled = (lost & ~finite_rows(*tensors_of(image))).nonzero()[:, 0].tolist()
        if 0 < len(spoiled) < len(lost):
            raise NonFiniteError(
                f"f closes over values that are NaN or infinite for the samples {', '.join(map(str, spoiled))}; they "
                "would make the gradient of all other samples NaN: leave these samples out"
            )
        with torch.enable_grad():
            residual = layout.pack(image, dtype) - layout.pack(z, dtype)
        return cls(residual, tensors_of(z), layout, torch.ones_like(residual).detach(), 0)

    def transposed(self, rows: Tensor) -> Tensor:
        """``(d_w F)^T rows``, (B, width): one double-backward through f and J."""
        return self.pack(pull_back([self.residual], self.unknowns, [rows], retain_graph=True))

    def pack(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of w as rows."""
        return self.layout.pack(tuple(parts), self.residual.dtype)


def _measured(evaluation: Evaluation, z: State, mu: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """A step length a, (B,), that fits the curvature in x, and natural lengths of z, mu and x, (B, 3).

    x is moved by a random p of the same length as x. z and mu follow by one application of their equations. Then the
    gradient of the Lagrangian changes by

        K p = H_xx p + (d_x f)^T (H_zz d_x f p + H_zx p) + H_xz d_x f p.

    ``a = |p| / (4 |K p|)``: with half or three times this value, GMRES needs more products on decoders.
    """
    f, g_z, g_x = tensors_of(evaluation.f), tensors_of(evaluation.g_z), evaluation.g_x
    states, inputs = tensors_of(z), (*tensors_of(z), *tensors_of(mu), x)
    direction = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    length = _norm([x]).clamp_min(MIN_PROBE)
    p = (direction / direction.norm()).to(x) * length.reshape(-1, *[1] * (x.dim() - 1))
    pulled = pull_back([g_x], inputs, [p], retain_graph=True)
    z_moved = pulled[len(states) : 2 * len(states)]
    *mu_moved, direct = pull_back([*g_z, g_x], (*states, x), [*z_moved, p], retain_graph=True)
    (through,) = pull_back(f, (x,), mu_moved, retain_graph=True)
    change = _norm([direct + through])
    a = length / torch.maximum(4 * change, 1e-3 * _norm([g_x]))
    scale = torch.stack([_norm(states) + _norm(z_moved), _norm(tensors_of(mu)) + _norm(mu_moved), length], 1)
    return torch.where(a.isfinite(), a, 1.0), torch.where(scale.isfinite() & (scale > 0), scale, 1.0)


def _as(state: State, dtype: torch.dtype) -> State:
    return state_of((part.to(dtype) for part in tensors_of(state)), state)


def _norm(parts: Sequence[Tensor]) -> Tensor:
    """(B,) length of all parts of a sample together."""
    return torch.stack([part.detach().flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()
