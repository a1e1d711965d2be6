"""Lightning callbacks: checkpoints, figures, comparisons, written predictions, reports of unreadable files."""

from deqopt.callbacks.checkpoint import RunCheckpoint
from deqopt.callbacks.comparison import ComparisonReport
from deqopt.callbacks.figures import FigureWriter
from deqopt.callbacks.interruption import Interruption
from deqopt.callbacks.predictions import PredictionWriter
from deqopt.callbacks.resume import Resume
from deqopt.callbacks.together import EndTogether
from deqopt.callbacks.unreadable import ReportUnreadable

__all__ = [
    "ComparisonReport",
    "EndTogether",
    "FigureWriter",
    "Interruption",
    "PredictionWriter",
    "ReportUnreadable",
    "Resume",
    "RunCheckpoint",
]
