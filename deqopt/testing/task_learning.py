"""Clauses on what a task learns: its loss, the gradients of theta, and what a checkpoint keeps of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from deqopt.batch import leaves, size_of
from deqopt.spec import spec
from deqopt.testing.bench import Bench
from deqopt.testing.rebuilding import can_be_imported, made_again
from deqopt.testing.report import clauses_of
from deqopt.testing.trial import differences, same_bits


def the_loss_is_one_value_a_sample(bench: Bench) -> Iterator[str]:
    """loss() is (B,), floating-point and finite, in training and at evaluation."""
    for training in (True, False):
        batch = bench.batch("train" if training else "test")
        with bench.mode(training):
            equilibrium = bench.solve(batch, bench.adjoint)[1] if training else bench.solve_exactly(batch)
            loss = bench.task.loss(equilibrium, batch)
        when = "in training" if training else "at evaluation"
        if not isinstance(loss, Tensor) or loss.shape != (size_of(batch),) or not loss.is_floating_point():
            got = f"{tuple(loss.shape)} {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            yield f"{when}: it is {got}, expected ({size_of(batch)},), one floating-point value a sample"
        elif not loss.isfinite().all():
            yield f"{when}: it is {loss.tolist()}"


def every_parameter_gets_a_gradient(bench: Bench) -> Iterator[str]:
    """The training loss reaches every parameter that requires a gradient, and all gradients are finite."""
    named = {name: part for name, part in bench.task.named_parameters() if part.requires_grad}
    if not named:
        yield "no parameter requires a gradient: there is nothing to learn"
        return
    batch = bench.batch("train")
    with bench.mode(training=True):
        loss = bench.task.loss(bench.solve(batch, bench.adjoint)[1].detach_held(), batch).mean()
        if not loss.requires_grad:
            yield (
                f"the loss carries no gradient at all: with {type(bench.adjoint).__name__} it must be made of what "
                "carries one (equilibrium.objective with Envelope; z and x need another adjoint)"
            )
            return
        gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    by_name = dict(zip(named, gradients, strict=True))
    missing = [name for name, gradient in by_name.items() if gradient is None]
    broken = [name for name, gradient in by_name.items() if gradient is not None and not gradient.isfinite().all()]
    if missing:
        yield f"no gradient reaches {', '.join(missing)}: remove them, or freeze them with requires_grad_(False)"
    if broken:
        yield f"the gradients of {', '.join(broken)} are NaN or infinite"
    if not any(gradient is not None and bool(gradient.any()) for gradient in gradients):
        yield "all gradients are zero"


def a_checkpoint_can_rebuild_it(bench: Bench) -> Iterator[str]:
    """Its arguments are plain values from which the same task can be made again; with its state_dict, which loads with
    weights_only=True, it gives the same solutions."""
    task, batch = bench.task, bench.batch()
    again = made_again(task)
    if not can_be_imported(type(task)):
        yield f"{spec(task)['class_path']} is another class"
    stream = io.BytesIO()
    torch.save(task.state_dict(), stream)
    stream.seek(0)
    again.load_state_dict(torch.load(stream, map_location=bench.device, weights_only=True))
    again.to(bench.device)
    with bench.mode(training=False):
        expected = bench.solve(batch)[1]
    other = replace(bench, task=again)
    with other.mode(training=False):
        found = other.solve(batch)[1]
    pairs = [(row, row) for row in range(size_of(batch))]
    yield from differences(found, expected, "made again", pairs, tol=1e-5)
    if not all(same_bits(value, other.state()[name]) for name, value in bench.state().items()):
        yield "made again it has other parameters or buffers: what is not in the state_dict is lost"


def nothing_else_is_changed(bench: Bench) -> Iterator[str]:
    """Nothing that a task does changes the batch or its own train and eval modes, and evaluation changes neither
    parameters nor buffers."""
    for training in (True, False):
        batch = bench.batch("train" if training else "test")
        when = "in training" if training else "at evaluation"
        with bench.mode(training):
            copies, modes, state = [leaf.clone() for leaf in leaves(batch)], bench.modes(), bench.state()
            equilibrium = bench.solve(batch, bench.adjoint)[1] if training else bench.solve_exactly(batch)
            bench.task.loss(equilibrium, batch)
            if bench.task.metrics():
                bench.task.outcome(equilibrium, batch)
            changed = [name for name, mode in bench.modes().items() if modes[name] != mode]
            touched = [name for name, value in bench.state().items() if not same_bits(value, state[name])]
        if not all(same_bits(leaf, copy) for leaf, copy in zip(leaves(batch), copies, strict=True)):
            yield f"{when}: a tensor of the batch was written into: make a copy first"
        if changed:
            yield f"{when}: the mode of {', '.join(name or 'the task' for name in changed)} is another afterwards"
        if touched and not training:
            yield f"{when}: {', '.join(touched)} changed"


CLAUSES = clauses_of(__name__)
