"""What a run keeps, and when: the last state whatever the monitored figure does, and the best of the whole run."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from deqopt import JointModule
from deqopt.callbacks import RunCheckpoint
from deqopt.checkpoints import Record, previous, read, write
from deqopt.checkpoints.plugin import VerifiedCheckpointIO
from deqopt.errors import CheckpointError, NonFiniteError
from deqopt.solvers import Tracking
from hooks import On
from tiny_task import Tiny, quiet_trainer

BATCHES = 3
NAN = math.nan
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*ended before the epoch ended:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*score.* NaN:UserWarning"),
]


class Scores(Callback):
    """Logs the next of the given values as ``score`` in every validation; None stands for a figure that is missing."""

    def __init__(self, *values: float | None) -> None:
        self.values = iter(values)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = next(self.values, None)
        if value is not None:
            pl_module.log("score", value)


def fit(folder: Path, *callbacks: Callback, start: Path | None = None, **settings: Any) -> Path:
    """Train on three batches an epoch, and return the folder of the checkpoints."""
    torch.manual_seed(0)
    keeping = [] if any(isinstance(one, RunCheckpoint) for one in callbacks) else [RunCheckpoint("score")]
    verified = {"enable_checkpointing": True, "plugins": [VerifiedCheckpointIO()]}
    trainer = quiet_trainer(folder, callbacks=[*callbacks, *keeping], **{"max_epochs": 2, **verified, **settings})
    module = JointModule(Tiny(), Tracking(max_nfe=6, step_size=0.3))
    trainer.fit(module, datamodule=module.task.datamodule(), ckpt_path=start, weights_only=True)
    return folder / "checkpoints"


def step(path: Path) -> int:
    return int(read(path)["global_step"])


def stop_after(steps: int) -> Callback:
    def stop(trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= steps

    return On(on_train_batch_end=stop)


# -- the last ---------------------------------------------------------------------------------------------------------

ENDS: dict[str, tuple[dict[str, Any], int]] = {
    "epochs": ({}, 6),
    "no validation": ({"limit_val_batches": 0}, 6),
    "no validation, in an epoch": ({"limit_val_batches": 0, "max_steps": 5}, 5),
    "validation in an epoch": ({"val_check_interval": 2}, 6),
    "rare validation": ({"check_val_every_n_epoch": 2, "max_epochs": 3}, 9),
    "very rare validation": ({"check_val_every_n_epoch": 100}, 6),
    "steps in an epoch": ({"max_steps": 5}, 5),
    "steps at the end of an epoch": ({"max_steps": 6}, 6),
    "gathered gradients": ({"accumulate_grad_batches": 2}, 4),
    "stopped": ({"max_epochs": 50, "callbacks": stop_after(4)}, 4),
    "stopped, at least an epoch more": ({"max_epochs": 50, "callbacks": stop_after(4), "min_epochs": 3}, 9),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_last_checkpoint_is_the_end_of_training(case: str, tmp_path: Path) -> None:
    """However it ends, and although the figure becomes worse and NaN."""
    settings, end = dict(ENDS[case][0]), ENDS[case][1]
    more = [settings.pop("callbacks")] if "callbacks" in settings else []
    if "limit_val_batches" in settings:
        more = [RunCheckpoint("train/loss")]
    assert step(fit(tmp_path, Scores(1.0, 2.0, NAN, NAN), *more, **settings) / "last.ckpt") == end


@pytest.mark.parametrize("case", ["epochs", "no validation", "validation in an epoch", "rare validation"])
@pytest.mark.parametrize("limit", [4, 6])
def test_a_run_goes_on_where_the_last_checkpoint_is(case: str, limit: int, tmp_path: Path) -> None:
    """Whatever step it ended at: the rest has the steps, epochs and validations that are left, no more."""
    settings = {**ENDS[case][0], "max_epochs": -1, "callbacks": None}
    del settings["callbacks"]

    def trained(folder: Path, start: Path | None, max_steps: int) -> list[Any]:
        seen: list[Any] = []
        note = On(
            on_train_batch_start=lambda trainer, *_: seen.append((trainer.current_epoch, trainer.global_step)),
            on_validation_start=lambda *_: seen.append("validation"),
        )
        fit(folder, note, RunCheckpoint("train/loss"), start=start, max_steps=max_steps, **settings)
        return seen

    whole = trained(tmp_path / "whole", None, 9)
    begun = trained(tmp_path / "begun", None, limit)
    assert begun == whole[: len(begun)]
    assert trained(tmp_path / "rest", tmp_path / "begun" / "checkpoints" / "last.ckpt", 9) == whole[len(begun) :]


def written(folder: Path, hook: str, *callbacks: Callback, **settings: Any) -> list[int | None]:
    """The step of the last checkpoint, whenever the hook is called."""
    path, seen = folder / "checkpoints" / "last.ckpt", list[int | None]()
    look = On(**{hook: lambda *_: seen.append(step(path) if path.exists() else None)})
    fit(folder, look, *callbacks, **settings)
    return seen


def test_the_last_checkpoint_is_written_after_every_validation(tmp_path: Path) -> None:
    scores = Scores(1.0, NAN, 2.0, 3.0)
    assert written(tmp_path, "on_train_epoch_start", scores, max_epochs=4) == [None, 3, 6, 9]


@pytest.mark.parametrize(
    ("minutes", "expected"), [(1e-9, [None, 1, 2, 3, 4, 5]), (1000.0, [None, None, None, 3, 3, 3])]
)
def test_the_last_checkpoint_is_written_every_so_many_minutes(
    minutes: float, expected: list[int | None], tmp_path: Path
) -> None:
    keeping = RunCheckpoint("score", every_n_minutes=minutes)
    assert written(tmp_path, "on_train_batch_start", Scores(1.0, 2.0), keeping) == expected


def test_gradients_that_wait_for_more_batches_are_not_lost(tmp_path: Path) -> None:
    """Between two steps nothing is written."""
    callbacks, settings = (Scores(1.0), RunCheckpoint("score", every_n_minutes=1e-9)), {"accumulate_grad_batches": 2}
    assert written(tmp_path, "on_train_batch_start", *callbacks, max_epochs=1, **settings) == [None, None, 1]


@pytest.mark.parametrize("settings", [{"fast_dev_run": True}, {"max_steps": 0}], ids=str)
def test_an_attempt_writes_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    assert not fit(tmp_path, Scores(1.0), num_sanity_val_steps=1, **settings).exists()


def test_nothing_is_said_about_how_checkpoints_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = fit(tmp_path, Scores(1.0, 2.0))
        fit(tmp_path / "more", Scores(1.0), start=folder / "last.ckpt", max_epochs=3)
    assert "weights_only" not in caplog.text


# -- the best ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("min", (3.0, 1.0, 2.0), 1),
        ("max", (3.0, 1.0, 2.0), 0),
        ("min", (NAN, 2.0, NAN), 1),
        ("max", (NAN, 2.0, NAN), 1),
        ("min", (2.0, -math.inf, 3.0), 0),
        ("max", (math.inf, 2.0, 1.0), 1),
        ("min", (1.0, 1.0, 1.0), 0),
        ("min", (NAN, NAN, NAN), None),
    ],
    ids=str,
)
def test_the_best_is_the_best_of_the_finite_scores(
    mode: Any, scores: tuple[float, ...], best: int | None, tmp_path: Path
) -> None:
    folder = fit(tmp_path, Scores(*scores), RunCheckpoint("score", mode), max_epochs=3)
    assert (folder / "best.ckpt").exists() == (best is not None)
    if best is not None:
        record = Record.of(read(folder / "best.ckpt"))
        assert record == Record(BATCHES * (best + 1), "score", scores[best], scores[best])
        assert Record.of(read(folder / "last.ckpt")).best == scores[best]


def test_a_figure_that_is_missing_is_said_once_and_costs_the_best_alone(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"monitor: no figure nothing was logged, .* no best.ckpt .*val/loss") as said:
        folder = fit(tmp_path, RunCheckpoint("nothing"), max_epochs=3)
    assert sum("no figure nothing" in str(one.message) for one in said) == 1
    assert step(folder / "last.ckpt") == 9 and not (folder / "best.ckpt").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run whose second epoch of three was the best."""
    return fit(tmp_path_factory.mktemp("begun"), Scores(3.0, 1.0, 2.0), max_epochs=3)


@pytest.fixture
def first(begun: Path, tmp_path: Path) -> Path:
    """The same, for one test to spoil; its files do not know that they were moved."""
    return Path(shutil.copytree(begun, tmp_path / "first"))


@pytest.mark.parametrize("start", ["last", "best", "last.previous"])
def test_the_best_of_a_run_that_went_on_is_the_best_of_the_whole(start: str, begun: Path, tmp_path: Path) -> None:
    epochs = step(begun / f"{start}.ckpt") // BATCHES
    folder = fit(tmp_path, Scores(5.0, 4.0), start=begun / f"{start}.ckpt", max_epochs=epochs + 2)
    assert (folder / "best.ckpt").read_bytes() == (begun / "best.ckpt").read_bytes()
    assert Record.of(read(folder / "last.ckpt")) == Record(BATCHES * (epochs + 2), "score", 4.0, 1.0)
    again = fit(tmp_path / "again", Scores(4.5, 0.5), start=folder / "last.ckpt", max_epochs=epochs + 4)
    assert Record.of(read(again / "best.ckpt")).score == 0.5
    assert (previous(again / "best.ckpt")).read_bytes() == (begun / "best.ckpt").read_bytes()


def test_the_best_so_far_is_found_where_the_run_was_moved(begun: Path, first: Path, tmp_path: Path) -> None:
    hidden = begun.rename(begun.with_name("hidden"))
    try:
        folder = fit(tmp_path / "rest", Scores(5.0), start=first / "last.ckpt", max_epochs=4)
        assert (folder / "best.ckpt").read_bytes() == (hidden / "best.ckpt").read_bytes()
    finally:
        hidden.rename(begun)


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda best: best.write_bytes(best.read_bytes()[:-1]),
        lambda best: shutil.copy(best.with_name("last.ckpt"), best),
    ],
    ids=["lost", "damaged", "another"],
)
def test_a_best_so_far_that_is_lost_is_said_and_not_forgotten(
    spoil: Callable[[Path], object], begun: Path, first: Path, tmp_path: Path
) -> None:
    previous(first / "best.ckpt").unlink()
    spoil(first / "best.ckpt")
    hidden = begun.rename(begun.with_name("hidden"))
    try:
        with pytest.warns(UserWarning, match=r"best .* not found at .*best\.ckpt; .* once score is better than 1$"):
            folder = fit(tmp_path / "rest", Scores(5.0, 1.5), start=first / "last.ckpt", max_epochs=5)
            assert not (folder / "best.ckpt").exists()
            assert Record.of(read(folder / "last.ckpt")).best == 1.0
            folder = fit(tmp_path / "more", Scores(0.5), start=folder / "last.ckpt", max_epochs=6)
    finally:
        hidden.rename(begun)
    assert Record.of(read(folder / "best.ckpt")).score == 0.5


def test_the_score_is_known_before_the_next_validation(begun: Path, tmp_path: Path) -> None:
    folder = fit(tmp_path, start=begun / "last.ckpt", max_epochs=4, limit_val_batches=0)
    assert Record.of(read(folder / "last.ckpt")) == Record(12, "score", 2.0, 1.0)


def test_a_best_by_another_figure_is_not_compared(begun: Path, tmp_path: Path) -> None:
    keeping = RunCheckpoint("val/loss")
    with pytest.warns(UserWarning, match="Be aware that when using `ckpt_path`, callbacks"):
        folder = fit(tmp_path, Scores(5.0), keeping, start=begun / "last.ckpt", max_epochs=4)
    record = Record.of(read(folder / "best.ckpt"))
    assert record.monitor == "val/loss" and record.step == 12


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the disk be full at the given steps."""

    def at(*steps: int) -> None:
        def attempt(content: dict[str, Any], path: Path) -> None:
            if content["global_step"] in steps:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(content, path)

        monkeypatch.setattr("deqopt.checkpoints.plugin.write", attempt)

    return at


def test_a_full_disk_does_not_end_the_run(full_at: Callable[..., None], tmp_path: Path) -> None:
    full_at(6)
    said = r"(last|best)\.ckpt could not be written: No space left on device; the run goes on"
    with pytest.warns(UserWarning, match=said) as warned:
        folder = fit(tmp_path, Scores(3.0, 2.0, 2.5), max_epochs=3)
    said_of = {str(one.message).partition(" could")[0][-9:] for one in warned if "the run goes on" in str(one.message)}
    assert said_of == {"best.ckpt", "last.ckpt"}
    assert step(folder / "last.ckpt") == 9
    best = Record.of(read(folder / "best.ckpt"))
    assert best == Record(9, "score", 2.5, 2.5)  # the best of those that could be written


@pytest.mark.filterwarnings("ignore:.*the run goes on:UserWarning")
def test_a_score_belongs_to_the_weights_that_were_measured(full_at: Callable[..., None], tmp_path: Path) -> None:
    """The best of step 2 could not be written, and at step 3 the weights are others."""
    full_at(2)
    folder = fit(tmp_path, Scores(1.0, 2.0), val_check_interval=2)
    assert Record.of(read(folder / "best.ckpt")) == Record(5, "score", 2.0, 2.0)


@pytest.mark.filterwarnings("ignore:.*the run goes on:UserWarning")
def test_a_full_disk_at_the_end_is_an_error(full_at: Callable[..., None], tmp_path: Path) -> None:
    full_at(9)
    with pytest.raises(CheckpointError, match=r"last\.ckpt could not be written: No space left on device"):
        fit(tmp_path, Scores(3.0, 2.0, 2.5), max_epochs=3)
    assert step(tmp_path / "checkpoints" / "last.ckpt") == 6


SPOILS: dict[str, Callable[[Trainer], object]] = {
    "the weights task.cell.state.weight": lambda one: next(one.lightning_module.parameters()).data[0].fill_(torch.inf),
    "the exp_avg of the optimiser Adam": lambda one: next(iter(one.optimizers[0].state.values()))["exp_avg"].fill_(NAN),
    "mean": lambda one: one.lightning_module.register_buffer("mean", torch.tensor([0.0, NAN])),
}


@pytest.mark.filterwarnings("ignore:.*the run goes on:UserWarning")
@pytest.mark.parametrize("name", SPOILS)
def test_what_is_not_finite_is_never_written(name: str, tmp_path: Path) -> None:
    def spoil(trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            SPOILS[name](trainer)

    with (
        pytest.warns(UserWarning, match=rf"no last\.ckpt is written at step 6: {name} became NaN or infinite"),
        pytest.raises(NonFiniteError, match=name.removeprefix("the weights ")),
    ):
        fit(tmp_path, Scores(3.0, 2.0), On(on_validation_end=spoil))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert step(tmp_path / "checkpoints" / "last.ckpt") == step(tmp_path / "checkpoints" / "best.ckpt") == 3


def test_a_bound_at_infinity_is_written(tmp_path: Path) -> None:
    bound = torch.tensor([0.0, torch.inf])
    register = On(on_train_start=lambda trainer, module: module.register_buffer("bound", bound))
    folder = fit(tmp_path, Scores(3.0, 2.0), register)
    assert read(folder / "last.ckpt")["state_dict"]["bound"][1] == torch.inf
