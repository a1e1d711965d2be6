"""What is easily mistaken in code is told in one line, or works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqopt import JointModule, JointProblem, Task
from deqopt.adjoints import Adjoint, Envelope, Implicit, JacobianFree, Phantom, Unrolled
from deqopt.errors import ProblemError
from deqopt.feasible import Box, L2Ball
from deqopt.fixed_point import Anderson, Damped
from deqopt.solvers import Adam, Bilevel, JointAnderson, JointBroyden, JointSolver, SecantTracking, Tracking
from deqopt.state import State
from tiny_task import Tiny, quiet_trainer

W, U, Y = 0.1 * torch.randn(5, 5), torch.randn(3, 5), torch.randn(4, 5)
Z0, X0 = torch.zeros(4, 5), torch.zeros(4, 3)
SOLVER = Tracking(max_nfe=12)


def cell(z: Tensor, x: Tensor) -> Tensor:
    return torch.tanh(z @ W + x @ U)


def objective(z: Tensor, x: Tensor) -> Tensor:
    return (z - Y).square().sum(1)


class ThirdArgument(nn.Module):
    def forward(self, z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return cell(z, x)


LINEAR = nn.Linear(8, 5)
HALF = nn.Linear(8, 5).bfloat16()


def solve(
    cell: Any = cell, objective: Any = objective, z0: Any = Z0, x0: Any = X0, adjoint: Any = None, **parts: Any
) -> object:
    return SOLVER.solve(JointProblem(cell, objective, **parts), z0, x0, adjoint=adjoint)


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "a class for a set": (
        lambda: solve(feasible=Box),
        r"feasible is the class Box itself: give an object of it, Box\(",
    ),
    "a number for a set": (
        lambda: solve(feasible=3),
        "feasible must be an object of FeasibleSet, got a value of type int",
    ),
    "a class for an adjoint": (lambda: solve(adjoint=Envelope), "adjoint is the class Envelope itself"),
    "a class for a problem": (lambda: SOLVER.solve(JointProblem, Z0, X0), "problem is the class JointProblem"),  # type: ignore[arg-type]
    "a class for a cell": (lambda: solve(cell=nn.Linear), "cell must be a function or a module, got <class"),
    "a class for data": (lambda: solve(data=dict), "data is the class dict itself: give tensors"),
    "no objective": (lambda: solve(objective=None), "objective must be a function or a module, got None"),
    "a class for a fixed-point solver": (lambda: Bilevel(inner=Anderson), "inner is the class Anderson itself"),  # type: ignore[arg-type]
    "a class for a descent": (lambda: Bilevel(descent=Adam), "descent is the class Adam itself"),  # type: ignore[arg-type]
    "a joint solver inside": (lambda: Bilevel(inner=SOLVER), "inner must be an object of FixedPointSolver, got"),  # type: ignore[arg-type]
    "text for a norm": (lambda: Tracking(norm="l2"), "norm must be Norm.L2 or Norm.LINF, got 'l2'"),  # type: ignore[arg-type]
    "text for a norm of f": (lambda: Damped(norm="l2"), "norm must be Norm.L2 or Norm.LINF, got 'l2'"),  # type: ignore[arg-type]
    "text for a rule": (lambda: JointAnderson(step_rule="plain"), "step_rule must be StepRule.PLAIN or StepRule"),  # type: ignore[arg-type]
    "x before z": (lambda: solve(cell=lambda x, z: cell(z, x)), r"cell has its .* called as cell\(z, x\), the state z"),
    "x before z, data": (
        lambda: solve(cell=lambda x, z, y: cell(z, x), objective=lambda z, x, y: objective(z, x), data=Y),
        r"cell has its arguments in another order: it is called as cell\(z, x, data\)",
    ),
    "x before z in J": (lambda: solve(objective=lambda x, z: objective(z, x)), r"it is called as objective\(z, x\)"),
    "x returned for z": (lambda: solve(cell=lambda x, z: torch.tanh(x.sum() + z)), r"called as cell\(z, x\)"),
    "z in double": (lambda: solve(z0=Z0.double()), "z and x in float64, and W is float32: bring z0, x0, weights and"),
    "x in double": (lambda: solve(x0=X0.double()), "z and x in float64, and W is float32: .*of z0 and x0, the wider"),
    "a start in double": (
        lambda: solve(cell=lambda z, x: LINEAR(torch.cat([z, x], 1)), z0=Z0.double(), x0=X0.double()),
        "cell failed where two types meet: .* LINEAR.weight is float32",
    ),
    "data in double": (
        lambda: solve(
            cell=lambda z, x, y: cell(z, x) @ y.new_ones(5, 5), objective=lambda z, x, y: z[:, 0], data=Y.double()
        ),
        "data is float64",
    ),
    "weights in half": (
        lambda: solve(cell=lambda z, x: HALF(torch.cat([z, x], 1))),
        "HALF.weight is bfloat16: states are kept in float32 at least; use torch.autocast",
    ),
    "data forgotten": (
        lambda: solve(cell=lambda z, x, y: z),
        r"cell takes three arguments, \(z, x, y\), but the .* no data",
    ),
    "data forgotten, a module": (
        lambda: solve(cell=ThirdArgument()),
        r"give JointProblem\(data=\.\.\.\), which is passed on",
    ),
    "data forgotten in J": (lambda: solve(objective=lambda z, x, y: z[:, 0]), "objective takes three arguments"),
    "data not taken": (lambda: solve(data=Y), r"cell takes two arguments, \(z: .*so cell\(z, x, data\) is called"),
    "one argument": (
        lambda: solve(cell=lambda z: z),
        r"cell cannot be called as cell\(z, x\): its arguments are \(z\)",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_in_one_line(case: str) -> None:
    make, message = MISTAKES[case]
    with pytest.raises(ProblemError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def fails_by_itself(z: Tensor, x: Tensor) -> Tensor:
    raise IndexError("of the user")


def fails_with_all_types_equal(z: Tensor, x: Tensor) -> Tensor:
    raise RuntimeError("of the user")


@pytest.mark.parametrize("function", [fails_by_itself, fails_with_all_types_equal])
def test_an_error_whose_cause_is_not_known_stays_as_it_is(function: Callable[..., State]) -> None:
    for parts in ({"cell": function}, {"objective": function}):
        with pytest.raises((IndexError, RuntimeError), match=r"^of the user$"):
            solve(**parts)


@pytest.mark.parametrize("name", ["default_solver", "default_adjoint"])
def test_a_forgotten_classmethod_is_told_where_the_class_is_written(name: str) -> None:
    with pytest.raises(ProblemError, match=rf"Mine\.{name} must be a class method.*write @classmethod above it"):
        type("Mine", (Tiny,), {name: lambda self: None})
    assert issubclass(type("Mine", (Tiny,), {name: staticmethod(lambda: None)}), Task)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"solver": Tracking}, "solver is the class Tracking itself"),
        ({"adjoint": Implicit}, "adjoint is the class Implicit itself"),
        ({"optimization": 0.1}, "optimization must be an object of Optimization, got a value of type float"),
        (
            {"regularizers": ["JacobianPenalty"]},
            "a regularizer must be an object of Regularizer, got a value of type str",
        ),
    ],
)
def test_parts_of_a_module_are_objects(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)):
        JointModule(Tiny(), **parts)
    with pytest.raises(ProblemError, match="task is the class Tiny itself"):
        JointModule(Tiny)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_are_refused_before_they_are_trained(precision: Any, tmp_path: Path) -> None:
    task = Tiny()
    trainer = quiet_trainer(tmp_path, precision=precision, max_epochs=1)
    with pytest.raises(ProblemError, match=f"precision {precision} keeps weights in half.*use bf16-mixed"):
        trainer.fit(JointModule(task), datamodule=task.datamodule())


SOLVERS: list[JointSolver] = [
    Tracking(max_nfe=12),
    SecantTracking(max_nfe=12),
    JointAnderson(max_nfe=12),
    JointBroyden(max_nfe=12),
    Bilevel(max_nfe=60),
]
ADJOINTS: list[Adjoint] = [Envelope(), Implicit(), JacobianFree(), Phantom(), Unrolled(), Unrolled(checkpoint=True)]


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda one: type(one).__name__)
def test_a_batch_of_no_samples_is_solved_and_differentiated(solver: JointSolver, adjoint: Adjoint) -> None:
    weights = W.clone().requires_grad_()
    problem = JointProblem(
        lambda z, x, y: torch.tanh(z @ weights + x @ U),
        lambda z, x, y: (z - y).square().sum(1),
        feasible=L2Ball(1.0),
        data=Y[:0],
    )
    for outer in ("objective", "z"):
        if outer == "z" and isinstance(adjoint, Envelope):
            continue
        equilibrium = solver.solve(problem, Z0[:0], X0[:0], adjoint=adjoint)
        assert equilibrium.x.shape == (0, 3) and equilibrium.status.shape == (0,)
        getattr(equilibrium, outer).sum().backward()
        assert weights.grad is None or not weights.grad.any()
