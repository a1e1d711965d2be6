"""Chosen moments of a run: before and after Lightning's hooks, and where files are written."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from lightning.pytorch.trainer import call

from deqopt.testing.faults.forked import Prepare, Shared, Slot

Action = Callable[[Any], None]
"""What happens at a moment; it is given the trainer, or None where a file is written."""

OUTSIDE_TRAINING = {"setup": 1, "on_fit_start": 1, "on_sanity_check_start": 1, "on_sanity_check_end": 1}
IN_A_STEP = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
AROUND_STEPS = {
    "on_train_start": 1,
    "on_train_epoch_start": 2,
    "on_validation_start": 3,
    "on_validation_batch_start": 3,
    "on_validation_batch_end": 3,
    "on_validation_epoch_end": 3,
    "on_validation_end": 3,
    "on_train_epoch_end": 2,
    "on_train_end": 1,
    "on_fit_end": 1,
    "teardown": 1,
}
WRITES = ("fsync", "replace")


@dataclass(frozen=True)
class Moment:
    """The ``count``-th time (from 1) that a hook is called, before or after its callbacks; or a file is written."""

    hook: str
    count: int
    after: bool

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.hook} number {self.count}"

    def fault(self, action: Action) -> Prepare:
        """What lets the action happen at this moment of a child, and notes that it did."""

        def install(shared: Shared, rank: int) -> None:
            def act(trainer: Any) -> None:
                shared.fire()
                action(trainer)

            self._install(act)

        return install

    def _install(self, action: Action) -> None:
        if self.hook in WRITES:
            setattr(os, self.hook, self._wrapped(getattr(os, self.hook), lambda *_: True, action))
        else:
            call._call_callback_hooks = self._wrapped(  # type: ignore[assignment]
                call._call_callback_hooks, lambda trainer, hook, *_: hook == self.hook, action
            )

    def _wrapped(self, inner: Callable[..., Any], is_meant: Callable[..., bool], action: Action) -> Callable[..., Any]:
        calls = 0

        def wrapper(*args: Any, **settings: Any) -> Any:
            nonlocal calls
            meant = is_meant(*args)
            calls += meant
            now = meant and calls == self.count
            given = None if self.hook in WRITES else args[0]
            if now and not self.after:
                action(given)
            result = inner(*args, **settings)
            if now and self.after:
                action(given)
            return result

        return wrapper


def count_steps(shared: Shared, rank: int) -> None:
    """Tell the parent how many training steps are finished."""
    if rank:
        return
    inner = call._call_callback_hooks

    def wrapper(trainer: Any, hook: str, *args: Any, **settings: Any) -> None:
        if hook == "on_train_batch_end":
            shared[Slot.STEPS] = trainer.global_step
        inner(trainer, hook, *args, **settings)

    call._call_callback_hooks = wrapper  # type: ignore[assignment]


def drawn(random: Random, steps: int, hooks: Sequence[str] = ()) -> Moment:
    """A moment of a fit of so many steps: most lie in a step, as most of the time does."""
    after = random.random() < 0.5
    if hooks:
        return Moment(random.choice(hooks), random.randint(1, steps), after)
    kind = random.choices(("step", "around", "outside", "write"), (5, 4, 1, 2))[0]
    if kind == "step":
        return Moment(random.choice(IN_A_STEP), random.randint(1, steps), after)
    if kind == "write":
        return Moment(random.choice(WRITES), random.randint(1, 4), after)
    hook, calls = random.choice(sorted((AROUND_STEPS if kind == "around" else OUTSIDE_TRAINING).items()))
    return Moment(hook, random.randint(1, calls), after)
