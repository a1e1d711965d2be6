"""Plain fixed points: known answers, known failures, and Anderson mixing that is really on."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from catalogue import picked, same_bits
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson, AndersonMixing, Damped, FixedPointSolver
from deqopt.iteration import Status
from deqopt.state import State

SOLVERS: dict[str, FixedPointSolver] = {
    "damped": Damped(max_nfe=300, tol=1e-10),
    "damped_half": Damped(max_nfe=300, tol=1e-10, damping=0.5),
    "anderson": Anderson(max_nfe=300, tol=1e-10),
    "anderson_damped": Anderson(max_nfe=300, tol=1e-10, damping=0.5),
    "anderson_memory_1": Anderson(max_nfe=300, tol=1e-10, memory=1),
}
Map = Callable[[Any], Any]


def solve(solver: FixedPointSolver, f: Map, z0: Any) -> Any:
    """Untyped, because a map of tensors is not one of all states."""
    return solver.solve(f, z0)


def contraction(radius: float, size: int = 20) -> tuple[Tensor, Tensor]:
    """A symmetric matrix of the given spectral radius, and an offset."""
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q
    return basis @ torch.diag(radius * torch.linspace(-1, 1, size, dtype=torch.float64)) @ basis.T, torch.randn(
        size, dtype=torch.float64
    )


@pytest.mark.parametrize("radius", [0.9, 0.99, 0.999])
def test_anderson_needs_far_fewer_evaluations(radius: float) -> None:
    a, b = contraction(radius)
    z0, tol = torch.zeros(3, 20, dtype=torch.float64), 1e-6
    plain = solve(Damped(max_nfe=30000, tol=tol), lambda z: z @ a + b, z0)
    mixed = solve(Anderson(max_nfe=30000, tol=tol, memory=20), lambda z: z @ a + b, z0)
    assert (plain.status == Status.CONVERGED).all() and (mixed.status == Status.CONVERGED).all()
    assert 2.5 * mixed.nfe.max() < plain.nfe.min()
    exact = torch.linalg.solve(torch.eye(20, dtype=torch.float64) - a, b)
    for solution in (plain, mixed):
        error = (solution.z - exact).norm(dim=1) / exact.norm()
        assert (error <= 2 * tol / (1 - radius)).all()


@pytest.mark.parametrize("radius", [0.9, 0.99])
def test_plain_iteration_contracts_at_the_spectral_radius(radius: float) -> None:
    """The evaluations from one tolerance to another follow from the radius alone."""
    z0, b = torch.zeros(1, 1, dtype=torch.float64), 1.0
    spent = [int(solve(Damped(max_nfe=5000, tol=tol), lambda z: radius * z + b, z0).nfe) for tol in (1e-4, 1e-8)]
    assert spent[1] - spent[0] == pytest.approx(math.log(1e-4) / math.log(radius), abs=2)


@pytest.mark.parametrize("name", SOLVERS)
def test_cosine(name: str) -> None:
    solution = solve(SOLVERS[name], torch.cos, torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64))
    assert solution.z.flatten().tolist() == pytest.approx([0.7390851332151607] * 3, abs=1e-9)
    assert (solution.residual <= 1e-10).all()


def test_rotation_defeats_plain_iteration_but_not_anderson() -> None:
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    f: Map = lambda z: z @ turn + 1  # noqa: E731
    z0 = torch.zeros(2, 2, dtype=torch.float64)
    plain, mixed = solve(Damped(max_nfe=200, tol=1e-8), f, z0), solve(Anderson(max_nfe=200, tol=1e-8), f, z0)
    assert (plain.status == Status.OUT_OF_BUDGET).all() and (plain.nfe == 200).all()
    assert (mixed.status == Status.CONVERGED).all()
    assert torch.allclose(f(mixed.z), mixed.z, atol=1e-7)
    halved = solve(Damped(max_nfe=200, tol=1e-8, damping=0.5), f, z0)
    assert (halved.status == Status.CONVERGED).all()


def test_anderson_is_done_after_as_many_steps_as_an_affine_map_has_dimensions() -> None:
    a = torch.randn(4, 4, dtype=torch.float64)
    a = 3 * a / torch.linalg.matrix_norm(a, 2)
    solution = solve(
        Anderson(max_nfe=20, tol=1e-9, memory=6, ridge=0), lambda z: z @ a + 1, torch.zeros(1, 4, dtype=torch.float64)
    )
    assert solution.status.tolist() == [Status.CONVERGED]
    assert int(solution.nfe) <= 7, "4 dimensions, the start, the check, and one to spare"


DIVERGING: dict[str, Map] = {
    "square": lambda z: z * z + 2,
    "expansion": lambda z: -3 * z + 1,
    "explosion": lambda z: torch.exp(z) + 5,
}


@pytest.mark.parametrize("name", DIVERGING)
def test_a_diverging_map_returns_the_best_finite_point(name: str) -> None:
    z0 = torch.ones(2, 3, dtype=torch.float64)
    solution = solve(Damped(max_nfe=200, tol=1e-6), DIVERGING[name], z0)
    assert (solution.status == Status.DIVERGED).all()
    assert solution.z.isfinite().all() and solution.residual.isfinite().all()
    assert (solution.nfe < 200).all(), "a lost sample costs nothing more"
    achieved = (DIVERGING[name](solution.z) - solution.z).norm(dim=1) / DIVERGING[name](solution.z).norm(dim=1)
    assert torch.allclose(solution.residual, achieved)
    assert (solution.z.norm(dim=1) < 100).all(), "not one of the last, huge ones, whose relative residual is lower"


def mixture(radius: float = 0.9) -> Map:
    a, _ = contraction(radius, 6)
    return lambda z: torch.tanh(z @ a + torch.linspace(-1, 1, 6, dtype=z.dtype))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e300])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_lost_sample_leaves_its_neighbours_unharmed_to_the_bit(name: str, bad: float) -> None:
    f, z0 = mixture(), torch.randn(4, 6, dtype=torch.float64)
    sane = solve(SOLVERS[name], f, z0)
    hurt = z0.clone()
    hurt[2] = bad
    solution = solve(SOLVERS[name], f, hurt)
    others = [0, 1, 3]
    assert same_bits(solution.z[others], sane.z[others])
    assert torch.equal(solution.nfe[others], sane.nfe[others])
    if math.isnan(bad):
        assert solution.status[2] == Status.NON_FINITE


def test_a_sample_that_breaks_underway_leaves_its_neighbours_unharmed_to_the_bit() -> None:
    """NaN arrives when the memory of the mixing is already filled."""
    inner = mixture()

    def f(z: Tensor) -> Tensor:
        image = inner(z)
        return torch.where((z[:, :1] - image[:, :1]).abs() < breaks_below[:, None], torch.nan, image)

    z0 = torch.randn(3, 6, dtype=torch.float64)
    breaks_below = torch.zeros(3, dtype=torch.float64)
    sane = solve(Anderson(max_nfe=100, tol=1e-10), f, z0)
    breaks_below[1] = 1e-3
    hurt = solve(Anderson(max_nfe=100, tol=1e-10), f, z0)
    assert hurt.status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]
    assert hurt.nfe[1] > 3 and hurt.z.isfinite().all()
    assert same_bits(hurt.z[[0, 2]], sane.z[[0, 2]])


@pytest.mark.parametrize("name", SOLVERS)
def test_together_as_alone(name: str) -> None:
    f, z0 = mixture(), 3 * torch.randn(5, 6, dtype=torch.float64)
    together = solve(SOLVERS[name], f, z0)
    for i in range(5):
        alone = solve(SOLVERS[name], f, z0[i : i + 1])
        assert torch.allclose(together.z[i], alone.z[0], atol=1e-9)
        assert abs(int(together.nfe[i]) - int(alone.nfe)) <= 1


@pytest.mark.parametrize("name", SOLVERS)
def test_tuple_states_are_solved_like_one_tensor(name: str) -> None:
    f, z0 = mixture(), torch.randn(3, 6, dtype=torch.float64)

    def parted(state: State) -> State:
        image = f(torch.cat([part.flatten(1) for part in state], 1))
        return image[:, :2], image[:, 2:].unflatten(1, (2, 2))

    whole = solve(SOLVERS[name], f, z0)
    parts = solve(SOLVERS[name], parted, (z0[:, :2], z0[:, 2:].unflatten(1, (2, 2))))
    assert isinstance(parts.z, tuple) and [part.shape for part in parts.z] == [(3, 2), (3, 2, 2)]
    assert same_bits(torch.cat([part.flatten(1) for part in parts.z], 1), whole.z)
    assert torch.equal(parts.nfe, whole.nfe)


@pytest.mark.parametrize("budget", [1, 2, 7])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_budget_is_counted_in_calls(name: str, budget: int) -> None:
    calls = 0
    inner = mixture(0.99)

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return inner(z)

    kind = type(SOLVERS[name])
    solution = solve(kind(max_nfe=budget, tol=0), f, torch.ones(2, 6, dtype=torch.float64))
    assert calls == budget and solution.nfe.tolist() == [budget] * 2


@pytest.mark.parametrize("memory", [1, 5, 10])
def test_a_singular_history_is_harmless(memory: int) -> None:
    """More memory than dimensions, and steps that do not move any more."""
    solver = Anderson(max_nfe=60, tol=0, memory=memory)
    solution = solve(solver, lambda z: 0.3 * z + 1, torch.zeros(2, 1, dtype=torch.float64))
    assert torch.allclose(solution.z, torch.full((2, 1), 1 / 0.7, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixing_at_a_fixed_point_stays_there(dtype: torch.dtype) -> None:
    w = torch.tensor([[2.0, -1.0, 3.0], [0.0, 0.0, 0.0]], dtype=dtype)
    mixing = AndersonMixing(w, memory=10, ridge=1e-8, widths=[1, 2])
    for _ in range(12):
        assert torch.allclose(mixing.mix(w, w, 1.0), w, rtol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 1e-8])
def test_mixing_of_repeated_points_stays_between_them(ridge: float) -> None:
    w, target = torch.zeros(1, 4), torch.ones(1, 4)
    mixing = AndersonMixing(w, memory=5, ridge=ridge, widths=[4])
    for _ in range(8):
        assert torch.allclose(mixing.mix(w, target, 1.0), target, atol=1e-5)


def test_half_precision_is_solved_in_single() -> None:
    solution = solve(Anderson(max_nfe=50, tol=1e-6), lambda z: 0.5 * z + 1, torch.zeros(2, 3, dtype=torch.bfloat16))
    assert torch.allclose(solution.z, torch.full((2, 3), 2.0), atol=1e-5)


def test_gradients_do_not_flow() -> None:
    a = torch.tensor(0.5, requires_grad=True)
    solution = solve(Anderson(), lambda z: a * z + 1, torch.zeros(2, 3, requires_grad=True))
    assert not solution.z.requires_grad


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        (Damped, {"max_nfe": 0}, "max_nfe must be at least 1, got 0"),
        (Damped, {"tol": -1e-3}, "tol must be 0 or larger"),
        (Damped, {"tol": math.nan}, "tol must be 0 or larger, got nan"),
        (Damped, {"damping": 0.0}, r"damping must be in \(0, 1\]"),
        (Damped, {"damping": 1.5}, r"damping must be in \(0, 1\]"),
        (Anderson, {"max_nfe": -3}, "max_nfe must be at least 1, got -3"),
        (Anderson, {"memory": 0}, "memory must be at least 1"),
        (Anderson, {"damping": -0.1}, r"damping must be in \(0, 1\]"),
        (Anderson, {"ridge": -1.0}, "ridge must be 0 or larger"),
    ],
)
def test_settings_that_cannot_be_meant(kind: type[FixedPointSolver], setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        kind(**setting)


@pytest.mark.parametrize(
    ("f", "z0", "message"),
    [
        (lambda z: z[:, :2], torch.zeros(2, 3), r"f must keep the shape of z: .*\(2, 3\).*\(2, 2\)"),
        (
            lambda z: (z, z),
            torch.zeros(2, 3),
            r"f returned a tuple of \(2, 3\), \(2, 3\) for a state that is a tensor",
        ),
        (lambda z: None, torch.zeros(2, 3), "f returned a NoneType for a state that is a tensor"),
        (lambda z: z[0], (torch.zeros(2, 3),), "f returned a tensor .* for a state that is a tuple"),
        (lambda z: None, (torch.zeros(2, 3),), "f returned a NoneType for a state that is a tuple"),
        (lambda z: (z[0], 3.0), (torch.zeros(2, 3), torch.zeros(2, 1)), "f returned a tuple of .*float"),
    ],
)
def test_maps_that_do_not_keep_the_state(f: Map, z0: State, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        solve(Damped(), f, z0)


def test_picked_takes_samples_of_every_part() -> None:
    state = (torch.arange(3.0)[:, None], torch.arange(6.0).reshape(3, 2))
    assert same_bits(picked(state, [1]), (torch.tensor([[1.0]]), torch.tensor([[2.0, 3.0]])))
