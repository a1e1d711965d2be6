"""NaN, infinity and numbers that are far too large, at any place of a run: on one rank or on all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deqopt.testing.faults.forked import Ended, Prepare, Shared
from deqopt.testing.faults.judgement import goes_on, no_traceback
from deqopt.testing.faults.moments import Moment
from deqopt.testing.faults.outcome import Outcome, expect
from deqopt.testing.faults.tiny import TinyImages
from deqopt.testing.faults.workbench import STEPS, Case, figures, loaded

VALUES = {"NaN": math.nan, "infinity": math.inf, "-infinity": -math.inf, "1e30": 1e30}
WORDS = re.compile(r"\b(nan|inf|infinite|not finite|skipped|left out|diverged)\b", re.IGNORECASE)
LARGEST_MOMENT = 1e20
WORSE = 10.0
PREDICTION, LOSS = "a prediction in validation", "the loss of a sample of validation"
Spoil = Callable[[float, int], Prepare]
"""Installs a value at a step."""


def _tasks(name: str, value: float, step: int, training: bool, change: Callable[[Any, float], Any]) -> Prepare:
    """Change what a method of the task returns, in one step of training or in all of validation."""

    def install(shared: Shared, rank: int) -> None:
        calls, inner = 0, getattr(TinyImages, name)

        def method(task: TinyImages, *args: Any) -> Any:
            nonlocal calls
            found = inner(task, *args)
            if task.training is not training:
                return found
            calls += 1
            if training and calls != step:
                return found
            shared.fire()
            return change(found, value)

        setattr(TinyImages, name, method)

    return install


def _one(found: Tensor, value: float) -> Tensor:
    mask = torch.zeros_like(found, dtype=torch.bool)
    mask[0] = True
    return torch.where(mask, value, found)


def _all(found: Tensor, value: float) -> Tensor:
    return torch.where(torch.ones_like(found, dtype=torch.bool), value, found)


def _longer(found: Tensor, value: float) -> Tensor:
    """A loss whose gradient is too large, while it is in itself sound where the value is."""
    return found * value


def _prediction(found: tuple[Tensor, Tensor], value: float) -> tuple[Tensor, Tensor]:
    return _one(found[0], value), found[1]


def _gradient(value: float, step: int) -> Prepare:
    """The gradient of one parameter in one step."""

    def spoil(trainer: Any) -> None:
        parameter = next(trainer.lightning_module.task.parameters())
        parameter.grad = torch.full_like(parameter, value)

    return Moment("on_after_backward", step, False).fault(spoil)


def _weights(value: float, step: int) -> Prepare:
    """One weight, between two steps."""

    def spoil(trainer: Any) -> None:
        with torch.no_grad():
            next(trainer.lightning_module.task.parameters()).view(-1)[0] = value

    return Moment("on_train_batch_start", step, False).fault(spoil)


PASSING: dict[str, Spoil] = {
    "the loss of one sample": lambda value, step: _tasks("loss", value, step, True, _one),
    "the loss of all samples": lambda value, step: _tasks("loss", value, step, True, _all),
    "a factor of the loss": lambda value, step: _tasks("loss", value, step, True, _longer),
    "a gradient": _gradient,
}
MEASURED: dict[str, Spoil] = {
    LOSS: lambda value, step: _tasks("loss", value, step, False, _one),
    PREDICTION: lambda value, step: _tasks("outcome", value, step, False, _prediction),
}


def in_a_step(case: Case) -> None:
    """A number in one step that is not finite, or far too large, does not spoil the run: it is left out and said."""
    place = case.random.choice(sorted(PASSING))
    name = case.random.choice(sorted(VALUES))
    step = case.random.randint(1, STEPS)
    case.fault = f"{name} for {place} in step {step}"
    ended = case.command("fit", prepare=[PASSING[place](VALUES[name], step)])
    no_traceback(ended)
    expect(ended.status == 0, Outcome.LOST, f"one bad step ended the run: {ended}")
    _sound(case, name, ended)


def in_the_weights(case: Case) -> None:
    """Weights that are not finite end the run in one line, and never reach a checkpoint."""
    name = case.random.choice(sorted(set(VALUES) - {"1e30"}))
    step = case.random.randint(1, STEPS)
    case.fault = f"a weight becomes {name} before step {step}"
    ended = case.command("fit", prepare=[_weights(VALUES[name], step)])
    no_traceback(ended)
    expect(ended.status != 0, Outcome.SILENT, f"the run ended well: {ended}")
    _said(ended)
    for path in (*case.checkpoints("last"), *case.checkpoints("best")):
        loaded(path)
    if step > STEPS // 2 + 1:
        expect(bool(case.checkpoints()), Outcome.LOST, "no last.ckpt of the first validation")
    if case.checkpoints():
        goes_on(case)


def in_a_measurement(case: Case) -> None:
    """A figure of validation that is NaN, and a loss that is not finite, is said, and does not end the run."""
    # a prediction may be infinite, such as the PSNR of a perfect image: its figure must be said where it is NaN
    wrong = [(PREDICTION, "NaN"), *((LOSS, name) for name in ("-infinity", "NaN", "infinity"))]
    place, name = case.random.choice(wrong)
    case.fault = f"{name} for {place}"
    ended = case.command("fit", prepare=[MEASURED[place](VALUES[name], 0)])
    no_traceback(ended)
    _said(ended)
    expect(bool(case.checkpoints()), Outcome.LOST, f"no last.ckpt: {ended}")
    loaded(case.checkpoints()[0])


def _sound(case: Case, name: str, ended: Ended) -> None:
    expect(bool(case.checkpoints()), Outcome.LOST, "the run ended well and left no last.ckpt")
    content = loaded(case.checkpoints()[0])
    expect(content["global_step"] >= STEPS - 1, Outcome.LOST, f"last.ckpt is of step {content['global_step']}")
    moments = [
        value.abs().max().item()
        for state in content["optimizer_states"][0]["state"].values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    expect(
        max(moments, default=0.0) < LARGEST_MOMENT, Outcome.SILENT, "the optimiser is spoilt for the rest of the run"
    )
    run = case.checkpoints()[0].parents[1]
    found, expected = figures(run)["val/loss"], figures(case.bench.reference)["val/loss"]
    expect(found < WORSE * expected, Outcome.SILENT, f"val/loss is {found:.3g} in place of {expected:.3g}")
    if name != "1e30":
        _said(ended)


def _said(ended: Ended) -> None:
    expect(WORDS.search(ended.said) is not None, Outcome.SILENT, f"nothing was said: {ended}")
