"""Makes a resumed run identical to a run without an interruption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from deqopt.callbacks.position import Position, accumulates
from deqopt.data.loader import EpochLoader
from deqopt.errors import CheckpointError
from deqopt.generators import generator_states, set_generator_states
from deqopt.optimization import Optimization

KEY = "resume"
"""The key of a checkpoint for the state that is needed to go on from it."""


@dataclass(frozen=True)
class _Snapshot:
    """The states of the random-number generators at a position."""

    position: Position
    generators: dict[str, Any]


class Resume(Callback):
    """Makes a run that goes on from a checkpoint the same as a run that was never interrupted.

    On one CPU, the runs are identical bit for bit, no matter when the checkpoint was written: within an epoch, before,
    during or after validation, or between accumulated batches. In addition to the values that Lightning saves, a
    checkpoint gets the position in the epoch, the states of the random-number generators of every process, accumulated
    gradients, and the last logged figures. A checkpoint that is written within a batch or within validation holds the
    states of the generators at the beginning of the batch or validation, because this will be repeated.

    This needs training data that are served by a :class:`deqopt.data.EpochLoader`, as in every
    :class:`deqopt.data.SplitDataModule`. With another loader, Lightning warns that it begins the epoch again.

    If the learning rate, the weight decay, the schedule or its number of steps differ from the checkpoint, the run goes
    on with the new values, as if it had begun with them, and reports the change. It also reports other changed settings
    of the trainer.

    Raises:
        CheckpointError: the algorithm differs from the checkpoint; or, in the middle of an epoch, the data, their order
            or the batches differ.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Resume()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._steps: int | None = None
        self._extra = 0
        self._validated = False
        self._before_batch: _Snapshot | None = None
        self._before_validation: _Snapshot | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ends = _optimization(pl_module).ends_with_run
        self._steps = int(trainer.estimated_stepping_batches) if ends else None
        if self._loaded is not None and _position(self._loaded).validation and trainer.max_steps != -1:
            self._extra = 1  # after the last step, Lightning would not go back to validation
            trainer.fit_loop.epoch_loop.max_steps += self._extra

    # -- saving ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._take_back(trainer)
        self._validated = False
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._before_batch = self._snapshot(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _trains(trainer):
            self._take_back(trainer)
            self._validated = False
            self._before_validation = self._snapshot(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn is not TrainerFn.FITTING:
            return
        position = Position.of(trainer, validated=self._validated)
        own = {"generators": self._generators_at(position, pl_module), "gradients": {}}
        if position.batch and accumulates(trainer, position.batch):
            own["gradients"] = {
                name: one.grad.clone() for name, one in pl_module.named_parameters() if one.grad is not None
            }
        checkpoint[KEY] = {
            "position": position.as_dict(),
            "processes": _of_all_processes(trainer, own),
            "loader": None if (loader := _loader(trainer)) is None else loader.state_dict(),
            "optimization": _optimization(pl_module).as_dict(),
            "steps": self._steps,
            "figures": dict(trainer.callback_metrics),
            "trainer": _trainer_settings(trainer),
        }

    def _take_back(self, trainer: Trainer) -> None:
        trainer.fit_loop.epoch_loop.max_steps -= self._extra
        self._extra = 0

    def _snapshot(self, trainer: Trainer, module: LightningModule) -> _Snapshot:
        return _Snapshot(Position.of(trainer, validated=False), generator_states(module.device))

    def _generators_at(self, position: Position, module: LightningModule) -> dict[str, Any]:
        snapshot = self._before_validation if position.validation else self._before_batch
        if snapshot is not None and snapshot.position == position:
            return snapshot.generators
        return generator_states(module.device)

    # -- loading --------------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn is not TrainerFn.FITTING:
            return
        self._loaded = checkpoint.get(KEY)
        if self._loaded is None:
            rank_zero_warn(
                "the checkpoint contains neither the position of the run in its epoch nor the states of its "
                "random-number generators: the run goes on, but not exactly as if it had not stopped"
            )
            return
        try:
            position, before = _position(self._loaded), self._loaded["optimization"]["algorithm"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                "the checkpoint stores the position of the run in its epoch in a format that this version of deqopt "
                "does not know: go on with the version that wrote it"
            ) from error
        now = _optimization(pl_module).as_dict()["algorithm"]
        if before != now:
            raise CheckpointError(
                f"the checkpoint holds the state of the optimiser {before}, and optimization.algorithm is {now}: go on "
                f"with {before}, or begin a new run"
            )
        position.restore(checkpoint["loops"]["fit_loop"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_batch = self._before_validation = None
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        position, loader = _position(loaded), _loader(trainer)
        if position.batch > trainer.num_training_batches:
            raise CheckpointError(
                f"the checkpoint was written after {position.batch} batches of an epoch, and now an epoch has "
                f"{trainer.num_training_batches}: go on with the same trainer.limit_train_batches, or from a "
                "checkpoint of the end of an epoch"
            )
        if loader is not None and loaded["loader"] is not None and position.batch < trainer.num_training_batches:
            loader.load_state_dict(loaded["loader"])
            loader.start_at(position.batch)
        changes = _changes(_trainer_settings(trainer), loaded["trainer"])
        if changes:
            rank_zero_info(f"The run goes on with other settings of the trainer: {', '.join(changes)}")
        self._plan_again(trainer, pl_module, loaded)
        position.enter(trainer)
        self._validated = not position.validation
        trainer.callback_metrics.update(loaded["figures"])
        self._restore(trainer, pl_module, loaded["processes"])

    def _restore(self, trainer: Trainer, module: LightningModule, processes: list[dict[str, Any]]) -> None:
        if len(processes) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint is of {len(processes)} processes, and now there are {trainer.world_size}: the run "
                "goes on with different random numbers"
            )
            return
        own = processes[trainer.global_rank]
        parameters = dict(module.named_parameters())
        for name, gradient in own["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        set_generator_states(own["generators"], module.device)

    def _plan_again(self, trainer: Trainer, module: LightningModule, loaded: dict[str, Any]) -> None:
        """Set the optimiser and the schedule to the state that the new settings give at this step."""
        now = _optimization(module)
        changes, steps = _changes(now.as_dict(), loaded["optimization"]), self._steps
        if steps is not None and loaded["steps"] not in (None, steps):
            changes.append(f"a schedule of {steps} steps (before: {loaded['steps']})")
        if not changes:
            return
        done = trainer.global_step
        settings, schedule = now.reached(done, steps or 0)
        for group in trainer.optimizers[0].param_groups:
            for name in group.keys() - settings.keys() - {"params"}:
                del group[name]
            group.update(settings)
        if schedule is not None:
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(schedule)
        rank_zero_info(f"From step {done} on: {', '.join(changes)}; the learning rate is {settings['lr']:.3g}")


def _trains(trainer: Trainer) -> bool:
    return trainer.state.fn is TrainerFn.FITTING and not trainer.sanity_checking


def _optimization(module: LightningModule) -> Optimization:
    optimization = module.optimization
    assert isinstance(optimization, Optimization)
    return optimization


def _trainer_settings(trainer: Trainer) -> dict[str, Any]:
    """The settings of the trainer that change the learned weights, except for the length of the run."""
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": None if (kind := trainer.gradient_clip_algorithm) is None else str(kind),
        "precision": str(trainer.precision),
    }


def _changes(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """Readable descriptions of the changes."""
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    return [f"{name} {now.get(name)} (before: {before.get(name)})" for name in names]


def _position(loaded: dict[str, Any]) -> Position:
    return Position(**loaded["position"])


def _loader(trainer: Trainer) -> EpochLoader | None:
    """The loader of training batches, if it can start in the middle of an epoch."""
    loader = trainer.train_dataloader
    return loader if isinstance(loader, EpochLoader) else None


def _of_all_processes(trainer: Trainer, own: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of all processes, by rank; all must call it at the same time, as when a checkpoint is written."""
    if trainer.world_size == 1:
        return [own]
    found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, own)
    return found
