"""Deep equilibrium networks whose inputs are optimised while they are being inferred.

    min_x  J(z, x; y)     subject to   z = f_theta(z, x),   x in X

The names below are imported on first use, so that ``deqopt tasks`` answers without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deqopt.equilibrium import Equilibrium
    from deqopt.errors import DeqoptError
    from deqopt.iteration import Status
    from deqopt.module import JointModule
    from deqopt.problem import JointProblem
    from deqopt.task import Task

__version__ = "0.1.0"
__all__ = ["DeqoptError", "Equilibrium", "JointModule", "JointProblem", "Status", "Task", "__version__"]

_HOMES = {
    "DeqoptError": "deqopt.errors",
    "Equilibrium": "deqopt.equilibrium",
    "JointModule": "deqopt.module",
    "JointProblem": "deqopt.problem",
    "Status": "deqopt.iteration",
    "Task": "deqopt.task",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
