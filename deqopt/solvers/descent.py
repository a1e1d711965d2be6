"""Methods by which :class:`deqopt.solvers.Bilevel` moves the input: projected gradient, Adam, L-BFGS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from deqopt.errors import ProblemError, check_finite
from deqopt.loop_settings import Norm
from deqopt.memory import Memory, MemoryT, write
from deqopt.ranges import at_least, positive
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.state import unit


class Descent(ABC, Generic[MemoryT]):
    """Base class of methods that move x by ``g_x``, which is the gradient of ``J(z(x), x)`` where z and mu are solved.

    Example, with the problem and the start of :class:`deqopt.JointProblem`'s:
        >>> from deqopt.solvers import PGD, Bilevel
        >>> eq = Bilevel(descent=PGD(lr=0.1)).solve(problem, z0, x0)
    """

    def begin(self, x: Tensor) -> MemoryT:
        """The empty memory of a descent from the rows ``x``, (B, width)."""
        return Memory(x)  # type: ignore[return-value]

    @abstractmethod
    def step(self, system: JointSystem, at: JointEvaluation, memory: MemoryT) -> Tensor:
        """The next feasible rows of inputs from an evaluation. Must not couple rows."""


@dataclass(frozen=True)
class PGD(Descent):
    """Projected gradient descent ``x <- Proj(x - lr d)``.

    Args:
        lr: step size; if ``norm`` is given, the length of every step in that norm, in units of x.
        norm: None for ``d = g_x``. Otherwise d is the direction of steepest descent in this norm, as in adversarial
            attacks: ``g_x / |g_x|`` for L2, ``sign(g_x)`` for LINF. Such steps do not get shorter near the optimum.

    Example:
        >>> PGD(lr=0.05, norm=Norm.LINF)
        PGD(lr=0.05, norm=<Norm.LINF: inf>)
    """

    lr: float = 0.1
    norm: Norm | None = None

    def __post_init__(self) -> None:
        _check(self, self.lr)

    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> Tensor:
        return system.project(at.x - self.lr * memory.rate * self._direction(at.g_x))

    def _direction(self, g: Tensor) -> Tensor:
        if self.norm is Norm.L2:
            return unit(g)
        return g.sign() if self.norm is Norm.LINF else g


class Moments(Memory):
    """Adam's averages of the gradient and of its square, (B, width), over ``count`` steps, (B, 1)."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)
        self.count = torch.zeros_like(self.rate)


@dataclass(frozen=True)
class Adam(Descent[Moments]):
    """Adam (Kingma and Ba 2015) with the projected gradient; the result of every step is projected too.

    Args:
        lr: approximate distance that an entry of x moves in one step, in units of x.
        betas: decay rates of the averages of the gradient and of its square.
        eps: number added to the root of the average square.

    Example:
        >>> Adam(lr=0.05, betas=(0.9, 0.99)).eps
        1e-08
    """

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self, self.lr)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ProblemError(f"betas must be two numbers in [0, 1), got {self.betas}")
        positive(eps=self.eps)

    def begin(self, x: Tensor) -> Moments:
        return Moments(x)

    def step(self, system: JointSystem, at: JointEvaluation, memory: Moments) -> Tensor:
        g = projected_gradient(system, at, self.lr)
        first, second = self.betas
        memory.count = memory.count + 1
        memory.mean = torch.lerp(g, memory.mean, first)
        memory.square = torch.lerp(g.square(), memory.square, second)
        mean, square = memory.mean / (1 - first**memory.count), memory.square / (1 - second**memory.count)
        return system.project(at.x - self.lr * memory.rate * mean / (square.sqrt() + self.eps))


class Curvature(Memory):
    """The inverse Hessian of L-BFGS: pairs of differences of points, ``s``, and of gradients, ``y``, newest last."""

    def __init__(self, x: Tensor, history_size: int) -> None:
        super().__init__(x)
        batch, width = x.shape
        self._slots, self._written = history_size, 0
        self._s, self._y = (x.new_zeros(batch, history_size, width) for _ in range(2))
        self._inverse = x.new_zeros(batch, history_size)
        self._scale, self._seen = torch.zeros_like(self.rate), torch.zeros_like(self.rate)
        self._point, self._gradient = torch.zeros_like(x), torch.zeros_like(x)

    def see(self, x: Tensor, g: Tensor) -> None:
        """Store the differences of ``(x, g)`` and the last point if ``s^T y`` is large enough, else an empty pair."""
        s, y = (x - self._point) * self._seen, (g - self._gradient) * self._seen
        product, ss, yy = ((a * b).sum(1, keepdim=True) for a, b in ((s, y), (s, s), (y, y)))
        curved = product > LEAST_CURVATURE * (ss * yy).sqrt()
        slot = self._written % self._slots
        self._written += 1
        self._s, self._y = (write(*pair) for pair in ((self._s, slot, s * curved), (self._y, slot, y * curved)))
        self._inverse = write(self._inverse, slot, torch.where(curved, 1 / product, 0.0).squeeze(1))
        self._scale = torch.where(curved, product / yy, self._scale)
        self._point, self._gradient, self._seen = x, g, torch.ones_like(self._seen)

    def times(self, g: Tensor, otherwise: Tensor) -> Tensor:
        """The two-loop recursion: the inverse Hessian times ``g``, or ``otherwise * g`` while no pair is known."""
        newest_first = [(self._written - 1 - age) % self._slots for age in range(min(self._written, self._slots))]
        shares = {}
        for i in newest_first:
            shares[i] = self._inverse[:, i, None] * (self._s[:, i] * g).sum(1, keepdim=True)
            g = g - shares[i] * self._y[:, i]
        g = torch.where(self._scale > 0, self._scale, otherwise) * g
        for i in reversed(newest_first):
            g = g + (shares[i] - self._inverse[:, i, None] * (self._y[:, i] * g).sum(1, keepdim=True)) * self._s[:, i]
        return g


@dataclass(frozen=True)
class LBFGS(Descent[Curvature]):
    """L-BFGS (Nocedal 1980) with the projected gradient, without line search; the result of every step is projected.

    Args:
        lr: length of the first step if the terms of ``g_x`` do not cancel, in units of x.
        history_size: number of pairs of differences that are kept. Pairs without positive curvature are left out.
        longest: largest length of a step, in units of x.

    Example:
        >>> LBFGS(history_size=5).longest
        1.0
    """

    lr: float = 0.1
    history_size: int = 10
    longest: float = 1.0

    def __post_init__(self) -> None:
        _check(self, self.lr)
        at_least(1, history_size=self.history_size)
        positive(longest=self.longest)

    def begin(self, x: Tensor) -> Curvature:
        return Curvature(x, self.history_size)

    def step(self, system: JointSystem, at: JointEvaluation, memory: Curvature) -> Tensor:
        g = projected_gradient(system, at, self.lr)
        memory.see(at.x, g)
        direction = memory.rate * memory.times(g, otherwise=self.lr / at.size[:, None])
        length = direction.norm(dim=1, keepdim=True)
        return system.project(at.x - direction * (self.longest / length.clamp_min(self.longest)))


# The least cosine between differences of points and gradients that counts as positive curvature.
LEAST_CURVATURE = 1e-4


def projected_gradient(system: JointSystem, at: JointEvaluation, reach: float) -> Tensor:
    """``(x - Proj(x - a g_x)) / a``, with a such that a gradient of length ``size`` moves x by ``reach``. It is zero at
    the optimum.

    Methods that rotate or rescale ``g_x`` itself have other fixed points where a constraint is active.
    """
    return system.projected_gradient(at.x, at.g_x, reach / at.size[:, None])


def _check(settings: Descent, lr: float) -> None:
    positive(lr=lr)
    check_finite(**vars(settings))
