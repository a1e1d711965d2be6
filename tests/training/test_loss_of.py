"""JointModule.loss_of: what a Trainer trains with, for loops of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from deqopt import Equilibrium, JointModule
from deqopt.adjoints import Adjoint, Envelope, Implicit, Unrolled
from deqopt.errors import ProblemError
from deqopt.optimization import Algorithm, Optimization, Schedule
from deqopt.regularizers import JacobianPenalty, SpectralPenalty
from deqopt.solvers import Tracking
from hooks import On, ran
from tiny_task import Batch, Tiny

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{message}")
    for message in ("of 4 samples of a batch", "is skipped", "the backward solve")
]
SGD = Optimization(algorithm=Algorithm.SGD, lr=0.05, schedule=Schedule.CONSTANT)
PENALTIES = (JacobianPenalty(weight=0.5, visits=2), SpectralPenalty(weight=0.25))


class Outer(Tiny):
    """With a loss that the objective does not know."""

    def loss(self, equilibrium: Equilibrium, batch: Batch) -> Tensor:
        assert isinstance(equilibrium.z, Tensor)
        return (equilibrium.z.sum(1) - 1).square() + equilibrium.x.sum(1) + equilibrium.objective


def made(adjoint: Adjoint, spoiled: tuple[int, ...] = ()) -> JointModule:
    torch.manual_seed(0)
    return JointModule(
        (Tiny if isinstance(adjoint, Envelope) else Outer)(8, 4, spoiled=spoiled),
        Tracking(max_nfe=8),
        adjoint,
        PENALTIES,
        SGD,
    )


@pytest.mark.parametrize("adjoint", [Envelope(), Implicit(), Unrolled()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("spoiled", [(), (1,), (0, 1, 2, 3)])
def test_a_loop_of_ones_own_learns_what_a_trainer_learns(
    adjoint: Adjoint, spoiled: tuple[int, ...], tmp_path: Path
) -> None:
    module, trained = made(adjoint, spoiled), made(adjoint, spoiled)
    # The loader has drawn random numbers by then.
    seeded = On(on_train_batch_start=lambda trainer, module, batch, number: torch.manual_seed(number))
    ran(trained, tmp_path, seeded, max_epochs=1, limit_val_batches=0)
    optimizer = SGD.optimizer(module.task.parameters())
    for number, rows in enumerate(((0, 1, 2, 3), (4, 5, 6, 7))):
        torch.manual_seed(number)
        loss = module.loss_of(module.task.batch(*rows))
        assert loss.samples == len(set(rows) - set(spoiled))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert torch.equal(*(parameters_to_vector(one.parameters()) for one in (module, trained)))


def test_the_loss_says_what_it_is_made_of() -> None:
    module = made(Implicit())
    loss = module.loss_of(module.task.batch())
    assert loss.solved is not None and loss.solved.backward is not None and loss.equilibrium is not None
    weighted = [one.weight * loss.penalties[one.name] for one in PENALTIES]
    torch.testing.assert_close(loss.total, loss.mean + sum(weighted))
    torch.testing.assert_close(loss.mean, module.task.loss(loss.equilibrium, loss.batch).mean())
    assert loss.solved.backward.residual is None
    loss.total.backward()
    assert loss.solved.backward.residual is not None


def test_a_batch_without_samples_is_refused() -> None:
    module = made(Envelope())
    with pytest.raises(ProblemError, match="a batch has 0 samples"):
        module.loss_of({name: part[:0] for name, part in module.task.batch().items()})
