"""A sane solver, and for every clause of the solver contract one mutant of it or more that breaks the clause.

A mutant without settings of its own is a frozen dataclass by inheritance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deqopt import Equilibrium, JointProblem
from deqopt.loop_settings import LoopSettings
from deqopt.memory import Memory
from deqopt.solvers import JointEvaluation, JointSolver, JointSystem


@dataclass(frozen=True)
class Descent(JointSolver):
    """``z <- f``, ``mu <- g_z`` and a plain projected gradient step of x, all at once: sane."""

    max_nfe: int = 150
    step_size: float = 0.05

    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        return at.image, system.project(at.x - self.step_size * memory.rate * self.direction(at, memory))

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x


# -- settings ---------------------------------------------------------------------------------------------------------


class Undecorated(Descent):
    momentum: float = 0.5


class Attributed(Descent):
    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "history", [])


@dataclass(frozen=True)
class HoldsTensor(Descent):
    weights: Tensor | None = None


@dataclass(frozen=True)
class HoldsModule(Descent):
    network: Any = None


def local() -> JointSolver:
    class Local(Descent):
        pass

    return Local()


class Unchecked(Descent):
    def __post_init__(self) -> None:
        assert self.step_size > 0


# -- steps ------------------------------------------------------------------------------------------------------------


class NeedsSamples(Descent):
    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> Memory:
        assert x.abs().max() < torch.inf or x.isnan().any()
        return super().begin(system, states, x)


class Unprojected(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        return at.image, at.x - self.step_size * at.g_x


class HiddenEvaluations(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        w = system.join(*super().step(system, at, memory))
        return super().step(system, system.evaluate(w), memory)


class Doubles(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        states, x = super().step(system, at, memory)
        return states.double(), x.double()


class Detaches(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        states, x = super().step(system, at, memory)
        return states.detach(), x.detach()


class Writes(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        return at.states.copy_(at.image), super().step(system, at, memory)[1]


@dataclass(frozen=True)
class Scaled(Descent):
    """Stands still with 0, and climbs with -1."""

    factor: float = 0.0

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return self.factor * at.g_x


class Couples(Descent):
    """The step of a sample depends on the mean gradient of the batch."""

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x / (1 + 0.1 * at.g_x.mean().abs())


class Undefined(Descent):
    """A normalised step that divides by zero."""

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x / at.g_x.norm(dim=1, keepdim=True)


class Gradients(Memory):
    def __init__(self, w: Tensor) -> None:
        super().__init__(w)
        self.past: list[Tensor] = []


class HoldsList(Descent):
    """A memory that the loop cannot pick from."""

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> Memory:
        return Gradients(x)

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        assert isinstance(memory, Gradients)
        memory.past.append(at.g_x)
        return (memory.past[-1] + memory.past[-2]) / 2 if len(memory.past) > 1 else at.g_x


class Unseeded(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return at.g_x * (1 + 0.1 * torch.rand((), generator=generator).to(at.g_x))


class WritesIntoTheGradient(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x.clamp_(-10, 10)


class DetachesTheGradient(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x.detach()


class Overflows(Descent):
    """Multiplies by one, with a derivative that float32 cannot hold."""

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        nothing = (at.g_x - at.g_x.detach()).square().sum(1, keepdim=True) + 1e-36
        return at.g_x * nothing * (1 / nothing)


# -- starts -----------------------------------------------------------------------------------------------------------


class Lenient(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        return super().solve(problem, z0, x0 if x0.is_floating_point() else x0.float(), **how)


class Jitters(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        return super().solve(problem, z0, problem.feasible.project(x0 + 1e-3), **how)


class WritesIntoTheStart(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        x0.detach().mul_(0.5).add_(1e-3)
        return super().solve(problem, z0, x0, **how)


class LeavesGradients(Descent):
    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        with torch.enable_grad():
            problem.J(z0, x0.requires_grad_()).sum().backward()
        return super().solve(problem, z0, x0, **how)


class Remembers(Descent):
    """Starts where the last solve ended."""

    last: ClassVar[dict[torch.Size, Tensor]] = {}

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found = super().solve(problem, z0, self.last.get(x0.shape, x0), **how)
        self.last[x0.shape] = found.x.detach()
        return found


# -- results that are not what they say, or cost more than they say ---------------------------------------------------


class TwiceAsLong(Descent):
    """Goes on from where it ended."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        first = super().solve(problem, z0, x0, **how)
        second = super().solve(problem, first.z, first.x, **{**how, "mu0": first.mu})
        return replace(second, nfe=first.nfe + second.nfe)


class ReturnsTheStart(Descent):
    """Where J is lower at the start."""

    def solve(self, problem: JointProblem, z0: Any, x0: Tensor, **how: Any) -> Equilibrium:
        found, first = super().solve(problem, z0, x0, **how), problem.J(z0, x0).detach()
        better = first < found.objective
        objective = torch.where(better, first, found.objective)
        return replace(found, x=torch.where(better[:, None], x0, found.x), objective=objective)


class Untraced(Descent):
    def solve(self, *given: Any, record: bool = False, **how: Any) -> Equilibrium:
        return super().solve(*given, **how)


class TracedLonger(Descent):
    def solve(self, *given: Any, record: bool = False, **how: Any) -> Equilibrium:
        return Descent(max_nfe=self.max_nfe + record, tol=self.tol).solve(*given, record=record, **how)


class DropsTheAdjoint(Descent):
    def solve(self, *given: Any, adjoint: Any = None, **how: Any) -> Equilibrium:
        return super().solve(*given, **how)


class Tells(Descent):
    """Makes something else of an honest result: what ``told`` returns."""

    def solve(self, problem: JointProblem, *start: Any, **how: Any) -> Equilibrium:
        return self.told(super().solve(problem, *start, **how), problem)  # type: ignore[attr-defined, no-any-return]


class Flat(Tells):
    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, x=found.x.flatten(1), nfe=found.nfe.float().mean())


class HalfTheCost(Tells):
    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, nfe=(found.nfe + 1) // 2)


class Inflated(Tells):
    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, nfe=torch.full_like(found.nfe, self.max_nfe))


class Halves(Tells):
    """Returns inputs in the precision of the autocast around it."""

    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, x=found.x.bfloat16()) if torch.is_autocast_enabled(found.x.device.type) else found


class Flatters(Tells):
    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, residual=found.residual / 100)


class AlwaysConverged(Tells):
    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, status=torch.zeros_like(found.status))


class ConvergesInUnits(Tells):
    """Takes a small objective for a solution."""

    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, status=found.status.masked_fill(found.objective < 1e-6, 0))


class Polishes(Tells):
    """A last gradient step, by autograd that somebody else has to enable."""

    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        x = found.x.detach().requires_grad_()
        torch.autograd.grad(problem.J(found.z, x).sum(), x)
        return found


class Promises(Tells):
    """Says what it hopes for."""

    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        assert found.state_lag is not None
        return replace(found, objective=0.5 * found.objective, state_lag=0 * found.state_lag)


class Overruns(Tells):
    """Leaves its solution when it has time left."""

    def told(self, found: Equilibrium, problem: JointProblem) -> Equilibrium:
        return replace(found, x=problem.feasible.project(found.x - 0.5)) if self.max_nfe > 100 else found


COUPLED = ("samples_are_solved_as_if_alone", "a_nan_sample_harms_no_other")
COUPLED += ("a_sample_that_becomes_nan_harms_no_other", "a_diverging_sample_harms_no_other")
MUTANTS: dict[str, list[LoopSettings]] = {
    "settings_are_a_frozen_dataclass": [Undecorated(), Attributed()],
    "a_checkpoint_can_describe_it": [HoldsTensor(weights=torch.ones(2)), HoldsModule(network=nn.Linear(1, 1)), local()],
    "settings_are_checked": [Unchecked()],
    "what_does_not_fit_is_refused": [Lenient()],
    "results_are_shaped_like_the_start": [Flat()],
    "an_empty_batch_is_solved": [NeedsSamples()],
    "inputs_are_feasible": [Unprojected()],
    "the_budget_is_kept": [TwiceAsLong()],
    "nfe_is_what_was_spent": [HiddenEvaluations(), HalfTheCost(), Inflated(max_nfe=1000)],
    "the_objective_improves": [Scaled(factor=0.0), Scaled(factor=-1.0)],
    "the_objective_is_that_of_the_input": [ReturnsTheStart(), Promises()],
    "more_budget_is_never_worse": [Overruns(max_nfe=300)],
    "converged_is_solved": [ConvergesInUnits(), AlwaysConverged(max_nfe=20)],
    "single_precision_has_gradients": [Overflows()],
    "single_precision_is_kept": [Doubles()],
    "autocast_is_survived": [Halves()],
    "what_is_reported_belongs_to_what_is_returned": [Flatters(), AlwaysConverged()],
    "recording_changes_nothing": [Untraced(), TracedLonger()],
    **{clause: [Couples()] for clause in COUPLED},
    "a_sample_without_gradient_harms_no_other": [Undefined()],
    "a_solved_sample_stops_and_harms_no_other": [Jitters()],
    "compaction_changes_nothing": [HoldsList()],
    "the_same_seed_gives_the_same_bits": [Unseeded()],
    "nothing_is_kept_between_solves": [Remembers()],
    "the_step_changes_nothing_in_place": [Writes(), WritesIntoTheGradient()],
    "the_start_is_left_alone": [WritesIntoTheStart(), LeavesGradients()],
    "it_works_without_grad": [Polishes()],
    "an_adjoint_is_attached": [DropsTheAdjoint()],
    "it_can_be_differentiated_through": [Detaches(), DetachesTheGradient()],
}
