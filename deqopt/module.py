"""JointModule: the LightningModule of all tasks. It goes batch -> problem -> solve -> equilibrium -> loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection

from deqopt.adjoints import Adjoint, Unrolled
from deqopt.batch import pick, size_of
from deqopt.batch_loss import BatchLoss
from deqopt.callbacks.resume import Resume
from deqopt.compiled import CompiledCell
from deqopt.equilibrium import BackwardReport, Equilibrium
from deqopt.errors import NonFiniteError, ProblemError, require
from deqopt.guarded import CHECK_DATA, LOST_AT_START, LOST_DATA, GuardedModule
from deqopt.optimization import Optimization
from deqopt.problem import JointProblem
from deqopt.rebuilding import FromCheckpoint
from deqopt.regularizers import Regularizer
from deqopt.solvers import JointSolver, solve_exactly
from deqopt.spec import NotPlainError, spec
from deqopt.step_guard import WEIGHTS_DIVERGED, check_weights, usable_losses, zero_loss
from deqopt.task import Task
from deqopt.weights import cached_weights

STAGES = ("train", "val", "test")


class JointModule(FromCheckpoint, GuardedModule):
    """Trains and runs a task: solves its joint problem on every batch and differentiates the outer loss.

    Validation and testing first solve z (and mu) exactly for the returned x, so that the reported values are feasible.
    ``JointModule.load_from_checkpoint(path)`` rebuilds the module with all its parts. If an argument of the task or of
    another part is not a plain value (see :class:`Task`), the checkpoint holds only the weights, and all parts must be
    passed to ``load_from_checkpoint``.

    Args:
        task: the task to solve and learn.
        solver: solver for (z, x, mu); by default that of the task.
        adjoint: method by which gradients reach theta; by default that of the task.
        regularizers: penalties added to the loss, such as the Jacobian penalty.
        optimization: optimiser and learning-rate schedule of theta.
        compile: whether the solve uses the task's ``cell`` compiled with torch.compile. Gradients to theta and
            regularisers use the cell without compilation, because compiled code cannot be differentiated twice.

    Raises:
        ProblemError: ``compile`` is set, but the task has no module named ``cell``, or the adjoint differentiates the
            solve.

    Example:
        >>> from deqopt import JointModule
        >>> from deqopt.solvers import Tracking
        >>> from deqopt_tasks.celeba.task import CelebA
        >>> module = JointModule(CelebA(size=16, image_channels=1), solver=Tracking(max_nfe=8))
        >>> module.solver.max_nfe
        8
    """

    def __init__(
        self,
        task: Task,
        solver: JointSolver | None = None,
        adjoint: Adjoint | None = None,
        regularizers: Sequence[Regularizer] | None = None,
        optimization: Optimization | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        require(task, Task, "task")
        self.task = task
        self.solver = solver or task.default_solver()
        self.adjoint = adjoint or task.default_adjoint()
        self.regularizers = tuple(regularizers or ())
        self.optimization = optimization or Optimization()
        for part, kind, name in (
            (self.solver, JointSolver, "solver"),
            (self.adjoint, Adjoint, "adjoint"),
            (self.optimization, Optimization, "optimization"),
            *((one, Regularizer, "a regularizer") for one in self.regularizers),
        ):
            require(part, kind, name)
        metrics = {stage: MetricCollection(dict(task.metrics()), prefix=f"{stage}/") for stage in STAGES}
        self.stages = nn.ModuleDict({_metrics_name(stage): one for stage, one in metrics.items()})
        if compile and isinstance(self.adjoint, Unrolled):
            raise ProblemError(
                f"{type(self.adjoint).__name__} differentiates the solve, and compiled code cannot be differentiated "
                "twice: leave compile off, or use another adjoint"
            )
        self._compiled = CompiledCell.of(task) if compile else None
        self._describe(compile)
        self._batch_started = 0.0
        self._backward: BackwardReport | None = None
        self._differentiable = torch.zeros(0, dtype=torch.bool)
        self._holds = False

    @property
    def max_skipped(self) -> int:
        return self.optimization.max_skipped

    # -- the solve ------------------------------------------------------------------------------------------------

    def solve(
        self, batch: Any, adjoint: Adjoint | None = None, record: bool = False
    ) -> tuple[JointProblem, Equilibrium]:
        """The joint problem of a batch and its solution from the task's start.

        Raises:
            NonFiniteError: a sample is NaN or infinite before the first step although the batch is finite.
        """
        problem, equilibrium = self._solved(batch, adjoint, record)
        lost = int((~equilibrium.usable).sum())
        if lost:
            check_weights(self, self.global_step)
            raise NonFiniteError(self.cause(f"{lost} of {len(equilibrium.usable)} {LOST_AT_START}", WEIGHTS_DIVERGED))
        return problem, equilibrium

    def _solved(
        self, batch: Any, adjoint: Adjoint | None = None, record: bool = False
    ) -> tuple[JointProblem, Equilibrium]:
        """Like :meth:`solve`, but the result includes samples that are NaN or infinite at their start."""
        problem = self.task.problem(batch)
        z0, x0 = self.task.start(batch)
        visits = max((one.visits for one in self.regularizers), default=0) if adjoint is not None else 0

        def run(problem: JointProblem) -> Equilibrium:
            with self._compiled.active() if self._compiled else nullcontext():
                return self.solver.solve(problem, z0, x0, record=record, visits=visits)

        return problem, run(problem) if adjoint is None else adjoint.solve(run, problem)

    def forward(self, batch: Any) -> Equilibrium:
        """The solution for a batch, without gradients to theta."""
        with torch.enable_grad(), cached_weights(self):
            return self.solve(batch)[1]

    # -- the steps ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuses precisions that keep the weights in half precision.

        Raises:
            ProblemError: ``bf16-true``, ``16-true`` and similar precisions.
        """
        precision = str(self.trainer.precision)
        if precision.endswith("-true") and precision not in ("32-true", "64-true"):
            raise ProblemError(
                f"precision {precision} keeps weights in half precision, but z, mu and x need at least float32: use "
                "bf16-mixed, which computes cell and objective in bfloat16"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self._batch_started = time.perf_counter()

    def loss_of(self, batch: Any) -> BatchLoss:
        """The mean loss of the usable samples plus the penalties: the value that :meth:`training_step` differentiates.
        The method needs no Trainer and logs nothing, so it can be used in your own training loop:

            loss = module.loss_of(batch).total
            loss.backward()

        Samples are left out if their data, start or loss is NaN or infinite, or if their solve diverged. The task gets
        only the remaining samples, because 0 times NaN is NaN in a gradient. If no sample remains, the loss is 0.

        Raises:
            ProblemError: the batch has no samples.
        """
        batch = self.finite(batch)
        if batch is None:
            return BatchLoss(zero_loss(self), zero_loss(self))
        with cached_weights(self):
            problem, solved = self._solved(batch, self.adjoint)
            losses, used, used_batch = self._learned_from(solved, batch)
            total = mean = losses.mean() if len(losses) else zero_loss(self)
            points, penalties = solved.detach_held(), {}
            for regularizer in self.regularizers:
                penalties[regularizer.name] = regularizer.penalty(problem, points)
                total = total + regularizer.weight * penalties[regularizer.name]
        return BatchLoss(total, mean, used_batch, used, solved, penalties)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The total of :meth:`loss_of`, which Lightning differentiates; logs its parts."""
        self._backward, self._holds = None, False
        with cached_weights(self):
            loss = self.loss_of(batch)
            if loss.equilibrium is None or loss.solved is None:
                return loss.total
            self._backward, self._holds = loss.solved.backward, bool(loss.solved.held)
            self._differentiable = loss.solved.differentiable
            for name, penalty in loss.penalties.items():
                self._log("train", name, penalty, batch)
            if loss.samples:
                self.offered += loss.samples
                self._log_solve("train", loss.equilibrium, loss.batch)
                self._log("train", "loss", loss.mean, loss.batch)
                every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
                if every and (self.global_step + 1) % every == 0:
                    self._update_metrics("train", loss.equilibrium, loss.batch)
        return loss.total

    def _learned_from(self, equilibrium: Equilibrium, batch: Any) -> tuple[Tensor, Equilibrium, Any]:
        """The losses of the usable samples, their solutions, and their part of the batch. Waits for an accelerator
        once, to find out whether all samples are usable."""
        losses = self.task.loss(equilibrium, batch)
        keep = usable_losses(losses) & equilibrium.differentiable
        if bool(keep.all()):
            return losses, equilibrium, batch
        self.leave_out_solved(equilibrium.status, keep)
        used, used_batch = equilibrium.pick(keep), pick(batch, keep)
        return self.task.loss(used, used_batch) if len(used.x) else losses[:0], used, used_batch

    def on_after_backward(self) -> None:
        """Logs how the linear system behind the gradient was solved, or how much the gradient grew.

        Raises:
            ProblemError: the adjoint holds values fixed, and the loss depends on nothing else.
        """
        if self._holds and self.trainer.world_size == 1 and all(one.grad is None for one in self.parameters()):
            raise ProblemError(
                f"the loss of {type(self.task).__name__} reaches no parameter: with {type(self.adjoint).__name__} it "
                "must depend on eq.objective, which carries the gradient; for a loss of eq.z, eq.x or eq.mu use "
                "--adjoint Implicit or Unrolled"
            )
        report = self._backward
        if report is None:
            return
        if report.lost is not None:
            self.count_lost(report.lost & self._differentiable)
        for name, value in report.figures().items():
            self.log(f"train/backward_{name}", value, batch_size=len(self._differentiable))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        elapsed = time.perf_counter() - self._batch_started
        self._log("train", "samples_per_second", self.trainer.world_size * size_of(batch) / elapsed, batch)
        super().on_train_batch_end(outputs, batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluation_step("val", batch, record=batch_idx == 0)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluation_step("test", batch, record=batch_idx == 0)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        with torch.enable_grad(), cached_weights(self):
            batch, problem, equilibrium = self._usable(batch)
            return {"batch": batch, "equilibrium": solve_exactly(problem, equilibrium)}

    def _evaluation_step(self, stage: str, batch: Any, record: bool) -> dict[str, Any]:
        with torch.enable_grad(), cached_weights(self):
            batch, problem, solved = self._usable(batch, record)
            exact = solve_exactly(problem, solved)
            with torch.no_grad():
                self._log(stage, "loss", self.task.loss(exact, batch).mean(), batch)
                self._log_solve(stage, exact, batch)
                self._update_metrics(stage, exact, batch)
        return {"batch": batch, "equilibrium": exact, "solved": solved}

    def _usable(self, batch: Any, record: bool = False) -> tuple[Any, JointProblem, Equilibrium]:
        """The samples of a batch whose data and start are finite, and their solution. Reports how many were left out.

        Raises:
            NonFiniteError: no sample has finite data and a finite start.
        """
        given = self.finite(batch)
        if given is None:
            raise NonFiniteError(self.cause(f"all {size_of(batch)} {LOST_DATA}", CHECK_DATA))
        problem, solved = self._solved(given, record=record)
        usable = solved.usable
        lost = int((~usable).sum())
        if not lost:
            return given, problem, solved
        if lost == len(usable):
            raise NonFiniteError(self.cause(f"all {lost} {LOST_AT_START}", WEIGHTS_DIVERGED))
        self.leave_out(lost, len(usable), LOST_AT_START, WEIGHTS_DIVERGED)
        given = pick(given, usable)
        return given, self.task.problem(given), solved.pick(usable)

    # -- configuration --------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimization.optimizer(self.task.parameters())
        scheduler = self.optimization.scheduler(
            optimizer, self.optimization.length(self.trainer.estimated_stepping_batches)
        )
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        return [*self.task.callbacks(), Resume()]

    def _describe(self, compile: bool) -> None:
        """Write into the hyper-parameters what a checkpoint needs to make this module again; plain data only."""
        parts = ("task", "solver", "adjoint", "regularizers", "optimization")
        try:
            described = {**{name: spec(getattr(self, name)) for name in parts}, "compile": compile}
        except NotPlainError:
            return
        described["optimization"] = described["optimization"]["init_args"]
        self.save_hyperparameters({**described, "_instantiator": "lightning.pytorch.cli.instantiate_module"})

    # -- logging --------------------------------------------------------------------------------------------------

    def _log(self, stage: str, name: str, value: Tensor | float, batch: Any, prog_bar: bool = False) -> None:
        self.log(
            f"{stage}/{name}",
            value,
            batch_size=size_of(batch),
            prog_bar=prog_bar,
            on_step=stage == "train",
            on_epoch=stage != "train",
            sync_dist=stage != "train",
        )

    def _log_solve(self, stage: str, equilibrium: Equilibrium, batch: Any) -> None:
        for name in ("objective", "residual", "nfe", "converged"):
            mean = getattr(equilibrium, name).detach().float().mean()
            self._log(stage, name, mean, batch, prog_bar=name != "converged")

    def _update_metrics(self, stage: str, equilibrium: Equilibrium, batch: Any) -> None:
        metrics = self.stages[_metrics_name(stage)]
        assert isinstance(metrics, MetricCollection)
        if not len(metrics):
            return
        with torch.no_grad():
            prediction, target = self.task.outcome(equilibrium, batch)
            prediction, target = prediction.float(), target.float() if target.is_floating_point() else target
            if stage == "train":
                self.log_dict(metrics(prediction, target), batch_size=size_of(batch))
                metrics.reset()
            else:
                metrics.update(prediction, target)
                self.log_dict(metrics, batch_size=size_of(batch))


def _metrics_name(stage: str) -> str:
    return f"{stage}_metrics"
