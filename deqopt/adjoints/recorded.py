"""A joint problem whose evaluations are recorded by autograd, and the state of the solve that makes them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from deqopt.adjoints.checkpoint import checkpointed
from deqopt.adjoints.growth import Growth
from deqopt.problem import Evaluation, JointProblem
from deqopt.state import State, filled_where, tensors_of, zero_where
from deqopt.usable import UsablePoint, finite_rows


@dataclass
class RecordedSolve:
    """The state of one solve.

    Attributes:
        growth: measures the growth of the gradient on its way back.
        checkpoint: whether only the inputs of every evaluation are kept.
        started: whether there was an evaluation.
        start_learns: whether the start carries a gradient.
        spoiled: (B,) samples without finite values at the start; None if there are no such samples.
    """

    growth: Growth
    checkpoint: bool = False
    started: bool = False
    start_learns: bool = False
    spoiled: Tensor | None = None

    def plain(self, problem: JointProblem, z: State, x: Tensor, mu: State) -> Evaluation:
        """An evaluation with a graph, without a check of its values."""
        return (checkpointed if self.checkpoint else JointProblem.evaluate_with_graph)(problem, z, x, mu)


@dataclass(frozen=True)
class RecordedProblem(JointProblem):
    """A problem in which spoiled samples are replaced by their neighbours: see :class:`deqopt.usable.UsablePoint`.

    Attributes:
        solve: the solve that the problem belongs to.
        samples: (b,) the samples of the solve that are left; None for all.
    """

    solve: RecordedSolve = field(default_factory=lambda: RecordedSolve(Growth("Unrolled")))
    samples: Tensor | None = None

    recorded: ClassVar[bool] = True

    @classmethod
    def of(cls, problem: JointProblem, who: str, checkpoint: bool = False) -> RecordedProblem:
        """The recorded problem for a new solve.

        Args:
            who: name of the adjoint, for warnings of gradients that grow.
            checkpoint: whether to keep only the inputs of every evaluation.
        """
        own = {one.name: getattr(problem, one.name) for one in fields(JointProblem)}
        return cls(**own, solve=RecordedSolve(Growth(who), checkpoint))

    def evaluate(self, z: State, x: Tensor, mu: State) -> Evaluation:
        """An evaluation that is differentiable in z, x, mu and theta. Samples that are spoiled or not finite here are
        NaN and carry no gradient."""
        solve = self.solve
        if not solve.started:
            solve.start_learns = any(part.requires_grad for part in (*tensors_of(z), *tensors_of(mu), x))
        lost = ~finite_rows(*tensors_of(z), *tensors_of(mu), x)
        z, mu, (x,) = zero_where(lost, z), zero_where(lost, mu), tensors_of(zero_where(lost, x))
        z, x, mu = solve.growth.watched(self._samples(x), z, x, mu)
        found = solve.plain(self, z, x, mu)
        if not solve.started:
            solve.started = True
            spoiled = ~finite_rows(found.objective, *tensors_of(found.f), *tensors_of(found.g_z), found.g_x)
            if bool(spoiled.any()):
                solve.spoiled = spoiled
                found = solve.plain(self, z, x, mu)
        if solve.spoiled is not None:
            lost = lost | solve.spoiled[self._samples(x)]
        f, g_z = (filled_where(lost, part, torch.nan) for part in (found.f, found.g_z))
        objective, g_x = tensors_of(filled_where(lost, (found.objective, found.g_x), torch.nan))
        return Evaluation(f, objective, g_z, g_x)

    def f(self, z: State, x: Tensor) -> State:
        point = self._usable(z, x)
        if point.lost is None:
            return super().f(z, x)
        image = point.problem.f(point.z, point.x)
        point.check(*tensors_of(image))
        return filled_where(point.lost, image, torch.nan)

    def J(self, z: State, x: Tensor) -> Tensor:
        point = self._usable(z, x)
        if point.lost is None:
            return super().J(z, x)
        objective = point.problem.J(point.z, point.x)
        point.check(objective)
        return tensors_of(filled_where(point.lost, objective, torch.nan))[0]

    def pick(self, keep: Tensor, dim: int) -> JointProblem | None:
        picked = super().pick(keep, dim)
        if not isinstance(picked, RecordedProblem):
            return picked
        samples = torch.arange(len(keep), device=keep.device) if self.samples is None else self.samples
        return replace(picked, samples=samples[keep])

    def _usable(self, z: State, x: Tensor) -> UsablePoint:
        if self.solve.spoiled is None:
            return UsablePoint(self, z, x, z)
        plain = JointProblem(self.cell, self.objective, self.feasible, self.data)
        return UsablePoint.of(plain, z, x, z, self.solve.spoiled[self._samples(x)])

    def _samples(self, x: Tensor) -> Tensor:
        return torch.arange(len(x), device=x.device) if self.samples is None else self.samples
