"""Baselines are trained beside the joint method: for the same time, without touching it, and into its checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot.data import EpisodeData
from deqopt_tasks.omniglot.episodes import EpisodeBatch
from deqopt_tasks.omniglot.equal_time import EqualTimeBaselines, LearnerTraining
from deqopt_tasks.omniglot.glyphs import Glyphs
from deqopt_tasks.omniglot.learners import Baseline, Prototypes, make_learner
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from deqopt import Equilibrium, JointModule
from deqopt.data.splits import Part
from deqopt.errors import CheckpointError, ProblemError
from deqopt.optimization import Optimization, Schedule
from deqopt.solvers import JointAnderson, StepRule
from drawn_episodes import SIZE, PixelFeatures
from tiny_episodes import Rows, TinyEpisodes
from tiny_task import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{message}")
    for message in ("does not have many workers", "callbacks used to create the checkpoint", "trainer.fit. and ")
]
STEPS = 3
"""Training steps of the joint method in an epoch."""


class Clock:
    """Stands still, but for those who say how long they take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Timed(Prototypes):
    """Says of every training step that it is taken, and draws random numbers whenever it is asked anything."""

    def __init__(self, taken: Callable[[EpisodeBatch], None], width: int, ways: int | None) -> None:
        super().__init__(PixelFeatures(width), batch_size=2)
        self._taken, self.ways = taken, ways

    def backward(self, batch: EpisodeBatch) -> Tensor:
        self._taken(batch)
        return super().backward(batch)

    def logits(self, batch: EpisodeBatch) -> Tensor:
        torch.randn(7)
        return super().logits(batch)


class Joint(TinyEpisodes):
    """Takes a second for a training step, and starts its solve anywhere."""

    def __init__(self, clock: Clock, baselines: EqualTimeBaselines | None) -> None:
        super().__init__(Rows([]))
        self.clock, self.baselines = clock, baselines

    def datamodule(self) -> EpisodeData:
        counts = {"train_episodes": 4 * STEPS, "val_episodes": 6, "test_episodes": 6}
        return EpisodeData(partial(Glyphs, SIZE), ways=3, shots=1, queries=2, batch_size=4, **counts)

    def callbacks(self) -> list[Callback]:
        return [] if self.baselines is None else [self.baselines]

    def start(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        z0, x0 = super().start(batch)
        return torch.randn_like(z0), x0

    def loss(self, equilibrium: Equilibrium, batch: EpisodeBatch) -> Tensor:
        if torch.is_grad_enabled():
            self.clock.seconds += 1
        return super().loss(equilibrium, batch)


class Run:
    """A joint method and learners on one clock; these take so many seconds a training step."""

    def __init__(
        self,
        *learners: Baseline,
        cost: float = 1.0,
        width: int = 4,
        ways: int | None = None,
        schedule: Schedule = Schedule.CONSTANT,
    ) -> None:
        torch.manual_seed(0)
        self.clock, self.cost = Clock(), cost
        self.also: Callable[[EpisodeBatch], object] = lambda batch: None
        self.baselines = EqualTimeBaselines(
            {one: lambda: Timed(self.taken, width, ways) for one in learners}, self.clock
        )
        task = Joint(self.clock, self.baselines if learners else None)
        self.module = JointModule(
            task,
            JointAnderson(max_nfe=3, step_size=0.1, step_rule=StepRule.PLAIN),
            optimization=Optimization(lr=0.01, schedule=schedule),
        )

    def taken(self, batch: EpisodeBatch) -> None:
        self.clock.seconds += self.cost
        self.also(batch)

    def __call__(self, command: str, directory: Path, checkpoint: Path | None = None, **settings: Any) -> Trainer:
        trainer = quiet_trainer(directory, **{"max_epochs": 1, **settings})
        getattr(trainer, command)(self.module, datamodule=self.module.task.datamodule(), ckpt_path=checkpoint)
        return trainer

    @property
    def training(self) -> LearnerTraining:
        return self.baselines.trainings[Baseline.PROTOTYPES]

    def saved(self, directory: Path) -> Path:
        """The checkpoint of a training."""
        path = directory / "trained.ckpt"
        self("fit", directory).save_checkpoint(path)
        return path


@pytest.mark.parametrize("cost", [0.25, 1.0, 2.5])
def test_all_have_used_the_same_time_whenever_they_are_measured(cost: float, tmp_path: Path) -> None:
    run = Run(Baseline.PROTOTYPES, cost=cost)
    seen: list[tuple[float, float, int]] = []

    def measured(*_: object) -> None:
        seen.append((run.baselines.seconds, run.training.seconds, run.training.episodes))

    spy = LambdaCallback(on_validation_epoch_end=measured)
    run("fit", tmp_path, max_epochs=2, callbacks=[spy], val_check_interval=1)
    joint = [float(step) for step in range(1, 2 * STEPS + 1)]
    steps = [math.ceil(seconds / cost) for seconds in joint]
    assert seen == [(seconds, cost * n, 2 * n) for seconds, n in zip(joint, steps, strict=True)]


@pytest.mark.parametrize("validated", [True, False])
def test_the_end_of_an_epoch_is_equal_too(validated: bool, tmp_path: Path) -> None:
    run = Run(Baseline.PROTOTYPES)
    run("fit", tmp_path, limit_val_batches=None if validated else 0)
    assert run.training.seconds == run.baselines.seconds == STEPS


def test_learning_rates_follow_the_schedule_of_the_joint_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates, step = [], torch.optim.Adam.step

    def watched(self: torch.optim.Adam, closure: Any = None) -> Any:
        if closure is None:  # Lightning gives one
            rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    Run(Baseline.PROTOTYPES, schedule=Schedule.COSINE)("fit", tmp_path)
    shape = [0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(1, STEPS + 1)]
    assert rates == pytest.approx([share * Prototypes.learning_rate for share in shape], abs=1e-12)


def test_it_trains_on_the_training_episodes_in_order(tmp_path: Path) -> None:
    run, seen = Run(Baseline.PROTOTYPES, cost=0.25), []
    run.also = lambda batch: seen.extend(batch.support)
    run("fit", tmp_path)
    episodes = run.module.task.datamodule().episodes[Part.TRAIN]
    assert len(seen) == 4 * STEPS * 2 > len(episodes)  # so it has gone on to the next epoch
    assert all(support.equal(episodes[item].support) for item, support in enumerate(seen))


def test_a_learner_of_few_classes_gets_the_first_of_each_episode(tmp_path: Path) -> None:
    for ways in (3, 2):
        run, seen = Run(Baseline.PROTOTYPES, ways=ways), []
        run.also = seen.append
        run("fit", tmp_path)
        episodes = run.module.task.datamodule().episodes[Part.TRAIN]
        for number, batch in enumerate(seen):
            whole = [episodes[item] for item in (2 * number, 2 * number + 1)]
            assert batch.support.equal(torch.stack([one.support[:ways] for one in whole]))
            assert batch.query_label.tolist() == [sorted([*range(ways)] * 2)] * 2
            assert batch.query.equal(torch.stack([one.query[: 2 * ways] for one in whole]))


def figures_of(trainer: Trainer) -> dict[str, float]:
    """What the joint method logs, but for its speed."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    others = ("samples_per_second", "prototypes", "maml")
    return {name: value for name, value in logged.items() if not any(part in name for part in others)}


def test_the_joint_method_learns_bit_for_bit_what_it_learns_alone(tmp_path: Path) -> None:
    figures, scales = [], []
    for learners, seed in (((), 0), ((Baseline.PROTOTYPES, Baseline.MAML), 0), ((), 1)):
        run = Run(*learners, cost=0.5)
        torch.manual_seed(seed)
        figures.append(figures_of(run("fit", tmp_path, max_epochs=2, num_sanity_val_steps=1)))
        scales.append(run.module.task.scale.item())
    assert "val/loss" in figures[0]
    assert (figures[1], scales[1]) == (figures[0], scales[0])
    assert figures[2]["train/loss"] != figures[0]["train/loss"]  # so the random numbers that it draws do matter


def test_the_joint_method_does_not_measure_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(Baseline.PROTOTYPES)
    monkeypatch.setattr("deqopt.module.time", SimpleNamespace(perf_counter=run.clock))
    trainer = run("fit", tmp_path)
    assert run.training.episodes == 2 * STEPS
    assert trainer.callback_metrics["train/samples_per_second"] == 4, "episodes in the second that a step takes"


def test_initial_weights_come_from_the_global_seed_alone() -> None:
    def weights(*order: Baseline, seed: int = 0, drawn: int = 0) -> Tensor:
        torch.manual_seed(seed)
        torch.rand(drawn)
        baselines = EqualTimeBaselines({one: lambda: Prototypes(PixelFeatures(), 4) for one in order})
        alone = SimpleNamespace(world_size=1, strategy=SimpleNamespace(root_device=torch.device("cpu")))
        before = torch.get_rng_state()
        baselines.setup(alone, None, "fit")  # type: ignore[arg-type]
        assert torch.get_rng_state().equal(before)
        return parameters_to_vector(baselines.trainings[Baseline.PROTOTYPES].learner.parameters())

    expected = weights(Baseline.PROTOTYPES)
    assert weights(Baseline.MAML, Baseline.PROTOTYPES, drawn=5).equal(expected)
    assert not weights(Baseline.PROTOTYPES, seed=1).equal(expected)


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, tensors included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one.equal(other) if isinstance(one, Tensor) else one == other


def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    whole, first, second = (Run(Baseline.PROTOTYPES, cost=0.75) for _ in range(3))
    whole("fit", tmp_path, max_epochs=3)
    second("fit", tmp_path, first.saved(tmp_path), max_epochs=3)
    assert second.training.episodes == whole.training.episodes > first.training.episodes > 0
    assert same(second.baselines.state_dict(), whole.baselines.state_dict())
    assert not same(first.baselines.state_dict(), whole.baselines.state_dict())


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_checkpoint_brings_the_baselines_along(command: str, tmp_path: Path) -> None:
    trained, loaded = Run(Baseline.PROTOTYPES, Baseline.ANIL), Run(Baseline.PROTOTYPES)
    path = trained.saved(tmp_path)
    torch.manual_seed(1)
    trainer = loaded(command, tmp_path, path)
    batch = next(iter(loaded.module.task.datamodule().val_dataloader()))
    expected, found = (run.baselines.methods()["prototypes"](batch) for run in (trained, loaded))
    assert found.equal(expected)
    assert loaded.training.episodes == trained.training.episodes == 2 * STEPS  # and nothing has been learned since
    if command == "validate":
        data = loaded.module.task.datamodule().val_dataloader()
        right = torch.cat([loaded.training.probabilities(one).argmax(2) == one.query_label for one in data])
        assert float(trainer.callback_metrics["val/prototypes_accuracy"]) == pytest.approx(float(right.float().mean()))


def test_what_was_trained_in_this_process_is_tested(tmp_path: Path) -> None:
    run = Run(Baseline.PROTOTYPES)
    run("fit", tmp_path)
    learner = run.training.learner
    run("test", tmp_path)
    assert run.training.learner is learner and run.training.episodes == 2 * STEPS


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
@pytest.mark.parametrize("before", [(), (Baseline.ANIL,)])
def test_a_checkpoint_without_them_is_refused(before: tuple[Baseline, ...], command: str, tmp_path: Path) -> None:
    path, run = Run(*before).saved(tmp_path), Run(Baseline.ANIL, Baseline.PROTOTYPES)
    lacking = "PROTOTYPES" if before else "ANIL, PROTOTYPES"
    message = rf"trained.ckpt has no weights of the baselines {lacking}: train with the same .*\[ANIL, PROTOTYPES\]"
    with pytest.raises(CheckpointError, match=message):
        run(command, tmp_path, path)


def test_a_checkpoint_with_other_networks_is_refused(tmp_path: Path) -> None:
    path = Run(Baseline.PROTOTYPES, width=4).saved(tmp_path)
    with pytest.raises(CheckpointError, match="is another network than the settings make"):
        Run(Baseline.PROTOTYPES, width=5)("test", tmp_path, path)


def test_predict_needs_none(tmp_path: Path) -> None:
    path, run = Run(Baseline.PROTOTYPES).saved(tmp_path), Run(Baseline.PROTOTYPES)
    run("predict", tmp_path, path)
    assert run.baselines.methods() == {}


def test_what_is_not_installed_is_missed_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    run = Run(Baseline.PROTOTYPES)
    run.baselines = run.module.task.baselines = EqualTimeBaselines(
        {Baseline.MAML: partial(make_learner, Baseline.MAML, 1, 28, 3, PixelFeatures, 4)}
    )
    with pytest.raises(ProblemError, match="needs learn2learn"):
        run("fit", tmp_path)
    assert run.clock.seconds == 0


def test_several_processes_are_refused_in_training() -> None:
    two: Any = SimpleNamespace(world_size=2)
    with pytest.raises(ProblemError, match="trained by one process, and there are 2: give --trainer"):
        Run(Baseline.PROTOTYPES).baselines.setup(two, two, "fit")
    EqualTimeBaselines({}).setup(two, two, "fit")


def test_other_data_is_refused(tmp_path: Path) -> None:
    run = Run(Baseline.PROTOTYPES)
    loader = run.module.task.datamodule().val_dataloader()
    with pytest.raises(ProblemError, match=r"EpisodeData.*task.datamodule\(\)"):
        quiet_trainer(tmp_path, max_epochs=1).fit(run.module, loader, loader)
