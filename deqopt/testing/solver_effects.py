"""Clauses on side effects: a solve depends on what it is given, and changes nothing but what it returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deqopt.adjoints import Envelope, Unrolled
from deqopt.equilibrium import Equilibrium
from deqopt.errors import ProblemError
from deqopt.state import leaf, tensors_of
from deqopt.testing.problems import ALL, BALL, DATA, LINEAR, TANH, TUPLE, Family
from deqopt.testing.report import Inapplicable, clauses_of
from deqopt.testing.solver_samples import EVERYONE
from deqopt.testing.trial import STEPS, Trial, Walk, differences, gradients_of_steps, same_bits, solve

# Of theta, in finite differences.
SHIFT = 1e-6


def the_same_seed_gives_the_same_bits(trial: Trial) -> Iterator[str]:
    """With the same torch.manual_seed a solve gives the same bits."""
    for family in (BALL, DATA, TANH):
        results = []
        for _ in range(2):
            torch.manual_seed(7)
            results.append(solve(trial.short, trial.case(family), visits=3))
        if not same_bits(*map(_everything, results)):
            yield f"{family.name}: two solves after torch.manual_seed(7) differ"


def nothing_is_kept_between_solves(trial: Trial) -> Iterator[str]:
    """A solver remembers nothing of an earlier solve: what a solve remembers is in the Memory that begin() makes."""
    case, other = trial.case(LINEAR), trial.case(LINEAR, ALL[::-1])
    before = repr(trial.short)
    solver = trial.short
    solve(solver, other)
    torch.manual_seed(7)
    first = solve(solver, case)
    torch.manual_seed(7)
    second = solve(solver, case)
    if not same_bits(_everything(first), _everything(second)):
        yield "the same problem solved twice, after another one, has two results"
    torch.manual_seed(7)
    if not same_bits(_everything(solve(replace(solver), case)), _everything(second)):
        yield "a solver that was used before gives another result than a new one with the same settings"
    if repr(solver) != before:
        yield f"its settings have changed from {before} to {solver!r}"


def the_step_changes_nothing_in_place(trial: Trial) -> Iterator[str]:
    """step() returns new rows of states and of inputs, shaped and typed like at.states and at.x, and writes into no
    tensor that it was handed."""
    for family in (LINEAR, BALL, DATA):
        case = trial.case(family)
        walk = Walk.of(trial, case)
        changed: dict[str, None] = {}
        for _ in range(STEPS):
            at = walk.system.evaluate(walk.point)
            handed = dict(vars(at))
            before = {name: (value.clone(), value._version) for name, value in handed.items()}
            with torch.no_grad():
                after = trial.short.step(walk.system, at, walk.memory)
            for name, (copy, version) in before.items():
                if handed[name]._version != version or not same_bits(handed[name], copy):
                    changed[name] = None
            unlike = [
                f"{tuple(part.shape)} {part.dtype} for {name} {tuple(here.shape)} {here.dtype}"
                for name, part, here in zip(("states", "x"), after, (at.states, at.x), strict=True)
                if part.shape != here.shape or part.dtype is not here.dtype
            ]
            if unlike:
                yield f"{case.name}: step returned {' and '.join(unlike)}"
                break
            walk.point = walk.system.join(*after).detach()
        if changed:
            yield f"{case.name}: step wrote into {', '.join(changed)}"


def the_start_is_left_alone(trial: Trial) -> Iterator[str]:
    """The start, the data and theta keep their values and get no gradient, nor does the result without an adjoint."""
    for family in (LINEAR, TUPLE, DATA):
        case = trial.case(family)
        z0, mu0, x0 = leaf(case.z0), leaf(case.z0), case.x0.clone().requires_grad_()
        data = dict(case.problem.data or {})
        given = {"z0": tensors_of(z0), "mu0": tensors_of(mu0), "x0": (x0,), "theta": case.theta}
        given |= {f"data[{name!r}]": (value,) for name, value in data.items()}
        copies = {name: tuple(part.detach().clone() for part in parts) for name, parts in given.items()}
        found = trial.short.solve(case.problem, z0, x0, mu0=mu0)
        for name, parts in given.items():
            if not same_bits(tuple(part.detach() for part in parts), copies[name]):
                yield f"{case.name}: the solve changed {name}"
            if any(part.grad is not None for part in parts):
                yield f"{case.name}: the solve left a gradient in {name}"
        if any(part.requires_grad for part in _everything(found)):
            yield f"{case.name}: the result requires a gradient, although no adjoint was asked for"


def it_works_without_grad(trial: Trial) -> Iterator[str]:
    """Under torch.no_grad a solve gives the same result; a step that differentiates enables gradients itself."""
    for family in (BALL, TANH):
        case = trial.case(family)
        free = solve(trial.short, case)
        with torch.no_grad():
            found = solve(trial.short, case, adjoint=Envelope())
        yield from differences(found, free, f"{case.name}, under no_grad", EVERYONE)
        if any(part.requires_grad for part in _everything(found)):
            yield f"{case.name}: the result requires a gradient under no_grad"


def an_adjoint_is_attached(trial: Trial) -> Iterator[str]:
    """With an adjoint the values are the same, and the objective carries a gradient to theta."""
    for family in (LINEAR, DATA):
        case = trial.case(family)
        plain = solve(trial.short, case)
        found = solve(trial.short, case, adjoint=Envelope())
        yield from differences(found, plain, f"{case.name}, with an adjoint", EVERYONE)
        if not found.objective.requires_grad:
            yield f"{case.name}: with adjoint=Envelope() the objective carries no gradient"
            continue
        gradients = torch.autograd.grad(found.objective.sum(), case.theta, allow_unused=True)
        if any(part is None or not part.isfinite().all() or not part.any() for part in gradients):
            yield f"{case.name}: with adjoint=Envelope() the gradient to theta is missing, zero or not finite"


def it_can_be_differentiated_through(trial: Trial) -> Iterator[str]:
    """With Unrolled the gradient is that of the steps taken, as finite differences of the solve show; a solver that
    cannot be differentiated through says so with ProblemError."""
    solver = trial.within(STEPS) or trial.short

    def direction(theta: Tensor) -> Tensor:
        return torch.arange(theta.numel(), dtype=theta.dtype, device=theta.device).sin().reshape(theta.shape)

    for family in (LINEAR, BALL):

        def found(shift: float, family: Family = family) -> tuple[Tensor, Tensor]:
            case = trial.case(family)
            theta = case.theta[0]
            with torch.no_grad():
                theta += shift * direction(theta)
            return solve(solver, case, adjoint=Unrolled()).x.cos().sum(), theta

        try:
            value, theta = found(0.0)
        except ProblemError as refusal:
            raise Inapplicable(str(refusal)) from refusal
        if not value.requires_grad:
            yield f"{family.name}: x carries no gradient"
            continue
        (gradient,) = gradients_of_steps(value, [theta])
        along = float((gradient * direction(theta)).sum())
        expected = float((found(SHIFT)[0] - found(-SHIFT)[0]).detach()) / (2 * SHIFT)
        if not abs(along - expected) <= 1e-3 * (1 + abs(expected)):
            yield f"{family.name}: a derivative of x is {along:.5g}, expected {expected:.5g} by finite differences"


def _everything(found: Equilibrium) -> tuple[Tensor, ...]:
    visited = [part for z, x in found.visited for part in (*tensors_of(z), x)]
    blocks = (*tensors_of(found.z), found.x, *tensors_of(found.mu), found.objective, found.residual)
    return (*blocks, found.status, found.nfe, *visited)


CLAUSES = clauses_of(__name__)
