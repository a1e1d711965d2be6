"""Deep equilibrium networks whose inputs are optimised while they are being inferred.

    min_x  J(z, x; y)     subject to   z = f_theta(z, x),   x in X

The names below and the modules, as in ``deqopt.solvers.Tracking``, are imported on first use, so that ``deqopt tasks``
answers without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deqopt import adjoints as adjoints
    from deqopt import callbacks as callbacks
    from deqopt import data as data
    from deqopt import errors as errors
    from deqopt import feasible as feasible
    from deqopt import fixed_point as fixed_point
    from deqopt import nn as nn
    from deqopt import regularizers as regularizers
    from deqopt import solvers as solvers
    from deqopt import testing as testing
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
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    modules = (module.name for module in iter_modules(__path__) if not module.name.startswith("_"))
    return sorted({*__all__, *modules, *(name for name in globals() if name.startswith("__"))})
