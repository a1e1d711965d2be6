"""What a run that is resumed does with settings that were changed: they are applied and said, or refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from deqopt.errors import CheckpointError
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.testing.resuming import Moment, trained
from hooks import On
from tiny_pictures import DECAYING, SIX, quick

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Checkpoints of a run by Adam and a cosine schedule of six steps, by step; written at the end of a batch."""
    directory = tmp_path_factory.mktemp("interrupted")
    whole = trained(quick, directory, moments=[Moment.BATCH_END], **SIX)
    return {saved.step: saved.path for saved in whole.checkpoints}


def rates(directory: Path, optimization: Optimization, checkpoint: Path | None, **settings: Any) -> Any:
    """The learning rate and weight decay of every step."""
    seen: list[tuple[float, float]] = []

    def note(trainer: Trainer, module: Any, optimizer: Any) -> None:
        (group,) = optimizer.param_groups
        seen.append((group["lr"], group["weight_decay"]))

    callbacks = [On(on_before_optimizer_step=note)]
    trained(lambda: quick(optimization), directory, checkpoint=checkpoint, callbacks=callbacks, **settings)
    return seen


CHANGED = {
    "learning rate": (Optimization(lr=0.5), {}),
    "weight decay": (Optimization(weight_decay=0.25), {}),
    "schedule by class": (replace(DECAYING, algorithm=Algorithm.ADAM), {}),
    "constant schedule": (Optimization(schedule=Schedule.CONSTANT), {}),
    "one cycle": (Optimization(lr=0.5, schedule=Schedule.ONE_CYCLE), {}),
    "longer": (Optimization(), {"max_epochs": 4}),
    "longer one cycle": (Optimization(schedule=Schedule.ONE_CYCLE), {"max_epochs": 4}),
}


@pytest.mark.parametrize("step", [2, 3, 5])
@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_setting_of_the_optimiser_is_applied_as_if_from_the_beginning(
    case: str, step: int, interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimization, more = CHANGED[case]
    settings = {**SIX, **more}
    rest = rates(tmp_path, optimization, interrupted[step], **settings)
    assert f"From step {step} on: " in caplog.text
    assert rest == rates(tmp_path, optimization, None, **settings)[step:] and len(rest) >= 1


def test_a_longer_cosine_schedule_is_that_of_the_longer_run(interrupted: dict[int, Path], tmp_path: Path) -> None:
    found = rates(tmp_path, Optimization(), interrupted[3], **{**SIX, "max_epochs": 4})
    assert [lr for lr, _ in found] == pytest.approx([5e-4 * (1 + math.cos(math.pi * t / 12)) for t in range(3, 12)])


TRAINER_CHANGED = {
    "accumulation": ({"accumulate_grad_batches": 2}, r"accumulate_grad_batches 2 \(before: 1\)"),
    "clipping": ({"gradient_clip_val": 0.5}, r"gradient_clip_val 0\.5 \(before: None\)"),
    "precision": ({"precision": "bf16-mixed"}, r"precision bf16-mixed \(before: 32-true\)"),
}


@pytest.mark.parametrize("case", TRAINER_CHANGED)
def test_a_changed_setting_of_the_trainer_is_applied_and_said(
    case: str, interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, said = TRAINER_CHANGED[case]
    trained(quick, tmp_path, checkpoint=interrupted[2], **{**SIX, **settings})
    assert re.search(f"goes on with other settings of the trainer: {said}", caplog.text)


def test_nothing_is_said_where_nothing_is_changed(
    interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(quick, tmp_path, checkpoint=interrupted[2], **SIX)
    assert "From step" not in caplog.text and "other settings" not in caplog.text


OTHER_STATE = r"state of the optimiser ADAM, and optimization.algorithm is {}: go on with ADAM, or"
OTHER_BATCHES = r"after 2 batches, and its epoch has \d+ batches of 8 from .* now .* batches of {} from"
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "AdamW": ({"optimization": Optimization(Algorithm.ADAMW)}, {}, OTHER_STATE.format("ADAMW")),
    "SGD": ({"optimization": Optimization(Algorithm.SGD)}, {}, OTHER_STATE.format("SGD")),
    "smaller batches": ({"batch_size": 4}, {}, OTHER_BATCHES.format(4)),
    "larger batches": ({"batch_size": 16}, {}, OTHER_BATCHES.format(16)),
    "short": ({}, {"limit_train_batches": 1}, r"written after 2 batches of an epoch, and now an epoch has 1: "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_changed_within_an_epoch_is_refused(
    case: str, interrupted: dict[int, Path], tmp_path: Path
) -> None:
    settings, of_trainer, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        trained(lambda: quick(**settings), tmp_path, checkpoint=interrupted[2], **{**SIX, **of_trainer})


def test_other_batches_are_used_from_the_next_epoch_on(tmp_path: Path) -> None:
    whole = trained(quick, tmp_path, moments=[Moment.EPOCH_END], **SIX)
    rest = trained(lambda: quick(batch_size=4), tmp_path, checkpoint=whole.checkpoints[0].path, **SIX)
    assert [step for step, row in rest.rows if "train/loss" in row] == [3, 4, 5]


def test_the_seed_of_the_order_is_that_of_the_beginning(
    interrupted: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(quick, tmp_path, seed=6, checkpoint=interrupted[2], **SIX)
    assert "goes on with the seed that it began with, 0, not with 7" in caplog.text


def changed_position(checkpoint: Path, path: Path, position: dict[str, Any] | None) -> Path:
    """A copy in which the position of the run has other values; one that is None is left out."""
    content = torch.load(checkpoint, weights_only=True)
    if position is None:
        del content["resume"]
    else:
        merged = {**content["resume"]["position"], **position}
        content["resume"]["position"] = {name: value for name, value in merged.items() if value is not None}
    torch.save(content, path)
    return path


def test_a_checkpoint_without_a_position_is_said_to_begin_another_run(
    interrupted: dict[int, Path], tmp_path: Path
) -> None:
    old = changed_position(interrupted[3], tmp_path / "old.ckpt", None)
    with pytest.warns(UserWarning, match="contains neither the position of the run in its epoch"):
        trained(quick, tmp_path, checkpoint=old, **SIX)


@pytest.mark.parametrize("change", [{"epochs": 1}, {"epoch": None}], ids=str)
def test_a_position_of_another_version_is_refused(
    change: dict[str, Any], interrupted: dict[int, Path], tmp_path: Path
) -> None:
    other = changed_position(interrupted[3], tmp_path / "other.ckpt", change)
    with pytest.raises(CheckpointError, match="in a format that this version of deqopt does not know"):
        trained(quick, tmp_path, checkpoint=other, **SIX)
