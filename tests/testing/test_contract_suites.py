"""The contract suites: sane plugins pass, and every clause catches the mutants that were made to break it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deqopt_tasks.celeba.task import CelebA

import deqopt.testing
import solver_mutants
import task_mutants
from deqopt import Task
from deqopt.adjoints import Unrolled
from deqopt.errors import ProblemError
from deqopt.registry import Group, Plugin, plugins
from deqopt.solvers import JointAnderson, JointSolver, JointSystem, Tracking
from deqopt.testing import ContractError, check_solver, check_task, solver_effects, solver_samples
from deqopt.testing.problems import BALL, BOX, DATA, FAMILIES, Case, rows_of
from deqopt.testing.report import Inapplicable, examine
from deqopt.testing.solver import CLAUSES
from deqopt.testing.task import STAGES
from deqopt.testing.trial import Trial
from tiny_task import Tiny

# Of solvers that need other settings than their defaults.
SETTINGS: dict[str, dict[str, Any]] = {"Bilevel": {"max_nfe": 150}}
OF_SOLVERS = {clause.__name__: clause for clause in CLAUSES}
OF_TASKS = {clause.__name__: clause for stage in STAGES for clause in stage}
SMALL = {"size": 8, "image_channels": 1, "latent": 4, "widths": [4, 4], "resolution": 4, "batch_size": 6}


# -- the problems ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_answers_are_stationary_and_no_nearby_point_is_better(family: Any) -> None:
    case: Case = family.case()
    system = JointSystem.of(case.problem, case.z, case.x, JointAnderson())
    at = system.evaluate(system.pack(case.z, case.mu, case.x))
    assert (at.residual < 1e-12).all()
    torch.testing.assert_close(at.objective, case.objective)
    torch.testing.assert_close(case.value(case.x), case.objective)
    for scale in (1e-2, 0.3, 3.0):
        near = case.problem.feasible.project(case.x + scale * torch.randn_like(case.x))
        assert (case.value(near) >= case.objective - 1e-12).all()
    assert (case.value(case.x0) > case.objective + 0.05).all(), "there is something to gain"


@pytest.mark.parametrize("family", [BOX, BALL, DATA], ids=lambda family: family.name)
def test_the_constraints_are_active(family: Any) -> None:
    case: Case = family.case()
    g_x = case.problem.evaluate(case.z, case.x, case.mu).g_x
    assert (g_x.norm(dim=1) > 0.1).sum() == 4, "of all samples but one"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_some_samples_of_a_problem_are_those_of_all(family: Any) -> None:
    whole, part = family.case(), family.case([3, 1])
    for name in ("z", "x", "mu", "objective", "x0"):
        torch.testing.assert_close(getattr(part, name), rows_of(getattr(whole, name), [3, 1]))


# -- solvers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", plugins(Group.SOLVERS).values(), ids=lambda plugin: plugin.name)
def test_registered_solvers_keep_the_contract(plugin: Plugin) -> None:
    report = check_solver(plugin.load()(**SETTINGS.get(plugin.name, {})))
    assert {*report.kept, *report.skipped} == set(OF_SOLVERS)
    assert report.skipped.keys() <= {"it_can_be_differentiated_through", "single_precision_has_gradients"}


def test_the_solver_of_the_mutants_keeps_the_contract() -> None:
    assert len(check_solver(solver_mutants.Descent()).kept) == len(OF_SOLVERS)


def test_several_evaluations_a_step_keep_what_is_promised_of_samples_and_effects() -> None:
    trial = Trial(Tracking(max_nfe=200, inner=4), 0.9, torch.device("cpu"))
    clauses = [*solver_samples.CLAUSES, *solver_effects.CLAUSES]
    assert len(examine("Tracking", trial, clauses).kept) == len(clauses)


def test_every_clause_has_a_mutant() -> None:
    assert solver_mutants.MUTANTS.keys() == OF_SOLVERS.keys()
    assert task_mutants.MUTANTS.keys() == OF_TASKS.keys()


def every(mutants: dict[str, list[Any]]) -> Any:
    pairs = [(clause, mutant) for clause, several in mutants.items() for mutant in several]
    names = [f"{clause}-{getattr(mutant, '__name__', type(mutant).__name__)}" for clause, mutant in pairs]
    return pytest.mark.parametrize(("clause", "mutant"), pairs, ids=names)


@every(solver_mutants.MUTANTS)
def test_a_mutant_solver_is_caught(clause: str, mutant: JointSolver) -> None:
    with pytest.raises(ContractError) as caught:
        examine(type(mutant).__name__, Trial(mutant, 0.9, torch.device("cpu")), [OF_SOLVERS[clause]])
    assert caught.value.broken == (clause,)


def test_all_broken_clauses_of_a_solver_are_told_at_once() -> None:
    with pytest.raises(ContractError) as caught:
        check_solver(solver_mutants.Couples(max_nfe=30))
    error = caught.value
    assert {"samples_are_solved_as_if_alone", "a_nan_sample_harms_no_other"} <= set(error.broken)
    assert set(error.broken) | set(error.kept) == set(OF_SOLVERS)
    text = str(error)
    assert text.startswith(f"Couples breaks {len(error.broken)} of {len(OF_SOLVERS)} clauses of its contract:\n")
    assert "\n  samples_are_solved_as_if_alone: A sample has the same solution in any batch: alone, with others" in text
    assert re.search(r"\n    - linear, solved alone: z of sample 3 differs by \S+, expected at most 1e-05\n", text)


def test_the_share_that_is_asked_for_is_a_matter_of_the_budget() -> None:
    def examined(budget: int, share: float) -> None:
        trial = Trial(solver_mutants.Descent(max_nfe=budget), share, torch.device("cpu"))
        examine("Descent", trial, [OF_SOLVERS["the_objective_improves"]])

    examined(150, 0.9)
    examined(12, 0.05)
    with pytest.raises(ContractError, match=r"tanh, float64: [\d.]+% of the possible gain, expected at least 90%"):
        examined(12, 0.9)


# -- tasks ------------------------------------------------------------------------------------------------------------


def test_sane_tasks_keep_the_contract() -> None:
    assert check_task(Tiny()).kept == tuple(OF_TASKS)
    assert check_task(CelebA(**SMALL)).kept == tuple(OF_TASKS)  # type: ignore[arg-type]


def test_what_a_task_does_not_have_is_skipped_with_a_reason() -> None:
    assert check_task(task_mutants.NoMetrics()).skipped == {"metrics_take_the_outcome": "the task has no metrics"}
    assert set(check_task(task_mutants.PredictsNothing()).skipped) == {"predictions_are_written"}
    task = task_mutants.NoPredictions()
    report = check_task(task, task.batch())
    assert set(report.skipped) == {"the_datamodule_gives_batches", "predictions_are_written"}
    assert "skipped predictions_are_written: the task does not define write_predictions()" in str(report)


@every(task_mutants.MUTANTS)
def test_a_mutant_task_is_caught(clause: str, mutant: Any) -> None:
    with pytest.raises(ContractError) as caught:
        check_task(mutant())
    assert clause in caught.value.broken


def test_a_loader_that_is_missing_is_named_with_what_needs_it() -> None:
    message = "has no predict_dataloader, which deqopt predict needs: the task defines write_predictions"
    with pytest.raises(ContractError, match=message):
        check_task(task_mutants.NothingToPredict())


def test_a_batch_can_be_given_instead_of_the_loaders() -> None:
    task = task_mutants.EmptyLoader()
    assert check_task(task, task.batch(0, 1, 2)).skipped == {"the_datamodule_gives_batches": "a batch was given"}
    with pytest.raises(ContractError, match="the given batch has 2 samples: 3 at least are needed"):
        check_task(task, task.batch(0, 1))


def test_what_rests_on_a_broken_clause_is_not_examined() -> None:
    with pytest.raises(ContractError, match="12 more clauses rest on these and were not examined") as caught:
        check_task(task_mutants.SummedObjective())
    assert caught.value.kept == ("the_datamodule_gives_batches",)
    assert "raised ProblemError: objective must return one value per sample" in str(caught.value)
    assert isinstance(caught.value.__cause__, ProblemError)


def test_parameters_that_nothing_reaches_are_named() -> None:
    with pytest.raises(ContractError, match=r"no gradient reaches spare\.weight, spare\.bias: remove them, or freeze"):
        check_task(task_mutants.Unreached())
    with pytest.raises(ContractError, match="the loss carries no gradient at all: with Envelope it must be made of"):
        check_task(task_mutants.LossOfTheInput())


def test_a_task_is_examined_with_the_adjoint_that_its_loss_needs() -> None:
    report = check_task(task_mutants.LossOfTheInput(), adjoint=Unrolled())
    assert "every_parameter_gets_a_gradient" in report.kept


@pytest.mark.parametrize("training", [True, False])
def test_a_task_is_left_as_it_was(training: bool) -> None:
    task = task_mutants.Normalised().train(training)
    task.head.eval()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(ContractError):
        check_task(task)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert task.training == task.norm.training == training and not task.head.training
    assert all(parameter.grad is None for parameter in task.parameters())
    assert torch.equal(torch.get_rng_state(), random), "the caller's random numbers are not used up"


# -- the report -------------------------------------------------------------------------------------------------------


def promises(subject: int) -> Iterator[str]:
    """It is
    below three."""
    yield from (f"got {number}" for number in range(subject) if number > 2)


def raises(subject: int) -> Iterator[str]:
    """It divides."""
    yield f"before {1 / subject}"
    raise KeyError("lost\n  line")


def applies_not(subject: int) -> Iterator[str]:
    raise Inapplicable("never")
    yield ""


def test_what_a_report_says() -> None:
    report = examine("One", 1, [promises, applies_not])
    assert report.kept == ("promises",) and report.skipped == {"applies_not": "never"}
    assert str(report) == "One keeps all 1 clauses of its contract: promises\n  skipped applies_not: never"
    with pytest.raises(ContractError) as caught:
        examine("Ten", 10, [promises, raises], [promises])
    here, line = Path(__file__).name, raises.__code__.co_firstlineno + 3
    assert str(caught.value).splitlines() == [
        "Ten breaks 2 of 2 clauses of its contract:",
        "  promises: It is below three.",
        *[f"    - got {number}" for number in (3, 4, 5, 6)],
        "    - and 3 more",
        "  raises: It divides.",
        "    - before 0.1",
        f"    - raised KeyError: 'lost\\n line' ({here}:{line}, in raises)",
        "  1 more clauses rest on these and were not examined",
    ]
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: check_solver(JointAnderson), "check_solver takes an instance of a JointSolver, such as MySolver()"),  # type: ignore[arg-type]
        (lambda: check_solver(Tracking(), share=0.0), r"share must be in \(0, 1\], got 0.0"),
        (lambda: check_solver(Tracking(), share=float("nan")), r"share must be in \(0, 1\], got nan"),
        (lambda: check_task(torch.nn.Linear(1, 1)), "check_task takes an instance of a Task, such as MyTask()"),  # type: ignore[arg-type]
        (lambda: check_task(Task), "check_task takes an instance of a Task"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_examined_is_refused(action: Any, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        action()


def test_the_suites_do_without_pytest() -> None:
    assert deqopt.testing.__file__ is not None
    for file in Path(deqopt.testing.__file__).parent.glob("*.py"):
        assert "pytest" not in file.read_text()
