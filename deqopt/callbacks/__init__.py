"""What happens around training: checkpoints, figures, written predictions, files that cannot be read."""

from deqopt.callbacks.checkpoint import RunCheckpoint
from deqopt.callbacks.figures import FigureWriter
from deqopt.callbacks.predictions import PredictionWriter
from deqopt.callbacks.unreadable import ReportUnreadable

__all__ = ["FigureWriter", "PredictionWriter", "ReportUnreadable", "RunCheckpoint"]
