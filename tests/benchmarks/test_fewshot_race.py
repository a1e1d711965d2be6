"""The race of few-shot learners: all meet the same episodes, and what is reported is what was found."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch, Episodes
from deqopt_tasks.omniglot.learners import Prototypes
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from benchmarks.training import command, fewshot
from benchmarks.training.joint import JointContestant
from benchmarks.training.race import Contestant, race
from benchmarks.training.report import TrainingRun
from deqopt.data.splits import Part
from deqopt.errors import ProblemError
from deqopt.regularizers import JacobianPenalty

OWN = [*fewshot.JOINT, "prototypes"]
TRAIN, VAL, TEST = 0, 1, 2
needs_learn2learn = pytest.mark.skipif(find_spec("learn2learn") is None, reason="learn2learn is not installed")


@pytest.fixture(autouse=True, scope="module")
def blink() -> Iterator[None]:
    """A setting that trains in a blink, by a clock on which every step takes a second."""
    task = {**fewshot.RECIPE.task, "size": 16, "widths": [4], "context": 3, "features": 32}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fewshot, "RECIPE", replace(fewshot.RECIPE, task=task))
        for name, value in {"TRAIN_WAYS": 4, "TRAIN_QUERIES": 1, "QUERIES": 2, "BATCH": 2}.items():
            patched.setattr(fewshot, name, value)
        patched.setattr(fewshot, "process_time", itertools.count().__next__)
        patched.setattr(command, "race", lambda all, seconds: race(all, seconds, itertools.count().__next__))
        yield


def words(out: Path, *more: str) -> list[str]:
    return ["--ways", "3", "--seconds", "4", "--episodes", "3", "--out", str(out), *more]


def raced(out: Path, *more: str) -> tuple[dict[str, TrainingRun], dict[int, dict[int, list[EpisodeBatch]]]]:
    """The runs by name; and the episodes that were loaded, by split and number, every time that they were."""
    loaded: dict[int, dict[int, list[EpisodeBatch]]] = defaultdict(lambda: defaultdict(list))
    real = Episodes.__getitem__

    def getitem(self: Episodes, item: int) -> EpisodeBatch:
        episode = real(self, item)
        loaded[self._split][item].append(episode)
        return episode

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Episodes, "__getitem__", getitem)
        fewshot.main(words(out, *more))
    names = {label: name for name, label in fewshot.LABELS.items()}
    return {names[run.method]: run for run in TrainingRun.read(out)}, loaded


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    out = tmp_path_factory.mktemp("raced")
    return *raced(out, "--methods", *OWN), out


def same(one: EpisodeBatch, other: EpisodeBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def contestant(name: str, seed: int = 0) -> Any:
    return Contestant.seeded(seed, lambda: fewshot.contestant(name, seed, fewshot.arguments(words(Path("unused")))))


def test_every_run_leaves_its_milestones(own: tuple[Any, Any, Path]) -> None:
    runs, _, out = own
    assert set(runs) == set(OWN)
    for name, run in runs.items():
        assert [(at.seconds, at.steps) for at in run.milestones] == [(1, 1), (2, 2), (4, 4)]
        assert bool(run.notes) == (name in ("implicit", "jacobian_free"))
        for at in run.milestones:
            assert len(at.scores["accuracy"]) == 3 and {6 * one for one in at.scores["accuracy"]} <= set(range(7))
            assert at.scores["seconds"] == pytest.approx([1 / 3] * 3), "three episodes at once take a tick"
        last = run.milestones[-1].scores
        assert ("before" in last) == (name in fewshot.JOINT)
        if name in fewshot.JOINT:
            assert all(a < b for a, b in zip(last["after"], last["before"], strict=True))
            assert last["below_start"] == [1.0] * 3 and all(1 <= one <= 4 for one in last["evaluations"])
    title = "3-way 1-shot, 3 test episodes of glyphs, 4 s, training images distorted by 2 and 0.5\n"
    text = (out / "results.txt").read_text()
    assert text.startswith(title) and "minus Implicit" in text and "333.3" in text


def test_all_meet_the_same_episodes(own: tuple[Any, Any, Path], tmp_path: Path) -> None:
    """Those of tests depend on no seed and no method, those of training on the seed alone; validation has others."""
    _, met, _ = own
    assert set(met) == {TRAIN, TEST} and list(met[TEST]) == [0, 1, 2] and list(met[TRAIN]) == list(range(8))
    for part, times in ((TRAIN, 1), (TEST, 3)):
        for seen in met[part].values():
            assert len(seen) == times * len(OWN) and all(same(seen[0], one) for one in seen)
    assert met[TRAIN][0][0].support_label.tolist() == [0, 1, 2, 3] and len(met[TEST][0][0].query_label) == 6
    _, other = raced(tmp_path, "--methods", "envelope", "--seeds", "1")
    assert all(same(met[TEST][item][0], other[TEST][item][0]) for item in range(3))
    assert not any(same(met[TRAIN][item][0], other[TRAIN][item][0]) for item in range(8))
    _, validated = raced(tmp_path, "--methods", "envelope", "--validate")
    assert set(validated) == {TRAIN, VAL} and not same(validated[VAL][0][0], met[TEST][0][0])
    assert "3 val episodes of glyphs" in (tmp_path / "results.txt").read_text()


def test_the_seed_decides(own: tuple[Any, Any, Path], tmp_path: Path) -> None:
    runs, _, _ = own
    again, _ = raced(tmp_path / "again", "--methods", "unrolled", "prototypes")
    assert again == {name: runs[name] for name in again}
    other, _ = raced(tmp_path / "other", "--methods", "unrolled", "--seeds", "1")
    assert other["unrolled"].milestones != runs["unrolled"].milestones


def test_the_first_weights_are_those_of_the_seed() -> None:
    first = parameters_to_vector(contestant("implicit").network.parameters())
    for name in OWN:
        own = parameters_to_vector(contestant(name).network.parameters())
        assert torch.equal(own[-len(first) :], first), "but for the scale that PROTOTYPES learns besides"
        assert not torch.equal(own, parameters_to_vector(contestant(name, 1).network.parameters()))


@pytest.mark.parametrize("name", ["implicit", "transductive"])
def test_the_joint_method_answers_as_its_module_does(name: str) -> None:
    one: JointContestant = contestant(name)
    found = one.scores()
    task: Any = one.module.task
    assert task.transductive == (name == "transductive") and one.module.solver is fewshot.SOLVER
    (batch,) = one._score.args[0]()  # type: ignore[attr-defined]
    equilibrium = one.module.predict_step(batch, 0)["equilibrium"]
    right = task.probabilities(equilibrium, batch).argmax(2) == batch.query_label
    assert found["accuracy"] == right.double().mean(1).tolist()
    torch.testing.assert_close(torch.tensor(found["after"]).float(), equilibrium.objective)
    torch.testing.assert_close(torch.tensor(found["before"]).float(), task.objective_at_start(batch))


def test_prototypes_are_penalised_at_their_own_equilibria() -> None:
    """The gradient is that of the learner and of the weighted penalty, which is taken where ``z = f(z, 0)``."""

    def gradient(weight: float) -> tuple[fewshot.PenalisedPrototypes, Tensor]:
        with pytest.MonkeyPatch.context() as patched:
            penalty = JacobianPenalty(weight=weight, probes=2)
            patched.setattr(fewshot, "RECIPE", replace(fewshot.RECIPE, penalty=penalty))
            learner = contestant("prototypes").network.eval()
        learner.backward(batch)
        return learner, flat(learner)

    def flat(learner: Prototypes) -> Tensor:
        return torch.cat([one.grad.flatten() for one in learner.parameters() if one.grad is not None])

    chosen = fewshot.arguments(words(Path("unused")))
    batch = fewshot.batch_of(fewshot.data_of(chosen, 4, 1, 0).episodes[Part.TRAIN], range(2))
    (learner, none), (_, some), (_, double) = gradient(0.0), gradient(1.0), gradient(2.0)
    learner.zero_grad()
    Prototypes.loss(learner, batch).backward()
    torch.testing.assert_close(flat(learner), none, rtol=1e-3, atol=1e-5)
    assert (some - none).norm() > 1e-3
    torch.testing.assert_close(double - none, 2 * (some - none), rtol=1e-3, atol=1e-5)
    problem, equilibrium = learner.network.solution()  # type: ignore[operator]
    found = problem.f(equilibrium.z, equilibrium.x)
    assert found[0].shape[:2] == (len(batch.index), 8), "of support and queries"
    for part, exact in zip(found, equilibrium.z, strict=True):
        torch.testing.assert_close(part, exact, rtol=1e-3, atol=1e-3)


def test_what_is_missing_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all where the runs that need it are there already."""

    def missing(used_by: str, instead: str) -> None:
        raise ProblemError(f"{used_by} needs learn2learn: {instead} does without")

    monkeypatch.setattr(fewshot, "learn2learn", missing)
    chosen = words(tmp_path, "--methods", "envelope", "maml")
    with pytest.raises(ProblemError, match="the method maml needs learn2learn: leaving it out of --methods"):
        fewshot.main(chosen)
    assert not list(tmp_path.iterdir())
    TrainingRun(fewshot.scene_of(fewshot.arguments(chosen)), "MAML", 0, []).write(tmp_path)
    monkeypatch.setattr(fewshot.Report, "write", lambda self, folder: "")
    fewshot.main(chosen)
    assert len(list(tmp_path.glob("*.json"))) == 2


@needs_learn2learn
def test_maml_and_anil_train_on_episodes_like_those_of_the_test(tmp_path: Path) -> None:
    runs, met = raced(tmp_path, "--methods", "maml", "anil")
    assert set(runs) == {"maml", "anil"} and list(met[TRAIN]) == list(range(16))
    every = [one for part in met.values() for seen in part.values() for one in seen]
    assert {(len(one.support_label), len(one.query_label)) for one in every} == {(3, 6)}
