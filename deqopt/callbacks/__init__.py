"""What happens around training: checkpoints, figures, written predictions."""

from deqopt.callbacks.checkpoint import RunCheckpoint
from deqopt.callbacks.figures import FigureWriter
from deqopt.callbacks.predictions import PredictionWriter

__all__ = ["FigureWriter", "PredictionWriter", "RunCheckpoint"]
