"""One mutant or more of a sane solver for every clause of the solver contract that it breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deqopt.loop_settings import LoopSettings
from deqopt.memory import Memory
from deqopt.solvers import JointEvaluation, JointSolver, JointSystem
from dishonest_solvers import (
    AlwaysConverged,
    ConvergesInUnits,
    DropsTheAdjoint,
    Flat,
    Flatters,
    HalfTheCost,
    Halves,
    Inflated,
    Jitters,
    LeavesGradients,
    Lenient,
    Overruns,
    Polishes,
    Promises,
    Remembers,
    ReturnsTheStart,
    TracedLonger,
    TwiceAsLong,
    Untraced,
    WritesIntoTheStart,
)
from sane_solver import Descent


class Undecorated(Descent):
    momentum: float = 0.5


@dataclass(frozen=True)
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
    @dataclass(frozen=True)
    class Local(Descent):
        pass

    return Local()


@dataclass(frozen=True)
class Unchecked(Descent):
    def __post_init__(self) -> None:
        assert self.step_size > 0


@dataclass(frozen=True)
class NeedsSamples(Descent):
    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> Memory:
        assert x.abs().max() < torch.inf or x.isnan().any()
        return super().begin(system, states, x)


@dataclass(frozen=True)
class Unprojected(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        return at.image, at.x - self.step_size * at.g_x


@dataclass(frozen=True)
class HiddenEvaluations(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        w = system.join(*super().step(system, at, memory))
        return super().step(system, system.evaluate(w), memory)


@dataclass(frozen=True)
class Unmoved(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return torch.zeros_like(at.g_x)


@dataclass(frozen=True)
class Uphill(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return -at.g_x


@dataclass(frozen=True)
class Doubles(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        states, x = super().step(system, at, memory)
        return states.double(), x.double()


@dataclass(frozen=True)
class Couples(Descent):
    """The step of a sample depends on the mean gradient of the batch."""

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x / (1 + 0.1 * at.g_x.mean().abs())


@dataclass(frozen=True)
class Undefined(Descent):
    """A normalised step that divides by zero."""

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x / at.g_x.norm(dim=1, keepdim=True)


class Gradients(Memory):
    def __init__(self, w: Tensor) -> None:
        super().__init__(w)
        self.past: list[Tensor] = []


@dataclass(frozen=True)
class HoldsList(Descent):
    """A memory that the loop cannot pick from."""

    def begin(self, system: JointSystem, states: Tensor, x: Tensor) -> Memory:
        return Gradients(x)

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        assert isinstance(memory, Gradients)
        memory.past.append(at.g_x)
        return (memory.past[-1] + memory.past[-2]) / 2 if len(memory.past) > 1 else at.g_x


@dataclass(frozen=True)
class Unseeded(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return at.g_x * (1 + 0.1 * torch.rand((), generator=generator).to(at.g_x))


@dataclass(frozen=True)
class Writes(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        return at.states.copy_(at.image), super().step(system, at, memory)[1]


@dataclass(frozen=True)
class WritesIntoTheGradient(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x.clamp_(-10, 10)


@dataclass(frozen=True)
class Detaches(Descent):
    def step(self, system: JointSystem, at: JointEvaluation, memory: Memory) -> tuple[Tensor, Tensor]:
        states, x = super().step(system, at, memory)
        return states.detach(), x.detach()


@dataclass(frozen=True)
class DetachesTheGradient(Descent):
    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        return at.g_x.detach()


@dataclass(frozen=True)
class Overflows(Descent):
    """Multiplies by one, with a derivative that float32 cannot hold."""

    def direction(self, at: JointEvaluation, memory: Memory) -> Tensor:
        nothing = (at.g_x - at.g_x.detach()).square().sum(1, keepdim=True) + 1e-36
        return at.g_x * nothing * (1 / nothing)


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
    "the_objective_improves": [Unmoved(), Uphill()],
    "the_objective_is_that_of_the_input": [ReturnsTheStart(), Promises()],
    "more_budget_is_never_worse": [Overruns(max_nfe=300)],
    "converged_is_solved": [ConvergesInUnits(), AlwaysConverged(max_nfe=20)],
    "single_precision_has_gradients": [Overflows()],
    "single_precision_is_kept": [Doubles()],
    "autocast_is_survived": [Halves()],
    "what_is_reported_belongs_to_what_is_returned": [Flatters(), AlwaysConverged()],
    "recording_changes_nothing": [Untraced(), TracedLonger()],
    "samples_are_solved_as_if_alone": [Couples()],
    "a_nan_sample_harms_no_other": [Couples()],
    "a_sample_that_becomes_nan_harms_no_other": [Couples()],
    "a_diverging_sample_harms_no_other": [Couples()],
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
