"""Plain fixed points ``z = f(z)``, usable without the rest of deqopt."""

from deqopt.equilibrium import FixedPoint
from deqopt.fixed_point.anderson import Anderson, AndersonMixing, MixingType
from deqopt.fixed_point.base import FixedPointSolver
from deqopt.fixed_point.broyden import Broyden, BroydenUpdates
from deqopt.fixed_point.damped import Damped

__all__ = [
    "Anderson",
    "AndersonMixing",
    "Broyden",
    "BroydenUpdates",
    "Damped",
    "FixedPoint",
    "FixedPointSolver",
    "MixingType",
]
