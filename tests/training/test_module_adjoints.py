"""Training on outer losses that are not the inner objective: the gradient of every adjoint, and what is logged."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from command import column
from deqopt import Equilibrium, JointModule
from deqopt.adjoints import Adjoint, Envelope, Implicit, JacobianFree, OnFailure, Phantom, Unrolled
from deqopt.errors import BackwardError, ProblemError
from deqopt.solvers import JointAnderson, JointSolver, SecantTracking, Tracking
from hooks import On, gradients_of, ran
from tiny_task import Batch, Tiny

EXACT = JointAnderson(max_nfe=500, tol=1e-10, step_size=0.2)
ADJOINTS: list[Adjoint] = [Implicit(tol=1e-9), JacobianFree(), Phantom(steps=8), Unrolled(), Unrolled(checkpoint=True)]


class Sparse(Tiny):
    """Learns cells whose optimal inputs and states are small: a loss that the inner problem does not know."""

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        assert isinstance(equilibrium.z, Tensor)
        return equilibrium.x.square().sum(1) + equilibrium.z.pow(4).sum(1)


def step(directory: Path, module: JointModule) -> Tensor:
    """The gradient of the first training step."""
    seen: dict[str, Tensor] = {}
    ran(module, directory, On(on_after_backward=lambda *_: seen.update(gradients_of(module))), max_steps=1)
    return torch.cat([one.flatten() for one in seen.values()])


def logged(directory: Path, module: JointModule, name: str, steps: int = 3) -> list[float]:
    """A figure of so many steps."""
    logger = CSVLogger(directory)
    ran(module, directory, max_steps=steps, logger=logger)
    return column(Path(logger.log_dir), name)


def made(adjoint: Adjoint, **settings: Any) -> JointModule:
    torch.manual_seed(0)
    return JointModule(Sparse().double(), **{"solver": EXACT, "adjoint": adjoint, **settings})


def loss_at(task: Sparse, batch: Batch) -> float:
    problem, start = task.problem(batch), task.start(batch)
    return float(task.loss(EXACT.solve(problem, *start), batch).mean())


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("adjoint", [Implicit(tol=1e-9), Unrolled(), Unrolled(checkpoint=True)], ids=repr)
def test_the_training_gradient_is_that_of_the_outer_loss(tmp_path: Path, adjoint: Adjoint) -> None:
    """Against finite differences of the loss at the optimum, in a random direction of all parameters."""
    gradient = step(tmp_path, made(adjoint))
    task = made(adjoint).task
    assert isinstance(task, Sparse)
    batch = next(iter(task.datamodule().batches()))
    here = parameters_to_vector(task.parameters()).detach()
    direction, values = torch.randn_like(here), []
    for length in (1e-5, -1e-5):
        vector_to_parameters(here + length * direction, task.parameters())
        values.append(loss_at(task, batch))
    assert float(gradient @ direction) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Unrolled. the backward solve")
@pytest.mark.parametrize("adjoint", [one for one in ADJOINTS if not isinstance(one, JacobianFree)], ids=repr)
def test_training_with_it_lowers_a_loss_that_the_inner_problem_does_not_know(tmp_path: Path, adjoint: Adjoint) -> None:
    module = made(adjoint, solver=Tracking(max_nfe=40, step_size=0.5))
    if isinstance(adjoint, Implicit):
        module = made(replace(adjoint, tol=1e-4), solver=EXACT)
    before = loss_at(module.task, module.task.batch())  # type: ignore[arg-type, operator]
    ran(module, tmp_path, max_epochs=10, limit_val_batches=0)
    assert loss_at(module.task, module.task.batch()) < 0.97 * before  # type: ignore[arg-type, operator]


def test_the_envelope_has_no_gradient_for_such_a_loss(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"the loss depends on eq\.z and eq\.x, to which Envelope carries no gradient"),
        pytest.raises(
            ProblemError, match=r"the loss of Sparse reaches no parameter: with Envelope .*--adjoint Implicit"
        ),
    ):
        ran(made(Envelope()), tmp_path, max_steps=1)


class Mixed(Sparse):
    """A loss of both: something is learned, but not all that it says."""

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        return super().loss(equilibrium, batch) + equilibrium.objective


def test_the_envelope_warns_of_the_part_of_a_loss_that_it_does_not_carry(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = JointModule(Mixed().double(), solver=EXACT)
    with pytest.warns(UserWarning, match=r"the loss depends on eq\.z and eq\.x, to which Envelope carries no gradient"):
        assert step(tmp_path, module).abs().max() > 0


def test_how_much_an_unrolled_gradient_grows_is_logged(tmp_path: Path) -> None:
    found = logged(tmp_path, made(Unrolled(), solver=Tracking(max_nfe=12, step_size=0.3)), "train/backward_growth")
    assert len(found) == 3 and all(1 <= growth < 10 for growth in found)


class Knowing(Sparse):
    """Says itself how it is to be learned."""

    @classmethod
    def default_solver(cls) -> JointSolver:
        return JointAnderson(max_nfe=7)

    @classmethod
    def default_adjoint(cls) -> Adjoint:
        return Unrolled()


def test_a_task_says_how_it_is_solved_where_nobody_else_does() -> None:
    own, other = JointModule(Knowing()), JointModule(Knowing(), solver=Tracking(), adjoint=Envelope())
    assert (own.solver, own.adjoint) == (JointAnderson(max_nfe=7), Unrolled())
    assert (other.solver, other.adjoint) == (Tracking(), Envelope())
    assert (JointModule(Tiny()).solver, JointModule(Tiny()).adjoint) == (SecantTracking(), Envelope())


@pytest.mark.parametrize("adjoint", [Implicit(tol=1e-6), Phantom(steps=4)], ids=repr)
def test_how_the_backward_system_was_solved_is_logged(tmp_path: Path, adjoint: Adjoint) -> None:
    residuals = logged(tmp_path, made(adjoint), "train/backward_residual")
    (run,) = tmp_path.rglob("version_0")
    assert len(residuals) == 3 and all(map(math.isfinite, residuals))
    assert all(nfe >= 3 for nfe in column(run, "train/backward_nfe"))
    if isinstance(adjoint, Implicit):
        assert max(residuals) <= 1e-6 and column(run, "train/backward_converged") == [1, 1, 1]


def test_the_envelope_logs_no_backward_system(tmp_path: Path) -> None:
    assert len(logged(tmp_path, JointModule(Tiny().double(), solver=EXACT), "train/loss", steps=1)) == 1
    assert "backward" not in next(tmp_path.rglob("metrics.csv")).read_text()


def test_a_backward_solve_that_fails_warns_or_raises(tmp_path: Path) -> None:
    short = Implicit(tol=1e-12, max_nfe=5)
    with pytest.warns(UserWarning, match="Implicit: the backward solve of 4 of 4 samples ended above tol=1e-12"):
        step(tmp_path, made(short))
    with pytest.raises(BackwardError, match="raise max_nfe"):
        step(tmp_path, made(replace(short, on_failure=OnFailure.RAISE)))


def test_unrolled_cannot_be_compiled() -> None:
    with pytest.raises(ProblemError, match=r"Unrolled differentiates the solve, .* leave compile off, or use another"):
        JointModule(Tiny(), adjoint=Unrolled(), compile=True)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_nan_sample_does_not_spoil_the_gradient(tmp_path: Path, adjoint: Adjoint) -> None:
    torch.manual_seed(0)
    module = JointModule(Sparse(spoiled=[2]).double(), solver=Tracking(max_nfe=30, step_size=0.5), adjoint=adjoint)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="1 of 4 samples of a batch hold NaN")
        warnings.filterwarnings("ignore", message="Implicit: the backward solve")
        warnings.filterwarnings("ignore", message="Unrolled: the backward solve")
        assert step(tmp_path, module).isfinite().all()
