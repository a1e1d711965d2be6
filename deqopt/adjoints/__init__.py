"""Adjoints: methods by which gradients reach theta from the solution of a joint problem, one file per method."""

from deqopt.adjoint import Adjoint
from deqopt.adjoints.envelope import Envelope
from deqopt.adjoints.fixed_point import implicit_fixed_point
from deqopt.adjoints.implicit import Implicit, OnFailure
from deqopt.adjoints.input_held import InputHeld
from deqopt.adjoints.phantom import JacobianFree, Phantom
from deqopt.adjoints.unrolled import Unrolled

__all__ = [
    "Adjoint",
    "Envelope",
    "Implicit",
    "InputHeld",
    "JacobianFree",
    "OnFailure",
    "Phantom",
    "Unrolled",
    "implicit_fixed_point",
]
