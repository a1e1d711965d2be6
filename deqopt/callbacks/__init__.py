"""What happens around training: figures, written predictions."""

from deqopt.callbacks.figures import FigureWriter
from deqopt.callbacks.predictions import PredictionWriter

__all__ = ["FigureWriter", "PredictionWriter"]
