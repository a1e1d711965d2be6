"""Clauses on what a solver returns: its form, its feasibility, its cost, its quality."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deqopt.equilibrium import Equilibrium
from deqopt.iteration import Status
from deqopt.solvers.system import JointSystem
from deqopt.state import State, tensors_of
from deqopt.testing.problems import BALL, BOX, DATA, FAMILIES, LINEAR, TANH, TUPLE, Case
from deqopt.testing.report import clauses_of
from deqopt.testing.trial import Trial, apart, is_finite, solve

BUDGETS = (1, 2, 5, 12, 40)
FEASIBLE = 1e-6
PER_SAMPLE = ("objective", "residual", "status", "nfe")


def results_are_shaped_like_the_start(trial: Trial) -> Iterator[str]:
    """z, x and mu have the structure, shapes, types and device of z0, x0 and z0; the rest is one value a sample."""
    for family in FAMILIES:
        case = trial.case(family)
        yield from _misshapen(case, solve(trial.short, case))


def an_empty_batch_is_solved(trial: Trial) -> Iterator[str]:
    """A batch of no sample gives a result of no sample."""
    for family in (TUPLE, DATA):
        case = trial.case(family, [])
        yield from _misshapen(case, solve(trial.short, case))


def single_precision_is_kept(trial: Trial) -> Iterator[str]:
    """What starts in float32 is solved and returned in float32, as well as in float64."""
    for family in (BOX, TANH):
        case = trial.case(family, dtype=torch.float32)
        found = solve(trial.solver, case)
        yield from _misshapen(case, found)
        yield from _lacking(case, found.x, trial.share)


def autocast_is_survived(trial: Trial) -> Iterator[str]:
    """Under bfloat16 autocast points stay float32, and nearly the same objective is reached."""
    case = trial.case(TANH, dtype=torch.float32)
    with torch.autocast(trial.device.type, torch.bfloat16):
        found = solve(trial.solver, case)
    yield from _misshapen(case, found)
    yield from _lacking(case, found.x, 0.9 * trial.share)


def inputs_are_feasible(trial: Trial) -> Iterator[str]:
    """Every input that is evaluated, visited or returned lies in the feasible set to 1e-6, whatever the budget."""
    for family in (BOX, BALL, DATA):
        plain = trial.case(family)
        shown: list[Tensor] = []

        def cell(z: State, x: Tensor, *data: object, plain: Case = plain, shown: list[Tensor] = shown) -> State:
            shown.append(x.detach())
            return plain.problem.cell(z, x, *data)

        case = plain.with_cell(cell)
        for solver in filter(None, map(trial.within, BUDGETS)):
            shown.clear()
            found = solve(solver, case, visits=4)
            points = {
                "returned": [found.x],
                "visited": [x for _, x in found.visited],
                "evaluated": [x for x in shown if x.shape == case.x0.shape],
            }
            for which, inputs in points.items():
                outside = max((float(case.problem.feasible.distance(x).max()) for x in inputs), default=0.0)
                if not outside <= FEASIBLE:
                    yield (
                        f"{case.name}, max_nfe={solver.max_nfe}: an input {which} is {outside:.1e} outside of the set: "
                        "end the step with system.project"
                    )


def the_budget_is_kept(trial: Trial) -> Iterator[str]:
    """No sample spends more evaluations than max_nfe, and none spends none."""
    for family in (LINEAR, BALL, DATA):
        case = trial.case(family)
        for solver in filter(None, map(trial.within, BUDGETS)):
            nfe = solve(solver, case).nfe
            if nfe.min() < 1 or nfe.max() > solver.max_nfe:
                yield f"{case.name}, max_nfe={solver.max_nfe}: nfe is {nfe.tolist()}"


def nfe_is_what_was_spent(trial: Trial) -> Iterator[str]:
    """nfe is the number of evaluations, each one forward of the cell and one vector-Jacobian product, where one of both
    alone counts a half or more; without those that measure the scale of x: one at the start, one where convergence
    is claimed."""
    for family in (LINEAR, BALL, TANH):
        plain, spent = trial.case(family, [0]), {"forward": 0, "backward": 0}

        def cell(z: State, x: Tensor, plain: Case = plain, spent: dict[str, int] = spent) -> State:
            image = plain.problem.cell(z, x)
            assert isinstance(image, Tensor)
            spent["forward"] += 1
            if image.requires_grad:
                image.register_hook(lambda _: spent.update(backward=spent["backward"] + 1))
            return image

        case = plain.with_cell(cell)
        for start, one in (("cold", case), ("at the solution", replace(case, z0=case.z, x0=case.x))):
            spent.update(forward=0, backward=0)
            nfe = int(solve(trial.short, one, mu0=None if one is case else case.mu).nfe)
            least, most = sum(spent.values()) / 2 - 2, sum(spent.values())
            if not least <= nfe <= most:
                yield (
                    f"{plain.name}, started {start}: nfe is {nfe}, but the cell ran {spent['forward']} times forward "
                    f"and {spent['backward']} times backward; a step that evaluates sets memory.spent and memory.cost"
                )


def the_objective_improves(trial: Trial) -> Iterator[str]:
    """At its feasible point (z solved for the x returned) no sample is worse than its start, and the batch has the
    asked share of what the optimum gains."""
    for family in FAMILIES:
        case = trial.case(family)
        yield from _lacking(case, solve(trial.solver, case).x, trial.share)


def what_is_reported_belongs_to_what_is_returned(trial: Trial) -> Iterator[str]:
    """objective and residual are those of the point returned, and a sample is CONVERGED only below the tolerance."""
    for family in (LINEAR, BALL, TUPLE, TANH):
        case, solver = trial.case(family), trial.short
        found = solve(solver, case)
        system = JointSystem.of(case.problem, found.z, found.x, solver, scale=found.scale)
        measured = system.evaluate(system.pack(found.z, found.mu, found.x))
        for name in ("objective", "residual"):
            reported, true = getattr(found, name), getattr(measured, name)
            off = ((reported - true).abs() / (true.abs() + 1e-9)).nan_to_num(nan=torch.inf)
            worst = int(off.argmax())
            if off[worst] > 1e-3:
                yield f"{case.name}: sample {worst} reports {name} {reported[worst]:.4g}, expected {true[worst]:.4g}"
        early = found.converged & ~(measured.residual <= 1.01 * solver.tol)
        if early.any():
            residual = float(measured.residual[early].max())
            yield f"{case.name}: a sample is CONVERGED at a residual of {residual:.1e}, although tol={solver.tol:.0e}"


def recording_changes_nothing(trial: Trial) -> Iterator[str]:
    """record=True and visits=n add a trace and points visited, and leave the result as it is, to the bit."""
    for family in (LINEAR, DATA):
        case = trial.case(family)
        plain = solve(trial.short, case)
        found = solve(trial.short, case, record=True, visits=3)
        for name in ("z", "x", "mu", *PER_SAMPLE):
            first, second = getattr(found, name), getattr(plain, name)
            if not bool((first == second).all()):
                yield f"{case.name}: {name} is another with record=True and visits=3"
        if plain.trace is not None or plain.visited:
            yield f"{case.name}: a trace or points visited that nobody asked for"
        if found.trace is None or len(found.visited) != min(3, len(found.trace.objective) - 1):
            yield f"{case.name}: record=True, visits=3 gave trace {found.trace} and {len(found.visited)} points"
            continue
        if found.trace.objective.shape[1:] != found.nfe.shape or len(found.trace.objective) > int(found.nfe.max()):
            yield f"{case.name}: the trace has shape {tuple(found.trace.objective.shape)}, expected (evaluations, B)"
        elif not (apart(found.trace.objective[0], case.problem.J(case.z0, case.x0).detach()) <= FEASIBLE).all():
            yield f"{case.name}: the trace does not begin with the objective of the start"
        elif not ((found.trace.objective - found.objective).abs().amin(0) <= FEASIBLE).all():
            yield f"{case.name}: an objective returned is nowhere in the trace"


def _misshapen(case: Case, found: Equilibrium) -> Iterator[str]:
    for name, start in (("z", case.z0), ("x", case.x0), ("mu", case.z0)):
        got = getattr(found, name)
        if isinstance(got, Tensor) != isinstance(start, Tensor) or _form(got) != _form(start):
            yield f"{case.name}: {name} is {_form(got)}, expected {_form(start)}"
        elif not is_finite(got):
            yield f"{case.name}: {name} is not finite"
    for name in PER_SAMPLE:
        got = getattr(found, name)
        if got.shape != case.x0.shape[:1] or got.device != case.x0.device:
            yield f"{case.name}: {name} has shape {tuple(got.shape)} on {got.device}, expected one value a sample"
    unknown = set(found.status.tolist()) - {int(status) for status in Status}
    if unknown:
        yield f"{case.name}: status holds {sorted(unknown)}, expected values of deqopt.Status"


def _form(state: State) -> str:
    return ", ".join(f"{tuple(part.shape)} {part.dtype} on {part.device}" for part in tensors_of(state))


def _lacking(case: Case, x: Tensor, share: float) -> Iterator[str]:
    """Where the objective at the feasible point of ``x`` is worse than at the start, or gains less than ``share``."""
    start, reached, best = case.value(case.x0), case.value(x), case.objective
    gained = (start - reached) / (start - best)
    lost = ~(gained >= -1e-3)
    precision = str(x.dtype).removeprefix("torch.")
    if lost.any():
        worst = int(gained.nan_to_num(nan=-torch.inf).argmin())
        yield (
            f"{case.name}, {precision}: sample {worst} ends at an objective of {reached[worst]:.4g}, worse than "
            f"its start's {start[worst]:.4g}"
        )
    elif gained.mean() < share:
        yield (
            f"{case.name}, {precision}: {gained.mean():.1%} of the possible gain, expected at least {share:.0%} "
            f"(objective {start.mean():.4g} at the start, {reached.mean():.4g} reached, {best.mean():.4g} at best)"
        )


CLAUSES = clauses_of(__name__)
