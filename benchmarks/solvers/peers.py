"""The published ways to solve the same problems: bilevel descent with torchdeq's solvers, and the joint method's own.

Faithful in their settings, lean in what they compute: one graph a step, no head evaluated twice, no logging.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from benchmarks.solvers.contest import Competitor
from benchmarks.solvers.stopwatch import Stopwatch
from deqopt import JointProblem
from deqopt.problem import pull_back
from deqopt.state import Layout, State, leaf, tensors_of

INSTALL = "torchdeq is not installed: pip install 'deqopt[bench]'"


def torchdeq_is_installed() -> bool:
    """Whether :class:`TorchDEQDescent` can run."""
    return importlib.util.find_spec("torchdeq") is not None


def _length(rows: Tensor) -> Tensor:
    return rows.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (rows.dim() - 1))


class Rule(ABC):
    """How x moves along its gradient; made anew for every run."""

    @abstractmethod
    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The next x, before it is projected."""


@dataclass
class NormalisedGradient(Rule):
    """Steps of constant length, as in projected-gradient attacks (Madry et al. 2018)."""

    length: float

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        return x - self.length * gradient / _length(gradient)


@dataclass
class Adam(Rule):
    """Kingma and Ba 2015, with the usual constants; its moments are kept a sample."""

    lr: float
    _steps: int = 0
    _mean: Tensor | None = None
    _square: Tensor | None = None

    def move(self, x: Tensor, gradient: Tensor) -> Tensor:
        if self._mean is None or self._square is None:
            self._mean, self._square = torch.zeros_like(x), torch.zeros_like(x)
        self._steps += 1
        self._mean = torch.lerp(self._mean, gradient, 0.1)
        self._square = torch.lerp(self._square, gradient.square(), 0.001)
        mean, square = self._mean / (1 - 0.9**self._steps), self._square / (1 - 0.999**self._steps)
        return x - self.lr * mean / (square.sqrt() + 1e-8)


class PeerSolver(Enum):
    """Those of torchdeq, by the names that ``torchdeq.solver.get_solver`` knows."""

    ANDERSON = "anderson"
    BROYDEN = "broyden"
    PLAIN = "fixed_point_iter"


@dataclass(frozen=True)
class TorchDEQDescent(Competitor):
    """Bilevel: at every step z and then mu are solved for with x fixed, by one of torchdeq's solvers. Labels are steps.

    Args:
        rule: how x moves, made anew for every run.
        solver: of torchdeq, for z and for mu.
        evaluations: of the cell in every solve for z; as many vector-Jacobian products for mu.
        warm: start both from the last step's; otherwise from zero.
        tol: relative residual at which a solve may stop early; 0 never.
    """

    rule: Callable[[], Rule]
    solver: PeerSolver
    evaluations: int = 12
    warm: bool = True
    tol: float = 0.0

    def run(self, problem: JointProblem, z0: State, x0: Tensor, watch: Stopwatch, labels: Sequence[int]) -> None:
        layout = Layout.of(z0)
        start = layout.pack(z0, x0.dtype)
        watch.start()
        rule, z, mu, x = self.rule(), start, torch.zeros_like(start), x0
        for step in range(1, labels[-1] + 1):
            z, mu, gradient = self._solve(
                problem, layout, z if self.warm else start, mu if self.warm else torch.zeros_like(mu), x
            )
            x = problem.feasible.project(rule.move(x, gradient))
            if step in labels:
                watch.mark(step, x)

    def _solve(
        self, problem: JointProblem, layout: Layout, z: Tensor, mu: Tensor, x: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            z = self._fixed_point(lambda rows: layout.pack(problem.f(layout.unpack(rows), x), x.dtype), z)
        with torch.enable_grad():
            z_leaf, x_leaf = leaf(layout.unpack(z)), x.detach().requires_grad_()
            f = tensors_of(problem.f(z_leaf, x_leaf))
            *d_z, d_x = pull_back([problem.J(z_leaf, x_leaf).sum()], (*tensors_of(z_leaf), x_leaf))
        direct = torch.cat([part.flatten(1) for part in d_z], dim=1)
        unit = _length(direct) / _length(z)  # torchdeq's ridge is absolute: solve for a multiplier as long as z
        direct = direct / unit

        def adjoint(rows: Tensor) -> Tensor:
            pulled = pull_back(f, tensors_of(z_leaf), tensors_of(layout.unpack(rows)), retain_graph=True)
            return direct + torch.cat([part.flatten(1) for part in pulled], dim=1)

        mu = self._fixed_point(adjoint, mu / unit) * unit
        (through,) = pull_back(f, (x_leaf,), tensors_of(layout.unpack(mu)))
        return z, mu, d_x + through

    def _fixed_point(self, f: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
        from torchdeq.solver import get_solver

        steps = (
            self.evaluations - 1 if self.solver is PeerSolver.BROYDEN else self.evaluations
        )  # it evaluates its start
        settings: dict[str, Any] = {"max_iter": steps, "tol": self.tol, "stop_mode": "rel"}
        solution: Tensor = get_solver(self.solver.value)(f, start, **settings)[0]
        return solution.detach()


@dataclass(frozen=True)
class PublishedJointAnderson(Competitor):
    """The joint method as published (Gurumurthy et al. 2021) with its settings; labels are iterations.

    Anderson mixing of ``[z, x, mu]``, whose map damps z by 0.8 and mu by 0.6 and moves x by ``step``, or by
    ``late_step`` from iteration max(50, 5/8 of all) on. Type I without a ridge, the block of all three unweighted.
    Nothing stops early. Attacks normalise the gradient; the map projects its x, but nothing projects the mixture.
    It returns the iterate of the lowest relative residual, or of a lower objective with a residual below 1.3 times
    the lowest; during the first ten iterations always the newest.
    """

    step: float
    late_step: float
    memory: int
    normalised: bool

    def run(self, problem: JointProblem, z0: State, x0: Tensor, watch: Stopwatch, labels: Sequence[int]) -> None:
        for label in labels:
            watch.start()
            watch.mark(label, self._solve(problem, z0, x0, label))

    def _solve(self, problem: JointProblem, z0: State, x0: Tensor, iterations: int) -> Tensor:
        layout, batch = Layout.of(z0), x0.shape[0]
        widths = [layout.width, x0[0].numel(), layout.width]
        switch = max(50, iterations * 5 // 8)

        def image(w: Tensor, k: int) -> tuple[Tensor, Tensor]:
            z, x, mu = w.split(widths, dim=1)
            at = problem.evaluate(layout.unpack(z), x.reshape(x0.shape), layout.unpack(mu))
            g_x = at.g_x / _length(at.g_x) if self.normalised else at.g_x
            moved = problem.feasible.project(x.reshape(x0.shape) - (self.step if k < switch else self.late_step) * g_x)
            next_z, next_mu = (layout.pack(part, w.dtype) for part in (at.f, at.g_z))
            blocks = [torch.lerp(z, next_z, 0.8), moved.flatten(1), torch.lerp(mu, next_mu, 0.6)]
            return torch.cat(blocks, dim=1), at.objective

        w = torch.cat([layout.pack(z0, x0.dtype), x0.flatten(1), x0.new_zeros(batch, layout.width)], dim=1)
        points, images = (w.new_zeros(batch, self.memory, w.shape[1]) for _ in range(2))
        products = w.new_zeros(batch, self.memory, self.memory)
        best, lowest = w, w.new_full((batch,), torch.inf)
        best_objective = lowest.clone()
        for k in range(iterations):
            slot, filled = k % self.memory, min(k + 1, self.memory)
            points[:, slot] = w
            images[:, slot], objective = image(w, k)
            residual = images[:, slot] - w
            relative = residual.norm(dim=1) / (1e-5 + images[:, slot].norm(dim=1))
            closer = (relative < lowest) | (k < 10)
            keep = closer | ((objective < best_objective) & (relative < 1.3 * lowest))
            best = torch.where(keep[:, None], w, best)
            best_objective = torch.where(keep, objective, best_objective)
            lowest = torch.where(closer, relative, lowest)
            residuals = (images - points)[:, :filled]
            products[:, slot, :filled] = torch.bmm(residuals, w.unsqueeze(2)).squeeze(2)
            products[:, :filled, slot] = torch.bmm(points[:, :filled], residual.unsqueeze(2)).squeeze(2)
            if k == 0:
                w = images[:, 0].clone()
                continue
            alpha = _mixture(products[:, :filled, :filled])
            w = torch.bmm(alpha.unsqueeze(1), images[:, :filled]).squeeze(1)
        return best[:, layout.width : layout.width + widths[1]].reshape(x0.shape)


def _mixture(products: Tensor) -> Tensor:
    """alpha with ``products alpha = c 1`` and ``sum alpha = 1``, by the bordered system, (B, n)."""
    batch, count = products.shape[:2]
    bordered = products.new_zeros(batch, count + 1, count + 1)
    bordered[:, 0, 1:] = bordered[:, 1:, 0] = 1
    bordered[:, 1:, 1:] = products
    right = products.new_zeros(batch, count + 1)
    right[:, 0] = 1
    for ridge in (0.0, *(10.0**power for power in range(-3, 7))):
        bordered[:, 1:, 1:] += ridge * torch.eye(count, dtype=products.dtype, device=products.device)
        solution, info = torch.linalg.solve_ex(bordered, right)
        if not bool(info.any()):
            break
    return solution[:, 1:]
