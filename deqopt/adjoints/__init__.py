"""How gradients reach theta from the solution of a joint problem: one file a method."""

from deqopt.adjoints.base import Adjoint
from deqopt.adjoints.envelope import Envelope

__all__ = ["Adjoint", "Envelope"]
