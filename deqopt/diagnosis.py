"""Why a call of a cell or an objective failed: found by looking at what it is and at what it was given."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from deqopt.batch import leaves
from deqopt.state import State, detach

DEPTH = 3
"""How many functions within functions are looked into."""


def explain(
    error: Exception,
    function: Callable[..., Any],
    name: str,
    given: tuple[State, Tensor, Any],
    check: Callable[[Any], None],
) -> str | None:
    """One sentence on why ``function(z, x)``, or with data ``function(z, x, data)``, failed; None if it is not known.

    Args:
        error: how it failed.
        name: ``cell`` or ``objective``.
        given: z, x and data; data is None where there is none.
        check: raises where something is not what the function should return.
    """
    _, x, data = given
    reason = _wrong_arguments(function, name, data is not None) if isinstance(error, TypeError) else None
    reason = reason or _swapped(function, name, given, check)
    if reason is None and isinstance(error, RuntimeError):
        reason = _mixed_types(function, name, x, data)
        reason = reason and f"{reason} ({type(error).__name__}: {' '.join(str(error).split())})"
    return reason


def _wrong_arguments(function: Callable[..., Any], name: str, has_data: bool) -> str | None:
    called = nn.Module.__call__ if isinstance(function, nn.Module) else None
    target = function.forward if isinstance(function, nn.Module) and type(function).__call__ is called else function
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # written in C
        return None
    if _takes(signature, 3 if has_data else 2):
        return None
    if not has_data and _takes(signature, 3):
        return (
            f"{name} takes three arguments, {signature}, but the problem has no data, so it is called as {name}(z, x): "
            "give JointProblem(data=...), which is passed on as the third"
        )
    if has_data and _takes(signature, 2):
        return (
            f"{name} takes two arguments, {signature}, but the problem has data, so {name}(z, x, data) is called: "
            "take the data as a third, or leave it out"
        )
    call = f"{name}(z, x, data)" if has_data else f"{name}(z, x)"
    return f"{name} cannot be called as {call}: its arguments are {signature}"


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _swapped(
    function: Callable[..., Any], name: str, given: tuple[State, Tensor, Any], check: Callable[[Any], None]
) -> str | None:
    z, x, data = given
    if isinstance(z, Tensor) and z.shape == x.shape:
        return None
    others = (x.detach(), detach(z))
    try:
        with torch.no_grad():
            check(function(*others) if data is None else function(*others, data))
    except Exception:  # whatever foreign code raises: then the order is not what is wrong
        return None
    call = f"{name}(z, x)" if data is None else f"{name}(z, x, data)"
    return (
        f"{name} has its arguments in another order: it is called as {call}, the state z first and the input x second"
    )


def _mixed_types(function: Callable[..., Any], name: str, x: Tensor, data: Any) -> str | None:
    if torch.is_autocast_enabled(x.device.type):
        return None
    others = [
        (what, tensor.dtype)
        for what, tensor in (*_reached(function, "", DEPTH), *(("data", leaf) for leaf in leaves(data)))
        if tensor.is_floating_point() and tensor.dtype != x.dtype
    ]
    if not others:
        return None
    what, dtype = others[0]
    message = (
        f"{name} failed where two types meet: it is given z and x in {_short(x.dtype)}, and {what} is {_short(dtype)}"
    )
    if dtype in (torch.float16, torch.bfloat16):
        return (
            f"{message}: states are kept in float32 at least; use torch.autocast, in a Trainer precision='bf16-mixed'"
        )
    return f"{message}: bring z0, x0, weights and data to one type (of z0 and x0, the wider counts)"


def _reached(one: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a callable reaches, by name, as far as can be seen without calling it."""
    if isinstance(one, Tensor):
        yield name, one
    elif isinstance(one, nn.Module):
        for inner, tensor in (*one.named_parameters(), *one.named_buffers()):
            yield f"{name}.{inner}" if name else inner, tensor
    elif depth and isinstance(one, partial):
        for part in (one.func, *one.args, *one.keywords.values()):
            yield from _reached(part, name, depth - 1)
    elif depth and isinstance(one, MethodType):
        yield from _reached(one.__self__, name, depth - 1)
        yield from _reached(one.__func__, name, depth - 1)
    elif depth and isinstance(one, FunctionType):
        known = inspect.getclosurevars(one)
        for inner, value in (*known.nonlocals.items(), *known.globals.items()):
            yield from _reached(value, inner, depth - 1)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
