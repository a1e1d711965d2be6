"""The callback that trains baselines alongside the joint method, for the same training time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from deqopt.batch import size_of
from deqopt.clock import now
from deqopt.data.splits import Part
from deqopt.errors import CheckpointError, ProblemError

from .data import EpisodeData
from .episodes import EpisodeBatch
from .learners import Baseline, Learner


class LearnerTraining:
    """A learner, its optimiser, and the progress of its training.

    Attributes:
        learner: the learner that is trained.
        seconds: time of its training steps.
        episodes: number of episodes that it has trained on.
        loss: loss of the last step; None before the first step.

    Args:
        learner: a new one.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.seconds, self.episodes = 0.0, 0
        self.loss: Tensor | None = None
        self._optimizer = torch.optim.Adam(learner.parameters(), lr=learner.learning_rate)

    def next_batch(self, episodes: Dataset[EpisodeBatch]) -> EpisodeBatch:
        """The next training episodes: all items in order, so that ``self.episodes`` is the present position.

        If episodes have more classes than the learner supports, it gets the first classes of each, which are random.
        """
        items = range(self.episodes, self.episodes + self.learner.batch_size)
        self.episodes = items.stop
        rows = [_of_classes(episodes[item], self.learner.ways) for item in items]
        return self._placed(EpisodeBatch(*default_collate(rows)))

    def step(self, batch: EpisodeBatch, share: float) -> Tensor:
        """One training step at this share of the learning rate; returns its loss."""
        self.learner.train()
        for group in self._optimizer.param_groups:
            group["lr"] = share * self.learner.learning_rate
        self._optimizer.zero_grad()
        self.loss = self.learner.backward(batch)
        self._optimizer.step()
        return self.loss

    def probabilities(self, batch: EpisodeBatch) -> Tensor:
        """(B, Q, ways) class probabilities of the queries, detached."""
        self.learner.eval()
        return self.learner.probabilities(self._placed(batch))

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.learner.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "seconds": self.seconds,
            "episodes": self.episodes,
            "loss": self.loss,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of ``state_dict``.

        Raises:
            CheckpointError: the weights belong to another network.
        """
        expected, found = (
            {name: part.shape for name, part in weights.items()}
            for weights in (self.learner.state_dict(), state["weights"])
        )
        if expected != found:
            raise CheckpointError(
                f"the baseline {type(self.learner).__name__} of the checkpoint is another network than the settings "
                "make (ways, image size, channels, widths): give those that it was trained with, or leave it out of "
                "--task.baselines"
            )
        self.learner.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.seconds, self.episodes, self.loss = state["seconds"], state["episodes"], state.get("loss")

    def _placed(self, batch: EpisodeBatch) -> EpisodeBatch:
        """The batch on the device of the weights, and with their type."""
        weight = next(self.learner.parameters())
        parts = (part.to(weight.device, weight.dtype if part.is_floating_point() else part.dtype) for part in batch)
        return EpisodeBatch(*parts)


class EqualTimeBaselines(Callback):
    """Trains learners alongside the joint method; each gets the same time as the training steps of the joint method.

    The clock of the joint method runs from the start of a training batch to its end; the clock of a learner runs during
    its training steps. Loading data is not counted for any method. Before the next batch, before validation and at the
    end of an epoch, every learner takes steps until its clock has caught up. So at every evaluation, all methods have
    used the same time, up to one step of a learner. Learners get the training episodes of the data module in order,
    while the joint method shuffles every epoch; faster learners get more episodes. Their learning rates follow the
    schedule of the joint method. The joint method is not affected: neither its weights, nor the global random numbers,
    nor the time that it measures.

    Logs ``train/<name>_loss`` (the loss of the last step), ``train/<name>_episodes``, and ``val/<name>_accuracy``,
    where the names are ``maml``, ``anil`` and ``prototypes``. Weights, optimisers and clocks are in the checkpoint.

    The same object must be used in all runs of a process, because it holds the weights.

    Attributes:
        trainings: of each learner, once a run has started.
        seconds: that the training steps of the joint method took.

    Args:
        learners: functions that create the learners, called when training, validation or testing starts; initial
            weights depend only on the global seed.
        clock: function that returns the time in seconds.

    Raises:
        ProblemError: when training starts, there are several processes, or a package that a learner needs is missing.
        CheckpointError: when a run starts, the checkpoint lacks a learner, or has another network for it.
    """

    def __init__(
        self, learners: Mapping[Baseline, Callable[[], Learner]], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._learners, self._clock = dict(learners), clock
        self.trainings: dict[Baseline, LearnerTraining] = {}
        self._restored: set[Baseline] = set()
        self.seconds, self._began = 0.0, 0.0

    def methods(self) -> dict[str, Callable[[EpisodeBatch], Tensor]]:
        """The learners by name, for `EpisodeReport`: a batch to probabilities (B, Q, ways)."""
        return {baseline.value: training.probabilities for baseline, training in self.trainings.items()}

    # -- the run --------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and self._learners and trainer.world_size > 1:
            raise ProblemError(
                f"baselines are trained by one process, and there are {trainer.world_size}: give --trainer.devices 1 "
                "and --trainer.num_nodes 1, or leave --task.baselines empty"
            )
        self._restored = set()
        if stage == "predict":
            return
        for baseline, learner in self._learners.items():
            if baseline not in self.trainings:
                with isolate_rng():
                    torch.manual_seed(torch.initial_seed())
                    self.trainings[baseline] = LearnerTraining(learner().to(trainer.strategy.root_device))
            self.trainings[baseline].learner.to(trainer.strategy.root_device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_restored(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Before the module's own hook of this name, and not in on_train_batch_end, which comes before the module's:
        # so that it does not measure us.
        self._catch_up(trainer, pl_module)
        self._began = now(pl_module.device, self._clock)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += now(pl_module.device, self._clock) - self._began
        for baseline, training in self.trainings.items():
            if training.loss is not None:
                pl_module.log(f"train/{_key(baseline)}_loss", training.loss, batch_size=size_of(batch))
                pl_module.log(f"train/{_key(baseline)}_episodes", float(training.episodes), batch_size=size_of(batch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._catch_up(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._catch_up(trainer, pl_module)
        else:
            self._check_restored(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        batch = outputs["batch"]  # without samples that are not finite
        for baseline, training in self.trainings.items():
            with isolate_rng():
                right = training.probabilities(batch).argmax(2) == batch.query_label
            name = f"val/{_key(baseline)}_accuracy"
            pl_module.log(name, right.float().mean(), batch_size=size_of(batch), on_epoch=True, sync_dist=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_restored(trainer)

    # -- the checkpoint -------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """In checkpoints."""
        return "Beside"

    def state_dict(self) -> dict[str, Any]:
        states = {baseline.name: training.state_dict() for baseline, training in self.trainings.items()}
        return {"seconds": self.seconds, "baselines": states} if states else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        for baseline, training in self.trainings.items():
            if baseline.name in state_dict["baselines"]:
                training.load_state_dict(state_dict["baselines"][baseline.name])
                self._restored.add(baseline)

    def _check_restored(self, trainer: Trainer) -> None:
        lacking = [baseline.name for baseline in self.trainings if baseline not in self._restored]
        if trainer.ckpt_path is not None and lacking:
            raise CheckpointError(
                f"{trainer.ckpt_path} has no weights of the baselines {', '.join(lacking)}: train with the same "
                f"--task.baselines [{', '.join(one.name for one in self._learners)}] from the start, or leave them out"
            )

    # -- the race -------------------------------------------------------------------------------------------------

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        behind = [training for training in self.trainings.values() if training.seconds < self.seconds]
        if not behind:
            return
        episodes = _training_episodes(trainer)
        share = trainer.optimizers[0].param_groups[0]["lr"] / pl_module.optimization.lr  # type: ignore[union-attr]
        with isolate_rng(), torch.enable_grad():
            for training in behind:
                while training.seconds < self.seconds:
                    batch = training.next_batch(episodes)
                    began = now(pl_module.device, self._clock)
                    training.step(batch, share)
                    training.seconds += now(pl_module.device, self._clock) - began


def _of_classes(episode: EpisodeBatch, ways: int | None) -> EpisodeBatch:
    """The first ``ways`` classes of an episode (a row of a batch); all classes if ``ways`` is None."""
    if ways is None:
        return episode
    support, query = episode.support_label < ways, episode.query_label < ways
    return EpisodeBatch(
        episode.support[support],
        episode.support_label[support],
        episode.query[query],
        episode.query_label[query],
        episode.index,
    )


def _training_episodes(trainer: Trainer) -> Dataset[EpisodeBatch]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, EpisodeData):
        raise ProblemError(
            f"baselines train on the episodes of EpisodeData, and the data module is {type(data).__name__}: fit with "
            "datamodule=task.datamodule()"
        )
    return data.episodes[Part.TRAIN]


def _key(baseline: Baseline) -> str:
    return baseline.name.lower()
