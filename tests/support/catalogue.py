"""Joint problems with known answers, and solvers that must find them: the tests are products over these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.feasible import Box, Everywhere, FeasibleSet, L2Ball
from deqopt.fixed_point import Anderson, Broyden, MixingType
from deqopt.nn import ImageHead, LatentInjection, MultiscaleCell, branch_shapes
from deqopt.problem import JointProblem
from deqopt.solvers import LBFGS, PGD, Adam, Bilevel, JointAnderson, JointBroyden, JointSolver, StepRule, Tracking
from deqopt.state import State

STATE, INPUT, SAMPLES, GROUPS = 6, 4, 5, 3
WEIGHT_OF_X = 0.5
Rows = Sequence[int]
ALL: Rows = tuple(range(SAMPLES))


@dataclass(frozen=True)
class Truth:
    """The answer by an independent method; ``gradients`` are those of the sum of ``objective``, as theta."""

    z: Tensor
    x: Tensor
    mu: Tensor
    objective: Tensor
    gradients: tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A joint problem and its start; ``theta`` are the tensors that it learns."""

    problem: JointProblem
    z0: State
    x0: Tensor
    theta: tuple[Tensor, ...]
    truth: Truth | None = None


Theta = tuple[Tensor, Tensor, Tensor]


def theta_of(seed: int = 0, gain: float = 0.6) -> Theta:
    """A of spectral norm ``gain``, U and b of ``z = A z + U x + b``."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(STATE, STATE, generator=generator, dtype=torch.float64)
    u = torch.randn(STATE, INPUT, generator=generator, dtype=torch.float64) / INPUT**0.5
    b = torch.randn(STATE, generator=generator, dtype=torch.float64)
    a = gain * a / torch.linalg.matrix_norm(a, 2)
    return a.requires_grad_(), u.requires_grad_(), b.requires_grad_()


def targets(rows: Rows) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(SAMPLES, STATE, generator=generator, dtype=torch.float64)[list(rows)]


def quadratic(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (z - y).square().sum(1) + WEIGHT_OF_X * x.square().flatten(1).sum(1)


def zeros(rows: Rows, *shape: int) -> Tensor:
    return torch.zeros(len(rows), *shape, dtype=torch.float64)


# -- the answers ------------------------------------------------------------------------------------------------------


def minimiser(theta: Theta, y: Tensor, extra: Tensor | float = 0.0) -> Tensor:
    """The x of the least ``|z(x) - y|^2 + (WEIGHT_OF_X + extra) |x|^2`` where ``z = A z + U x + b``."""
    a, u, b = theta
    inverse = torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a)
    g, c = inverse @ u, inverse @ b
    weight = torch.as_tensor(WEIGHT_OF_X + extra, dtype=a.dtype).expand(len(y))
    normal = g.T @ g + weight[:, None, None] * torch.eye(INPUT, dtype=a.dtype)
    return torch.linalg.solve(normal, (y - c) @ g)


def in_ball(theta: Theta, y: Tensor, radius: float) -> Tensor:
    """The minimiser with ``|x| <= radius``: bisection for the multiplier of the constraint."""
    low, high = torch.zeros(len(y), dtype=y.dtype), torch.full((len(y),), 1e6, dtype=y.dtype)
    for _ in range(200):
        middle = (low + high) / 2
        outside = minimiser(theta, y, middle).norm(dim=1) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return minimiser(theta, y, high)


def in_box(theta: Theta, y: Tensor, low: float, high: float) -> Tensor:
    """The minimiser with ``low <= x <= high``: exact minimisation of one coordinate after the other."""
    a, u, b = theta
    inverse = torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a)
    g, c = inverse @ u, inverse @ b
    normal = g.T @ g + WEIGHT_OF_X * torch.eye(INPUT, dtype=a.dtype)
    right = (y - c) @ g
    x = torch.zeros_like(right)
    for _ in range(2000):
        for i in range(INPUT):
            x[:, i] += (right[:, i] - x @ normal[:, i]) / normal[i, i]
            x[:, i] = x[:, i].clamp(low, high)
    return x


def truth_at(theta: Theta, y: Tensor, x: Tensor) -> Truth:
    """What belongs to the optimal x; the gradients are total derivatives through the closed form, and through x."""
    a, u, b = theta
    inverse = torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a)
    z = (x @ u.T + b) @ inverse.T
    objective = quadratic(z, x, y)
    gradients = torch.autograd.grad(objective.sum(), theta)
    mu = 2 * (z - y) @ inverse
    return Truth(z.detach(), x.detach(), mu.detach(), objective.detach(), gradients)


# -- the problems -----------------------------------------------------------------------------------------------------


def linear(
    rows: Rows = ALL,
    feasible: FeasibleSet | None = None,
    optimum: Callable[[Theta, Tensor], Tensor] = minimiser,
) -> Case:
    theta, y = theta_of(), targets(rows)
    a, u, b = theta
    problem = JointProblem(
        cell=lambda z, x: z @ a.T + x @ u.T + b,
        objective=lambda z, x: quadratic(z, x, y),
        feasible=feasible or Everywhere(),
    )
    truth = truth_at(theta, y, optimum(theta, y))
    return Case(problem, zeros(rows, STATE), zeros(rows, INPUT), theta, truth)


def linear_with_data(rows: Rows = ALL) -> Case:
    case = linear(rows)
    a, u, b = case.theta
    problem = JointProblem(
        cell=lambda z, x, data: z @ a.T + x @ u.T + b,
        objective=lambda z, x, data: quadratic(z, x, data["target"]),
        data={"target": targets(rows)},
    )
    return Case(problem, case.z0, case.x0, case.theta, case.truth)


def linear_box(rows: Rows = ALL) -> Case:
    def optimum(theta: Theta, y: Tensor) -> Tensor:
        with torch.no_grad():
            return in_box(theta, y, -0.3, 0.4)

    return linear(rows, Box(-0.3, 0.4), optimum)


def linear_ball(rows: Rows = ALL) -> Case:
    def optimum(theta: Theta, y: Tensor) -> Tensor:
        with torch.no_grad():
            return in_ball(theta, y, 0.5)

    return linear(rows, L2Ball(0.5), optimum)


def join(z: State) -> Tensor:
    """The two parts of :func:`linear_tuple`'s state as the one tensor of :func:`linear`."""
    return torch.cat([part.flatten(1) for part in z], dim=1)


def linear_tuple(rows: Rows = ALL) -> Case:
    """The linear problem with its state in two tensors of different shapes, and x as a matrix."""
    case, y = linear(rows), targets(rows)
    a, u, b = case.theta

    def cell(z: State, x: Tensor) -> State:
        image = join(z) @ a.T + x.flatten(1) @ u.T + b
        return image[:, :2], image[:, 2:].unflatten(1, (2, 2))

    problem = JointProblem(cell=cell, objective=lambda z, x: quadratic(join(z), x, y))
    return Case(problem, (zeros(rows, 2), zeros(rows, 2, 2)), zeros(rows, 2, 2), case.theta, case.truth)


def linear_groups(rows: Rows = ALL) -> Case:
    """One x for several z, as in meta-learning: ``z_g = A z_g + U x + b_g``, ``J = sum_g |z_g - y_g|^2 + w |x|^2``."""
    a, u, b = theta_of()
    shifts, y = torch.linspace(-1, 1, GROUPS, dtype=b.dtype)[:, None], targets(rows)[:, None]
    y = y + torch.linspace(-1, 1, GROUPS * STATE, dtype=b.dtype).reshape(GROUPS, STATE)

    def objective(z: Tensor, x: Tensor) -> Tensor:
        return (z - y).square().sum((1, 2)) + WEIGHT_OF_X * x.square().sum(1)

    problem = JointProblem(cell=lambda z, x: z @ a.T + (x @ u.T)[:, None] + b * shifts, objective=objective)
    inverse = torch.linalg.inv(torch.eye(STATE, dtype=a.dtype) - a)
    g, c = inverse @ u, b * shifts @ inverse.T
    x = (
        (y - c).sum(1) @ g @ torch.linalg.inv(GROUPS * g.T @ g + WEIGHT_OF_X * torch.eye(INPUT, dtype=a.dtype))
    ).detach()
    z = (x @ u.T)[:, None] @ inverse.T + c
    value = objective(z, x)
    gradients = torch.autograd.grad(value.sum(), (a, u, b), retain_graph=True)
    mu = 2 * (z - y) @ inverse
    truth = Truth(z.detach().flatten(1), x, mu.detach().flatten(1), value.detach(), gradients)
    return Case(problem, zeros(rows, GROUPS, STATE), zeros(rows, INPUT), (a, u, b), truth)


def tanh(rows: Rows = ALL, feasible: FeasibleSet | None = None, theta: Theta | None = None) -> Case:
    theta, y = theta or theta_of(seed=2, gain=0.8), targets(rows)
    a, u, b = theta
    problem = JointProblem(
        cell=lambda z, x: torch.tanh(z @ a.T + x @ u.T + b),
        objective=lambda z, x: quadratic(z, x, y),
        feasible=feasible or Everywhere(),
    )
    return Case(problem, zeros(rows, STATE), zeros(rows, INPUT), theta)


def tanh_ball(rows: Rows = ALL) -> Case:
    return tanh(rows, L2Ball(0.5))


def conv(rows: Rows = ALL) -> Case:
    """A decoder: multiscale convolutional cell with a tuple state, a latent, images of 8x8; float32."""
    channels = [4, 8]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        shapes = branch_shapes(channels, 4)
        cell, inject = MultiscaleCell(channels, groups=2), LatentInjection(3, shapes)
        head = ImageHead(channels, 4, image_channels=1, size=8, groups=2)
        images = torch.rand(SAMPLES, 1, 8, 8)[list(rows)]
    problem = JointProblem(
        cell=lambda z, x: cell(z, inject(x)),
        objective=lambda z, x: (head(z) - images).square().flatten(1).sum(1),
        feasible=L2Ball(2.0),
    )
    z0 = tuple(torch.zeros(len(rows), *shape) for shape in shapes)
    theta = tuple(parameter for part in (cell, inject, head) for parameter in part.parameters())
    return Case(problem, z0, torch.zeros(len(rows), 3), theta)


CASES: dict[str, Callable[..., Case]] = {
    "linear": linear,
    "linear_with_data": linear_with_data,
    "linear_box": linear_box,
    "linear_ball": linear_ball,
    "linear_tuple": linear_tuple,
    "linear_groups": linear_groups,
    "tanh": tanh,
    "tanh_ball": tanh_ball,
    "conv": conv,
}
CLOSED_FORMS = [name for name in CASES if name.startswith("linear")]
WITH_TRUTH = [name for name in CLOSED_FORMS if name != "linear_groups"]

# The closest that Tracking comes: its last steps of x are as long as step_size * inner / max_nfe.
INNER, ROUGH = Anderson(max_nfe=25, tol=1e-12), Anderson(max_nfe=12, tol=1e-6)
SOLVERS: dict[str, JointSolver] = {
    "anderson": JointAnderson(max_nfe=400, tol=1e-10, step_size=0.1, step_rule=StepRule.PLAIN, history_size=12),
    "anderson_damped": JointAnderson(
        max_nfe=400, tol=1e-10, step_size=0.1, step_rule=StepRule.PLAIN, history_size=12, damping=0.7
    ),
    "anderson_type_II": JointAnderson(
        max_nfe=400, tol=1e-10, step_size=0.1, step_rule=StepRule.PLAIN, history_size=12, kind=MixingType.II
    ),
    "anderson_normalised": JointAnderson(max_nfe=400, tol=1e-10, step_size=0.3, step_rule=StepRule.NORMALISED),
    "broyden": JointBroyden(max_nfe=400, tol=1e-10, step_size=0.1, step_rule=StepRule.PLAIN, history_size=12),
    "tracking": Tracking(max_nfe=400, tol=1e-10, step_size=0.4, inner=2),
    "tracking_inner_4": Tracking(max_nfe=800, tol=1e-10, step_size=0.4, inner=4),
    "bilevel_lbfgs": Bilevel(max_nfe=600, tol=1e-10, descent=LBFGS(), inner=INNER),
    "bilevel_lbfgs_broyden": Bilevel(max_nfe=700, tol=1e-10, descent=LBFGS(), inner=Broyden(max_nfe=25, tol=1e-12)),
    "bilevel_pgd_cold": Bilevel(max_nfe=2000, tol=1e-4, descent=PGD(lr=0.2), inner=ROUGH, warm=False),
    "bilevel_adam": Bilevel(max_nfe=2000, tol=1e-3, descent=Adam(lr=0.2), inner=ROUGH),
}


def flat(state: State) -> Tensor:
    return state.flatten(1) if isinstance(state, Tensor) else join(state)
