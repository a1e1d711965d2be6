"""The stationary system of a joint problem in rows ``w = [z | mu | x]``, one a sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deqopt.problem import JointProblem
from deqopt.state import Layout, State, state_of, tensors_of, work_dtype


@dataclass
class StationarySystem:
    """The equations ``z = f``, ``mu = g_z``, ``x = Proj(x - a g_x)`` of some samples of a problem.

    Rows of states are ``[z | mu]``, (B, twice the width of z); rows of inputs are x, (B, width of x).

    Attributes:
        problem: of these samples.
        z, x: how states and inputs lie in the rows.
        dtype: of the rows, at least float32.
    """

    problem: JointProblem
    z: Layout
    x: Layout
    dtype: torch.dtype

    @property
    def widths(self) -> list[int]:
        """Widths of the blocks z, mu and x."""
        return [self.z.width, self.z.width, self.x.width]

    def pack(self, z: State, mu: State, x: Tensor) -> Tensor:
        """``[z | mu | x]`` in rows."""
        return torch.cat([*self._state_rows(z, mu), *self.x.rows(x, self.dtype)], dim=1)

    def unpack(self, w: Tensor) -> tuple[State, State, Tensor]:
        """z, mu and x without gaps between samples, with which convolutions take longer."""
        z, mu, x = w.split(self.widths, dim=1)
        return _contiguous(self.z.unpack(z)), _contiguous(self.z.unpack(mu)), self.shaped(x).contiguous()

    def states(self, z: State, mu: State) -> Tensor:
        """``[z | mu]`` in rows."""
        return torch.cat(self._state_rows(z, mu), dim=1)

    def join(self, states: Tensor, x: Tensor) -> Tensor:
        """Rows of states and of inputs side by side."""
        return torch.cat([states, x], dim=1)

    def split(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of states and of inputs: views."""
        states, x = w.split([2 * self.z.width, self.x.width], dim=1)
        return states, x

    def shaped(self, x: Tensor) -> Tensor:
        """Rows of inputs as (B, *input)."""
        return x.reshape(x.shape[0], *self.x.shapes[0])

    def project(self, x: Tensor) -> Tensor:
        """Rows of inputs onto the feasible set."""
        return self.x.pack(self.problem.feasible.project(self.shaped(x)), self.dtype)

    def projected_gradient(self, x: Tensor, g_x: Tensor, a: Tensor) -> Tensor:
        """``(x - Proj(x - a g_x)) / a`` in rows, a (B, 1): zero at the optimum, exactly g_x where no constraint is
        active, without cancellation."""
        beyond = x - a * g_x
        return g_x + (beyond - self.project(beyond)) / a

    def _state_rows(self, z: State, mu: State) -> list[Tensor]:
        return [*self.z.rows(z, self.dtype), *self.z.rows(mu, self.dtype)]


def rows_dtype(z: State, x: Tensor) -> torch.dtype:
    """The precision of rows that hold z and x: the wider of both, at least float32."""
    return torch.promote_types(work_dtype(z), work_dtype(x))


def _contiguous(state: State) -> State:
    return state_of((part.contiguous() for part in tensors_of(state)), state)
