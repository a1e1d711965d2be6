"""Feasible sets of the input x and the projections onto them. All act on every sample of a batch alone."""

from deqopt.feasible.base import A_SAMPLE, FeasibleSet
from deqopt.feasible.intersection import Intersection
from deqopt.feasible.sets import Ball, Box, Everywhere, L2Ball, L2BallInBox, LinfBall

__all__ = ["A_SAMPLE", "Ball", "Box", "Everywhere", "FeasibleSet", "Intersection", "L2Ball", "L2BallInBox", "LinfBall"]
