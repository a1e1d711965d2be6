"""The benchmark of few-shot learning: that methods meet the same episodes, and that it reports what it found."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from deqopt_tasks.omniglot.episodes import EpisodeBatch, Episodes
from deqopt_tasks.omniglot.learners import Baseline
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from benchmarks import fewshot
from benchmarks.fewshot_methods import Entrant, Joint, JointEntrant
from benchmarks.fewshot_report import write
from deqopt.data.splits import Part
from deqopt.errors import NonFiniteError, ProblemError
from deqopt.module import JointModule
from deqopt.regularizers import JacobianPenalty

JOINT = [name for name, method in fewshot.METHODS.items() if isinstance(method, Joint)]
OWN = [*JOINT, "prototypes"]
TRAIN, VAL, TEST = 0, 1, 2
needs_learn2learn = pytest.mark.skipif(find_spec("learn2learn") is None, reason="learn2learn is not installed")
every_method = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in OWN else needs_learn2learn) for name in fewshot.METHODS]
)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that trains in a blink, by a clock on which every step takes a second."""
    setting = replace(
        fewshot.SETTING,
        train_ways=4,
        train_queries=1,
        queries=2,
        batch=2,
        size=16,
        widths=(4,),
        context=3,
        features=32,
    )
    monkeypatch.setattr(fewshot, "SETTING", setting)
    monkeypatch.setattr(fewshot, "process_time", itertools.count().__next__)


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[int, EpisodeBatch]]:
    """The episodes that were loaded, by the number of their split and their own."""
    loaded: dict[int, dict[int, EpisodeBatch]] = defaultdict(dict)
    real = Episodes.__getitem__

    def getitem(self: Episodes, item: int) -> EpisodeBatch:
        loaded[self._split][item] = real(self, item)
        return loaded[self._split][item]

    monkeypatch.setattr(Episodes, "__getitem__", getitem)
    return loaded


def words(out: Path, *more: str) -> list[str]:
    return ["--ways", "3", "--seconds", "4", "--episodes", "3", "--out", str(out), *more]


def run(out: Path, name: str, seed: int, *more: str) -> dict[str, Any]:
    chosen = fewshot.arguments(words(out, *more))
    fewshot.run(name, seed, chosen)
    return json.loads(fewshot.path_of(name, seed, chosen).read_text())


def same(one: EpisodeBatch, other: EpisodeBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_method
def test_a_run_leaves_its_marks_and_its_row(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = words(tmp_path, "--methods", name, "--seeds", "3")
    fewshot.main(chosen)
    (path,) = tmp_path.glob("*.json")
    said = json.loads(path.read_text())
    assert (said["method"], said["seed"], said["part"], said["data"]) == (name, 3, "test", "glyphs")
    batch = fewshot.METHODS[name].entrant(fewshot.SETTING, 3).batch_size
    assert [(one["seconds"], one["steps"], one["episodes"]) for one in said["marks"]] == [
        (1, 1, batch),
        (2, 2, 2 * batch),
        (4, 4, 4 * batch),
    ]
    for one in said["marks"]:
        assert len(one["right"]) == 3 and all(0 <= right <= said["queries"] == 6 for right in one["right"])
        assert (one["solves"] is not None) == (name in JOINT)
        assert one["milliseconds"] == pytest.approx(1000 / 3, abs=0.01), "three episodes at once take a tick"
        assert (one["backward"] is not None) == (name in ("implicit", "jacobian_free"))
    last = said["marks"][-1]
    if name in JOINT:
        assert last["solves"]["after"] < last["solves"]["before"] and last["solves"]["below_start"] == 1
        assert 1 <= last["solves"]["nfe"] <= fewshot.METHODS[name].solver.max_nfe  # type: ignore[attr-defined]
    row = (tmp_path / "results-test.md").read_text().splitlines()[4]
    cells = row.split(" | ")
    assert cells[:4] == [f"| {fewshot.METHODS[name].label}", "3", "4", str(4 * batch)]
    assert cells[6].startswith(f"{100 * sum(last['right']) / 18:.2f} +- ")
    assert row in capsys.readouterr().out
    assert (tmp_path / "fewshot-test.png").stat().st_size > 1000
    path.write_bytes(path.read_bytes() + b" ")
    fewshot.main(chosen)
    assert path.read_bytes().endswith(b" "), "a run that is there is not run again"


def test_all_are_tested_on_the_same_episodes_and_seeds_train_on_others(
    tmp_path: Path, met: dict[int, dict[int, EpisodeBatch]]
) -> None:
    """Those of the tests depend on no seed and no method; those of training on the seed alone."""
    seen: dict[tuple[str, int], dict[int, dict[int, EpisodeBatch]]] = {}
    for name, seed in [("implicit", 0), ("input_held", 0), ("prototypes", 0), ("implicit", 1)]:
        met.clear()
        run(tmp_path, name, seed)
        seen[name, seed] = dict(met)
    first = seen["implicit", 0]
    assert set(first) == {TRAIN, TEST} and list(first[TEST]) == [0, 1, 2] and list(first[TRAIN]) == list(range(8))
    assert first[TRAIN][0].support_label.tolist() == [0, 1, 2, 3] and len(first[TEST][0].query_label) == 6
    for (name, seed), other in seen.items():
        assert other[TEST].keys() == first[TEST].keys()
        assert all(same(first[TEST][item], other[TEST][item]) for item in first[TEST])
        assert all(same(first[TRAIN][item], other[TRAIN][item]) == (seed == 0) for item in first[TRAIN]), name


def test_validation_does_not_touch_test_episodes(
    tmp_path: Path, met: dict[int, dict[int, EpisodeBatch]], capsys: pytest.CaptureFixture[str]
) -> None:
    fewshot.main(words(tmp_path, "--methods", "envelope", "--validation"))
    validated = dict(met)
    assert set(validated) == {TRAIN, VAL}
    assert ", 3 val episodes of glyphs" in capsys.readouterr().out
    fewshot.main(words(tmp_path, "--methods"))
    assert "no test runs in" in capsys.readouterr().out
    met.clear()
    fewshot.main(words(tmp_path, "--methods", "envelope"))
    assert set(met) == {TRAIN, TEST} and not same(met[TEST][0], validated[VAL][0])
    for part in ("val", "test"):
        assert len((tmp_path / f"results-{part}.md").read_text().splitlines()) == 5


def test_the_first_weights_are_those_of_the_seed() -> None:
    def weights(name: str, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return parameters_to_vector(fewshot.METHODS[name].entrant(fewshot.SETTING, 3).network.parameters())

    for name in OWN:
        networks = [weights(one, 1)[-len(weights("implicit", 1)) :] for one in (name, "implicit")]
        assert torch.equal(*networks), "but for the scale that PROTOTYPES learns besides"
        assert not torch.equal(weights(name, 1), weights(name, 2))


@pytest.mark.parametrize("name", ["implicit", "unrolled", "prototypes"])
def test_the_seed_decides(name: str, tmp_path: Path) -> None:
    def found(folder: str, seed: int) -> Any:
        weights: list[Tensor] = []
        real = fewshot.mark

        def mark(entrant: Entrant, trained: fewshot.Trained, episodes: Episodes) -> fewshot.Mark:
            weights.append(torch.cat([value.flatten() for value in trained.snapshot.weights.values()]))
            return real(entrant, trained, episodes)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(fewshot, "mark", mark)
            return run(tmp_path / folder, name, seed)["marks"], weights

    (once, first), (again, second), (_, other) = found("once", 1), found("again", 1), found("other", 2)
    assert once == again
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(first, second, other, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])


def test_the_time_is_that_of_the_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock on which loading an episode takes a minute."""
    now = [0.0]
    load, step = Episodes.__getitem__, JointEntrant.backward

    def loaded(self: Episodes, item: int) -> EpisodeBatch:
        now[0] += 60
        return load(self, item)

    def stepped(self: Any, batch: EpisodeBatch) -> Tensor:
        now[0] += 1
        return step(self, batch)

    monkeypatch.setattr(fewshot, "process_time", lambda: now[0])
    monkeypatch.setattr(Episodes, "__getitem__", loaded)
    monkeypatch.setattr(JointEntrant, "backward", stepped)
    marks = run(tmp_path, "envelope", 0)["marks"]
    assert [one["seconds"] for one in marks] == [1, 2, 4] and {one["milliseconds"] for one in marks} == {0}


def test_networks_are_tested_in_evaluation_mode_as_they_were_at_their_marks(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    real = JointEntrant.answer

    def answer(self: Any, batch: EpisodeBatch) -> Any:
        assert not self.network.training
        seen.append(parameters_to_vector(self.network.parameters()).detach().clone())
        return real(self, batch)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JointEntrant, "answer", answer)
        run(tmp_path, "envelope", 0)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(("name", "clipped"), [("envelope", True), ("prototypes", False)])
def test_gradients_of_the_joint_method_are_clipped(name: str, clipped: bool) -> None:
    """To nothing beside Adam's epsilon."""
    torch.manual_seed(0)
    entrant = fewshot.METHODS[name].entrant(replace(fewshot.SETTING, clip=1e-14), 3)
    before = parameters_to_vector(entrant.network.parameters()).detach().clone()
    chosen = fewshot.arguments(words(Path("unused")))
    fewshot.train(entrant, fewshot.data_of(chosen, (4, 1), 0).episodes[Part.TRAIN], 2.0, name)
    moved = (parameters_to_vector(entrant.network.parameters()) - before).abs().max()
    assert (moved < 1e-6) == clipped and (moved > 1e-4) != clipped


@pytest.mark.filterwarnings("ignore:Implicit. the backward solve")  # of an untrained network
@pytest.mark.parametrize("name", JOINT)
def test_the_joint_method_is_penalised_along_its_trajectory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[int] = []
    real = JacobianPenalty.penalty

    def penalty(self: JacobianPenalty, problem: Any, equilibrium: Any) -> Tensor:
        visited.append(len(equilibrium.visited))
        return real(self, problem, equilibrium)

    monkeypatch.setattr(JacobianPenalty, "penalty", penalty)
    setting = replace(fewshot.SETTING, penalty=JacobianPenalty(visits=2))
    chosen = fewshot.arguments(words(Path("unused")))
    batch = next(fewshot.chunks_of(fewshot.data_of(chosen, (4, 1), 0).episodes[Part.VAL]))
    fewshot.METHODS[name].entrant(setting, 3).backward(batch)
    assert visited == [2]


@pytest.mark.parametrize("name", ["implicit", "unrolled"])
def test_the_joint_method_answers_as_its_module_does(name: str) -> None:
    method = fewshot.METHODS[name]
    assert isinstance(method, Joint)
    entrant = method.entrant(fewshot.SETTING, 3)
    task: Any = entrant.network.eval()
    chosen = fewshot.arguments(words(Path("unused")))
    batch = next(fewshot.chunks_of(fewshot.data_of(chosen, (4, 1), 0).episodes[Part.TEST]))
    answer = entrant.answer(batch)
    equilibrium = JointModule(task, solver=method.solver).predict_step(batch, 0)["equilibrium"]
    torch.testing.assert_close(answer.probabilities, task.probabilities(equilibrium, batch))
    inner = answer.inner()
    torch.testing.assert_close(torch.tensor([one.after for one in inner]), equilibrium.objective)
    torch.testing.assert_close(torch.tensor([one.before for one in inner]), task.objective_at_start(batch))


def test_prototypes_are_penalised_at_their_own_equilibria() -> None:
    """The gradient is that of the learner and of the weighted penalty, which is taken where ``z = f(z, 0)``."""

    def gradient(weight: float) -> tuple[Any, Tensor]:
        torch.manual_seed(0)
        setting = replace(fewshot.SETTING, penalty=JacobianPenalty(weight=weight, probes=2))
        entrant: Any = fewshot.METHODS["prototypes"].entrant(setting, 3)
        entrant.network.eval()
        entrant.backward(batch)
        return entrant, flat([one.grad for one in entrant.network.parameters()])

    def flat(parts: list[Tensor | None]) -> Tensor:
        return torch.cat([part.flatten() for part in parts if part is not None])

    chosen = fewshot.arguments(words(Path("unused")))
    batch = next(fewshot.chunks_of(fewshot.data_of(chosen, (4, 1), 0).episodes[Part.TRAIN]))
    (entrant, none), (_, some), (_, double) = gradient(0.0), gradient(1.0), gradient(2.0)
    learner = entrant._learner
    learner.zero_grad()
    learner.backward(batch)
    used = [one.grad for one in learner.parameters()]
    torch.testing.assert_close(flat(used), none, rtol=1e-3, atol=1e-5)
    assert (some - none).norm() > 1e-3
    torch.testing.assert_close(double - none, 2 * (some - none), rtol=1e-3, atol=1e-5)
    problem, equilibrium = entrant._embedding.solution()
    found = problem.f(equilibrium.z, equilibrium.x)
    assert found[0].shape[:2] == (len(batch.index), 8), "of support and queries"
    for part, exact in zip(found, equilibrium.z, strict=True):
        torch.testing.assert_close(part, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:implicit_fixed_point. (the backward solve|8 of 8 samples give no gradient)")
def test_a_training_that_diverges_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewshot, "SETTING", replace(fewshot.SETTING, lr=float("inf")))
    with pytest.raises(NonFiniteError, match=r"Envelope \(glyphs, 3-way.*seed 0\) has diverged in step 2: lower lr"):
        run(tmp_path, "envelope", 0)
    assert not list(tmp_path.glob("*.json"))


def test_what_is_missing_is_said_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at all where the runs that need it are there already."""

    def missing(used_by: str, instead: str) -> None:
        raise ProblemError(f"{used_by} needs learn2learn: {instead} does without")

    monkeypatch.setattr(fewshot, "learn2learn", missing)
    chosen = words(tmp_path, "--methods", "envelope", "maml")
    with pytest.raises(ProblemError, match="the method maml needs learn2learn: leaving it out of --methods"):
        fewshot.main(chosen)
    assert not list(tmp_path.iterdir())
    fewshot.path_of("maml", 0, fewshot.arguments(chosen)).write_text(json.dumps(made("maml", 0, [1, 2, 3])))
    fewshot.main(chosen)
    assert len(list(tmp_path.glob("*.json"))) == 2


@needs_learn2learn
@pytest.mark.parametrize("baseline", [Baseline.MAML, Baseline.ANIL])
def test_maml_and_anil_train_on_episodes_like_those_of_the_test(
    baseline: Baseline, tmp_path: Path, met: dict[int, dict[int, EpisodeBatch]]
) -> None:
    run(tmp_path, baseline.name.lower(), 0)
    assert {len(one.support_label) for part in met.values() for one in part.values()} == {3}
    assert {len(one.query_label) for part in met.values() for one in part.values()} == {6}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (["--methods", "adam"], "invalid choice: 'adam'"),
        (["--seconds", "0"], "--seconds must be larger than 0"),
        (["--seconds", "nan"], "--seconds must be larger than 0"),
        (["--episodes", "0"], "--episodes 1 or more"),
    ],
)
def test_words_that_do_not_fit(said: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fewshot.main(said)
    assert message in capsys.readouterr().err


# -- the report -------------------------------------------------------------------------------------------------------


def made(name: str, seed: int, right: list[int], part: str = "test", budget: float = 60) -> dict[str, Any]:
    """A run that classifies so many of four queries rightly at its end, and none before."""
    joint = {"before": 1.5, "after": 0.25, "below_start": 0.5, "nfe": 9.5, "residual": 1e-3}
    system = {"residual": 0.1, "products": 12.0, "unsolved": 0.25}
    marks = [
        {
            "seconds": share * budget,
            "steps": 10 * k,
            "episodes": 40 * k,
            "right": right if share == 1 else [0] * len(right),
            "milliseconds": 2.5,
            "solves": joint if name in JOINT else None,
            "backward": system if name == "implicit" else None,
        }
        for k, share in enumerate((0.25, 0.5, 1.0), start=1)
    ]
    said = {"method": name, "seed": seed, "budget": budget, "data": "omniglot", "part": part}
    said |= {"ways": 2, "shots": 1, "distort": [0.0, 0.0]}
    return {**said, "episodes": len(right), "queries": 4, "marks": marks}


LABELS = {name: name.upper() for name in fewshot.METHODS}


def test_the_table_joins_all_runs_and_pairs_their_episodes(tmp_path: Path) -> None:
    """Files in no order; episodes differ much, methods by one query in half of them: t = 3.18, s = 1 / sqrt(48)."""
    easy = [made("implicit", 0, [4, 3, 1, 0]), made("implicit", 1, [4, 4, 4, 4])]
    other = [made("input_held", 0, [3, 3, 0, 0]), made("input_held", 2, [1, 1, 1, 1]), made("maml", 1, [3, 3, 3, 3])]
    rest = [made("envelope", 0, [4] * 4, part="val"), made("anil", 0, [2, 2], budget=30)]
    for k, one in enumerate([*other, *rest, *easy]):
        (tmp_path / f"{k}.json").write_text(json.dumps(one))
    blocks = write(tmp_path, LABELS).split("\n\n")
    assert [blocks[k] for k in (0, 2)] == [
        "2-way 1-shot, 2 test episodes of omniglot, 30 s, training images as they are",
        "2-way 1-shot, 4 test episodes of omniglot, 60 s, training images as they are",
    ]
    none = "0.00 +- 0.00 | 0.00 +- 0.00"
    solves = "2.5 | 1.500 -> 0.250 | 50.0 % | 9.5 | 1.0e-03"
    system = "12 products, residual 1.0e-01, 25 % unsolved"
    assert blocks[3].splitlines()[2:] == [
        f"| IMPLICIT | 0 | 30 | 120 | {none} | 50.00 +- 72.63 |  | {solves} | {system} |",
        f"| IMPLICIT | 1 | 30 | 120 | {none} | 100.00 +- 0.00 |  | {solves} | {system} |",
        f"| INPUT_HELD | 0 | 30 | 120 | {none} | 37.50 +- 68.90 | +12.50 +- 22.97 | {solves} |  |",
        f"| INPUT_HELD | 2 | 30 | 120 | {none} | 25.00 +- 0.00 |  | {solves} |  |",
        f"| MAML | 1 | 30 | 120 | {none} | 75.00 +- 0.00 | +25.00 +- 0.00 | 2.5 |  |  |  |  |  |",
    ]
    assert (tmp_path / "results-test.md").read_text() == "\n\n".join(blocks) + "\n"
    (validated,) = write(tmp_path, LABELS, Part.VAL).split("\n\n")[1].splitlines()[2:]
    assert validated.startswith("| ENVELOPE | 0 ")
    assert write(tmp_path / "empty", LABELS).startswith("no test runs in")


def test_the_reference_may_be_worse(tmp_path: Path) -> None:
    for name, right in {"implicit": [1, 1], "anil": [3, 3]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(made(name, 0, right)))
    assert write(tmp_path, LABELS).splitlines()[-1].split(" | ")[7] == "-50.00 +- 0.00"
