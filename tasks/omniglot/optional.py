"""learn2learn (Arnold et al. 2020), an optional package that is imported only when it is used."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from importlib.util import find_spec
from types import ModuleType
from unittest.mock import patch

from deqopt.errors import ProblemError

INSTALL = (
    'pip install --no-deps --config-settings "--build-option=build_ext" '
    "learn2learn==0.2.0 gym==0.26.2 gym-notices==0.1.0"
)
"""Installs without the other dependencies, which need numpy < 2 and are not used; the option is for Python 3.11 and
later."""
NOTICES = "gym_notices"


def learn2learn(used_by: str, instead: str) -> ModuleType:
    """The package, imported on demand. The notice that its dependency gym writes to stderr is suppressed.

    Args:
        used_by: the feature that needs the package, for the message: "the sampler LEARN2LEARN".
        instead: the alternative that does not need it, for the message: "--task.sampler OWN".

    Raises:
        ProblemError: the package is not installed, or cannot be imported.
    """
    # gym prints the notices in this dictionary; all other output of gym and learn2learn is kept.
    unnoticed = patch.dict(f"{NOTICES}.notices.notices", clear=True) if find_spec(NOTICES) else nullcontext()
    try:
        with unnoticed:
            return importlib.import_module("learn2learn")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "learn2learn"
        state = "is not installed" if missing else f"cannot be imported ({error})"
        raise ProblemError(f"{used_by} needs learn2learn, which {state}: {INSTALL}; {instead} does without") from error
