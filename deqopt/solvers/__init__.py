"""Solvers for (z, x, mu): one file per method."""

from deqopt.memory import Memory
from deqopt.solvers.base import JointSolver
from deqopt.solvers.bilevel import Bilevel
from deqopt.solvers.descent import LBFGS, PGD, Adam, Descent
from deqopt.solvers.exact import solve_exactly
from deqopt.solvers.joint_anderson import JointAnderson
from deqopt.solvers.joint_broyden import JointBroyden
from deqopt.solvers.mixing import StepRule
from deqopt.solvers.secant_tracking import SecantTracking
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.solvers.tracking import Tracking

__all__ = [
    "LBFGS",
    "PGD",
    "Adam",
    "Bilevel",
    "Descent",
    "JointAnderson",
    "JointBroyden",
    "JointEvaluation",
    "JointSolver",
    "JointSystem",
    "Memory",
    "SecantTracking",
    "StepRule",
    "Tracking",
    "solve_exactly",
]
