"""The attacks by name, with settings in units of the radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial

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
    """The solvers of deqopt. Their steps were chosen on digits, among 1/4 to 2 times the longest perturbation."""
    solvers: dict[str, Callable[[int, Threat, Tensor], JointSolver]] = {
        "secant tracking": secant_tracking,
        "joint Anderson": joint_anderson,
        "joint Broyden": joint_broyden,
        "bilevel PGD": bilevel_pgd,
    }
    return [
        Joint(name=name, problem=problem, start=start, solver=partial(solver, evaluations))
        for name, solver in solvers.items()
    ]


def secant_tracking(evaluations: int, threat: Threat, images: Tensor) -> JointSolver:
    """Secant tracking whose first steps are twice as long as the longest perturbation."""
    step = 2 * threat.reach(images)
    return SecantTracking(max_nfe=evaluations, tol=0.0, step_size=step, decay=0.5, settle=0)


def joint_anderson(evaluations: int, threat: Threat, images: Tensor) -> JointSolver:
    """Joint Anderson with normalised steps, which do not depend on the confidence of the classifier."""
    step, rule = threat.reach(images), StepRule.NORMALISED
    return JointAnderson(max_nfe=evaluations, tol=0.0, step_size=step, step_rule=rule, history_size=6, ridge=1e-2)


def joint_broyden(evaluations: int, threat: Threat, images: Tensor) -> JointSolver:
    """Joint Broyden with normalised steps, twice as long as those of joint Anderson."""
    step, rule = 2 * threat.reach(images), StepRule.NORMALISED
    return JointBroyden(max_nfe=evaluations, tol=0.0, step_size=step, step_rule=rule, history_size=6)


def bilevel_pgd(evaluations: int, threat: Threat, images: Tensor) -> JointSolver:
    """Steepest ascent in the norm of the threat with warm-started solves, and constant steps of 2/5 of the radius."""
    descent = SteepestDescent(lr=2 * threat.radius / 5, norm=threat.norm)
    return Bilevel(max_nfe=3 * evaluations, tol=0.0, descent=descent, inner=INNER, warm=True)
