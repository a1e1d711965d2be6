"""Who takes part, with the settings among which each may choose: equally many for all sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.solvers.contest import Competitor, Entrant, Missing, SettingsChoice, Side, SolverAtBudgets
from benchmarks.solvers.peers import (
    INSTALL,
    Adam,
    NormalisedGradient,
    PeerSolver,
    PublishedJointAnderson,
    Rule,
    TorchDEQDescent,
    torchdeq_is_installed,
)
from deqopt import solvers
from deqopt.fixed_point import Anderson
from deqopt.loop_settings import Norm
from deqopt.solvers import PGD, Bilevel, Descent, JointAnderson, JointBroyden, JointSolver, SecantTracking, StepRule

BILEVEL_ADAM = "Bilevel Adam warm"
BILEVEL_PGD_COLD = "Bilevel PGD cold, literature's step"
BILEVEL_PGD_WARM = "Bilevel PGD warm"
PEER_ADAM = "torchdeq Anderson, Adam warm"
PEER_PGD_COLD = "torchdeq Anderson, PGD cold, literature's step"
PEER_PGD_WARM = "torchdeq Anderson, PGD warm"
LITERATURE = 2.5
"""Over the number of steps: the step of projected-gradient attacks in units of the radius (Madry et al. 2018)."""


@dataclass(frozen=True)
class Effort:
    """How far everybody goes.

    Args:
        budgets: evaluations of the joint solvers.
        steps: of the descents; the last is where they are compared.
        attack_steps: the same for attacks.
        settings: among how many each chooses, at most 4.
        iterations: of the published joint method, for latent fitting and for attacks.
    """

    budgets: tuple[int, ...] = (12, 16, 20, 24, 28, 32, 40, 52, 64, 96)
    steps: tuple[int, ...] = (10, 20, 40)
    attack_steps: tuple[int, ...] = (5, 10, 20)
    settings: int = 4
    iterations: tuple[int, int] = (100, 80)


def of_latent_fitting(effort: Effort) -> list[Entrant | Missing]:
    """For latents that start at zero and end at lengths of about ten."""
    adam, lengths = [0.1, 0.2, 0.05, 0.4], [0.1, 0.2, 0.05, 0.4]
    tracking, longest = [1.0, 2.0, 0.5, 4.0], [1.0, 0.5, 2.0, 4.0]
    steps, mixing = [0.02, 0.05, 0.1, 0.01], [1.0, 3.0, 0.3, 10.0]
    every, last, cold = Moves(effort.steps), Moves(effort.steps[-1:]), Moves(effort.steps[-1:], warm=False)
    all_cold = replace(every, warm=False)
    jiio = [(0.03, 0.01), (0.01, 0.003), (0.1, 0.03), (0.003, 0.001)]
    anderson, broyden = partial(peer, PeerSolver.ANDERSON), partial(peer, PeerSolver.BROYDEN)
    return [
        joint("Tracking", solvers.Tracking(settle=0), tracking, effort),
        joint("SecantTracking", SecantTracking(settle=0), tracking, effort),
        joint("JointAnderson", JointAnderson(step_rule=StepRule.PLAIN), steps, effort),
        joint("JointBroyden", JointBroyden(step_rule=StepRule.PLAIN), steps, effort),
        joint("JointAnderson, normalised", JointAnderson(), mixing, effort),
        joint("JointBroyden, normalised", JointBroyden(), mixing, effort),
        bilevel(BILEVEL_ADAM, lambda step: solvers.Adam(lr=step), adam, every, effort),
        bilevel("Bilevel Adam cold", lambda step: solvers.Adam(lr=step), adam, cold, effort),
        bilevel("Bilevel PGD warm", lambda step: PGD(lr=step, norm=Norm.L2), lengths, last, effort),
        bilevel("Bilevel L-BFGS warm", lambda step: solvers.LBFGS(lr=0.1, longest=step), longest, last, effort),
        anderson(PEER_ADAM, Adam, adam, every, effort),
        anderson("torchdeq Anderson, Adam cold", Adam, adam, all_cold, effort),
        broyden("torchdeq Broyden, Adam warm", Adam, adam, every, effort),
        peer(PeerSolver.PLAIN, "torchdeq plain, Adam warm", Adam, adam, every, effort),
        anderson("torchdeq Anderson, PGD warm", NormalisedGradient, lengths, every, effort),
        broyden("torchdeq Broyden, PGD warm", NormalisedGradient, lengths, every, effort),
        published(jiio, effort.iterations[0], 40, False, effort),
    ]


def of_second_decoder(effort: Effort) -> list[Entrant | Missing]:
    """Those of latent fitting that were not clearly behind a kin of theirs on the first decoder."""
    return [
        one for one in of_latent_fitting(effort) if not any(word in one.name for word in ("cold", "PGD", "Broyden,"))
    ]


def of_attack(radius: float, effort: Effort) -> list[Entrant | Missing]:
    """For perturbations of at most ``radius``."""
    lengths = [radius * share for share in (0.5, 1.0, 0.25, 2.0)]
    steps = [radius * share for share in (1.0, 0.5, 2.0, 0.25)]
    longest = [radius * share for share in (0.125, 0.25, 0.06, 0.5)]
    warm = Moves(effort.attack_steps, evaluations=6)
    cheapest, cold = replace(warm, choice=SettingsChoice.CHEAPEST), Moves(effort.attack_steps[-1:], warm=False)
    literature = [LITERATURE * radius / effort.attack_steps[-1]]
    jiio = [(0.6, 0.2), (0.2, 0.07), (1.8, 0.6), (0.07, 0.02)]
    anderson, gradient = partial(peer, PeerSolver.ANDERSON), NormalisedGradient
    mixing = JointAnderson(step_rule=StepRule.PLAIN, history_size=6, ridge=1e-2)

    def by_length(step: float) -> Descent:
        return PGD(lr=step, norm=Norm.L2)

    def quasi_newton(step: float) -> Descent:
        return solvers.LBFGS(lr=0.1 * radius, longest=step)

    return [
        joint("Tracking", solvers.Tracking(inner=1, decay=0.5, settle=0), steps, effort),
        joint("SecantTracking", SecantTracking(decay=0.5, settle=0), steps, effort),
        joint("JointAnderson", mixing, [0.1, 0.3, 1.0, 0.03], effort),
        joint("JointBroyden", JointBroyden(step_rule=StepRule.NORMALISED), steps, effort),
        bilevel(BILEVEL_PGD_COLD, by_length, literature, cold, effort),
        bilevel(BILEVEL_PGD_WARM, by_length, lengths, cheapest, effort),
        bilevel("Bilevel L-BFGS warm", quasi_newton, longest, cheapest, effort),
        anderson(PEER_PGD_COLD, gradient, literature, cold, effort),
        anderson("torchdeq Anderson, PGD cold", gradient, lengths, cold, effort),
        anderson(PEER_PGD_WARM, gradient, lengths, cheapest, effort),
        peer(PeerSolver.BROYDEN, "torchdeq Broyden, PGD warm", gradient, lengths, cheapest, effort),
        peer(PeerSolver.PLAIN, "torchdeq plain, PGD warm", gradient, lengths, cheapest, effort),
        anderson("torchdeq Anderson, Adam warm", Adam, [0.1, 0.3, 0.03, 1.0], warm, effort),
        published(jiio, effort.iterations[1], 20, True, effort),
    ]


@dataclass(frozen=True)
class Moves:
    """How a descent moves x.

    Attributes:
        labels: how often; each is a solve of its own for :class:`Bilevel`.
        evaluations: in every solve for z.
        warm: whether solves start from the last move's.
        choice: how its settings are chosen.
    """

    labels: tuple[int, ...]
    evaluations: int = 12
    warm: bool = True
    choice: SettingsChoice = SettingsChoice.LAST


def joint(name: str, solver: JointSolver, steps: Sequence[float], effort: Effort) -> Entrant:
    """A joint solver of deqopt: every budget is a solve of its own, with the ``step_size`` chosen for it."""
    configured: Any = replace(solver, tol=0.0)

    def make(step: float, budget: int) -> JointSolver:
        found: JointSolver = replace(configured, max_nfe=budget, step_size=step)
        return found

    return Entrant(name, Side.OURS, _by_step(make, steps, effort), effort.budgets, SettingsChoice.EACH)


def bilevel(
    name: str, descent: Callable[[float], Descent], steps: Sequence[float], moves: Moves, effort: Effort
) -> Entrant:
    """deqopt's :class:`Bilevel`."""
    inner = Anderson(max_nfe=moves.evaluations, tol=0.0)

    def make(step: float, count: int) -> JointSolver:
        budget = 1 + (count + 1) * (moves.evaluations + 2)
        return Bilevel(max_nfe=budget, tol=0.0, descent=descent(step), inner=inner, warm=moves.warm)

    return Entrant(name, Side.BASELINE, _by_step(make, steps, effort), moves.labels, moves.choice)


def peer(
    solver: PeerSolver,
    name: str,
    rule: Callable[[float], Rule],
    steps: Sequence[float],
    moves: Moves,
    effort: Effort,
) -> Entrant | Missing:
    """Bilevel descent with a solver of torchdeq."""
    if not torchdeq_is_installed():
        return Missing(name, INSTALL)
    candidates: dict[str, Competitor] = {
        f"step {step:g}": TorchDEQDescent(partial(rule, step), solver, moves.evaluations, moves.warm)
        for step in steps[: effort.settings]
    }
    return Entrant(name, Side.PEER, candidates, moves.labels, moves.choice)


def published(
    steps: Sequence[tuple[float, float]], iterations: int, memory: int, normalised: bool, effort: Effort
) -> Entrant:
    """The joint method as published; its own steps, and others around them."""
    candidates: dict[str, Competitor] = {
        f"steps {early:g} and {late:g}": PublishedJointAnderson(early, late, memory, normalised)
        for early, late in steps[: effort.settings]
    }
    return Entrant("JIIO as published", Side.PEER, candidates, (iterations // 2, iterations), SettingsChoice.LAST)


def _by_step(
    make: Callable[[float, int], JointSolver], steps: Sequence[float], effort: Effort
) -> dict[str, Competitor]:
    """A solver with each of the steps that may be chosen."""
    return {f"step {step:g}": SolverAtBudgets(partial(make, step)) for step in steps[: effort.settings]}
