"""JointModule in evaluation: at the feasible point, over all samples, and without a trace."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from deqopt import Equilibrium, JointModule
from deqopt.callbacks import PredictionWriter
from deqopt.errors import ProblemError
from deqopt.solvers import Tracking
from deqopt.state import tensors_of
from hooks import On, ran
from tiny_reference import objective, solved_z
from tiny_task import Tiny, quiet_trainer

ROUGH = Tracking(max_nfe=4, step_size=0.5, settle=1)
STAGES = "validate", "test", "predict"


def watched(stage: str, outputs: list[Any]) -> On:
    """Keeps what the steps return."""
    hook = "on_validation_batch_end" if stage == "validate" else f"on_{stage}_batch_end"
    return On(**{hook: lambda trainer, module, output, *_: outputs.append(output)})


@pytest.mark.parametrize("stage", STAGES)
def test_a_nan_sample_is_left_out(tmp_path: Path, stage: str) -> None:
    outputs: list[Any] = []
    module = JointModule(Tiny(samples=6, batch_size=4, spoiled=[1, 4]), solver=ROUGH)
    with pytest.warns(UserWarning, match="left out"):
        ran(module, tmp_path, watched(stage, outputs), stage=stage)
    assert [output["batch"]["index"].tolist() for output in outputs] == [[0, 2, 3], [5]]
    assert all(output["equilibrium"].objective.isfinite().all() for output in outputs)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_is_at_the_feasible_point_and_averages_over_samples(tmp_path: Path, stage: str) -> None:
    """The solver stops far from the equilibrium, and the last of the batches is smaller: 4, 4 and 2 samples."""
    task, outputs = Tiny(samples=10, batch_size=4), list[Any]()
    with torch.no_grad():
        task.cell.input.weight.mul_(3)
    trainer = ran(JointModule(task, solver=ROUGH), tmp_path, watched(stage, outputs), stage=stage)
    x = torch.cat([output["equilibrium"].x for output in outputs])
    with torch.no_grad():
        z = solved_z(task, x)
        exact = float(objective(task, z, x, task.y).mean())
        error = float((task.head(z) - task.y).square().mean())
    logged = {name.rpartition("/")[2]: float(value) for name, value in trainer.callback_metrics.items()}
    assert all(name.startswith("val/" if stage == "validate" else "test/") for name in trainer.callback_metrics)
    found = [logged[name] for name in ("objective", "loss", "mse")]
    assert found == pytest.approx([exact, exact, error], rel=1e-4)
    stopped = torch.cat([output["solved"].objective for output in outputs]).mean()
    assert abs(float(stopped) - exact) > 0.005 * exact


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_calling_the_module_solves_as_evaluation_does(tmp_path: Path, context: Callable[[], Any]) -> None:
    task, outputs = Tiny(samples=4), list[Any]()
    module = JointModule(task, solver=ROUGH)
    ran(module, tmp_path, watched("test", outputs), stage="test")
    with context():
        found = module(task.batch())
    assert torch.equal(found.x, outputs[0]["equilibrium"].x)
    assert not any(part.requires_grad for part in (found.x, found.objective, *tensors_of(found.z)))


def test_evaluation_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    task = Tiny()
    module = JointModule(task, solver=ROUGH)
    task.head.weight.requires_grad_(False)
    task.head.eval()
    before = deepcopy(module.state_dict())

    def state() -> tuple[Any, ...]:
        flags = [p.requires_grad for p in module.parameters()], [part.training for part in module.modules()]
        return (*flags, [p.grad for p in module.parameters()], torch.is_grad_enabled(), dict(parametrize._cache))

    was = state()
    for stage in STAGES:
        ran(module, tmp_path, stage=stage)
        assert state() == was
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_inference_mode_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"Trainer\(inference_mode=False\)"):
        ran(JointModule(Tiny()), tmp_path, stage="validate", inference_mode=True)


def test_predictions_are_written_batch_by_batch_and_returned(tmp_path: Path) -> None:
    task = Tiny(samples=5, batch_size=2)
    module = JointModule(task, solver=ROUGH)
    outputs = quiet_trainer(tmp_path, callbacks=[PredictionWriter()]).predict(module, datamodule=task.datamodule())
    written = {path.name: torch.load(path) for path in (tmp_path / "predictions").iterdir()}
    assert outputs is not None and written.keys() == {"0.pt", "2.pt", "4.pt"}
    for output, rows in zip(outputs, ([0, 1], [2, 3], [4]), strict=True):
        assert torch.equal(output["equilibrium"].x, written[f"{rows[0]}.pt"])  # type: ignore[call-overload, index]
        assert torch.equal(output["equilibrium"].x, module(task.batch(*rows)).x)  # type: ignore[call-overload, index]


def test_a_solution_moves_to_another_device_whole() -> None:
    task = Tiny(samples=3)
    batch = task.batch()
    found = replace(
        ROUGH.solve(task.problem(batch), *task.start(batch), record=True, visits=2), z=(torch.ones(3, 1),) * 2
    )
    moved = found.to("meta")
    assert isinstance(moved, Equilibrium) and moved.trace is not None and len(moved.visited) == 2
    tensors = [*moved.z, moved.x, moved.mu, moved.objective, moved.residual, moved.status, moved.nfe]
    tensors += [moved.trace.objective, moved.trace.residual, *(part for point in moved.visited for part in point)]
    assert all(isinstance(part, Tensor) and part.is_meta for part in tensors)
