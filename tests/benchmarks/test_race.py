"""Races: equal time in turns, snapshots, random numbers of one's own; what runs leave, and how they are reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.training import command
from benchmarks.training.joint import JointContestant, JointMethod, Recipe, backward_notes
from benchmarks.training.race import WARM_UP, Contestant, race, rate
from benchmarks.training.report import Milestone, Report, TrainingRun
from deqopt import JointModule
from deqopt.adjoints import Implicit, Unrolled
from deqopt.compare import Measure
from deqopt.equilibrium import BackwardReport
from deqopt.errors import NonFiniteError
from deqopt.iteration import Status
from deqopt.regularizers import JacobianPenalty
from deqopt.solvers import Tracking
from tiny_task import Tiny


class Runner(Contestant):
    """A weight that counts its steps; every step takes a given time, and what is not a step takes an hour.

    Attributes:
        rates: of the steps so far.
        drawn: the random numbers of the steps so far.
    """

    def __init__(self, clock: Clock, seconds: Sequence[float], broken: int = 0) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        self.clock, self.seconds, self.broken = clock, list(seconds), broken
        self.rates: list[float] = []
        self.drawn: list[float] = []

    def next_batch(self) -> float:
        self.clock.now += 3600
        return float(torch.rand(()))

    def step(self, batch: float, rate: float) -> Tensor:
        assert self.network.training
        self.clock.now += self.seconds[len(self.rates) % len(self.seconds)]
        self.rates.append(rate)
        self.drawn.append(batch)
        nn.init.constant_(self.network.weight, len(self.rates))
        return torch.tensor(torch.nan if len(self.rates) == self.broken else 0.0)

    def scores(self) -> Mapping[str, Sequence[float]]:
        assert not self.network.training
        return {"score": [self.network.weight.item(), float(torch.rand(()))]}

    def notes(self) -> Mapping[str, float]:
        return {"steps in all": float(len(self.rates))}


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def runners(**seconds: Sequence[float]) -> tuple[Clock, dict[str, Runner]]:
    clock = Clock()
    made: dict[str, Any] = {}
    for name, one in seconds.items():
        made[name] = Contestant.seeded(0, lambda one=one: Runner(clock, one))  # type: ignore[misc]
    return clock, made


def test_the_rate_rises_and_falls() -> None:
    shares = [k / 1000 for k in range(1001)]
    rates = [rate(share) for share in shares]
    peak = rates.index(max(rates))
    assert shares[peak] == pytest.approx(WARM_UP) and rates[peak] == pytest.approx(1.0)
    assert rates[0] == pytest.approx(0.1) and rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize(
    ("seconds", "at"),
    [
        ([1, 1, 1, 1], [(1, 1), (2, 2), (4, 4)]),
        ([0.5, 0.25, 0.5, 2.5, 0.75], [(1.25, 3), (3.75, 4), (4.5, 5)]),
        ([3, 5], [(3, 1), (3, 1), (8, 2)]),
        ([9], [(9, 1)] * 3),
    ],
)
def test_steps_alone_count_and_every_share_has_its_snapshot(seconds: list[float], at: list[tuple[float, int]]) -> None:
    clock, made = runners(one=seconds)
    snapshots = race(made, 4.0, clock)["one"]
    assert [(one.seconds, one.steps) for one in snapshots] == at
    assert [float(one.weights["weight"]) for one in snapshots] == [one.steps for one in snapshots], "they are copies"
    spent = [sum(seconds[:k]) / 4 for k in range(len(seconds))]
    assert made["one"].rates == pytest.approx([rate(share) for share in spent])


def test_all_have_the_same_time_and_never_one_is_far_ahead() -> None:
    clock, made = runners(quick=[0.25], slow=[1.0], uneven=[0.5, 1.5])
    ahead = []
    for name, one in made.items():

        def step(batch: float, rate: float, one: Runner = one, real: Callable[..., Tensor] = one.step) -> Tensor:
            spent = {
                other: sum(a.seconds[k % len(a.seconds)] for k in range(len(a.rates))) for other, a in made.items()
            }
            ahead.append(max(spent.values()) - min(spent.values()))
            return real(batch, rate)

        made[name].step = step  # type: ignore[method-assign]
    found = race(made, 6.0, clock)
    assert max(ahead) <= 1.5
    assert {name: (one[-1].seconds, one[-1].steps) for name, one in found.items()} == {
        "quick": (6, 24),
        "slow": (6, 6),
        "uneven": (6, 6),
    }


def test_everyone_draws_the_same_whoever_takes_part() -> None:
    clock, alone = runners(one=[1.0])
    race(alone, 4.0, clock)
    clock, together = runners(one=[1.0], other=[0.5])
    race(together, 4.0, clock)
    assert together["one"].drawn == alone["one"].drawn == together["other"].drawn[:4]
    assert len(set(alone["one"].drawn)) == 4


def test_a_training_that_diverges_says_so() -> None:
    clock = Clock()
    broken = Contestant.seeded(0, lambda: Runner(clock, [1.0], broken=2))
    with pytest.raises(NonFiniteError, match="training of ours has diverged in step 2: lower its learning rate"):
        race({"ours": broken}, 4.0, clock)


def joint(adjoint: Any, clip: float = 10.0, task: Tiny | None = None) -> JointContestant:
    task = task or Tiny()
    recipe = Recipe(lr=0.01, clip=clip, penalty=JacobianPenalty(weight=0.5, visits=2), task={})
    method = JointMethod("ours", Tracking(max_nfe=6), adjoint)

    def score(module: JointModule) -> dict[str, list[float]]:
        assert not module.training and not task.training
        return {"objective": module.predict_step(task.batch(), 0)["equilibrium"].objective.tolist()}

    return JointContestant(task, method, recipe, task.batch, score)


def test_the_joint_method_trains_by_the_loss_of_its_module() -> None:
    """Adam's first step has the sign of the gradient, penalty and all."""
    torch.manual_seed(0)
    contestant = joint(Unrolled())
    module, weights = contestant.module, [one.detach().clone() for one in contestant.network.parameters()]
    torch.manual_seed(1)
    expected = torch.autograd.grad(module.loss_of(contestant.next_batch()).total, list(module.task.parameters()))
    torch.manual_seed(1)
    assert bool(contestant.step(contestant.next_batch(), 0.5).isfinite())
    for before, after, gradient in zip(weights, contestant.network.parameters(), expected, strict=True):
        torch.testing.assert_close(after.detach(), before - 0.005 * gradient.sign(), rtol=0, atol=1e-4)
    assert module.regularizers[0].weight == 0.5 and len(contestant.scores()["objective"]) == 10


def test_gradients_are_clipped() -> None:
    """To nothing beside Adam's epsilon."""
    contestant = joint(Unrolled(), clip=1e-14)
    before = [one.detach().clone() for one in contestant.network.parameters()]
    contestant.step(contestant.next_batch(), 1.0)
    moved = [(a - b).abs().max() for a, b in zip(before, contestant.network.parameters(), strict=True)]
    assert max(moved) < 1e-6


@pytest.mark.filterwarnings("ignore:.*samples of a batch hold NaN")
def test_a_step_without_samples_counts_as_diverged() -> None:
    spoiled = joint(Unrolled(), task=Tiny(samples=4, spoiled=range(4)))
    assert bool(spoiled.step(spoiled.next_batch(), 1.0).isnan())


@pytest.mark.filterwarnings("ignore:Implicit. the backward solve")
@pytest.mark.parametrize(("adjoint", "solves"), [(Implicit(), True), (Unrolled(), False)])
def test_notes_tell_of_linear_systems_where_there_are_some(adjoint: Any, solves: bool) -> None:
    class Outer(Tiny):
        def loss(self, equilibrium: Any, batch: Any) -> Tensor:
            total: Tensor = equilibrium.x.sum(1)
            return total

    contestant = joint(adjoint, task=Outer())
    contestant.step(contestant.next_batch(), 1.0)
    assert bool(contestant.notes()) == solves


def test_systems_are_averaged_over_steps() -> None:
    """Samples that are not solved are counted, those that are NaN left out."""
    done, spent, lost = (int(one) for one in (Status.CONVERGED, Status.OUT_OF_BUDGET, Status.NON_FINITE))
    first = BackwardReport(torch.tensor([0.1, 0.3]), torch.tensor([done, spent]), torch.tensor([4, 8]))
    second = BackwardReport(torch.tensor([0.4, torch.nan]), torch.tensor([spent, lost]), torch.tensor([10, 10]))
    found = backward_notes([first, BackwardReport(), second])
    assert list(found.values()) == pytest.approx([0.3, 8, 0.75])
    assert backward_notes([]) == {}


SCORE = Measure("score", "score", digits=1)


def test_a_run_is_written_read_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = runners(one=[1.0], other=[2.0])
    monkeypatch.setattr(command, "race", lambda contestants, seconds: race(contestants, seconds, clock))
    methods: Any = {name: lambda name=name: made[name] for name in made}
    for _ in range(2):
        command.run("scene", 3, 4.0, methods, tmp_path, SCORE)
        assert [len(one.rates) for one in made.values()] == [4, 2], "a run that is there is not run again"
    one, other = TrainingRun.read(tmp_path)
    assert (one.scene, one.method, one.seed, one.notes) == ("scene", "one", 3, {"steps in all": 4.0})
    assert [(at.seconds, at.steps, at.scores["score"][0]) for at in one.milestones] == [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
    assert [at.scores["score"][0] for at in other.milestones] == [1, 1, 2], "the weights of the milestone are tested"


def saved(method: str, seed: int, scores: Sequence[float], scene: str = "scene", **notes: float) -> TrainingRun:
    milestones = [Milestone(share, 10, {"score": [share * score for score in scores]}) for share in (0.5, 1.0)]
    return TrainingRun(scene, method, seed, milestones, notes)


REPORT = Report([SCORE], ["first", "second", "third"], "images")


def test_the_table_pairs_samples_of_one_seed_and_seeds_of_several(tmp_path: Path) -> None:
    for run in (
        saved("second", 0, [2.0, 5.0]),
        saved("first", 0, [1.0, 3.0], residual=0.25),
        saved("third", 0, [1.0, 1.0], "other"),
        saved("gone", 0, [9.0, 9.0]),
        *(saved("first", seed, [seed, seed + 2], "seeds") for seed in (1, 2)),
        *(saved("second", seed, [seed, seed + 4], "seeds") for seed in (1, 2)),
    ):
        run.write(tmp_path)
    other, one, several = REPORT.write(tmp_path).split("\n\n")
    assert [line.split() for line in one.splitlines()[2:]] == [
        ["first", "2.0", "±12.7", "10", "0.25"],
        ["second", "3.5", "±19.1", "+1.5", "±6.4", "10"],
    ]
    assert other.splitlines()[0] == "other" and several.splitlines()[0] == "seeds, 2 seeds"
    assert [line.split() for line in several.splitlines()[-2:]] == [
        ["first", "2.5", "±6.4", "10,", "10", "1:", "2.0,", "2:", "3.0"],
        ["second", "3.5", "±6.4", "+1.0", "10,", "10", "1:", "3.0,", "2:", "4.0"],
    ]
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".json"} == {
        "results.txt",
        *(f"{scene}{end}" for scene in ("scene", "other", "seeds") for end in (".csv", ".png", "_time.png")),
    }
    assert REPORT.write(tmp_path / "empty").startswith("no runs in")


def test_pictures_show_every_milestone() -> None:
    figure = REPORT._over_time([saved("first", 0, [1.0, 3.0]), saved("second", 0, [2.0, 5.0])], "scene")
    first, second = figure.axes[0].containers
    assert [line[0].get_xydata().tolist() for line in (first, second)] == [
        [[0.5, 1.0], [1.0, 2.0]],
        [[0.5, 1.75], [1.0, 3.5]],
    ]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["--methods", "adam"], "invalid choice: 'adam'"),
        (["--seconds", "0"], "--seconds: must be larger than 0, got 0"),
        (["--seconds", "nan"], "--seconds: must be larger than 0, got nan"),
        (["--images", "0"], "--images: must be 1 or more, got 0"),
    ],
)
def test_words_that_do_not_fit(said: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.parser_of("restoration", "", ["one", "two"], ["one"], [0])
    command.samples_option(parser, "--images", 3, "that are tested")
    with pytest.raises(SystemExit):
        command.parsed(parser, said)
    assert message in capsys.readouterr().err
