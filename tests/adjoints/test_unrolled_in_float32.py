"""Unrolled in float32: finite, and close to float64, from any start, as a product over solvers, starts and sets."""

import pytest
import torch
from torch import Tensor

from catalogue import INPUT, STATE, quadratic, targets, theta_of
from deqopt import JointProblem
from deqopt.adjoints import Unrolled
from deqopt.feasible import Box, Everywhere, FeasibleSet, Intersection, L2Ball, L2BallInBox, LinfBall
from deqopt.fixed_point import MixingType
from deqopt.solvers import JointAnderson, JointBroyden, JointSolver, SecantTracking, StepRule, Tracking

SOLVERS: dict[str, JointSolver] = {
    "anderson": JointAnderson(max_nfe=12, tol=0.0),
    "anderson_plain": JointAnderson(max_nfe=12, tol=0.0, step_rule=StepRule.PLAIN, step_size=0.1),
    "anderson_type_II": JointAnderson(max_nfe=12, tol=0.0, kind=MixingType.II),
    "anderson_damped": JointAnderson(max_nfe=12, tol=0.0, damping=(1.0, 0.8, 0.5), history_size=3),
    "broyden": JointBroyden(max_nfe=12, tol=0.0),
    "broyden_plain": JointBroyden(max_nfe=12, tol=0.0, step_rule=StepRule.PLAIN, step_size=0.1),
    "tracking": Tracking(max_nfe=12, tol=0.0, step_size=0.3),
    "tracking_momentum": Tracking(max_nfe=12, tol=0.0, step_size=0.3, momentum=0.5, warmup=2, lag=0.1),
    "secant_tracking": SecantTracking(max_nfe=12, tol=0.0, step_size=0.3),
}
STARTS = ["zeros", "random", "fitted"]
SETS: dict[str, FeasibleSet] = {
    "everywhere": Everywhere(),
    "box": Box(0.0, 0.4),
    "ball": L2Ball(0.5),
    "linf": LinfBall(0.2),
    "ball_in_box": L2BallInBox(0.5, 0.0, 0.4),
    "intersection": Intersection((L2Ball(0.5), Box(-0.4, 0.3))),
}
# Every solver with the easiest and the hardest set, and every set with two solvers.
PAIRS = [
    (solver, feasible)
    for solver in SOLVERS
    for feasible in SETS
    if feasible in ("everywhere", "intersection") or solver in ("anderson", "tracking")
]


def start(name: str, dtype: torch.dtype, y: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    z0, x0 = (torch.zeros(5, width, dtype=torch.float64) for width in (STATE, INPUT))
    if name == "random":
        z0, x0 = (torch.rand(part.shape, generator=generator, dtype=torch.float64) / 5 for part in (z0, x0))
    return (y if name == "fitted" else z0.to(dtype)), x0.to(dtype)


def gradient(
    solver: JointSolver,
    name: str,
    dtype: torch.dtype,
    feasible: FeasibleSet,
    unit: float = 1.0,
    adjoint: Unrolled | None = None,
) -> tuple[Tensor, Tensor]:
    """Of a loss of z, x and mu; theta with samples of its own for b, of which a bad one cannot hide among others."""
    a, u, b = (part.detach().to(dtype).requires_grad_() for part in theta_of(seed=2))
    b = b.detach().repeat(5, 1).requires_grad_()
    y = targets(range(5)).to(dtype)
    problem = JointProblem(
        lambda z, x: torch.tanh(z @ a.T + x @ u.T + b), lambda z, x: unit * quadratic(z, x, y), feasible=feasible
    )
    found = solver.solve(problem, *start(name, dtype, y), adjoint=adjoint or Unrolled())
    assert isinstance(found.z, Tensor) and isinstance(found.mu, Tensor)
    loss = (
        found.z.sin().sum() + found.x.cos().sum() + (found.mu / unit).sin().sum() + (found.objective / unit).sin().sum()
    )
    gradients = torch.autograd.grad(loss, (a, u, b))
    assert all(one.isfinite().all() for one in gradients)
    return torch.cat([one.flatten() for one in gradients]).double(), found.x.detach().double()


@pytest.mark.filterwarnings("ignore:Unrolled. the backward solve")
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(("solver", "feasible"), PAIRS)
def test_the_gradient_is_finite_and_that_of_float64(solver: str, name: str, feasible: str) -> None:
    single, x = gradient(SOLVERS[solver], name, torch.float32, SETS[feasible])
    double, want = gradient(SOLVERS[solver], name, torch.float64, SETS[feasible])
    if (x - want).abs().max() < 1e-3:  # else rounding led the two runs apart
        assert torch.cosine_similarity(single, double, dim=0) > 0.99


@pytest.mark.filterwarnings("ignore:Unrolled. the backward solve")
@pytest.mark.filterwarnings("ignore:Unrolled. 1 of 5 samples give no gradient")  # thrown far off its fit in large units
@pytest.mark.parametrize("unit", [1e-12, 1e8])
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("solver", [name for name in SOLVERS if "plain" not in name])
def test_it_is_finite_in_any_unit_of_the_objective(solver: str, name: str, unit: float) -> None:
    gradient(SOLVERS[solver], name, torch.float32, Everywhere(), unit)
    gradient(SOLVERS[solver], name, torch.float64, Everywhere(), unit)


@pytest.mark.filterwarnings("ignore:Unrolled. the backward solve")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_finite_where_a_sample_has_nothing_to_do(solver: str, dtype: torch.dtype) -> None:
    """Its z, mu and x are at the solution from the start, all zero: no difference of its points is ever more than 0."""
    a, u, b = (part.detach().to(dtype).requires_grad_() for part in theta_of(seed=2))
    y = targets(range(5)).to(dtype)
    idle = torch.tensor([1.0, 0, 1, 1, 1], dtype=dtype)[:, None]
    problem = JointProblem(
        lambda z, x: torch.tanh(z @ a.T + x @ u.T + idle * b), lambda z, x: quadratic(z, x, idle * y)
    )
    z0, x0 = (torch.zeros(5, width, dtype=dtype) for width in (STATE, INPUT))
    found = SOLVERS[solver].solve(problem, z0, x0, adjoint=Unrolled())
    assert not found.x[1].any()
    gradients = torch.autograd.grad(found.z.sin().sum() + found.x.cos().sum() + found.objective.sum(), (a, u, b))  # type: ignore[union-attr]
    assert all(one.isfinite().all() for one in gradients)
