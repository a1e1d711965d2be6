"""Networks that several tasks may use: cells, injections into cells, and heads on their states."""

from deqopt.nn.bounded import BoundedCell
from deqopt.nn.decoder import Decoder
from deqopt.nn.heads import ImageHead, PixelHead
from deqopt.nn.injections import ImageInjection, LatentInjection
from deqopt.nn.multiscale import MultiscaleCell, branch_shapes, group_norm

__all__ = [
    "BoundedCell",
    "Decoder",
    "ImageHead",
    "ImageInjection",
    "LatentInjection",
    "MultiscaleCell",
    "PixelHead",
    "branch_shapes",
    "group_norm",
]
