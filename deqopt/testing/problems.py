"""Small problems that are made backwards from their answers, so that no solver is needed to know them.

    min_x |z - y|^2 + w |x|^2    subject to   z = phi(z A^T + x U^T + b),   x in X

Choose z and mu. With D = phi'(.) the conditions for stationarity are met by

    x = Proj_X(-U^T D mu / 2w),   y = z - (mu - A^T D mu) / 2,   b = phi^-1(z) - A z - U x

for ``w |x|^2 + <c, x>`` is least, over any convex X, at the projection of ``-c / 2w``. One x may belong to several z.
All magnitudes are about 1, and phi(A .) contracts by 0.6 at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deqopt.feasible import Box, Everywhere, FeasibleSet, L2Ball
from deqopt.problem import JointProblem
from deqopt.state import Layout, State

SAMPLES, STATE, INPUT = 5, 6, 4
ALL = tuple(range(SAMPLES))
WEIGHT = 0.5
CONTRACTION = 0.6
UPDATES_TO_EQUILIBRIUM = 80
FLAT = Layout(((STATE,),), False)


@dataclass(frozen=True)
class Case:
    """A problem, its start, and its answer (z, x, mu, objective)."""

    name: str
    problem: JointProblem
    z0: State
    x0: Tensor
    z: State
    x: Tensor
    mu: State
    objective: Tensor
    theta: tuple[Tensor, Tensor]

    def value(self, x: Tensor) -> Tensor:
        """(B,) J at x and its equilibrium."""
        z = self.z0
        with torch.no_grad():
            for _ in range(UPDATES_TO_EQUILIBRIUM):
                z = self.problem.f(z, x)
            return self.problem.J(z, x)

    def with_cell(self, cell: Callable[..., State]) -> Case:
        return replace(self, problem=replace(self.problem, cell=cell))


@dataclass(frozen=True)
class Family:
    """A kind of problem, of which any samples can be had.

    Args:
        name: in messages.
        feasible: X for centres (B, *input), which are also the start of x.
        centred: whether these centres are random; otherwise they are zero.
        state, input: shapes of a sample.
        groups: how many z share one x.
        smooth: phi is tanh; otherwise the identity, and the problem is convex.
        as_data: targets and centres are handed over as data; otherwise the closures hold them.
    """

    name: str
    feasible: Callable[[Tensor], FeasibleSet] = lambda centre: Everywhere()
    centred: bool = False
    state: Layout = FLAT
    input: tuple[int, ...] = (INPUT,)
    groups: int = 1
    smooth: bool = False
    as_data: bool = False

    def case(
        self, rows: Sequence[int] = ALL, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Case:
        """The samples ``rows``, of ``SAMPLES``."""
        generator = torch.Generator().manual_seed(5)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        a, u = normal(STATE, STATE), normal(STATE, INPUT)
        a = CONTRACTION * a / torch.linalg.matrix_norm(a, 2)
        u = u / torch.linalg.matrix_norm(u, 2) / self.groups**0.5
        mu = normal(SAMPLES, self.groups, STATE) * (0.5 if self.smooth else 1.0)
        z = 1.6 * torch.rand(SAMPLES, self.groups, STATE, generator=generator, dtype=torch.float64) - 0.8
        centre = 0.3 * normal(SAMPLES, INPUT) * self.centred
        mu, z, centre = (part[list(rows)] for part in (mu, z, centre))

        feasible = self.feasible(centre)
        through = mu * (1 - z.square()) if self.smooth else mu
        x = feasible.project(-(through @ u).sum(1) / (2 * WEIGHT))
        y = z - (mu - through @ a) / 2
        b = (torch.atanh(z) if self.smooth else z) - z @ a.T - (x @ u.T)[:, None]
        objective = (z - y).square().sum((1, 2)) + WEIGHT * x.square().sum(1)

        a, u, b, y, x, centre, objective = (part.to(device, dtype) for part in (a, u, b, y, x, centre, objective))
        theta = (a.requires_grad_(), u.requires_grad_())
        inputs = (len(rows), *self.input)
        shaped = self.feasible(centre.reshape(inputs))
        problem = self._problem(theta, {"shift": b, "target": y}, shaped)
        z0, answer, multiplier = (
            self.state.unpack(part.to(device, dtype).flatten(1)) for part in (torch.zeros_like(z), z, mu)
        )
        start, x = centre.reshape(inputs), x.reshape(inputs)
        return Case(self.name, problem, z0, start, answer, x, multiplier, objective, theta)

    def _problem(self, theta: tuple[Tensor, Tensor], data: dict[str, Tensor], feasible: FeasibleSet) -> JointProblem:
        a, u = theta

        def joined(z: State) -> Tensor:
            return self.state.pack(z, a.dtype).unflatten(1, (self.groups, STATE))

        def cell(z: State, x: Tensor, data: dict[str, Tensor]) -> State:
            image = joined(z) @ a.T + (x.flatten(1) @ u.T)[:, None] + data["shift"]
            return self.state.unpack((torch.tanh(image) if self.smooth else image).flatten(1))

        def objective(z: State, x: Tensor, data: dict[str, Tensor]) -> Tensor:
            return (joined(z) - data["target"]).square().sum((1, 2)) + WEIGHT * x.square().flatten(1).sum(1)

        if self.as_data:
            return JointProblem(cell, objective, feasible, data)
        return JointProblem(lambda z, x: cell(z, x, data), lambda z, x: objective(z, x, data), feasible)


LINEAR = Family("linear")
BOX = Family("linear in an active box", lambda centre: Box(-0.5, 0.6))
BALL = Family("linear in an active L2 ball", lambda centre: L2Ball(0.8))
TUPLE = Family("linear with a state of two tensors", state=Layout(((2,), (2, 2)), True), input=(2, 2))
DATA = Family("linear with data in balls of their own", lambda centre: L2Ball(0.8, centre), centred=True, as_data=True)
GROUPED = Family("linear with one x for three z", state=Layout(((3, STATE),), False), groups=3)
TANH = Family("tanh", smooth=True)
FAMILIES = (LINEAR, BOX, BALL, TUPLE, DATA, GROUPED, TANH)


def rows_of(value: Any, rows: Sequence[int]) -> Any:
    """The samples ``rows`` of a state."""
    return value[list(rows)] if isinstance(value, Tensor) else tuple(part[list(rows)] for part in value)
