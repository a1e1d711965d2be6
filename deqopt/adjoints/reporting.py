"""What a backward pass says of itself."""

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
    """One warning a backward pass about the samples that ``failed``, (B,), if any did.

    Args:
        who: the adjoint.
        what: happened to them: "ended above tol=1e-3, the worst with ...".
        advice: what to do.
    """
    if bool(failed.any()):
        warnings.warn(describe_backward(who, failed, what, advice), stacklevel=3)


def warn_of_samples(who: str, concerned: Tensor, what: str, advice: str) -> None:
    """One warning about the samples that are ``concerned``, (B,), if any are: the arguments are those of
    :func:`warn_of_backward`, for what is no matter of the backward solve."""
    if bool(concerned.any()):
        count = f"{int(concerned.sum())} of {len(concerned)} samples"
        warnings.warn(f"{who}: {count} {what}: {advice}", stacklevel=4)


def describe_backward(who: str, failed: Tensor, what: str, advice: str) -> str:
    """The sentence of :func:`warn_of_backward`."""
    return f"{who}: the backward solve of {int(failed.sum())} of {len(failed)} samples {what}: {advice}"


def worst_of(residual: Tensor) -> str:
    """The largest of ``residual``, (B,), as a warning names it."""
    known = residual[~residual.isnan()]
    said = [f"the worst with a relative residual of {float(known.max()):.1e}"] if len(known) else []
    if len(known) < len(residual):
        said.append("some with one that is not finite")
    return ", ".join(said)
