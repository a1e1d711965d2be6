"""Cells and heads that several tasks may use."""

from deqopt.nn.multiscale import ImageHead, LatentInjection, MultiscaleCell, branch_shapes, group_norm

__all__ = ["ImageHead", "LatentInjection", "MultiscaleCell", "branch_shapes", "group_norm"]
