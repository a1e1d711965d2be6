"""Plain fixed points: known answers, known failures, and Anderson mixing that is really on."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from deqopt.errors import ProblemError
from deqopt.fixed_point import Anderson, Broyden, Damped, FixedPointSolver, MixingType
from deqopt.iteration import Status
from deqopt.loop_settings import Norm
from deqopt.state import State
from deqopt.testing.trial import same_bits

SOLVERS: dict[str, FixedPointSolver] = {
    "damped": Damped(max_nfe=300, tol=1e-10),
    "damped_half": Damped(max_nfe=300, tol=1e-10, damping=0.5),
    "anderson": Anderson(max_nfe=300, tol=1e-10),
    "anderson_damped": Anderson(max_nfe=300, tol=1e-10, damping=0.5),
    "anderson_memory_1": Anderson(max_nfe=300, tol=1e-10, history_size=1),
    "anderson_type_I": Anderson(max_nfe=300, tol=1e-10, kind=MixingType.I),
    "broyden": Broyden(max_nfe=300, tol=1e-10),
    "broyden_damped": Broyden(max_nfe=300, tol=1e-10, damping=0.5),
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


MIXING: dict[str, FixedPointSolver] = {
    "anderson": Anderson(max_nfe=30000, tol=1e-6, history_size=20),
    "anderson_type_I": Anderson(max_nfe=30000, tol=1e-6, history_size=20, kind=MixingType.I),
    "broyden": Broyden(max_nfe=30000, tol=1e-6, history_size=20),
}


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize("radius", [0.9, 0.99, 0.999])
def test_mixing_needs_far_fewer_evaluations(radius: float, name: str) -> None:
    a, b = contraction(radius)
    z0, tol = torch.zeros(3, 20, dtype=torch.float64), 1e-6
    plain = solve(Damped(max_nfe=30000, tol=tol), lambda z: z @ a + b, z0)
    mixed = solve(MIXING[name], lambda z: z @ a + b, z0)
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


@pytest.mark.parametrize("name", MIXING)
def test_rotation_defeats_plain_iteration_but_not_mixing(name: str) -> None:
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    f: Map = lambda z: z @ turn + 1  # noqa: E731
    z0 = torch.zeros(2, 2, dtype=torch.float64)
    plain, mixed = solve(Damped(max_nfe=200, tol=1e-8), f, z0), solve(MIXING[name], f, z0)
    assert (plain.status == Status.OUT_OF_BUDGET).all() and (plain.nfe == 200).all()
    assert (mixed.status == Status.CONVERGED).all() and (mixed.nfe < 10).all()
    assert torch.allclose(f(mixed.z), mixed.z, atol=1e-5)
    halved = solve(Damped(max_nfe=200, tol=1e-8, damping=0.5), f, z0)
    assert (halved.status == Status.CONVERGED).all()


def test_the_kinds_of_mixing_are_told_apart() -> None:
    f, z0 = mixture(), torch.randn(2, 6, dtype=torch.float64)
    kinds = [*(Anderson(max_nfe=5, tol=0, kind=kind) for kind in MixingType), Broyden(max_nfe=5, tol=0)]
    first, second, third = (solve(kind, f, z0).z for kind in kinds)
    assert min((first - second).norm(), (second - third).norm(), (first - third).norm()) > 1e-5


def test_anderson_is_done_after_as_many_steps_as_an_affine_map_has_dimensions() -> None:
    a = torch.randn(4, 4, dtype=torch.float64)
    a = 3 * a / torch.linalg.matrix_norm(a, 2)
    solution = solve(
        Anderson(max_nfe=20, tol=1e-9, history_size=6, ridge=0),
        lambda z: z @ a + 1,
        torch.zeros(1, 4, dtype=torch.float64),
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
    solution = solve(Damped(max_nfe=200, tol=1e-6, restarts=0), DIVERGING[name], z0)
    assert (solution.status == Status.DIVERGED).all()
    assert solution.z.isfinite().all() and solution.residual.isfinite().all()
    assert (solution.nfe < 200).all(), "a lost sample costs nothing more"
    achieved = (DIVERGING[name](solution.z) - solution.z).norm(dim=1) / DIVERGING[name](solution.z).norm(dim=1)
    assert torch.allclose(solution.residual, achieved)
    assert (solution.z.norm(dim=1) < 100).all(), "not one of the last, huge ones, whose relative residual is lower"


@pytest.mark.parametrize("slope", [-1.5, -2.5, -5.0])
def test_restarts_rescue_a_map_that_only_damping_tames(slope: float) -> None:
    """A step multiplies the error by ``1 - rate (1 - slope)``: below 1 in size after one halving, or two."""
    z0 = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return slope * z + 1

    lost, rescued = (
        solve(Damped(max_nfe=400, tol=1e-9, restarts=restarts), f, z0) for restarts in (0, 1 if slope > -3 else 2)
    )
    assert (lost.status == Status.DIVERGED).all() and (lost.nfe < 100).all()
    assert (rescued.status == Status.CONVERGED).all()
    assert torch.allclose(rescued.z, torch.full_like(z0, 1 / (1 - slope)), atol=1e-7)
    hopeless = solve(Damped(max_nfe=400, tol=1e-9, restarts=1), lambda z: -9 * z + 1, z0)
    assert (hopeless.status == Status.DIVERGED).all() and hopeless.z.isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_restart_leaves_the_neighbours_alone(name: str) -> None:
    """The middle sample is an expansion, the others contract."""
    slopes = torch.tensor([[0.5], [-3.0], [-0.7]], dtype=torch.float64)
    z0 = torch.randn(3, 4, dtype=torch.float64)
    calm = torch.where(slopes < -1, 0.1, slopes)

    def f(z: Tensor, slope: Tensor) -> Tensor:
        return slope * (torch.tanh(z) + z) + 1

    hurt, sane = (solve(SOLVERS[name], partial(f, slope=slope), z0) for slope in (slopes, calm))
    assert same_bits(hurt.z[[0, 2]], sane.z[[0, 2]]) and hurt.z.isfinite().all()
    assert torch.equal(hurt.nfe[[0, 2]], sane.nfe[[0, 2]])


# -- tolerances, and samples that leave -------------------------------------------------------------------------------


def test_the_absolute_tolerance_counts_where_the_solution_is_small() -> None:
    z0 = torch.tensor([[1.0, 1.0], [100.0, 100.0]], dtype=torch.float64)
    centre = torch.tensor([[0.0], [1000.0]], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return 0.5 * (z - centre) + centre

    relative = solve(Damped(max_nfe=60, tol=1e-6, atol=0.0), f, z0)
    both = solve(Damped(max_nfe=60, tol=1e-6, atol=1e-4), f, z0)
    assert relative.status.tolist() == both.status.tolist() == [Status.CONVERGED] * 2
    error = (f(both.z) - both.z).norm(dim=1)
    assert 0.4e-4 < error[0] <= 1e-4 and relative.nfe[1] == both.nfe[1]
    assert relative.nfe[0] > 2 * both.nfe[0], "half of nothing is still half: zero is a millionth of the first image"
    assert (f(relative.z) - relative.z)[0].norm() <= 1e-12 * z0[0].norm()


def test_residuals_are_measured_in_the_chosen_norm() -> None:
    z0 = torch.tensor([[4.0] * 16], dtype=torch.float64)
    for norm, size in ((Norm.L2, 4.0), (Norm.LINF, 1.0)):
        solution = solve(Damped(max_nfe=1, norm=norm, restarts=0, tol=1e-9), lambda z: z / 2 + 1, z0)
        distance = norm.of(z0 / 2 + 1 - z0)
        assert distance.item() == pytest.approx(size)
        assert solution.residual.item() == pytest.approx(size / norm.of(z0 / 2 + 1).item())
    one = torch.zeros(1, 16, dtype=torch.float64)
    one[0, 0] = 1
    spent = [int(solve(Damped(norm=norm), lambda z: z / 2 + 1 + one, z0).nfe) for norm in Norm]
    assert spent[0] != spent[1]


@pytest.mark.parametrize("name", SOLVERS)
def test_samples_that_have_converged_leave_the_batch_where_data_is_given(name: str) -> None:
    radii = torch.tensor([0.0, 0.9, 0.0, 0.5, 0.0, 0.95, 0.0, 0.0], dtype=torch.float64)[:, None]
    offsets = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None].expand(8, 5)
    data = {"radius": radii, "offset": (offsets,)}
    rows: list[int] = []

    def f(z: Any, data: Any) -> Any:
        rows.append(len(z))
        assert len(data["radius"]) == len(z)
        return torch.tanh(data["radius"] * z.roll(1, 1) + data["offset"][0])

    z0 = torch.randn(8, 5, dtype=torch.float64)
    got = SOLVERS[name].solve(f, z0, data)
    calls = list(rows)
    want = solve(SOLVERS[name], lambda z: f(z, data), z0)
    assert torch.allclose(got.z, want.z, atol=1e-9) and torch.allclose(got.residual, want.residual, atol=1e-9)  # type: ignore[arg-type]
    assert torch.equal(got.status, want.status) and torch.equal(got.nfe, want.nfe)
    assert calls == sorted(calls, reverse=True) and calls[0] == 8 and calls[-1] <= 3
    assert sum(calls) <= got.nfe.sum() / 0.75, "hardly more than what still moves"
    assert sum(rows[len(calls) :]) == 8 * int(want.nfe.max())


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


def test_half_precision_is_solved_in_single() -> None:
    solution = solve(Anderson(max_nfe=50, tol=1e-6), lambda z: 0.5 * z + 1, torch.zeros(2, 3, dtype=torch.bfloat16))
    assert torch.allclose(solution.z, torch.full((2, 3), 2.0), atol=1e-5)


def test_gradients_do_not_flow() -> None:
    a = torch.tensor(0.5, requires_grad=True)
    solution = solve(Anderson(), lambda z: a * z + 1, torch.zeros(2, 3, requires_grad=True))
    assert not solution.z.requires_grad


@pytest.mark.parametrize(
    ("f", "z0", "message"),
    [
        (lambda z: z[:, :2], torch.zeros(2, 3), r"f must keep the shape of z: .*\(2, 3\).*\(2, 2\)"),
        (lambda z: (z, z), torch.zeros(2, 3), r"f returned a tuple of \(2, 3\), \(2, 3\) for a state that is a tensor"),
        (lambda z: None, torch.zeros(2, 3), "f returned a NoneType for a state that is a tensor"),
        (lambda z: z[0], (torch.zeros(2, 3),), "f returned a tensor .* for a state that is a tuple"),
        (lambda z: None, (torch.zeros(2, 3),), "f returned a NoneType for a state that is a tuple"),
        (lambda z: (z[0], 3.0), (torch.zeros(2, 3), torch.zeros(2, 1)), "f returned a tuple of .*float"),
    ],
)
def test_maps_that_do_not_keep_the_state(f: Map, z0: State, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        solve(Damped(), f, z0)
