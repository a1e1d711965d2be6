"""Penalties on theta that keep the equilibrium solvable."""

from deqopt.regularizers.base import Regularizer
from deqopt.regularizers.jacobian import JacobianPenalty
from deqopt.regularizers.spectral import SpectralPenalty

__all__ = ["JacobianPenalty", "Regularizer", "SpectralPenalty"]
