"""The benchmark counts what is spent, chooses as it says, solves the peers' problems right, and runs as a whole."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.solvers import entrants, peers, program, report
from benchmarks.solvers.command import main
from benchmarks.solvers.contest import (
    Competitor,
    Curve,
    CurvePoint,
    Entrant,
    Missing,
    SettingsChoice,
    SolverAtBudgets,
    choose,
)
from benchmarks.solvers.entrants import Effort, of_attack, of_latent_fitting
from benchmarks.solvers.models import (
    CLASSIFIER,
    DECODER_A,
    RADIUS,
    AttackedClassifier,
    ContestModel,
    Digits,
    decoder,
    frozen,
    rows_of,
)
from benchmarks.solvers.peers import Adam, NormalisedGradient, PeerSolver, PublishedJointAnderson, Rule, TorchDEQDescent
from benchmarks.solvers.program import QUICK, Part, run
from benchmarks.solvers.stopwatch import ReturnedInput, Stopwatch, peak_bytes
from catalogue import CASES, Case, linear, tanh_ball
from deqopt.fixed_point import Anderson
from deqopt.solvers import Bilevel, JointAnderson, StepRule, Tracking, solve_exactly

CPU = torch.device("cpu")
needs_torchdeq = pytest.mark.skipif(not peers.torchdeq_is_installed(), reason=peers.INSTALL)


def returned(competitor: Competitor, case: Case, labels: Sequence[int], counted: bool = True) -> list[ReturnedInput]:
    """What a competitor returns for a problem at every label."""
    watch = Stopwatch(CPU, counted)
    competitor.run(watch.observe(case.problem), case.z0, case.x0, watch, labels)
    return watch.points


def test_forward_and_backward_passes_are_half_an_evaluation_each() -> None:
    case = linear()
    watch = Stopwatch(CPU, counted=True)
    problem = watch.observe(case.problem)
    watch.start()
    problem.f(case.z0, case.x0)
    watch.mark(1, case.x0)
    problem.evaluate(case.z0, case.x0, case.z0)
    watch.mark(2, case.x0)
    problem.f(case.z0[:1], case.x0[:1])
    watch.mark(3, case.x0)
    assert [point.evaluations for point in watch.points] == [0.5, 1.5, 1.5 + 0.5 / len(case.x0)]


@pytest.mark.parametrize("name", ["linear_with_data", "linear_tuple", "tanh_ball"])
def test_counted_solves_are_the_same_and_cost_what_the_solver_says(name: str) -> None:
    case = CASES[name]()
    solver = Tracking(max_nfe=30, tol=0.0)
    (found,) = returned(SolverAtBudgets(lambda budget: solver), case, [30])
    plain = solver.solve(case.problem, case.z0, case.x0)
    assert torch.equal(found.x, plain.x)
    assert found.evaluations == float(plain.nfe[0]) + 1  # x's scale is measured once


def test_every_budget_starts_from_zero() -> None:
    solver = JointAnderson(tol=0.0, step_size=0.1, step_rule=StepRule.PLAIN)
    found = returned(SolverAtBudgets(lambda budget: replace(solver, max_nfe=budget)), linear(), [10, 20])
    assert [point.evaluations for point in found] == [11, 21]


def test_bilevel_moves_as_often_as_its_label_says() -> None:
    entrant = entrants.bilevel("Bilevel", Counting, [0.1], entrants.Moves((3, 7)), Effort(settings=1))
    Counting.moves.clear()
    returned(next(iter(entrant.candidates.values())), tanh_ball(), entrant.labels, counted=False)
    assert len(Counting.moves) == 3 + 7 + 2  # the first step of each only solves
    assert Bilevel().max_nfe == 1 + (40 + 1) * (12 + 2)


class Counting(entrants.PGD):
    moves: ClassVar[list[int]] = []

    def step(self, *arguments: object) -> torch.Tensor:
        self.moves.append(1)
        return super().step(*arguments)  # type: ignore[arg-type]


def test_adam_is_that_of_torch() -> None:
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    parameter = x.clone().requires_grad_()
    rule, optimizer = Adam(0.1), torch.optim.Adam([parameter], lr=0.1)
    for _ in range(5):
        gradient = 2 * x + torch.tensor([1.0, -2.0, 0.5])
        parameter.grad = gradient.clone()
        optimizer.step()
        x = rule.move(x, gradient)
        assert torch.allclose(x, parameter.detach(), atol=1e-6)


@needs_torchdeq
@pytest.mark.parametrize("solver", PeerSolver)
@pytest.mark.parametrize(
    ("rule", "warm"), [(lambda: Adam(0.3), True), (lambda: NormalisedGradient(0.1), False)], ids=["Adam", "PGD cold"]
)
def test_descents_with_torchdeq_reach_the_optimum(solver: PeerSolver, warm: bool, rule: Callable[[], Rule]) -> None:
    case = linear()
    assert case.truth is not None
    first, last = returned(TorchDEQDescent(rule, solver, 12, warm), case, [1, 60])
    assert first.evaluations == 13  # two solves of 12 halves, a forward and a backward pass for the gradient of x
    error, error_before = ((point.x - case.truth.x).norm(dim=1) for point in (last, first))
    assert (error < 0.1 * error_before).all()


@needs_torchdeq
@pytest.mark.parametrize("solver", PeerSolver)
def test_torchdeq_descends_along_the_gradient_at_the_equilibrium(solver: PeerSolver) -> None:
    case = tanh_ball()
    x = torch.full_like(case.x0, 0.1)
    seen: list[torch.Tensor] = []

    class Spy(Rule):
        def move(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
            seen.append(gradient)
            return x

    TorchDEQDescent(Spy, solver, 60).run(case.problem, case.z0, x, Stopwatch(CPU, False), [1])
    start = JointAnderson(max_nfe=1, step_size=0.1, step_rule=StepRule.PLAIN).solve(case.problem, case.z0, x)
    exact = solve_exactly(case.problem, start, Anderson(max_nfe=200, tol=1e-12))
    expected = case.problem.evaluate(exact.z, x, exact.mu).g_x
    assert torch.allclose(seen[0], expected, atol=1e-3 * float(expected.abs().max()))


def test_the_published_method_solves_an_easy_problem() -> None:
    case = linear()
    assert case.truth is not None
    (found,) = returned(PublishedJointAnderson(0.1, 0.1, memory=20, normalised=False), case, [80])
    assert found.evaluations == 80 and torch.allclose(found.x, case.truth.x, atol=1e-4)


def test_without_torchdeq_its_rows_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrants, "torchdeq_is_installed", lambda: False)
    for every in (of_latent_fitting(Effort()), of_attack(1.5, Effort())):
        missing = [one for one in every if isinstance(one, Missing)]
        assert {one.reason for one in missing} == {"torchdeq is not installed: pip install 'deqopt[bench]'"}
        assert all(one.name.startswith("torchdeq") for one in missing)
        assert len(every) - len(missing) >= 6


def points(settings: str, **objectives: float) -> list[CurvePoint]:
    """Of two samples whose objectives have that mean."""
    return [
        CurvePoint(int(label[1:]), settings, 10.0 * int(label[1:]), 1.0, (objective - 1, objective + 1), 0.0)
        for label, objective in objectives.items()
    ]


TRIALS = {
    "short": points("short", _5=1.0, _10=0.9, _20=0.8, _40=0.75),
    "long": points("long", _5=3.0, _10=0.7, _20=0.6996, _40=0.6995),
    "wild": points("wild", _5=float("inf"), _10=0.8, _20=0.9, _40=0.9),
}


@pytest.mark.parametrize(
    ("choice", "settings", "label"),
    [
        (SettingsChoice.EACH, ["short", "long", "long", "long"], 40),
        (SettingsChoice.LAST, ["long"] * 4, 40),
        (SettingsChoice.CHEAPEST, ["long"] * 4, 10),
    ],
)
def test_settings_are_chosen_as_described(choice: SettingsChoice, settings: list[str], label: int) -> None:
    chosen, judged = choose(TRIALS, choice)
    assert [point.settings for point in chosen] == settings
    assert judged == label


def test_cheapest_understands_negative_objectives() -> None:
    trials = {"a": points("a", _5=-4.0, _10=-4.99, _20=-5.0)}
    assert choose(trials, SettingsChoice.CHEAPEST)[1] == 10


def test_the_cost_of_a_goal() -> None:
    curve = Curve("one", entrants.Side.OURS, tuple(points("a", _5=1.0, _10=0.5, _20=0.6)))
    assert curve.least("evaluations", 0.6) == 100.0
    assert curve.least("evaluations", 0.4) == float("inf")


def test_all_sides_choose_among_equally_many_settings() -> None:
    for every in (of_latent_fitting(Effort()), of_attack(1.5, Effort())):
        counts = {one.name: len(one.candidates) for one in every if isinstance(one, Entrant)}
        assert set(counts.values()) <= {4, 1}
        assert all("literature" in name for name, count in counts.items() if count == 1)


def test_the_splits_share_no_image() -> None:
    task = decoder([4])
    digits = Digits.of(task, seed=0)
    parts = [digits.train, digits.validation, digits.test]
    keys = [{image.numpy().tobytes() for image in part.image} for part in parts]
    assert [len(part.image) for part in parts] == [1197, 300, 300]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert torch.equal(Digits.of(task, seed=0).test.image, digits.test.image)
    assert not torch.equal(Digits.of(task, seed=1).test.image, digits.test.image)
    assert torch.equal(Digits.of(AttackedClassifier(), seed=0).test.index, digits.test.index)


@pytest.mark.parametrize("make", [lambda: decoder([8, 8]), AttackedClassifier], ids=["decoder", "classifier"])
def test_freezing_a_model_changes_nothing_but_its_cost(make: Callable[[], Any]) -> None:
    model = make()
    batch = rows_of(Digits.of(model, seed=0).validation, slice(3))
    z0, x0 = model.start(batch)
    z, mu = (tuple(torch.randn_like(part) for part in z0) for _ in range(2))
    before = model.problem(batch).evaluate(z, x0, mu)
    model = frozen(model)
    after = model.problem(batch).evaluate(z, x0, mu)
    assert torch.allclose(before.g_x, after.g_x, rtol=1e-4, atol=1e-6)
    assert torch.allclose(before.objective, after.objective, rtol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any("original" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("known", [DECODER_A, CLASSIFIER], ids=lambda one: one.name)
def test_training_lowers_the_loss(known: ContestModel, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = known.make()
    batch = rows_of(Digits.of(model, seed=0).train, slice(48))
    before = known.loss_of(model)(batch).item()
    replace(known, steps=8).train(model, batch, seed=0)
    assert known.loss_of(model)(batch).item() < 0.9 * before


def test_the_attack_is_bounded_in_length_alone() -> None:
    """And its objective is minus the cross-entropy at the attacked image."""
    model = AttackedClassifier()
    batch = rows_of(Digits.of(model, seed=0).validation, slice(3))
    problem, (z, x) = model.problem(batch), model.start(batch)
    x = problem.feasible.project(10 * torch.randn_like(x))
    assert torch.allclose(x.flatten(1).norm(dim=1), torch.tensor(RADIUS)) and float((batch.image + x).min()) < 0
    z = problem.f(z, x)
    logits = model.classifier.logits(model.classifier.f(model.classifier.zeros(x), batch.image + x))
    expected = torch.nn.functional.cross_entropy(logits, batch.label, reduction="none")
    assert torch.allclose(problem.J(z, x), -expected)


def test_peak_memory_sees_what_is_kept_and_only_that() -> None:
    kept: list[torch.Tensor] = []

    def hoard() -> None:
        kept.extend(torch.zeros(1024) for _ in range(10))

    def drop() -> None:
        for _ in range(10):
            torch.zeros(1024)

    assert peak_bytes(CPU, hoard) == 10 * 4096
    assert peak_bytes(CPU, drop) == 4096


EFFORT = Effort((6, 8), (1,), (1,), settings=1, iterations=(4, 4))
STEPS = {"decoder-a": 2, "decoder-b": 1, "classifier": 3}
TINY = replace(QUICK, effort=EFFORT, steps=STEPS, validation=2, test=2, iterations=3, compacted=2, long=22, exact=5)


@pytest.mark.slow
def test_a_tiny_run_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, results = run(TINY.parts, TINY, tmp_path, CPU, seed=0)
    text = report.write(results, tmp_path, {"seed": 0})
    assert (tmp_path / "results.md").read_text() == text
    pictures = {f"{name}{end}" for name in ("decoder-a", "classifier") for end in (".png", "-cost.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    written = json.loads((tmp_path / "results.json").read_text())
    assert {measure["measure"][0] for measure in written["measures"]} == set("123456")
    assert set(written["contests"]) == {"decoder-a", "classifier"}
    for standings in written["contests"].values():
        assert {"Tracking", "JointAnderson", "JointBroyden", "JIIO as published"} <= {
            one["strategy"] for one in standings
        }
        for point in (point for one in standings for point in one["test"]):
            assert point["evaluations"] > 0 and point["seconds"] > 0 and point["objective"] is not None
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "decoder-a.csv").read_text().splitlines())}
    for one in written["contests"]["decoder-a"]:
        assert float(rows[one["strategy"]]["objective"]) == pytest.approx(one["test"][-1]["objective"])
        assert (rows[one["strategy"]]["from"], rows[one["strategy"]]["images"]) == (one["from"], "2")
    assert next(iter(rows)) == entrants.BILEVEL_ADAM and all(f"\n{name[:25]}" in text for name in rows)
    capsys.readouterr()
    CLASSIFIER.load(tmp_path, 0, TINY.steps["classifier"])
    assert "training" not in capsys.readouterr().out


def test_only_and_quick_choose_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.solvers.command.QUICK", TINY)
    threads = torch.get_num_threads()
    main(["--quick", "--only", "memory", "--out", str(tmp_path), "--threads", str(threads)])
    written = json.loads((tmp_path / "results.json").read_text())
    assert [measure["measure"][0] for measure in written["measures"]] == ["6", "6"]
    assert all(measure["met"] for measure in written["measures"])
    assert program.FULL.parts == frozenset(Part)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--only", "speed"], "invalid choice: 'speed'"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
