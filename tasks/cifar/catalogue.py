"""The attacks by name, with settings in units of the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from typing import Any

from torch import Tensor

from deqopt.fixed_point import Anderson
from deqopt.solvers import PGD as SteepestDescent
from deqopt.solvers import Bilevel, JointAnderson, JointBroyden, JointSolver, SecantTracking, StepRule

from .attacks import Attack, Joint, MakeProblem, MakeStart
from .gradients import GradientBy
from .threat import Threat
from .torch_attacks import APGD, PGD, AutoAttack, Square

INNER = Anderson(max_nfe=12)


class AttackName(Enum):
    """The names of the attacks."""

    SOLVERS = "solvers"
    """The solvers of deqopt on the joint problem: secant tracking, joint Anderson, joint Broyden, bilevel PGD."""
    PGD = "pgd"
    """Projected gradient ascent with the implicit gradient."""
    PGD_UNROLLED = "pgd_unrolled"
    """Projected gradient ascent with the gradient of plain updates, which needs no solve for the multiplier."""
    APGD = "apgd"
    """Auto-PGD with the implicit gradient."""
    SQUARE = "square"
    """Random search that uses only logits: finds attacks that masked gradients hide."""
    AUTOATTACK = "autoattack"
    """The standard ensemble; takes as long as dozens of the other attacks."""


def attacks_named(
    names: Sequence[AttackName],
    problem: MakeProblem,
    start: MakeStart,
    classes: int,
    steps: int = 50,
    evaluations: int = 100,
    queries: int = 500,
) -> list[Attack]:
    """The attacks, in the order of their names; a name that is given twice counts once.

    All except SOLVERS need the extra ``adversarial``; :meth:`Attack.require` checks it.

    Args:
        problem: function from images, labels and a radius to the joint problem, whose x is added to the images.
        start: function from images to ``(z0, x0)``.
        classes: number of classes of the classifier.
        steps: steps of PGD and APGD; AutoAttack keeps its published 100.
        evaluations: evaluations of the joint solvers; bilevel PGD gets three times as many.
        queries: queries of Square; AutoAttack keeps its published 5000.
    """
    made: dict[AttackName, Callable[[], list[Attack]]] = {
        AttackName.SOLVERS: partial(joint_attacks, problem, start, evaluations),
        AttackName.PGD: lambda: [PGD(steps=steps)],
        AttackName.PGD_UNROLLED: lambda: [PGD(name="PGD unrolled", gradient=GradientBy.UNROLLED, steps=steps)],
        AttackName.APGD: lambda: [APGD(steps=steps)],
        AttackName.SQUARE: lambda: [Square(queries=queries)],
        AttackName.AUTOATTACK: lambda: [AutoAttack(classes=classes)],
    }
    return [attack for name in dict.fromkeys(names) for attack in made[name]()]


def joint_attacks(problem: MakeProblem, start: MakeStart, evaluations: int = 100) -> list[Attack]:
    """The solvers of deqopt, with steps that were chosen among 1/4 to 2 of the longest perturbation, on digits.

    Those of joint Anderson and joint Broyden are normalised, so that they do not depend on how confident the classifier
    is. Bilevel PGD goes up by steepest ascent in the threat's norm, at warm-started solves.
    """
    fixed: dict[str, Any] = {"max_nfe": evaluations, "tol": 0.0}
    mixing = {**fixed, "step_rule": StepRule.NORMALISED, "history_size": 6}

    def bilevel(threat: Threat, images: Tensor) -> JointSolver:
        descent = SteepestDescent(lr=2 * threat.radius / 5, norm=threat.norm)
        return Bilevel(max_nfe=3 * evaluations, tol=0.0, descent=descent, inner=INNER, warm=True)

    solvers: dict[str, Callable[[Threat, Tensor], JointSolver]] = {
        "secant tracking": lambda threat, images: SecantTracking(
            **fixed, step_size=2 * threat.reach(images), decay=0.5, settle=0
        ),
        "joint Anderson": lambda threat, images: JointAnderson(**mixing, step_size=threat.reach(images), ridge=1e-2),
        "joint Broyden": lambda threat, images: JointBroyden(**mixing, step_size=2 * threat.reach(images)),
        "bilevel PGD": bilevel,
    }
    return [Joint(name=name, problem=problem, start=start, solver=solver) for name, solver in solvers.items()]
