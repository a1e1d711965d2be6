"""Who takes part, with the settings among which each may choose: equally many for all sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.solvers.competitors import Choice, Competitor, Entrant, Missing, Side, SolverAtBudgets
from benchmarks.solvers.peers import (
    INSTALL,
    Adam,
    NormalisedGradient,
    PublishedJointAnderson,
    Rule,
    Solver,
    TorchDEQDescent,
    torchdeq_is_installed,
)
from deqopt import solvers
from deqopt.fixed_point import Anderson
from deqopt.loop_settings import Norm
from deqopt.solvers import (
    LBFGS,
    PGD,
    Bilevel,
    Descent,
    JointAnderson,
    JointBroyden,
    JointSolver,
    SecantTracking,
    StepRule,
    Tracking,
)

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
    tracking, steps, mixing = [1.0, 2.0, 0.5, 4.0], [0.02, 0.05, 0.1, 0.01], [1.0, 3.0, 0.3, 10.0]
    last = effort.steps[-1:]
    jiio = [(0.03, 0.01), (0.01, 0.003), (0.1, 0.03), (0.003, 0.001)]
    return [
        joint("Tracking", lambda step, n: Tracking(max_nfe=n, step_size=step, settle=0, tol=0.0), tracking, effort),
        joint(
            "SecantTracking",
            lambda step, n: SecantTracking(max_nfe=n, step_size=step, settle=0, tol=0.0),
            tracking,
            effort,
        ),
        joint(
            "JointAnderson",
            lambda step, n: JointAnderson(max_nfe=n, step_size=step, step_rule=StepRule.PLAIN, tol=0.0),
            steps,
            effort,
        ),
        joint(
            "JointBroyden",
            lambda step, n: JointBroyden(max_nfe=n, step_size=step, step_rule=StepRule.PLAIN, tol=0.0),
            steps,
            effort,
        ),
        joint(
            "JointAnderson, normalised",
            lambda step, n: JointAnderson(max_nfe=n, step_size=step, tol=0.0),
            mixing,
            effort,
        ),
        joint(
            "JointBroyden, normalised",
            lambda step, n: JointBroyden(max_nfe=n, step_size=step, tol=0.0),
            mixing,
            effort,
        ),
        bilevel(BILEVEL_ADAM, lambda step: solvers.Adam(lr=step), adam, effort.steps, effort),
        bilevel("Bilevel Adam cold", lambda step: solvers.Adam(lr=step), adam, last, effort, warm=False),
        bilevel("Bilevel PGD warm", lambda step: PGD(lr=step, norm=Norm.L2), lengths, last, effort),
        bilevel("Bilevel L-BFGS warm", lambda step: LBFGS(lr=0.1, longest=step), [1.0, 0.5, 2.0, 4.0], last, effort),
        peer(PEER_ADAM, Solver.ANDERSON, Adam, adam, effort.steps, effort),
        peer("torchdeq Anderson, Adam cold", Solver.ANDERSON, Adam, adam, effort.steps, effort, warm=False),
        peer("torchdeq Broyden, Adam warm", Solver.BROYDEN, Adam, adam, effort.steps, effort),
        peer("torchdeq plain, Adam warm", Solver.PLAIN, Adam, adam, effort.steps, effort),
        peer("torchdeq Anderson, PGD warm", Solver.ANDERSON, NormalisedGradient, lengths, effort.steps, effort),
        peer("torchdeq Broyden, PGD warm", Solver.BROYDEN, NormalisedGradient, lengths, effort.steps, effort),
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
    counts, last = effort.attack_steps, effort.attack_steps[-1:]
    literature = [LITERATURE * radius / last[0]]
    jiio = [(0.6, 0.2), (0.2, 0.07), (1.8, 0.6), (0.07, 0.02)]
    normalised, cheapest, gradient = StepRule.NORMALISED, Choice.CHEAPEST, NormalisedGradient

    def by_length(step: float) -> Descent:
        return PGD(lr=step, norm=Norm.L2)

    return [
        joint(
            "Tracking",
            lambda step, n: Tracking(max_nfe=n, step_size=step, inner=1, decay=0.5, settle=0, tol=0.0),
            steps,
            effort,
        ),
        joint(
            "SecantTracking",
            lambda step, n: SecantTracking(max_nfe=n, step_size=step, decay=0.5, settle=0, tol=0.0),
            steps,
            effort,
        ),
        joint(
            "JointAnderson",
            lambda step, n: JointAnderson(
                max_nfe=n, step_size=step, step_rule=StepRule.PLAIN, history_size=6, ridge=1e-2, tol=0.0
            ),
            [0.1, 0.3, 1.0, 0.03],
            effort,
        ),
        joint(
            "JointBroyden",
            lambda step, n: JointBroyden(max_nfe=n, step_size=step, step_rule=normalised, tol=0.0),
            steps,
            effort,
        ),
        bilevel(BILEVEL_PGD_COLD, by_length, literature, last, effort, warm=False),
        bilevel(BILEVEL_PGD_WARM, by_length, lengths, counts, effort, evaluations=6, choice=cheapest),
        bilevel(
            "Bilevel L-BFGS warm",
            lambda step: LBFGS(lr=0.1 * radius, longest=step),
            longest,
            counts,
            effort,
            evaluations=6,
            choice=cheapest,
        ),
        peer(PEER_PGD_COLD, Solver.ANDERSON, gradient, literature, last, effort, warm=False),
        peer("torchdeq Anderson, PGD cold", Solver.ANDERSON, gradient, lengths, last, effort, warm=False),
        peer(PEER_PGD_WARM, Solver.ANDERSON, gradient, lengths, counts, effort, 6, choice=cheapest),
        peer("torchdeq Broyden, PGD warm", Solver.BROYDEN, gradient, lengths, counts, effort, 6, choice=cheapest),
        peer("torchdeq plain, PGD warm", Solver.PLAIN, gradient, lengths, counts, effort, 6, choice=cheapest),
        peer("torchdeq Anderson, Adam warm", Solver.ANDERSON, Adam, [0.1, 0.3, 0.03, 1.0], counts, effort, 6),
        published(jiio, effort.iterations[1], 20, True, effort),
    ]


def joint(name: str, make: Callable[[float, int], JointSolver], steps: Sequence[float], effort: Effort) -> Entrant:
    """A joint solver of deqopt: every budget is a solve of its own, with the step chosen for it."""
    return Entrant(name, Side.OURS, _by_step(make, steps, effort), effort.budgets, Choice.EACH)


def bilevel(
    name: str,
    descent: Callable[[float], Descent],
    steps: Sequence[float],
    labels: tuple[int, ...],
    effort: Effort,
    evaluations: int = 12,
    warm: bool = True,
    choice: Choice = Choice.LAST,
) -> Entrant:
    """deqopt's :class:`Bilevel`; labels are moves of x, each of them a solve of its own."""
    inner = Anderson(max_nfe=evaluations, tol=0.0)

    def make(step: float, moves: int) -> JointSolver:
        budget = 1 + (moves + 1) * (evaluations + 2)
        return Bilevel(max_nfe=budget, tol=0.0, descent=descent(step), inner=inner, warm=warm)

    return Entrant(name, Side.BASELINE, _by_step(make, steps, effort), labels, choice)


def peer(
    name: str,
    solver: Solver,
    rule: Callable[[float], Rule],
    steps: Sequence[float],
    labels: tuple[int, ...],
    effort: Effort,
    evaluations: int = 12,
    warm: bool = True,
    choice: Choice = Choice.LAST,
) -> Entrant | Missing:
    """Bilevel descent with a solver of torchdeq; labels are steps."""
    if not torchdeq_is_installed():
        return Missing(name, INSTALL)
    candidates: dict[str, Competitor] = {
        f"step {step:g}": TorchDEQDescent(partial(rule, step), solver, evaluations, warm)
        for step in steps[: effort.settings]
    }
    return Entrant(name, Side.PEER, candidates, labels, choice)


def published(
    steps: Sequence[tuple[float, float]], iterations: int, memory: int, normalised: bool, effort: Effort
) -> Entrant:
    """The joint method as published; its own steps, and others around them."""
    candidates: dict[str, Competitor] = {
        f"steps {early:g} and {late:g}": PublishedJointAnderson(early, late, memory, normalised)
        for early, late in steps[: effort.settings]
    }
    return Entrant("JIIO as published", Side.PEER, candidates, (iterations // 2, iterations), Choice.LAST)


def _by_step(
    make: Callable[[float, int], JointSolver], steps: Sequence[float], effort: Effort
) -> dict[str, Competitor]:
    """A solver with each of the steps that may be chosen."""
    return {f"step {step:g}": SolverAtBudgets(partial(make, step)) for step in steps[: effort.settings]}
