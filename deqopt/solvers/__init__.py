"""How (z, x, mu) is found: one file a strategy."""

from deqopt.solvers.base import JointSolver
from deqopt.solvers.exact import solve_exactly
from deqopt.solvers.joint_anderson import JointAnderson
from deqopt.solvers.mixing import StepRule
from deqopt.solvers.system import JointEvaluation, JointSystem
from deqopt.solvers.tracking import Tracking

__all__ = ["JointAnderson", "JointEvaluation", "JointSolver", "JointSystem", "StepRule", "Tracking", "solve_exactly"]
