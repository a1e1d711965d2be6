"""Penalties on theta that keep the equilibrium solvable."""

from deqopt.regularizers.base import Regularizer
from deqopt.regularizers.jacobian import JacobianPenalty

__all__ = ["JacobianPenalty", "Regularizer"]
