"""Errors and warnings of backward passes."""

from __future__ import annotations

import warnings

from torch import Tensor

from deqopt.errors import ProblemError


def check_reaches_theta(value: Tensor) -> None:
    """Raise ProblemError unless ``value``, computed from constants and theta, carries a gradient."""
    if not value.requires_grad:
        raise ProblemError(
            "nothing to differentiate: neither cell nor objective reaches a parameter that requires a gradient; "
            "call solve() without adjoint, or unfreeze the parameters"
        )


def warn_of_backward(who: str, failed: Tensor, what: str, advice: str) -> None:
    """One warning per backward pass about the samples that ``failed``, (B,), if any failed.

    Args:
        who: name of the adjoint.
        what: what happened to the samples: "ended above tol=1e-3, the worst with ...".
        advice: what the user can do.
    """
    if bool(failed.any()):
        warnings.warn(describe_backward(who, failed, what, advice), stacklevel=3)


def warn_of_samples(who: str, concerned: Tensor, what: str, advice: str) -> None:
    """One warning about the samples that are ``concerned``, (B,), if any are. For warnings that do not concern the
    backward solve; the arguments are those of :func:`warn_of_backward`."""
    if bool(concerned.any()):
        count = f"{int(concerned.sum())} of {len(concerned)} samples"
        warnings.warn(f"{who}: {count} {what}: {advice}", stacklevel=4)


def describe_backward(who: str, failed: Tensor, what: str, advice: str) -> str:
    """The sentence of :func:`warn_of_backward`."""
    return f"{who}: the backward solve of {int(failed.sum())} of {len(failed)} samples {what}: {advice}"


def worst_of(residual: Tensor) -> str:
    """Text for a warning about the largest ``residual``, (B,)."""
    known = residual[~residual.isnan()]
    said = [f"the worst with a relative residual of {float(known.max()):.1e}"] if len(known) else []
    if len(known) < len(residual):
        said.append("some with one that is not finite")
    return ", ".join(said)
