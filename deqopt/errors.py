"""The errors that deqopt raises on purpose: each names what was wrong, where, and what would be right.

The command line prints their text as one line and exits with status 2; everything else is a bug and keeps
its traceback.
"""


class DeqoptError(Exception):
    """Base of every error whose text is written for the user."""


class DataError(DeqoptError):
    """A data set that is missing, empty, unreadable or of the wrong shape, type or value range."""


class PluginError(DeqoptError):
    """A task or solver that is unknown or cannot be imported."""


class ProblemError(DeqoptError, ValueError):
    """A joint problem, a start or a setting that does not fit: shapes, types, devices, ranges."""


class NonFiniteError(DeqoptError, ArithmeticError):
    """Every sample of a batch is NaN or infinite, in the data, in the weights, or in the solve."""


class BackwardError(DeqoptError, ArithmeticError):
    """The linear system behind a gradient was not solved to its tolerance, and the adjoint was told to raise."""


class CheckpointError(DeqoptError):
    """A checkpoint that is missing, unreadable or belongs to another task."""
