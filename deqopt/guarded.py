"""A LightningModule that keeps NaN and infinity out of its weights, and reports what it left out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from deqopt.batch import finite_samples, pick
from deqopt.errors import ProblemError
from deqopt.iteration import Status
from deqopt.step_guard import ADVICE, WEIGHTS_DIVERGED, StepGuard, check_weights, measures

LOST_DATA = "samples of a batch hold NaN or infinite values"
LOST_AT_START = "samples are NaN or infinite at their start although the data is finite"
LOST_LOSS = "samples of a batch have a loss that is NaN or infinite"
CHECK_DATA = "check the data that the task loads"

COUNTS = ("skipped", "left_out", "diverged")
"""What is logged of the guard, under train/: the totals of the run so far; of samples, those of the first process."""


class GuardedModule(LightningModule):
    """Skips optimiser steps whose gradient would spoil the run, and detects weights and logged figures that are NaN.

    All processes have the same gradients and weights when this is decided, so all make the same decision.

    Attributes:
        guard: decides about each step, and counts what was left out.
        offered: number of samples with a loss in the coming step, in this process.
        max_skipped: number of steps in a row that may be skipped before the run ends.

    Raises:
        NonFiniteError: more steps were skipped in a row, or all steps of an epoch or of a run; or the weights are NaN
            or infinite when a run begins, before an optimiser step, before an evaluation, or in a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guard = StepGuard()
        self.offered = 0
        self._lost_backward: Tensor | None = None
        self._cause = ""
        self._used, self._unused = 0, 0
        self._said: set[str] = set()

    @property
    def max_skipped(self) -> int:
        return 10

    # -- weights --------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        check_weights(self, self.global_step)

    def on_validation_start(self) -> None:
        check_weights(self, self.global_step)

    def on_test_start(self) -> None:
        check_weights(self, self.global_step)

    def on_predict_start(self) -> None:
        check_weights(self, self.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_weights(self, self.global_step)
        checkpoint["step_guard"] = self.guard.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.guard.load_state_dict(checkpoint.get("step_guard", {}))

    # -- steps ----------------------------------------------------------------------------------------------------

    def count_lost(self, lost: Tensor) -> None:
        """``lost``, (B,), samples got no gradient in a backward pass. Does not ask an accelerator how many."""
        count = lost.sum().float().reshape(1)
        self._lost_backward = count if self._lost_backward is None else self._lost_backward + count

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Keeps a gradient from the optimiser that the guard refuses. Without gradients it changes nothing, neither
        weights nor moments. Asks an accelerator once."""
        weights = [one for group in optimizer.param_groups for one in group["params"]]
        gradients = [one.grad for one in weights if one.grad is not None]
        if not gradients:
            return
        lost = gradients[0].new_zeros(1) if self._lost_backward is None else self._lost_backward
        length, largest, count = torch.cat([measures(gradients, weights), lost.to(gradients[0])]).tolist()
        if not math.isfinite(largest):
            check_weights(self, self.global_step)
        self.guard.diverged += int(count)
        complaint = self.guard.complaint(length)
        if complaint is None and length == 0 and not self._in_any_process(self.offered > count):
            complaint = "no sample of the step can be learned from"
        self._lost_backward, self.offered = None, 0
        if complaint is None:
            self.guard.use(length)
            self._used, self._cause = self._used + 1, ""
        else:
            self._skip(complaint, weights, of_gradient=not math.isfinite(length))
        self.log_dict({f"train/{name}": float(getattr(self.guard, name)) for name in COUNTS}, batch_size=1)

    def _skip(self, complaint: str, weights: Sequence[Tensor], of_gradient: bool) -> None:
        for one in weights:
            one.grad = None
        rank_zero_warn(f"{complaint}: training step {self.global_step} is skipped")
        self.note(complaint, ADVICE)
        # A gradient scaler skips such steps itself until it has found its scale.
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        searching = of_gradient and scaler is not None and scaler.get_scale() > 1
        cause, self._cause = self._cause, ""
        if not searching:
            self._unused += 1
        self.guard.skip(cause, None if searching else self.max_skipped)

    def _in_any_process(self, true: bool) -> bool:
        """Whether ``true`` holds in one of the processes; to be asked in all at once."""
        count = torch.tensor(float(true), device=self.device)
        return bool(self.trainer.strategy.reduce(count, reduce_op="sum"))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ends a run in which nothing is learned any more, before it is validated."""
        if self.trainer.is_last_batch:
            if self._unused > 1 and not self._used:
                self.guard.stop("a whole epoch")
            self._used = self._unused = 0

    def on_train_end(self) -> None:
        if self.guard.row and not self.guard.taken:
            self.guard.stop("the whole run")

    # -- what is left out -----------------------------------------------------------------------------------------

    def finite(self, batch: Any) -> Any:
        """The samples of a batch whose values are finite, with a warning where some are not; None where none is.

        Raises:
            ProblemError: it has no samples.
        """
        keep = finite_samples(batch)
        if not len(keep):
            raise ProblemError(f"a batch has 0 samples, at training step {self.global_step}: check the task's loaders")
        lost = int((~keep).sum())
        if not lost:
            return batch
        self.leave_out(lost, len(keep), LOST_DATA, CHECK_DATA)
        return None if lost == len(keep) else pick(batch, keep)

    def leave_out_solved(self, status: Tensor, keep: Tensor) -> None:
        """Leave out the samples that are not to be kept, (B,): by how their solve ended, (B,), or by their loss. Of
        those that diverged, the adjoint warns."""
        count = len(keep)
        diverged, at_start = (int((status == one).sum()) for one in (Status.DIVERGED, Status.NON_FINITE))
        self.guard.diverged += diverged
        if diverged == count:
            self.note(f"the solve of all {count} samples of a batch diverged", ADVICE)
        self.leave_out(at_start, count, LOST_AT_START, WEIGHTS_DIVERGED)
        self.leave_out(count - int(keep.sum()) - diverged - at_start, count, LOST_LOSS, ADVICE)

    def leave_out(self, lost: int, count: int, what: str, advice: str) -> None:
        """Count ``lost`` of ``count`` samples of a batch that are left out, and say so."""
        if not lost:
            return
        training = self._trainer is None or self.trainer.training
        if training:
            self.guard.left_out += lost
        if lost == count:
            self.note(f"all {lost} {what}", advice)
        if lost < count or training:  # else an error says so
            warnings.warn(f"{lost} of {count} {what}: left out", stacklevel=3)

    def note(self, what: str, advice: str) -> None:
        """Keep the first cause of what may end the run."""
        self._cause = self._cause or self.cause(what, advice)

    def cause(self, what: str, advice: str) -> str:
        """What is wrong, when, and what to do."""
        return f"{what}, at training step {self.global_step}: {advice}"

    # -- figures --------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self) -> None:
        check_weights(self, self.global_step)
        self._say_what_is_no_number()

    def on_validation_end(self) -> None:
        self._say_what_is_no_number()

    def on_test_end(self) -> None:
        self._say_what_is_no_number()

    def _say_what_is_no_number(self) -> None:
        """Warn once of every figure that is NaN, and of a loss that is infinite."""
        for name, value in self.trainer.callback_metrics.items():
            bad = not math.isfinite(value) if name.endswith("/loss") else math.isnan(value)
            if bad and name not in self._said:
                self._said.add(name)
                rank_zero_warn(f"{name} is {float(value)} at training step {self.global_step}: it says nothing")
