"""Whether a run that is resumed is the same run, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from deqopt.generators import generator_states, set_generator_states
from deqopt.module import JointModule

TIMED = ("train/samples_per_second",)
"""Logged figures that depend on the clock."""


class Moment(Enum):
    """When a checkpoint is written."""

    BATCH_START = "on_train_batch_start"
    BACKWARD_END = "on_after_backward"
    BATCH_END = "on_train_batch_end"
    VALIDATION_BATCH_END = "on_validation_batch_end"
    VALIDATION_END = "on_validation_end"
    EPOCH_END = "on_train_epoch_end"
    TRAIN_END = "on_train_end"


@dataclass(frozen=True)
class Saved:
    """A checkpoint of a run that went on.

    Args:
        path: of the file.
        moment: when it was written.
        step: of the optimiser.
        logged: how many rows the run had logged.
    """

    path: Path
    moment: Moment
    step: int
    logged: int


@dataclass(frozen=True)
class Run:
    """What a run leaves.

    Args:
        state: weights, optimisers, schedules, generators and the last logged figures.
        rows: step and figures, as a logger got them; without those that depend on the clock.
        checkpoints: in the order in which they were written.
    """

    state: dict[str, Any]
    rows: list[tuple[int, dict[str, float]]]
    checkpoints: list[Saved]


class _Rows(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = version = "rows"  # type: ignore[assignment]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Those are the same in all runs."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items() if name not in TIMED}
        if row:
            self.rows.append((int(step or 0), row))


class _Saver(Checkpoint):
    """Writes a checkpoint at each of the moments, as a callback for checkpoints after all others."""

    def __init__(self, directory: Path, rows: _Rows, moments: Sequence[Moment]) -> None:
        self._directory, self._rows = directory, rows
        self.saved: list[Saved] = []
        for moment in moments:
            setattr(self, moment.value, self._at(moment))

    def _at(self, moment: Moment) -> Callable[..., None]:
        def save(trainer: Trainer, *_: Any) -> None:
            if not trainer.sanity_checking:
                path = self._directory / f"{len(self.saved)}.ckpt"
                trainer.save_checkpoint(path)
                self.saved.append(Saved(path, moment, trainer.global_step, len(self._rows.rows)))

        return save


def trained(
    module: Callable[[], JointModule],
    directory: Path,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    moments: Sequence[Moment] = (),
    **settings: Any,
) -> Run:
    """Train in this process on one CPU, and put the global generators back afterwards.

    Args:
        module: makes what is trained; called with the generators seeded.
        directory: of the checkpoints; it exists.
        seed: of all generators.
        checkpoint: to go on from, read with ``weights_only=True``.
        moments: when to write checkpoints.
        settings: of the trainer.
    """
    cpu = torch.device("cpu")
    before, rows = generator_states(cpu), _Rows()
    saver = _Saver(directory, rows, moments)
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": directory,
        "enable_checkpointing": True,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    try:
        seed_all(seed)
        made = module()
        callbacks = [*settings.pop("callbacks", []), saver]
        trainer = Trainer(**{**quiet, "logger": rows, "callbacks": callbacks, **settings})
        if checkpoint is not None:
            seed_all(seed + 1)  # as another process that has drawn other numbers so far
        trainer.fit(made, datamodule=made.task.datamodule(), ckpt_path=checkpoint, weights_only=True)
        state = {
            "weights": made.state_dict(),
            "optimizers": [one.state_dict() for one in trainer.optimizers],
            "schedules": [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs],
            "figures": {name: value for name, value in trainer.callback_metrics.items() if name not in TIMED},
            "generators": generator_states(cpu),
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
        }
    finally:
        set_generator_states(before, cpu)
    return Run(state, rows.rows, saver.saved)


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def differences(whole: Run, resumed: Run, saved: Saved) -> list[str]:
    """Where a resumed run is another one than the whole run, as paths such as ``state/weights/task.head``.

    The row of the batch at whose end a run is saved is not yet logged then, and need not be in the resumed run; a run
    that is saved within a batch may repeat those whose gradients are accumulated. Where no batch was left to train,
    nothing is asked of the generators, the last logged figures and the counter of epochs.
    """
    ended = saved.step == whole.state["step"] and not resumed.rows
    asked = [name for name in whole.state if not (ended and name in ("generators", "figures", "epoch"))]
    found = [text for name in asked for text in unequal(whole.state[name], resumed.state[name], f"state/{name}")]
    missing = len(whole.rows) - saved.logged - len(resumed.rows)
    tail = whole.rows[len(whole.rows) - len(resumed.rows) :] if resumed.rows else []
    least = -len(resumed.rows) if saved.moment is Moment.BACKWARD_END else 0
    if not least <= missing <= int(saved.moment is Moment.BATCH_END):
        found.append(f"rows: {missing} are missing")
    return found + list(unequal(tail, resumed.rows, "rows"))


def unequal(one: Any, other: Any, place: str) -> list[str]:
    """The places below ``place`` where two trees of tensors and plain values differ, bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(_bits(one), _bits(other))
        return [] if same else [place]
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return [f"{place}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [text for key in one for text in unequal(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} entries"]
        pairs = enumerate(zip(one, other, strict=True))
        return [text for index, pair in pairs for text in unequal(*pair, f"{place}/{index}")]
    same = one == other or (one != one and other != other)
    return [] if same else [f"{place}: {one} and {other}"]


def _bits(values: Tensor) -> Tensor:
    """The values as bytes, so that NaN equals itself and -0 is not 0."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8)
