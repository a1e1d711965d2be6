"""How (z, x, mu) is found: one file a strategy."""

from deqopt.solvers.base import JointEvaluation, JointLayout, JointSolver
from deqopt.solvers.exact import solve_exactly
from deqopt.solvers.joint_anderson import JointAnderson
from deqopt.solvers.tracking import Tracking

__all__ = ["JointAnderson", "JointEvaluation", "JointLayout", "JointSolver", "Tracking", "solve_exactly"]
