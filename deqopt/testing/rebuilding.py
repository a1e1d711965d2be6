"""Whether a checkpoint, or the command line, can make a solver or a task again from its settings."""

from __future__ import annotations

import importlib
import warnings
from functools import reduce
from typing import Any

from jsonargparse import ArgumentParser

from deqopt.spec import spec


def made_again(part: object) -> Any:
    """``part`` made anew from its description as plain data, the way a checkpoint does it.

    Raises:
        NotPlainError: an argument is no plain value.
        ArgumentError: a value does not fit the annotated type of its argument.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(part), "part", fail_untyped=False)
    with warnings.catch_warnings():
        # jsonargparse 4.49 renamed it, and earlier ones have the old name alone
        warnings.filterwarnings("ignore", message=r"(?s).*(JsonargparseDeprecationWarning|instantiate_classes)")
        return parser.instantiate_classes(parser.parse_object({"part": spec(part)["init_args"]})).part


def can_be_imported(kind: type) -> bool:
    """Whether its name leads back to the class; what a program defines itself is taken for granted."""
    if kind.__module__ == "__main__":
        return True
    module: Any = importlib.import_module(kind.__module__)
    found: Any = reduce(lambda scope, name: getattr(scope, name, None), kind.__qualname__.split("."), module)
    return found is kind
